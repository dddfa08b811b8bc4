"""Several records into one, and one into JSON lines."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TextIO

from mxfp4_validate import states
from mxfp4_validate.endpoint.collect import counts_of
from mxfp4_validate.errors import InvalidRun, UsageError
from mxfp4_validate.grading.base import Grade
from mxfp4_validate.records.evals import EvalStore, run_file
from mxfp4_validate.records.sample import Sample
from mxfp4_validate.serving.lock import check_folder
from mxfp4_validate.serving.planned import difference


def merge(paths: Sequence[Path], out: Path) -> dict[str, int]:
    """A new run at `out` with every sample of the runs; samples by state. A sample answered in two of them is refused: nothing may count twice.

    Raises:
        InvalidRun: the runs have other questions, settings or servers, or hold the same sample. UsageError: fewer than two, or `out` is taken.
    """
    if len(paths) < 2:
        raise UsageError(f"merge needs at least two runs, {len(paths)} given")
    check_folder(out)
    stores = [EvalStore.open(path) for path in paths]
    try:
        first = stores[0].run()
        for path, store in zip(paths[1:], stores[1:], strict=True):
            run = store.run()
            wrong = difference(first.fingerprint | {"repeats": first.repeats}, run.fingerprint | {"repeats": run.repeats})
            if wrong or store.questions() != stores[0].questions():
                raise InvalidRun(f"{path} is no part of the run of {paths[0]}: {'; '.join(wrong) or 'its questions differ'}")
        settings = first.settings | {"merged": [store.run().id for store in stores]}
        whole = EvalStore.create(
            run_file(out), first.suite, first.repeats, stores[0].questions(), settings, first.fingerprint, first.provenance
        )
        with whole:
            for store in stores:
                _copy(store, whole)
            whole.finish(0)
            return dict(counts_of(whole.states(), len(stores[0].questions()) * first.repeats))
    finally:
        for store in stores:
            store.close()


def _copy(store: EvalStore, whole: EvalStore) -> None:
    for boot, (address, identity) in store.boots().items():
        whole.add_boot(boot, address, identity)
    for _, kind, text in store.events():
        whole.add_event(kind, text)
    run = store.run()
    modes = store.modes()
    grades = {mode: store.grades(mode) for mode in modes}
    attempts: dict[tuple[str, int], list[object]] = {}
    for row in store.attempts():
        attempts.setdefault((row.question_id, row.repeat), []).append(row)
    there = whole.states()
    for sample in store.samples():
        key = sample.question_id, sample.repeat
        if there.get(key) in states.MODEL_STATES and sample.state not in states.MODEL_STATES:
            continue
        mine: dict[str, Grade] = {mode: grades[mode][key] for mode in modes if key in grades[mode]}
        whole.add([(sample, attempts.get(key, []), mine)], run.fingerprint["grader_version"])  # type: ignore[list-item]


def export_jsonl(path: Path, stream: TextIO) -> None:
    """The run on the first line, then one sample a line with its grades; strict ASCII JSON, so that no text can break a line."""
    with EvalStore.open(path) as store:
        run = store.run()
        stream.write(json.dumps({"run": asdict(run), "boots": store.boots(), "events": store.events()}) + "\n")
        grades = {mode: store.grades(mode) for mode in store.modes()}
        for sample in store.samples():
            stream.write(json.dumps(sample_row(sample, grades)) + "\n")


def sample_row(sample: Sample, grades: dict[str, dict[tuple[str, int], Grade]]) -> dict[str, object]:
    """A sample as a JSON object."""
    key = sample.question_id, sample.repeat
    return {**asdict(sample), "grades": {mode: asdict(found[key]) for mode, found in grades.items() if key in found}}
