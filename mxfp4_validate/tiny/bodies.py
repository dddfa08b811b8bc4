"""Request bodies to jobs: every field is checked, and one that would be ignored although it changes answers is refused."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mxfp4_validate.tiny.sampling import Sampling
from mxfp4_validate.tiny.text import Text

#: Fields that change an answer and that this server has no use for, with the values that change nothing.
UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "n": (1,), "best_of": (1,), "presence_penalty": (0,), "frequency_penalty": (0,), "logit_bias": ({},), "tools": ([],), "suffix": ("",),
    "response_format": ({"type": "text"},), "regex": ("",), "json_schema": ("",), "min_tokens": (0,), "min_new_tokens": (0,),
}  # fmt: skip


class BadRequest(Exception):
    """A body that cannot be answered; `field` is where, `status` the HTTP status."""

    def __init__(self, field: str, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.field, self.status = field, status


@dataclass(frozen=True)
class Limits:
    """What requests are checked against: tokens of prompt and answer together, and the vocabulary's size."""

    context_length: int
    vocab_size: int


class Body:
    """A JSON object whose fields are taken by type. A null counts as absent, as clients send it."""

    def __init__(self, data: Any, where: str = "") -> None:
        if not isinstance(data, dict):
            raise BadRequest(where or "body", f"{where or 'the body'} must be a JSON object, got {type(data).__name__}")
        self._data, self._where = data, f"{where}." if where else ""

    def get(self, name: str) -> Any:
        return self._data.get(name)

    def fail(self, name: str, message: str) -> BadRequest:
        return BadRequest(self._where + name, f"{self._where}{name} {message}")

    def number(self, name: str, default: float, low: float, high: float = float("inf"), above: bool = False) -> float:
        """A number in [low, high], or in (low, high] if `above`."""
        value = self.get(name)
        if value is None:
            return default
        good = isinstance(value, int | float) and not isinstance(value, bool) and (low < value if above else low <= value) and value <= high
        if not good:
            raise self.fail(name, f"must be a number {'above' if above else 'of at least'} {low:g} and at most {high:g}, got {value!r}")
        return float(value)

    def integer(self, name: str, default: int | None, low: int, high: int = 2**63) -> int | None:
        value = self.get(name)
        if value is None:
            return default
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise self.fail(name, f"must be an integer in {low}..{high}, got {value!r}")
        return value

    def flag(self, name: str, default: bool = False) -> bool:
        value = self.get(name)
        if value is not None and not isinstance(value, bool):
            raise self.fail(name, f"must be true or false, got {value!r}")
        return default if value is None else value

    def texts(self, name: str) -> tuple[str, ...]:
        """One text or a list of them, none empty."""
        value = self.get(name)
        found = [value] if isinstance(value, str) else value or []
        if not isinstance(found, list) or not all(isinstance(text, str) and text for text in found):
            raise self.fail(name, f"must be a text or a list of texts, none empty, got {value!r}")
        return tuple(found)

    def tokens(self, name: str) -> frozenset[int]:
        value = self.get(name) or []
        if not isinstance(value, list) or not all(isinstance(token, int) and not isinstance(token, bool) for token in value):
            raise self.fail(name, f"must be a list of token ids, got {value!r}")
        return frozenset(value)

    def refuse_unsupported(self) -> None:
        for name, harmless in UNSUPPORTED.items():
            value = self.get(name)
            if value is not None and value not in harmless:
                raise self.fail(name, f"{value!r} is not supported by this server; leave it out")


def sampling(body: Body, max_tokens: int) -> Sampling:
    """The sampling fields, which OpenAI's and SGLang's bodies name alike but for the seed. A request without a seed gets a random one."""
    body.refuse_unsupported()
    top_k = body.integer("top_k", -1, -1)
    if top_k == 0:
        raise body.fail("top_k", "must be -1 (all) or at least 1, got 0")
    seed = body.integer("sampling_seed", body.integer("seed", None, -(2**63)), -(2**63))
    return Sampling(
        max_tokens=max_tokens,
        temperature=body.number("temperature", 1.0, 0.0, 100.0),
        top_p=body.number("top_p", 1.0, 0.0, 1.0, above=True),
        min_p=body.number("min_p", 0.0, 0.0, 1.0),
        top_k=-1 if top_k is None else top_k,
        repetition_penalty=body.number("repetition_penalty", 1.0, 0.0, 2.0, above=True),
        seed=secrets.randbits(63) if seed is None else seed,
        stop=body.texts("stop"),
        stop_ids=body.tokens("stop_token_ids"),
        ignore_eos=body.flag("ignore_eos"),
    )


def room(body: Body, names: Sequence[str], prompt: Sequence[int], field: str, limits: Limits, default: int | None, least: int) -> int:
    """The cap on new tokens: the first of `names` that `body` gives, else `default`, else what the context leaves after `prompt`.

    Raises `BadRequest` for a prompt that is empty or holds what is no token, and for prompt and answer that do not fit the context.
    """
    left = limits.context_length - len(prompt)
    wrong = next((token for token in prompt if not 0 <= token < limits.vocab_size), None)
    if not prompt:
        raise BadRequest(field, f"{field} holds no token")
    if wrong is not None:
        raise BadRequest(field, f"{field} holds token {wrong}, which is not in 0..{limits.vocab_size - 1}")
    if left < least:
        raise BadRequest(field, f"{field} has {len(prompt)} tokens, too many for an answer in a context of {limits.context_length} tokens")
    name = next((name for name in names if body.get(name) is not None), names[0])
    wanted = body.integer(name, None, least)
    if wanted is not None and wanted > left:
        raise body.fail(name, f"{wanted} and the prompt's {len(prompt)} tokens exceed the context of {limits.context_length} tokens")
    return min(left, default if default is not None else left) if wanted is None else wanted


def chat_prompt(body: Body, text: Text) -> list[int]:
    """Token ids of `messages` by the chat template."""
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise body.fail("messages", "must be a list of at least one message")
    options = body.get("chat_template_kwargs") or {}
    if not isinstance(options, dict):
        raise body.fail("chat_template_kwargs", f"must be an object, got {type(options).__name__}")
    if body.get("reasoning_effort") is not None:
        options = {**options, "reasoning_effort": body.get("reasoning_effort")}
    try:
        return text.chat([_message(body, place, message) for place, message in enumerate(messages)], options)
    except ValueError as error:
        raise body.fail("messages", str(error)) from error


def _message(body: Body, place: int, message: Any) -> Mapping[str, Any]:
    """A message whose content is one text; a list of text parts is joined."""
    where = f"messages[{place}]"
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise body.fail(where, "must be an object with a text 'role' and a 'content'")
    content = message.get("content")
    if isinstance(content, list):
        if not all(isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str) for part in content):
            raise body.fail(f"{where}.content", "has a part that is not of type 'text'; this model reads text alone")
        content = "".join(part["text"] for part in content)
    if not isinstance(content, str):
        raise body.fail(f"{where}.content", f"must be a text, got {type(content).__name__}")
    return {**message, "content": content}


def prompts(body: Body, name: str, text: Text) -> tuple[list[list[int]], bool]:
    """A text, a list of texts, a list of token ids or a list of those -> token ids of each prompt, and whether it was a list of prompts."""
    value = body.get(name)
    try:
        if isinstance(value, str):
            return [text.encode(value)], False
        if isinstance(value, list) and value and all(isinstance(item, str) for item in value):
            return [text.encode(item) for item in value], True
    except ValueError as error:
        raise body.fail(name, str(error)) from error
    if isinstance(value, list) and value:
        if all(_is_id(item) for item in value):
            return [value], False
        if all(isinstance(item, list) and all(_is_id(token) for token in item) for item in value):
            return value, True
    raise body.fail(name, "must be a text, a list of texts, a list of token ids, or a list of lists of token ids")


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
