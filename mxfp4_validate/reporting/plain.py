"""The judgement for a terminal, and as GitHub's annotation lines."""

from __future__ import annotations

from mxfp4_validate.reporting.clean import clean
from mxfp4_validate.reporting.gates import GO_ON, Gate, Judgement


def lines(judgement: Judgement) -> list[str]:
    """The sentence, then a line a gate, worst first."""
    width = max((len(gate.name) for gate in judgement.gates), default=0)
    return [clean(judgement.sentence)] + [_line(gate, width) for gate in judgement.gates]


def _line(gate: Gate, width: int) -> str:
    bounds = f" [{gate.lower or '-'}, {gate.upper or '-'}]" if gate.wing == "eval" and (gate.lower or gate.upper) else ""
    limit = f", limit {gate.limit}" if gate.limit else ""
    needs = f"; {gate.needs.splitlines()[0]}" if gate.needs else ""
    return clean(f"{gate.outcome:<12} {gate.name:<{width}}  {gate.measured}{bounds}{limit}{needs}")


def github(judgement: Judgement) -> list[str]:
    """A workflow command a gate that does not pass: `::error` where it failed or cannot be trusted, `::warning` where it is undecided,
    `::notice` where it lets the evals begin."""
    found = []
    for gate in judgement.gates:
        if gate.outcome != "PASS":
            level = {"INCONCLUSIVE": "warning", GO_ON: "notice"}.get(gate.outcome, "error")
            text = f"{gate.outcome}: {gate.measured}" + (f"; {gate.needs}" if gate.needs else "")
            found.append(f"::{level} title={_escaped(gate.name, ':,')}::{_escaped(text)}")
    return found


def _escaped(text: str, more: str = "") -> str:
    """GitHub's escapes for a command's value; of a property's also colon and comma."""
    flat = clean(text).replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")
    for mark in more:
        flat = flat.replace(mark, f"%{ord(mark):02X}")
    return flat
