"""One run, free of pytest: what it must do, what it has done, where that is recorded, and what is wrong if the two differ."""

from __future__ import annotations

import os
import shlex
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mxfp4_validate import manifest, provenance
from mxfp4_validate.catalogue import FAMILIES, Item
from mxfp4_validate.errors import UsageError
from mxfp4_validate.records.store import Result, Store, now
from mxfp4_validate.reporting import terminal
from mxfp4_validate.selection import Selection
from mxfp4_validate.worker.protocol import Answer

#: Where a result travels on a report, as JSON: what xdist carries to the controller.
ATTRIBUTE = "mxfp4_result"
#: Families that one suite's file holds: whoever collects one of a file's families has to find them all.
_FILES = (("layout",), ("checkpoint",), tuple(family for family in FAMILIES if family not in ("layout", "checkpoint")))


@dataclass
class Run:
    """The controller's and every worker's view of a run; only the controller's writes the record."""

    selection: Selection
    record: Path | None
    settings: Mapping[str, object]
    expected: dict[str, tuple[str, Item]] = field(default_factory=dict)  # by pytest's node id
    results: dict[str, Result] = field(default_factory=dict)
    facts: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    others: int = 0  # tests that are not the suites'
    store: Store | None = None

    def check_catalogue(self, counts: Mapping[str, Mapping[str, int]]) -> None:
        """`UsageError` naming every family of which the catalogue does not hold what the manifest says."""
        wrong = []
        for device in sorted(set(self.selection.devices.values())):
            planned = next(self.selection.planned[spec] for spec, d in self.selection.devices.items() if d == device)
            wrong += manifest.differences(counts.get(device, {}), manifest.count(planned), f"catalogue for {device}")
        if wrong:
            raise UsageError("\n".join([*wrong, "if that is meant, run: mxfp4-validate list --manifest > mxfp4_validate/manifest.toml"]))

    def order(self) -> dict[tuple[str, str], int]:
        """The place of every (backend, item id): the catalogue's order, in which the one layer that a child keeps is used."""
        every = [(spec, item.item_id) for spec, items in self.selection.planned.items() for item in items]
        return {key: place for place, key in enumerate(every)}

    def check_collected(self, found: Iterable[tuple[str, Item]], everything: bool) -> None:
        """Note every family of which fewer items were collected than planned.

        `everything` says that all suites were asked for; otherwise only files of which something was collected are counted.
        """
        counts = Counter((spec, item.check.family) for spec, item in found)
        for families in _FILES:
            if everything or any(family in families for _, family in counts):
                for spec, planned in self.selection.planned.items():
                    expected = {f: n for f, n in manifest.count(planned).items() if f in families}
                    self.problems += manifest.differences(expected, {f: counts[spec, f] for f in families}, f"collected for {spec}")

    def expect(self, nodeids: Sequence[str]) -> None:
        """From now on these items must have a result in the end; opens the record."""
        known = {f"{spec}-{item.item_id}": (spec, item) for spec, items in self.selection.planned.items() for item in items}
        for nodeid in nodeids:
            name = nodeid.partition("[")[2].rpartition("]")[0]
            if name in known:
                self.expected[nodeid] = known[name]
        if self.expected and self.record is not None and self.store is None:
            self.store = Store.create(self.record, self.settings, provenance.collect())

    def expected_backends(self) -> list[str]:
        """Backends with at least one expected item."""
        return list(dict.fromkeys(spec for spec, _ in self.expected.values()))

    def note_availability(self, spec: str, answer: Answer) -> None:
        """Remember, for the header and the summary, whether a backend can run here."""
        said = anonymous(answer.message).strip().splitlines() or [""]
        if answer.outcome == "passed":
            self.facts[spec] = "available" + "".join(f", {name} {value}" for name, value in answer.metrics.items())
        else:
            self.facts[spec] = f"{answer.outcome}: {said[0]}"

    def result(self, spec: str, item: Item, answer: Answer, worker: str) -> Result:
        """An answer as it is recorded."""
        check = item.check
        return Result(
            item.item_id,
            check.name,
            check.family,
            item.case.case_id,
            spec,
            answer.outcome,
            anonymous(answer.message),
            answer.metrics,
            answer.seconds,
            worker,
            now(),
        )

    def add(self, nodeid: str, result: Result) -> None:
        """Keep and store a result."""
        self.results[nodeid] = result
        if self.store is not None:
            self.store.add(result)

    def add_failure(self, nodeid: str, text: str) -> None:
        """An expected item that failed outside its check, e.g. because an xdist worker died."""
        if nodeid in self.expected and nodeid not in self.results:
            spec, item = self.expected[nodeid]
            self.add(nodeid, self.result(spec, item, Answer("error", text), ""))

    def note_problems(self, problems: Iterable[str]) -> None:
        """What an xdist worker found wrong; most find the same."""
        self.problems += [problem for problem in problems if problem not in self.problems]

    def missing(self) -> list[str]:
        """Expected items without a result."""
        return [nodeid for nodeid in self.expected if nodeid not in self.results]

    def check_complete(self) -> None:
        """Note it if an expected item has no result although nobody stopped the run."""
        if missing := self.missing():
            self.problems.append(f"{len(missing)} of {len(self.expected)} items have no result, first {missing[0]}")

    def nothing_tested(self) -> bool:
        """Whether items were expected and not one was judged."""
        return bool(self.expected) and all(result.outcome == "unavailable" for result in self.results.values())

    def verdict(self) -> int:
        """Exit status that the results alone ask for, where pytest itself saw nothing wrong: 0, 1, 4 or 5."""
        outcomes = {result.outcome for result in self.results.values()}
        if outcomes - {"passed", "unavailable"}:
            return 1
        if self.problems:
            return 4
        return 5 if self.nothing_tested() and not self.others else 0

    def summary(self) -> list[str]:
        """Terminal lines of what there is now."""
        planned = Counter((spec, item.check.family) for spec, items in self.selection.planned.items() for item in items)
        lines = terminal.summary(list(self.results.values()), planned, self.facts)
        if self.nothing_tested():
            lines.append("NOTHING WAS TESTED; without a GPU run the twin: --backend emulate:sm90-cutlass")
        if self.store is not None:
            lines.append(f"record: {self.store.path}")
        return [*lines, *(f"INVALID: {problem}" for problem in self.problems)]

    def close(self) -> None:
        if self.store is not None:
            self.store.close()


class Reporting:
    """Registered with pytest where all reports arrive: keeps the results and settles the exit status from them."""

    def __init__(self, run: Run, collect_only: bool) -> None:
        self.run, self.collect_only = run, collect_only

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.nodeid not in self.run.expected:
            self.run.others += report.when == "call"
        elif hasattr(report, ATTRIBUTE):
            self.run.add(report.nodeid, Result.from_json(getattr(report, ATTRIBUTE)))
        elif report.failed:
            self.run.add_failure(report.nodeid, report.longreprtext)

    def pytest_sessionfinish(self, session: Any, exitstatus: int) -> None:
        if self.collect_only:
            return
        if exitstatus in (0, 1) and not session.shouldstop and not session.shouldfail:
            self.run.check_complete()
        if exitstatus == 0:
            session.exitstatus = self.run.verdict()
        if self.run.store is not None:
            self.run.store.finish(int(session.exitstatus))

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        if self.run.expected:
            terminalreporter.section("MXFP4 validation")
            for line in self.run.summary():
                terminalreporter.write_line(line)


def properties(result: Result) -> list[tuple[str, object]]:
    """What JUnit shows of a result: names, seed, tactic and every scalar metric."""
    scalars = {name: value for name, value in result.metrics.items() if isinstance(value, bool | int | float | str)}
    seed = result.case_id.rpartition("/s")[2]
    fixed = {"case_id": result.case_id, "check": result.check, "backend": result.backend, "seed": seed, "outcome": result.outcome}
    return [*fixed.items(), *((name, value) for name, value in scalars.items() if name not in fixed)]


def failure(item: Item, result: Result, fault: str | None = None, options: Sequence[str] = ()) -> str:
    """The text of a failed item: what, how to repeat it, on what, and then the check's own words."""
    case, shape = item.case, item.case.shape
    repro = ["mxfp4-validate", "kernel", "--backend", result.backend]
    repro += ["--case", case.case_id, "--check", item.check.name, *(["--fault", fault] if fault else []), *options]
    tactic = f", tactic {result.metrics['tactic']}" if "tactic" in result.metrics else ""
    return "\n".join(
        (
            f"{case.case_id}: {item.check.name} {result.outcome.upper()} ({item.check.proves})",
            f"repro: {shlex.join(repro)}",
            f"backend {result.backend}{tactic}; {shape.name}: E={shape.num_experts} H={shape.hidden_size} I={shape.intermediate_size} "
            f"top_k={shape.top_k} M={case.num_tokens}, routing {case.routing}, seed {case.seed}",
            result.message,
        )
    )


def header() -> list[str]:
    """The lines above a run: versions, GPUs and, loudly, what is known to be bad."""
    found = provenance.versions()
    cards = [f"{g['name']}, capability {g['compute_cap']}, {g['memory']}, driver {g['driver']}" for g in provenance.gpus()]
    named = ", ".join(f"{name} {found.get(name, 'not installed')}" for name in ("mxfp4-validate", "torch", "flashinfer-python", "sglang"))
    return [
        f"mxfp4: {named}",
        f"mxfp4 gpu: {'; '.join(cards) or 'none found by nvidia-smi'}",
        *(f"mxfp4 NOTICE: {notice}" for notice in provenance.notices(os.environ, found)),
    ]


def anonymous(text: str) -> str:
    """Text without the home folder: tracebacks and logs carry it, and records are passed on."""
    home = str(Path.home())
    return text.replace(home, "~") if len(home) > 1 else text
