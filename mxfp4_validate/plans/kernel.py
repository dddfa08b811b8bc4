"""The kernel suite as a stage: the verb `kernel` in a process of its own, before any server takes the GPU."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from mxfp4_validate.endpoint.process import Process
from mxfp4_validate.errors import IncompleteRun, UsageError
from mxfp4_validate.plans.fleet import Up
from mxfp4_validate.plans.journal import Journal
from mxfp4_validate.plans.outcome import FAIL, INVALID, PASS, Result, Turn
from mxfp4_validate.plans.spec import PlanFile

#: Seconds between two looks at the suite, and between two lines about it.
_POLL_S, _SAY_S = 0.5, 60.0


class KernelStage:
    """The fact `kernel` in the journal: exit status and record. A suite that was cut begins again; its half record stays and is not read."""

    name = "kernel"

    def __init__(self, plan: PlanFile, out: Path, journal: Journal, say: Callable[[str], None]) -> None:
        self._spec, self._folder, self._journal, self._say = plan.kernel, out / "kernel", journal, say

    def step(self, up: Sequence[str]) -> Turn | Result:
        fact = self._journal.get("kernel")
        if fact is None:
            return Turn((), self._run)
        outcome = {0: PASS, 1: FAIL}.get(fact["exit"], INVALID)
        measured = f"backend {self._spec.backend}: exit status {fact['exit']}, record {fact['record']}"
        return Result(self.name, outcome, measured, "every item", "", stops=outcome != PASS, details=fact)

    def record(self) -> Path | None:
        """The finished suite's record, for the report."""
        fact = self._journal.get("kernel")
        return self._folder / fact["record"] if fact and fact["record"] else None

    def _run(self, _: Mapping[str, Up]) -> None:
        before = set(self._folder.glob("*.sqlite"))
        argv = [sys.executable, "-m", "mxfp4_validate", "kernel", "--backend", self._spec.backend, "--record", str(self._folder)]
        self._say(f"kernel suite: {' '.join([*argv[3:], *self._spec.args])}")
        process = Process([*argv, *self._spec.args], {}, self._folder / "kernel.log")
        try:
            said = time.monotonic()
            while not process.poll():
                time.sleep(_POLL_S)
                if time.monotonic() - said > _SAY_S:
                    said = time.monotonic()
                    self._say(f"kernel suite: {next(iter(process.tail(1)), '')[:200]}")
        finally:
            process.stop()
        tail = "".join(f"\n  | {line}" for line in process.tail())
        if process.exit == UsageError.exit_code:
            raise UsageError(f"the kernel suite refused to run; its log {process.log}:{tail}")
        if process.exit not in (0, 1, 4):
            raise IncompleteRun(f"the kernel suite {process.poll()}; run the same command again; its log {process.log}:{tail}")
        made = sorted(set(self._folder.glob("*.sqlite")) - before)
        self._journal.add("kernel", {"exit": process.exit, "record": made[-1].name if made else ""})
