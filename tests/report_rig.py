"""What the report's tests share: invented eval pairs and kernel records of any size, hostile texts included."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mxfp4_validate.grading.base import Grade
from mxfp4_validate.records.evals import AttemptRow, EvalStore
from mxfp4_validate.records.sample import Sample
from mxfp4_validate.records.store import Result, Store

FINGERPRINT = {"grader": "lenient", "max_tokens": "4096", "questions": "abc", "prompts": "def", "temperature": "0.6"}
PROVENANCE: dict[str, Any] = {"versions": {"torch": "2.13.0"}, "gpus": [], "python": "3.11", "commit": "0123"}


def make_eval(
    out: Path,
    backend: str,
    accuracy: Callable[[int], float],
    questions: int = 30,
    repeats: int = 16,
    text: Callable[[int, int], str] = lambda i, r: f"Step one of {i}.\nSo the answer is {i}.",
    seed: int = 0,
    settings: Mapping[str, Any] | None = None,
    missing: int = 0,
    names: Callable[[int], str] = lambda i: f"aime25-{i:02}",
    identity: Mapping[str, str] | None = None,
) -> Path:
    """A finished eval run in `out`: question i is right with probability accuracy(i); the last `missing` samples failed."""
    rng = random.Random(seed)
    rows = [(names(i), "hash", f'["{i}"]', "prompt") for i in range(questions)]
    looks = {"looks": [repeats], "margin": 0.03, "revision": "", "sampling": {}, "source": "invented"}
    with EvalStore.create(out / "run.sqlite", "aime25", repeats, rows, looks | dict(settings or {}), FINGERPRINT, PROVENANCE) as store:
        store.add_boot(f"boot-{backend}", "http://127.0.0.1:1", {"model": "tiny", "moe_backend": backend, **(identity or {})})
        batch = []
        for i in range(questions):
            for repeat in range(repeats):
                gone = i * repeats + repeat >= questions * repeats - missing
                batch.append(entry(names(i), i, repeat, rng.random() < accuracy(i), text(i, repeat), backend, rng, gone))
        store.add(batch, "1")
        store.finish(5 if missing else 0)
    return out


def entry(name: str, i: int, repeat: int, right: bool, text: str, backend: str, rng: random.Random, gone: bool) -> Any:
    boot, tokens = f"boot-{backend}", rng.randrange(200, 3000)
    if gone:
        row = AttemptRow(name, repeat, "2026-01-01", "timeout", 0, 9.0, "nothing came", boot, ())
        return Sample(name, repeat, "timeout", error="nothing came", boot=boot, attempts=1), [row], {}
    row = AttemptRow(name, repeat, "2026-01-01", "ok", 200, 0.5, "", boot, ())
    sample = Sample(name, repeat, "answered", content=text, completion_tokens=tokens, boot=boot, attempts=1)
    return sample, [row], {"lenient": Grade(right, str(i if right else i + 1), "boxed")}


def make_kernel(path: Path, results: list[Result], status: int | None = 0, settings: Mapping[str, Any] | None = None) -> Path:
    """A kernel record with these results; `status` None is a run that was cut short."""
    base = {"backends": {"emulate:sm90-cutlass": "cpu"}, "markers": "kernel", "keywords": "x", "case": None, "check": None}
    with Store.create(path, base | dict(settings or {}), PROVENANCE) as store:
        store._db.execute("BEGIN")
        for result in results:
            store.add(result)
        store._db.execute("COMMIT")
        if status is not None:
            store.finish(status)
    return path


def twin(case: str, different: int = 0, unexplained: int = 0, outcome: str = "passed", message: str = "") -> Result:
    equal = 1 - different / 65536
    metrics = {"elements": 65536, "different": different, "unexplained": unexplained, "bit_equal": equal, "exact_relative_l2": 0.0035}
    return Result(f"twin-{case}", "twin", "random", case, "emulate:sm90-cutlass", outcome, message, metrics, 0.12)
