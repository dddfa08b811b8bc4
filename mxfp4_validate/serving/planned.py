"""What an eval run is to do, fixed before the first request: tasks, settings with their origin, and the fingerprint two runs must share."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mxfp4_validate.endpoint.collect import Task
from mxfp4_validate.errors import UsageError
from mxfp4_validate.evalspec import EvalSpec
from mxfp4_validate.grading import GRADER_VERSION
from mxfp4_validate.prompts.profiles import Profile
from mxfp4_validate.prompts.render import Context, render
from mxfp4_validate.questions.base import Question, QuestionSet


@dataclass(frozen=True)
class Planned:
    """A run before it starts.

    Attributes:
        tasks: every sample, whole repeats one after the other, so that a stopped run has as many complete blocks as it can.
        rows: (id, row sha256, golds as JSON, prompt sha256) by question; golds hold one letter, or one a repeat where a profile turns options.
        fingerprint: name -> value; two runs are compared only if all are equal.
    """

    spec: EvalSpec
    repeats: int
    looks: tuple[int, ...]
    tasks: tuple[Task, ...]
    rows: tuple[tuple[str, str, str, str], ...]
    fingerprint: Mapping[str, str]
    settings: Mapping[str, Any]
    notes: tuple[str, ...]


def plan_run(
    spec: EvalSpec,
    profile: Profile,
    questions: QuestionSet,
    repeats: int,
    settings: Mapping[str, Any],
    shard: tuple[int, int] = (1, 1),
    order: Sequence[str] = (),
    examples: Sequence[tuple[str, str]] = (),
) -> Planned:
    """Render everything and fix it. `spec` already has the sampling that will be sent.

    Args:
        shard: (i, n) asks every n-th question, from the i-th.
        order: ids of the whole set in the order of its file, where `questions` is a part of it; some profiles turn options by it.
        examples: question and worked answer of the rows a profile shows in every prompt; those rows are not asked.
    """
    if repeats < 1:
        raise UsageError(f"--repeats is {repeats}, it must be at least 1")
    order = tuple(order) or tuple(question.id for question in questions.questions)
    shots = profile.shots.get(spec.grader, 0)
    asked = tuple(question for question in questions.questions if question.id not in order[:shots])
    if not asked:
        raise UsageError(f"profile {profile.name!r} shows {shots} rows as examples and the set has no more; give a larger set")
    rendered = {(q.id, r): render(q, profile, spec, Context(r, order, tuple(examples))) for r in range(repeats) for q in asked}
    tasks = [
        Task(q.id, r, rendered[q.id, r].messages, rendered[q.id, r].gold)
        for r in range(repeats)
        for place, q in enumerate(asked)
        if place % shard[1] == shard[0] - 1
    ]
    rows = [_row(q, [rendered[q.id, r] for r in range(repeats)], questions.row_hashes()[q.id]) for q in asked]
    looks = looks_for(spec, repeats)
    fingerprint = {
        "questions": questions.sha256 if not shots else f"{questions.sha256} without the first {shots}",
        "prompts": hashlib.sha256("\n".join(sorted(row[3] for row in rows)).encode()).hexdigest(),
        "profile": profile.name,
        "grader": profile.grader,
        "grader_version": GRADER_VERSION,
        **{name: json.dumps(value) for name, value in spec.sampling.to_dict().items()},
    }
    settings = {**settings, "looks": list(looks), "margin": spec.margin, "source": questions.source, "revision": questions.revision}
    return Planned(spec, repeats, looks, tuple(tasks), tuple(rows), fingerprint, settings, questions.notes)


def _row(question: Question, rendered: Sequence[Any], sha: str) -> tuple[str, str, str, str]:
    golds = [r.gold for r in rendered]
    prompts = list(dict.fromkeys(r.sha256 for r in rendered))
    return question.id, sha, json.dumps(golds[:1] if len(set(golds)) == 1 else golds), "|".join(prompts)


def looks_for(spec: EvalSpec, repeats: int) -> tuple[int, ...]:
    """The eval's own looks if its repeats are asked for, else one look at the end: a plan is fixed before the run."""
    return spec.looks if repeats == spec.looks[-1] else (repeats,)


def difference(stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """What differs between a stored run and the one asked for, a line each with both values."""
    return [
        f"{name}: the run has {stored.get(name, 'nothing')!r}, asked for is {wanted.get(name, 'nothing')!r}"
        for name in sorted(stored.keys() | wanted.keys())
        if stored.get(name) != wanted.get(name)
    ]
