"""What stands around the numbers: what differs between the runs, where it breaks, what was not tested, how to repeat it. Pure."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import isnan
from typing import Any

from mxfp4_validate.records.store import Result
from mxfp4_validate.reporting import bench_view, divergence_view
from mxfp4_validate.reporting.gates import GO_ON, divergence_gates, eval_gate, names, title
from mxfp4_validate.reporting.inputs import EvalLeg, EvalPair, Inputs, KernelRecord
from mxfp4_validate.states import MISSING_STATES


@dataclass(frozen=True)
class DifferenceRow:
    """One named value of both legs; `mark` is `on trial`, `differs`, `forbids a verdict` or empty when equal."""

    name: str
    baseline: str
    candidate: str
    mark: str


@dataclass(frozen=True)
class Compared:
    title: str
    different: tuple[DifferenceRow, ...]
    equal: tuple[DifferenceRow, ...]
    refusals: tuple[str, ...]
    boots: str


@dataclass(frozen=True)
class Rung:
    """A step of the ladder; the first failing one is the address of the bug."""

    name: str
    outcome: str  # PASS | FAIL | GO ON | undecided | not tested
    what: str


@dataclass(frozen=True)
class Command:
    what: str
    line: str
    facts: tuple[tuple[str, str], ...]


def compared(pair: EvalPair, called: str) -> Compared:
    """Identity, fingerprint, settings and versions of both legs: what differs first, the rest for folding."""
    assert pair.candidate is not None
    baseline, candidate = _facts(pair.baseline), _facts(pair.candidate)
    expected = {row.name for row in pair.verdict.identity if row.expected} if pair.verdict else set()
    rows = []
    for name in sorted(baseline.keys() | candidate.keys()):
        one, other = baseline.get(name, "\u2013"), candidate.get(name, "\u2013")
        mark = ""
        if one != other:
            mark = "on trial" if name.removeprefix("server: ") in expected else "differs"
            mark = "forbids a verdict" if name.startswith("asked: ") else mark
        rows.append(DifferenceRow(name, one, other, mark))
    reasons = tuple(pair.verdict.reasons) if pair.verdict and isnan(pair.verdict.estimate) else ((pair.refused,) if pair.refused else ())
    return Compared(
        called,
        tuple(r for r in rows if r.mark),
        tuple(r for r in rows if not r.mark),
        reasons,
        _boots(pair.baseline, pair.candidate),
    )


def _facts(leg: EvalLeg) -> dict[str, str]:
    """Everything a leg's record says of how it was made, by kind and name."""
    found = {f"asked: {name}": value for name, value in leg.run.fingerprint.items()}
    found |= {f"server: {name}": value for name, value in leg.leg.identity.items()}
    found |= {f"setting: {name}": str(value) for name, value in leg.run.settings.items() if not isinstance(value, dict | list)}
    versions = leg.run.provenance.get("versions", {})
    found |= {f"client: {name}": str(value) for name, value in versions.items()} if isinstance(versions, dict) else {}
    found |= {f"client: {name}": str(leg.run.provenance[name]) for name in ("commit", "python", "platform") if name in leg.run.provenance}
    return found


def _boots(baseline: EvalLeg, candidate: EvalLeg) -> str:
    one, other = ({str(b) for b in leg.leg.boots.flatten().tolist()} - {""} for leg in (baseline, candidate))
    ids = ", ".join(sorted(one)) or "unknown", ", ".join(sorted(other)) or "unknown"
    shared = "; some answered both legs" if one & other else ""
    return f"Server boots: baseline {ids[0]}; candidate {ids[1]}{shared}."


#: The ladder: rung, what it shows, the checks and families that stand on it.
_LADDER = (
    ("format", "every E2M1 code and E8M0 byte means what it should", ("readout-fc1", "readout-fc2", "scale-codes")),
    ("layout", "weights and scales lie where the kernel looks", ("bytes", "vendor-pack")),
    ("single expert", "exact probes: GEMMs, biases, clamp, activation", ("probe-",)),
    (
        "routed MoE",
        "whole layers on random data, bit for bit; relations, determinism, poisoned memory",
        ("random", "metamorphic", "determinism", "poison"),
    ),
    ("TP/EP shards", "shards add up to the layer", ("parallel",)),
)


def ladder(inputs: Inputs) -> tuple[Rung, ...]:
    """From the bytes to the benchmark; a rung is red if anything on it failed, grey if nothing on it ran."""
    results = [r for record in inputs.kernels for r in record.results if r.outcome != "unavailable"]
    taken: set[str] = set()
    rungs = []
    for name, what, keys in _LADDER:
        mine = [r for r in results if r.item_id not in taken and _stands(r, keys)]
        taken |= {r.item_id for r in mine}
        failed = sum(r.outcome != "passed" for r in mine)
        outcome = "FAIL" if failed else "PASS" if mine else "not tested"
        rungs.append(Rung(name, outcome, f"{what}: {failed} of {len(mine)} failed" if failed else f"{what}: {len(mine)} checks"))
    rungs.append(_served(inputs))
    gates = [eval_gate(pair, at, name) for at, (pair, name) in enumerate(zip(inputs.pairs, names(inputs.pairs), strict=True))]
    outcomes = [g.outcome for g in gates]
    whole = "not tested" if not gates else "FAIL" if "FAIL" in outcomes else "PASS" if set(outcomes) == {"PASS"} else "undecided"
    rungs.append(Rung("evals", whole, ", ".join(f"{g.name} {g.outcome}" for g in gates) or "no eval run was given"))
    return tuple(rungs)


def _served(inputs: Inputs) -> Rung:
    """Token by token: what divergence records and a plan's stage came to."""
    found = [(gate.name, gate.outcome) for gate in divergence_gates(inputs)]
    found += [(stage.name, stage.outcome) for stage in inputs.stages if stage.name == "divergence"]
    outcomes = {outcome for _, outcome in found} - {"INCOMPLETE"}
    whole = "not tested" if not outcomes else "FAIL" if "FAIL" in outcomes else GO_ON if outcomes == {GO_ON} else "undecided"
    said = "".join(f"; {name} {outcome}" for name, outcome in found)
    return Rung("served log-probabilities", whole, f"token-level comparison of two servers{said}")


def _stands(result: Result, keys: Iterable[str]) -> bool:
    return any(key in (result.check, result.family) or (key.endswith("-") and result.check.startswith(key)) for key in keys)


def not_tested(inputs: Inputs, answers: bool = True) -> tuple[tuple[str, str], ...]:
    """(what, why or how many): everything a reader could believe to be covered and is not. Empty only if there is nothing."""
    rows: list[tuple[str, str]] = []
    for kernel in inputs.kernels:
        rows += _kernel_gaps(kernel)
    for pair in inputs.pairs:
        for name, leg in (("baseline", pair.baseline), ("candidate", pair.candidate)):
            if leg is not None:
                rows += _leg_gaps(f"{title(pair.suite)} {name}", leg)
    for bench in inputs.benches:
        rows += bench_view.gaps(bench)
    for record in inputs.divergences:
        rows += divergence_view.gaps(record)
    if not inputs.kernels:
        rows.append(("kernel suite", "no kernel record was given"))
    if not inputs.pairs:
        rows.append(("evals", "no eval run was given"))
    if inputs.faults is None:
        rows.append(("fault matrix", "not measured for this report: pytest -m faults --fault-matrix FILE, then report --faults FILE"))
    if not inputs.divergences and not any(stage.name == "divergence" for stage in inputs.stages):
        rows.append(("served log-probabilities", "no token-level comparison was given"))
    if not answers:
        rows.append(("answers", "left out on request (--no-answers)"))
    return tuple(rows)


def _kernel_gaps(record: KernelRecord) -> list[tuple[str, str]]:
    reasons = Counter((r.backend, (r.message.splitlines() or [""])[0]) for r in record.results if r.outcome == "unavailable")
    rows = [(f"{backend}: {count} items unavailable", reason) for (backend, reason), count in reasons.items()]
    for backend, families in record.expected.items():
        for family, total in families.items():
            have = sum(r.backend == backend and r.family == family for r in record.results)
            rows += (
                [(f"{backend} {family}: {total - have} of {total} items without a result", f"run {record.run.id}")] if have < total else []
            )
    chosen = {name: record.run.settings.get(name) for name in ("case", "check", "keywords", "fault")}
    rows += [(f"only what {name} {value!r} keeps", f"run {record.run.id}") for name, value in chosen.items() if value]
    for name in ("waiver", "finding"):
        rows += [(f"{name}: {r.backend} {r.item_id}", str(r.metrics[name])) for r in record.results if r.metrics.get(name)]
    return rows


def _leg_gaps(name: str, leg: EvalLeg) -> list[tuple[str, str]]:
    states = Counter(leg.leg.states.flatten().tolist())
    rows = [(f"{name}: {states[state]} samples {state}", "missing, not scored") for state in MISSING_STATES if states[state]]
    rows += [
        (f"{name}: {count} attempts ended in {outcome}", "asked again")
        for outcome, count in sorted(leg.attempts.items())
        if outcome != "ok"
    ]
    return rows + [(f"{name}: {kind}", text) for _, kind, text in leg.events]


def commands(inputs: Inputs) -> tuple[Command, ...]:
    """What to type to get each run again, and what it was made with."""
    found = [Command(f"plan {inputs.plan}", shlex.join(["mxfp4-validate", "run", f"{inputs.plan}.toml"]), ())] if inputs.plan else []
    found += [_kernel_command(record) for record in inputs.kernels]
    for pair in inputs.pairs:
        legs = (("baseline", pair.baseline), ("candidate", pair.candidate))
        found += [_eval_command(f"{title(pair.suite)} {name}", leg) for name, leg in legs if leg is not None]
    for bench in inputs.benches:
        facts = _provenance(bench.run.provenance, bench.source.name, bench.source.sha256)
        found.append(Command(f"bench {bench.run.id}", bench_view.command(bench.run), facts))
    for record in inputs.divergences:
        found.append(Command(f"divergence {record.run_id}", divergence_view.command(record), divergence_view.provenance(record)))
    return tuple(found)


def _kernel_command(record: KernelRecord) -> Command:
    s = record.run.settings
    line = ["mxfp4-validate", "kernel"]
    for option, value in (
        ("--backend", ",".join(s.get("backends", ()))),
        ("--case", s.get("case")),
        ("--check", s.get("check")),
        ("--checkpoint", s.get("checkpoint")),
        ("--layers", s.get("layers")),
        ("-k", s.get("keywords")),
    ):
        line += [option, str(value)] if value else []
    line += ["--require-hardware"] if s.get("require_hardware") else []
    return Command(
        f"kernel run {record.run.id}", shlex.join(line), _provenance(record.run.provenance, record.source.name, record.source.sha256)
    )


def _eval_command(what: str, leg: EvalLeg) -> Command:
    line = ["mxfp4-validate", "eval", leg.run.suite, "--base-url", "URL", "--repeats", str(leg.run.repeats)]
    sampling = leg.run.settings.get("sampling", {})
    for name, entry in sampling.items() if isinstance(sampling, dict) else ():
        if isinstance(entry, dict) and entry.get("origin") not in (None, "eval") and entry.get("value") is not None:
            line += [f"--{name.replace('_', '-')}", str(entry["value"])]
    facts = (("questions", leg.run.fingerprint.get("questions", "")), ("prompts", leg.run.fingerprint.get("prompts", "")))
    return Command(
        f"{what}, run {leg.run.id}", shlex.join(line), facts + _provenance(leg.run.provenance, leg.source.name, leg.source.sha256)
    )


def _provenance(found: Mapping[str, Any], name: str, sha256: str) -> tuple[tuple[str, str], ...]:
    gpus = "; ".join(str(g.get("name", g)) for g in found.get("gpus", []) if isinstance(g, dict)) or "none"
    versions = found.get("versions", {})
    shown = ", ".join(f"{k} {v}" for k, v in versions.items()) if isinstance(versions, dict) else ""
    rows = (("record", name), ("sha256", sha256), ("GPU", gpus), ("versions", shown), ("commit", str(found.get("commit", ""))))
    return tuple((k, v) for k, v in rows if v)
