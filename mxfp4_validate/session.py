"""One run, free of pytest: what it must do, what it has done, where that is recorded, and what is wrong if the two differ."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mxfp4_validate import manifest, provenance
from mxfp4_validate.catalogue import FAMILIES, Item
from mxfp4_validate.errors import UsageError
from mxfp4_validate.records.store import Result, Store, new_run_id, now
from mxfp4_validate.reporting import terminal
from mxfp4_validate.selection import Selection
from mxfp4_validate.worker import protocol
from mxfp4_validate.worker.protocol import Answer

#: Families that one suite's file holds: whoever collects one of a file's families has to find them all.
_FILES = (("layout",), tuple(family for family in FAMILIES if family != "layout"))


@dataclass
class Run:
    """The controller's and every worker's view of a run; only the controller's writes the record."""

    selection: Selection
    record: Path | None
    settings: Mapping[str, object]
    run_id: str
    expected: dict[str, tuple[str, Item]] = field(default_factory=dict)  # by pytest's node id
    results: dict[str, Result] = field(default_factory=dict)
    facts: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    others: int = 0  # tests that are not the suites'
    store: Store | None = None

    @classmethod
    def build(
        cls, selection: Selection, counts: Mapping[str, Mapping[str, int]] | None, *,
        record: str | None, run_id: str | None, settings: Mapping[str, object],
    ) -> Run:
        """A run whose catalogue holds what the manifest says; `UsageError` names what is missing."""
        wrong = []
        for device in sorted(set(selection.devices.values())) if counts is not None else ():
            spec = next(s for s, d in selection.devices.items() if d == device)
            wrong += manifest.differences((counts or {}).get(device, {}), manifest.count(selection.planned[spec]), f"catalogue for {device}")
        if wrong:
            raise UsageError("\n".join([*wrong, "if that is meant, run: mxfp4-validate list --manifest > mxfp4_validate/manifest.toml"]))
        return cls(selection, Path(record) if record else None, settings, run_id or new_run_id())

    def order(self, spec: str, item: Item) -> tuple[int, bool, str, int]:
        """Sort key: a backend's small shapes first, then shape by shape, so that the one layer a child keeps is used."""
        shape = item.case.shape
        return list(self.selection.devices).index(spec), shape.production, shape.name, FAMILIES.index(item.check.family)

    def check_collected(self, found: Iterable[tuple[str, Item]]) -> None:
        """Note every family of which fewer items were collected than planned."""
        counts = Counter((spec, item.check.family) for spec, item in found)
        for families in _FILES:
            if any(family in families for _, family in counts):
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
            self.store = Store.create(self.record / f"{self.run_id}.sqlite", self.settings, provenance.collect())

    def expected_backends(self) -> list[str]:
        """Backends with at least one expected item."""
        return list(dict.fromkeys(spec for spec, _ in self.expected.values()))

    def note_availability(self, spec: str, answer: Answer) -> None:
        """Remember, for the header and the summary, whether a backend can run here."""
        said = provenance.redact(answer.message).strip().splitlines() or [""]
        lines = {
            protocol.PASSED: "available" + "".join(f", {name} {value}" for name, value in answer.facts.items()),
            protocol.UNAVAILABLE: f"unavailable: {said[0]}",
        }
        self.facts[spec] = lines.get(answer.outcome, f"cannot be asked: {answer.outcome}: {said[-1]}")

    def result(self, spec: str, item: Item, answer: Answer, worker: str) -> Result:
        """An answer as it is recorded."""
        message = answer.message if answer.outcome in (protocol.PASSED, protocol.FAILED, protocol.UNAVAILABLE) else _with_log(answer)
        metrics = {str(name): value for name, value in answer.metrics.items()}
        check = item.check
        return Result(item.item_id, check.name, check.family, item.case.case_id, spec, answer.outcome, provenance.redact(message), metrics,
                      answer.seconds, worker, now())

    def add(self, nodeid: str, result: Result) -> None:
        """Keep and store a result."""
        self.results[nodeid] = result
        if self.store is not None:
            self.store.add(result)

    def add_failure(self, nodeid: str, text: str) -> None:
        """An expected item that failed outside its check, e.g. because an xdist worker died."""
        if nodeid in self.expected and nodeid not in self.results:
            spec, item = self.expected[nodeid]
            self.add(nodeid, self.result(spec, item, Answer(protocol.ERROR, text), ""))

    def missing(self) -> list[str]:
        """Expected items without a result."""
        return [nodeid for nodeid in self.expected if nodeid not in self.results]

    def verdict(self) -> int:
        """Exit status that the results alone ask for, where pytest itself saw nothing wrong: 0, 1, 4 or 5."""
        outcomes = {result.outcome for result in self.results.values()}
        missing = self.missing()
        if missing:
            self.problems.append(f"{len(missing)} of {len(self.expected)} items have no result, first {missing[0]}")
        if outcomes - {protocol.PASSED, protocol.UNAVAILABLE}:
            return 1
        if self.problems:
            return 4
        return 5 if self.expected and outcomes <= {protocol.UNAVAILABLE} and not self.others else 0

    def summary(self) -> list[str]:
        """Terminal lines of what there is now."""
        planned = Counter((spec, item.check.family) for spec, items in self.selection.planned.items() for item in items)
        lines = terminal.summary(list(self.results.values()), planned, self.facts)
        if all(result.outcome == protocol.UNAVAILABLE for result in self.results.values()):
            lines.append("NOTHING WAS TESTED; without a GPU run the twin: --backend emulate:sm90-cutlass")
        if self.store is not None:
            lines.append(f"record: {self.store.path}")
        return [*lines, *(f"INVALID: {problem}" for problem in self.problems)]

    def close(self) -> None:
        if self.store is not None:
            self.store.close()


def properties(result: Result) -> list[tuple[str, object]]:
    """What JUnit shows of a result: names, seed, tactic and every scalar metric."""
    scalars = {name: value for name, value in result.metrics.items() if isinstance(value, bool | int | float | str)}
    seed = result.case_id.rpartition("/s")[2]
    fixed = {"case_id": result.case_id, "check": result.check, "backend": result.backend, "seed": seed, "outcome": result.outcome}
    return [*fixed.items(), *((name, value) for name, value in scalars.items() if name not in fixed)]


def failure(spec: str, item: Item, result: Result, log: str, fault: str | None = None) -> str:
    """The text of a failed item: what, how to repeat it, on what, and then the check's own words."""
    case, shape = item.case, item.case.shape
    repro = ["mxfp4-validate", "kernel", *(["-m", "layout"] if item.check.family == "layout" else []), "--backend", spec]
    repro += ["--case", case.case_id, "--check", item.check.name, *(["--fault", fault] if fault else [])]
    tactic = f", tactic {result.metrics['tactic']}" if "tactic" in result.metrics else ""
    lines = [
        f"{case.case_id}: {item.check.name} {result.outcome.upper()} ({item.check.proves})",
        f"repro: {shlex.join(repro)}",
        f"backend {spec}{tactic}; {shape.name}: E={shape.num_experts} H={shape.hidden_size} I={shape.intermediate_size} "
        f"top_k={shape.top_k} M={case.num_tokens}, routing {case.routing}, seed {case.seed}",
        result.message,
    ]
    if log and result.outcome == protocol.FAILED:  # for the other outcomes the log is part of the message
        lines += ["--- what the worker printed ---", provenance.redact(log)]
    return "\n".join(lines)


def _with_log(answer: Answer) -> str:
    return f"{answer.message}\n--- what the worker printed ---\n{answer.log}" if answer.log else answer.message
