"""What the suites' tests are given, and how their results leave the process; part of the plugin."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from mxfp4_validate.catalogue import Item
from mxfp4_validate.fault_bench import BACKEND, FaultBench, render, to_json
from mxfp4_validate.records.store import Result
from mxfp4_validate.session import ATTRIBUTE, Run, failure, properties
from mxfp4_validate.waivers import waiver_for
from mxfp4_validate.worker.parent import Worker
from mxfp4_validate.worker.pool import Pool, child_environment
from mxfp4_validate.worker.protocol import Answer

RUN = pytest.StashKey[Run]()
POOL = pytest.StashKey[Pool]()
RESULT = pytest.StashKey[Result]()


@pytest.fixture
def check_item(request: pytest.FixtureRequest) -> CheckItem:
    """One check on one case with one backend."""
    spec, item = request.param
    return CheckItem(request.node, spec, item)


@pytest.fixture(scope="session")
def fault_bench() -> Generator[FaultBench, None, None]:
    """A worker that runs the fault matrix on the emulating backend."""
    worker = Worker(BACKEND, child_environment(os.environ))
    yield FaultBench(worker)
    worker.close()


@pytest.fixture
def fault_row(record_property: Callable[[str, object], None]) -> Callable[[str, set[str]], None]:
    """Keep a row of the fault matrix for the summary."""
    return lambda label, failed: record_property("fault_row", f"{label}|{','.join(sorted(failed))}")


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """The fault matrix, if faults ran."""
    rows = {
        label: set(filter(None, failed.split(",")))
        for reports in terminalreporter.stats.values()
        for report in reports
        for key, value in getattr(report, "user_properties", ())
        if key == "fault_row"
        for label, failed in [value.split("|")]
    }
    if rows:
        terminalreporter.section("fault matrix")
        for line in render(dict(sorted(rows.items(), key=lambda row: (int(row[0].split("-")[0][1:]), row[0])))):
            terminalreporter.line(line)
        if terminalreporter.config.option.fault_matrix:
            Path(terminalreporter.config.option.fault_matrix).write_text(to_json(rows), encoding="utf-8")


@dataclass
class CheckItem:
    """What a suite's test function is given."""

    node: pytest.Item
    spec: str
    item: Item

    def require_passed(self) -> None:
        """Run the check in the child process; skip if the backend is unavailable, fail for anything but a pass."""
        config = self.node.config
        pool, run = config.stash[POOL], config.stash[RUN]
        answer = replace(pool.availability(self.spec), seconds=0.0)  # asked once, not once an item
        if answer.outcome == "unavailable" and config.option.require_hardware:
            answer = replace(answer, outcome="failed", message=f"backend {self.spec} unavailable: {answer.message} (--require-hardware)")
        elif answer.outcome == "passed":
            check = self.item.check
            answer = pool.worker(self.spec).check(
                check.name, check.target, self.item.case.case_id, check.deadline_s, run.selection.source.options()
            )
        if not config.option.no_waivers:
            answer = _waived(answer, self.spec, self.item, pool.availability(self.spec))
        result = run.result(self.spec, self.item, answer, os.environ.get("PYTEST_XDIST_WORKER", "main"))
        self.node.stash[RESULT] = result
        self.node.user_properties.extend(properties(result))
        if answer.outcome == "unavailable":
            what = "unavailable" if pool.availability(self.spec).outcome == "unavailable" else "cannot run this case"
            pytest.skip(f"backend {self.spec} {what}: {result.message}")
        if answer.outcome != "passed":
            pytest.fail(failure(self.item, result, config.option.mxfp4_fault, run.selection.source.arguments()), pytrace=False)


def _waived(answer: Answer, spec: str, item: Item, available: Answer) -> Answer:
    """A known failure passes with its waiver beside it; a waiver that was not needed is a finding."""
    if answer.outcome not in ("passed", "failed"):
        return answer
    waiver = waiver_for(spec, item.check.name, item.case.case_id, available.metrics)
    if waiver is None:
        return answer
    if answer.outcome == "passed":
        return replace(answer, metrics={**answer.metrics, "finding": f"passed although {waiver.issue} is waived"})
    first = (answer.message.splitlines() or [""])[0]
    return replace(answer, outcome="passed", metrics={**answer.metrics, "waiver": f"{waiver.issue}: {waiver.reason}; failed with: {first}"})


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """The result travels on the report, as text: that is what xdist carries to the controller."""
    report = yield
    if report.when == "call" and RESULT in item.stash:
        setattr(report, ATTRIBUTE, item.stash[RESULT].to_json())
    return report
