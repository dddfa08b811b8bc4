"""Runs the fault matrix through a worker: which checks fail on which fault. No torch and no pytest here."""

from __future__ import annotations

import json

from mxfp4_validate.catalogue import CHECKS
from mxfp4_validate.faults import CATCHERS, FAULTS, Fault
from mxfp4_validate.worker.parent import Worker

BACKEND = "emulate:sm90-cutlass"
_TARGETS = {check.name: check for check in CHECKS}


class FaultBench:
    """One worker; a fault is named in each request, so the child stays warm."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker

    def failing(self, fault: Fault | None, seed: int = 0) -> set[str]:
        """Names of the catchers that fail with this fault (None: with the unharmed backend). Raises `RuntimeError` if one could not run."""
        self._worker.fault = fault.name if fault else None
        model = fault.model if fault else ("gpt-oss-tiny", "dsv4-tiny")[seed % 2]
        failed = set()
        for name, case in CATCHERS:
            check = _TARGETS[name.removesuffix("-foreign")]
            answer = self._worker.check(check.name, check.target, f"{model}/{case}/s{seed}", check.deadline_s)
            if answer.outcome not in ("passed", "failed", "error"):
                raise RuntimeError(f"{name} on {model}: {answer.outcome}: {answer.message}")
            # A fault that makes a check crash is caught as well, on the unharmed backend a crash is a false alarm.
            if answer.outcome != "passed":
                failed.add(name)
        return failed


def render(rows: dict[str, set[str]]) -> list[str]:
    """The matrix as text: a line a fault, an x a check that caught it."""
    names = [name for name, _ in CATCHERS]
    width = max((len(label) for label in rows), default=0)
    head = [
        f"{'':{width}}  " + " ".join(str(i + 1).rjust(2) for i in range(len(names))),
        "checks: " + ", ".join(f"{i + 1} {n}" for i, n in enumerate(names)),
    ]
    return head + [f"{label:{width}}  " + " ".join(" x" if name in caught else " ." for name in names) for label, caught in rows.items()]


def to_json(rows: dict[str, set[str]]) -> str:
    """The matrix as measured, for `report --faults`: the backend, the checks, and of each fault what it is and what caught it."""
    what = {f"{fault.number}-{fault.name}": fault.what for fault in FAULTS}
    names = [name for name, _ in CATCHERS]
    faults = {
        label: {"what": what.get(label, ""), "caught_by": [n for n in names if n in caught]} for label, caught in sorted(rows.items())
    }
    return json.dumps({"backend": BACKEND, "checks": names, "faults": faults}, indent=1) + "\n"
