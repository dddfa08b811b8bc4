"""Gates: every kernel family and every eval comparison as one row with one outcome, and the sentence that sums them up.

Terminal, Markdown, JUnit and HTML are all made from these objects, so that they cannot disagree.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isnan

from mxfp4_validate.catalogue import FAMILIES
from mxfp4_validate.records.store import Result
from mxfp4_validate.reporting.inputs import BenchRecord, DivergenceRecord, EvalPair, Inputs, KernelRecord
from mxfp4_validate.reporting.kernel_view import repro
from mxfp4_validate.tolerances import BIT_EQUAL_SHARE
from mxfp4_validate.verdicts import Overall, Verdict

#: Of a divergence that found nothing: the dearer stages may begin, and nothing has passed. Only a gate that does not decide may have it.
GO_ON = "GO ON"
#: Worst first: a report is read from the top.
ORDER = ("FAIL", "INVALID", "INCOMPLETE", "INCONCLUSIVE", GO_ON, "PASS")
EXIT_CODES = {"PASS": 0, "FAIL": 1, "INCONCLUSIVE": 3, "INVALID": 4, "INCOMPLETE": 5}
SYMBOLS = {"PASS": "\u2713", "FAIL": "\u2717", "INCONCLUSIVE": "?", "INVALID": "!", "INCOMPLETE": "\u2026", GO_ON: "\u2192"}
_TITLES = {"gsm8k": "GSM8K", "gpqa_diamond": "GPQA Diamond", "aime25": "AIME25", "arith": "Arith"}


@dataclass(frozen=True)
class Gate:
    """One thing that is decided. The four texts are for people; `outcome` is one of `ORDER`; `anchor` is its place in the page."""

    name: str
    wing: str  # kernel | eval | stage | bench | divergence
    outcome: str
    measured: str
    lower: str = ""
    upper: str = ""
    limit: str = ""
    needs: str = ""
    reasons: tuple[str, ...] = ()
    anchor: str = ""
    decides: bool = True


@dataclass(frozen=True)
class Judgement:
    """All gates, worst first, and the whole: outcome, exit code, one sentence to paste."""

    gates: tuple[Gate, ...]
    outcome: str
    sentence: str

    @property
    def exit_code(self) -> int:
        return EXIT_CODES[self.outcome]

    @property
    def symbol(self) -> str:
        return SYMBOLS[self.outcome]


def signed(fraction: float, digits: int = 1) -> str:
    """A difference in points with a true minus sign; an unknown one as a dash."""
    return "\u2013" if isnan(fraction) else f"{100 * fraction:+.{digits}f}".replace("-", "\u2212")


def title(suite: str) -> str:
    return _TITLES.get(suite, suite)


def judge(inputs: Inputs) -> Judgement:
    """Every gate of what was given, and the whole."""
    several = len(inputs.kernels) > 1
    gates = [gate for at, record in enumerate(inputs.kernels) for gate in kernel_gates(record, at, several)]
    gates += [eval_gate(pair, at, name) for at, (pair, name) in enumerate(zip(inputs.pairs, names(inputs.pairs), strict=True))]
    gates += [Gate(s.name, "stage", s.outcome, s.measured, "", "", s.limit, s.needs, s.reasons, "", s.decides) for s in inputs.stages]
    gates += [bench_gate(record, at) for at, record in enumerate(inputs.benches)]
    gates += divergence_gates(inputs)
    gates.sort(key=lambda gate: ORDER.index(gate.outcome))
    outcome = next((gate.outcome for gate in gates if gate.decides), "INCOMPLETE")
    outcome = _together(outcome, inputs.overall, gates)
    return Judgement(tuple(gates), outcome, _sentence(outcome, gates, inputs))


def _together(worst: str, overall: Overall | None, gates: Sequence[Gate]) -> str:
    """Of several evals a failure must survive the correction for their number; kernel gates need none, a wrong bit is a wrong bit."""
    if worst != "FAIL" or overall is None or any(gate.outcome == "FAIL" and gate.wing != "eval" for gate in gates):
        return worst
    if overall.exit_code == 1:
        return "FAIL"
    others = [gate.outcome for gate in gates if gate.outcome != "FAIL" and gate.decides] + ["INCONCLUSIVE"]
    return min(others, key=ORDER.index)


def kernel_gates(record: KernelRecord, at: int, several: bool = False) -> list[Gate]:
    """A gate a backend and family of the record, named after its file too if there are `several`; one more if the run itself is not whole."""
    gates = []
    for backend in dict.fromkeys([*record.expected, *(result.backend for result in record.results)]):
        mine = [result for result in record.results if result.backend == backend]
        expected = record.expected.get(backend, {})
        families = [f for f in FAMILIES if f in expected or any(r.family == f for r in mine)]
        families += sorted({r.family for r in mine} - set(FAMILIES))
        for family in families:
            name = f"{backend} {family}" + (f" ({record.source.name.removesuffix('.sqlite')})" if several else "")
            gates.append(_family_gate(name, [r for r in mine if r.family == family], expected.get(family, 0), f"kernel-{at}"))
    return gates + _whole(record, at)


def _whole(record: KernelRecord, at: int) -> list[Gate]:
    name, anchor = f"kernel run {record.run.id}", f"kernel-{at}"
    if record.run.finished is None:
        return [Gate(name, "kernel", "INCOMPLETE", "cut short before its end", needs="run the same command again", anchor=anchor)]
    if record.run.exit_status in (0, 1, 5):
        return []
    if record.run.exit_status in (2, 130):
        return [Gate(name, "kernel", "INCOMPLETE", "stopped by its user", needs="run the same command again", anchor=anchor)]
    measured = f"ended with status {record.run.exit_status}: it did not do what it was asked to"
    return [Gate(name, "kernel", "INVALID", measured, needs="its last lines on the terminal say why", anchor=anchor)]


def _family_gate(name: str, results: Sequence[Result], expected: int, anchor: str) -> Gate:
    passed = sum(r.outcome == "passed" for r in results)
    unavailable = [r for r in results if r.outcome == "unavailable"]
    failed = [r for r in results if r.outcome not in ("passed", "unavailable")]
    total = max(expected, len(results))
    measured = f"{passed} of {total} passed" + (f", {len(failed)} failed" if failed else "")
    equal = [r.metrics["bit_equal"] for r in results if isinstance(r.metrics.get("bit_equal"), float)]
    unexplained = [r.metrics["unexplained"] for r in results if isinstance(r.metrics.get("unexplained"), int)]
    limit = f"{100 * BIT_EQUAL_SHARE.value:.2f} %, 0 unexplained" if equal else "every one"
    measured += f"; at least {_floor(min(equal))} % of bits equal" if equal else ""
    measured += f", {sum(unexplained)} unexplained" if unexplained else ""
    outcome, needs = "PASS", ""
    if failed:
        outcome, needs = "FAIL", f"first: {repro(failed[0])}"
    elif passed + len(unavailable) < total:
        outcome, needs = "INCOMPLETE", f"{total - len(results)} items have no result; run the same command again"
    elif not passed:
        outcome, needs = "INCOMPLETE", unavailable[0].message.splitlines()[0] if unavailable else "nothing ran"
    reasons = tuple(f"{r.item_id} {r.outcome}: {r.message}" for r in failed)
    return Gate(name, "kernel", outcome, measured, "", "", limit, needs, reasons, anchor)


def bench_gate(record: BenchRecord, at: int) -> Gate:
    """Whether a bench measured what it was asked to, and the right thing; how fast it found anything decides nothing."""
    run = record.run
    name, anchor = f"bench {run.id}", f"bench-{at}"
    wrong = tuple(f"{r.label} at M = {r.tokens}: {r.why}" for r in run.rows if r.outcome == "wrong")
    asked = [r for r in run.rows if r.outcome != "unavailable"]
    measured = f"{sum(r.outcome == 'measured' for r in asked)} of {len(asked)} rows measured; speed decides nothing"
    if wrong:
        needs = "the timed call did not compute what `run` computes"
        return Gate(name, "bench", "FAIL", measured, limit="every output as `run`'s", needs=needs, reasons=wrong, anchor=anchor)
    if run.exit_status == 0:
        return Gate(name, "bench", "PASS", measured, limit="every output as `run`'s", anchor=anchor)
    needs = "run the same command again" if run.exit_status is None else "what is missing stands under Not tested"
    return Gate(name, "bench", "INCOMPLETE", measured, needs=needs, anchor=anchor)


def divergence_gates(inputs: Inputs) -> list[Gate]:
    """A gate a record: FAIL decides, GO ON never does, UNDECIDED only where no eval was given or planned to decide it."""
    called = [
        f"divergence {r.source.name.removesuffix('.sqlite')} {r.candidate}".removesuffix(" candidate").rstrip() for r in inputs.divergences
    ]
    called = [f"{name} ({at + 1})" if called.count(name) > 1 else name for at, name in enumerate(called)]
    return [
        _divergence_gate(record, called[at] if len(called) > 1 else "divergence", f"divergence-{at}", bool(inputs.pairs or inputs.planned))
        for at, record in enumerate(inputs.divergences)
    ]


def _divergence_gate(record: DivergenceRecord, name: str, anchor: str, evals: bool) -> Gate:
    if record.found is None:
        return Gate(name, "divergence", record.outcome, "no decision", needs=record.refused, reasons=(record.refused,), anchor=anchor)
    d, limit = record.found.decision, "within the baseline's own"
    ratio = f"mean KL {d.kl.estimate:.3g} times {record.floor.what}" if d.kl and record.floor else "no ratio"
    if record.outcome == "FAIL":
        measured = d.reasons[0] + (f"; {len(d.reasons) - 1} more reasons" if len(d.reasons) > 1 else "")
        return Gate(name, "divergence", "FAIL", measured, limit=limit, reasons=d.reasons, anchor=anchor)
    if record.outcome == GO_ON:
        measured = f"{ratio}; no divergence beyond the baseline's own; this passes nothing by itself"
        return Gate(name, "divergence", GO_ON, measured, limit=limit, anchor=anchor, decides=False)
    needs = f"about {d.more} scored positions" if d.more else d.reasons[0] if d.reasons else ""
    needs = "the evals decide" if evals else needs
    return Gate(name, "divergence", "INCONCLUSIVE", f"UNDECIDED, {ratio}", "", "", limit, needs, d.reasons, anchor, not evals)


def _floor(share: float) -> str:
    """A share in per cent, cut and not rounded: 100 is said of all bits only."""
    return f"{int(share * 1e5) / 1e3:.3f}"


def names(pairs: Sequence[EvalPair]) -> list[str]:
    """What each comparison is called: its eval, and its runs as well where an eval was compared more than once."""
    suites = [pair.suite for pair in pairs]
    found = []
    for pair in pairs:
        runs = f": {pair.candidate.source.name} against {pair.baseline.source.name}" if pair.candidate else f": {pair.baseline.source.name}"
        found.append(title(pair.suite) + (runs if suites.count(pair.suite) > 1 else ""))
    return [f"{name} ({at + 1})" if found.count(name) > 1 else name for at, name in enumerate(found)]


def eval_gate(pair: EvalPair, at: int, name: str) -> Gate:
    """The gate of the comparison number `at`; of a lone run, or of one that cannot be compared, what is missing."""
    anchor, verdict = f"eval-{at}", pair.verdict
    if verdict is None:
        outcome = "INCOMPLETE" if pair.incomplete else "INVALID"
        if pair.candidate is None:
            return Gate(name, "eval", "INCONCLUSIVE", "one run alone", needs="a second run of the same eval to compare with", anchor=anchor)
        return Gate(name, "eval", outcome, "no verdict", needs=pair.refused, reasons=(pair.refused,), anchor=anchor)
    outcome = "FAIL" if verdict.exit_code == 1 else str(verdict.outcome)
    measured = "not comparable" if isnan(verdict.estimate) else f"{signed(verdict.estimate)} points"
    limit = signed(-verdict.margin)
    reasons = tuple(verdict.reasons) if verdict.reasons else ()
    needs = verdict.needs or (reasons[0] if outcome == "INVALID" and reasons else "")
    bounds = ("", "") if isnan(verdict.estimate) else (signed(verdict.lower), signed(verdict.upper))
    return Gate(name, "eval", outcome, measured, *bounds, limit, needs, reasons, anchor)


def change_text(verdict: Verdict, name: str) -> str:
    """A verdict's difference as part of a sentence."""
    way = "lower" if verdict.estimate < 0 else "higher"
    size = f"{abs(100 * verdict.estimate):.1f} points {way}" if abs(verdict.estimate) >= 5e-4 else "unchanged"
    n = sum(verdict.baseline.states.values()) // max(1, verdict.baseline.repeats)
    return (
        f"{name} is {size} on the same {n} questions, one-sided 95 % bounds {signed(verdict.lower)} to "
        f"{signed(verdict.upper)}, limit {signed(-verdict.margin)}."
    )


def _sentence(outcome: str, gates: Sequence[Gate], inputs: Inputs) -> str:
    """One pasteable sentence or two: the outcome, how many gates, and the one that matters."""
    screened = [f"{g.name}: {g.measured}." for g in gates if g.outcome == GO_ON]
    given, gates = bool(gates), [gate for gate in gates if gate.decides]
    total = len(gates)
    bad = sum(gate.outcome == outcome for gate in gates)
    of = f"{bad} of {total} gate{'s' * (total != 1)}"
    heads = {
        "PASS": f"PASS: {'all ' + str(total) + ' gates hold' if total > 1 else 'the one gate holds'}.",
        "FAIL": f"REGRESSION in {of}.",
        "INVALID": f"INVALID: {of} cannot be judged.",
        "INCOMPLETE": f"INCOMPLETE: {of} miss results." if total else f"INCOMPLETE: nothing was given{' that decides' if given else ''}.",
        "INCONCLUSIVE": f"INCONCLUSIVE: {of} are undecided."
        if bad
        else "INCONCLUSIVE: no failure survives the correction for several evals.",
    }
    named = enumerate(zip(inputs.pairs, names(inputs.pairs), strict=True))
    texts = {f"eval-{at}": change_text(p.verdict, name) for at, (p, name) in named if p.verdict and not isnan(p.verdict.estimate)}
    told = [f"{g.name}: {g.measured}." for g in gates if g.wing != "eval" and g.outcome == outcome][:1] if outcome != "PASS" else []
    told += [texts[g.anchor] for g in gates if g.outcome in (outcome, "FAIL") and g.anchor in texts][:1]
    if not told and outcome != "PASS":
        told = [f"{g.name}: {g.needs.splitlines()[0]}" for g in gates if g.outcome == outcome and g.needs][:1]
    told += screened[:1] if not total else []
    return " ".join([f"{SYMBOLS[outcome]} {heads[outcome]}", *told])
