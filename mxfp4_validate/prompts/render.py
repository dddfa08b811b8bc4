"""A question becomes messages, and the hash of exactly what will be sent."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass

from mxfp4_validate.errors import UsageError
from mxfp4_validate.evalspec import EvalSpec
from mxfp4_validate.prompts import installed
from mxfp4_validate.prompts.orders import shown_order
from mxfp4_validate.prompts.profiles import Profile
from mxfp4_validate.questions.base import Question
from mxfp4_validate.questions.canonical import LETTERS, permutation, source_options

_FIELD = re.compile(r"\{(question|options)\}")


@dataclass(frozen=True)
class Context:
    """What some profiles look at besides the question.

    Attributes:
        repeat: number of the repeat, from 0.
        order: ids of the whole set in the order of its file.
        shots: question and worked answer of the rows at the head of the file, for profiles that show them.
    """

    repeat: int = 0
    order: tuple[str, ...] = ()
    shots: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Rendered:
    """One request's messages.

    Attributes:
        messages: role and content, in order.
        gold: the gold answer of *this* rendering: a profile that orders options its own way has another letter than `Question.gold`.
        options: the options as shown, empty for free answers.
        order: places in the source of the options shown, 0 being the right one; letters of two profiles are compared through it.
    """

    messages: tuple[Mapping[str, str], ...]
    gold: str
    options: tuple[str, ...] = ()
    order: tuple[int, ...] = ()

    @property
    def sha256(self) -> str:
        """Of the messages as canonical JSON."""
        return hashlib.sha256(json.dumps(self.messages, ensure_ascii=True, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def render(question: Question, profile: Profile, spec: EvalSpec, context: Context | None = None) -> Rendered:
    """The messages for one question under one profile.

    Raises:
        UsageError: the profile has no such suite, its package is not installed, or it needs a part of `context` that is not given.
    """
    context = context or Context()
    order = _order(question, profile, spec.grader, context)
    options = tuple(source_options(question)[place] for place in order)
    if not profile.package:
        return Rendered(_message(_filled(spec.prompt.rstrip("\n"), question.text, options)), question.gold, options, order)
    shown, messages = installed.messages(profile, spec.grader, question, options, context.shots)
    # The tools look the right option up by its text, so of two that read the same the first one is theirs.
    gold = LETTERS[shown.index(shown[order.index(0)])] if order else question.gold
    return Rendered(messages, gold, shown, order)


def _order(question: Question, profile: Profile, suite: str, context: Context) -> tuple[int, ...]:
    shots = profile.shots.get(suite, 0)
    if shots:
        if len(context.shots) < shots or not context.order:
            raise UsageError(
                f"profile {profile.name!r} shows the first {shots} rows of the file as examples; give them as context.shots and order"
            )
        if question.id in context.order[:shots]:
            raise UsageError(
                f"question {question.id!r} is one of the {shots} examples of profile {profile.name!r}, which are not asked; leave it out"
            )
    if not question.options:
        return ()
    return permutation(question.id) if profile.order == "id" else shown_order(profile.order, question.id, context.order, context.repeat)


def _filled(template: str, text: str, options: tuple[str, ...]) -> str:
    """The template with its fields filled in one pass, so that braces in a question are never read as fields."""
    listed = "\n".join(f"{letter}) {option}" for letter, option in zip(LETTERS, options, strict=False))
    values = {"question": text, "options": listed}
    return _FIELD.sub(lambda match: values[match[1]], template)


def _message(content: str) -> tuple[Mapping[str, str], ...]:
    return ({"role": "user", "content": content},)
