"""A stored eval run as one leg of a comparison: a pure function of the record."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mxfp4_validate.errors import InvalidRun
from mxfp4_validate.records.evals import INVALIDATING, EvalStore
from mxfp4_validate.states import MODEL_STATES, NOT_RUN
from mxfp4_validate.verdicts import Leg


def read_leg(path: Path, mode: str | None = None) -> Leg:
    """The leg of the run at `path`, graded by the run's own grader or by another of its stored modes.

    Raises:
        UsageError: not an eval run. InvalidRun: a damaged sample, or a sample of a model without a grade.
    """
    with EvalStore.open(path) as store:
        run = store.run()
        ids = tuple(row[0] for row in store.questions())
        grades = store.grades(mode or run.fingerprint["grader"])
        place = {question: i for i, question in enumerate(ids)}
        shape = (len(ids), run.repeats)
        states = np.full(shape, NOT_RUN, dtype="<U20")
        correct, boots, tokens = np.zeros(shape, dtype=bool), np.full(shape, "", dtype="<U40"), np.full(shape, np.nan)
        invalid = [f"{kind}: {text}" for _, kind, text in store.events() if kind in INVALIDATING]
        for sample in store.samples():
            if sample.question_id not in place or not 0 <= sample.repeat < run.repeats:
                raise InvalidRun(
                    f"{path} is damaged, it cannot be trusted: sample {sample.question_id!r} repeat {sample.repeat} is not planned"
                )
            at = place[sample.question_id], sample.repeat
            states[at], boots[at] = sample.state, sample.boot
            tokens[at] = np.nan if sample.completion_tokens is None else sample.completion_tokens
            if sample.state in MODEL_STATES:
                grade = grades.get((sample.question_id, sample.repeat))
                correct[at] = grade is not None and grade.correct and sample.state == "answered"
                if grade is None and sample.state == "answered":
                    invalid.append(f"no grade of mode {mode or run.fingerprint['grader']!r}: run `mxfp4-validate regrade` on it")
                if grade is not None and "grader-error" in grade.flags:
                    invalid.append(f"the grader failed on {sample.question_id} repeat {sample.repeat}")
        identity: dict[str, str] = {}
        for _, values in store.boots().values():
            for name, value in values.items():
                seen = identity.setdefault(name, value)
                if value not in seen.split(" | "):
                    identity[name] = f"{seen} | {value}"
        fingerprint = dict(run.fingerprint) | ({"grader": mode} if mode else {})
        return Leg(
            run.id, run.suite, ids, run.repeats, states, correct, boots, tokens, fingerprint, identity, tuple(dict.fromkeys(invalid))
        )
