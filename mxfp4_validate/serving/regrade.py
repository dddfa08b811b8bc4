"""Stored texts graded again: nothing is asked, and what changed is listed."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mxfp4_validate import evalspec, states
from mxfp4_validate.grading import GRADER_VERSION, grade
from mxfp4_validate.grading.base import Grade
from mxfp4_validate.records.evals import EvalStore
from mxfp4_validate.serving.lock import FolderLock


def regrade(path: Path, write: bool = True) -> list[dict[str, Any]]:
    """Grade every sample of a model again in all modes of the run; rows {question_id, repeat, mode, before, after} of those that changed.

    The state of a sample may turn from `answered` to `no_answer` or back with the grade that decides it, and with it nothing else.
    """
    with EvalStore.open(path) as store:
        run = store.run()
        suite = evalspec.load(run.suite).grader
        golds = {row[0]: json.loads(row[2]) for row in store.questions()}
        modes = tuple(dict.fromkeys((run.fingerprint["grader"], *store.modes(), "lenient", "strict")))
        old = {mode: store.grades(mode) for mode in modes}
        changed: list[dict[str, Any]] = []
        new: list[tuple[str, int, str, dict[str, Grade]]] = []
        for sample in store.samples():
            if sample.state not in states.MODEL_STATES:
                continue
            gold = golds[sample.question_id]
            key = sample.question_id, sample.repeat
            grades = {mode: grade(suite, sample.content, gold[sample.repeat if len(gold) > 1 else 0], mode=mode) for mode in modes}
            new.append((*key, _state(sample.state, grades[modes[0]]), grades))
            for mode in modes:
                before, after = old[mode].get(key), grades[mode]
                if before is None or (before.correct, before.answer) != (after.correct, after.answer):
                    changed.append(
                        {"question_id": key[0], "repeat": key[1], "mode": mode, "before": _short(before), "after": _short(after)}
                    )
        file = store.path
    if write:
        with FolderLock(file.parent), EvalStore.resume(file) as store:
            store.regrade(new, GRADER_VERSION, run.fingerprint | {"grader_version": GRADER_VERSION})
    return changed


def _state(state: str, found: Grade) -> str:
    if state not in (states.ANSWERED, states.NO_ANSWER):
        return state
    return states.ANSWERED if found.answer is not None else states.NO_ANSWER


def _short(found: Grade | None) -> dict[str, Any] | None:
    return {name: value for name, value in asdict(found).items() if name in ("correct", "answer", "rule")} if found else None
