"""What follows from rows: at which M one backend overtakes another, and which to choose for decoding and for prefill. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from math import exp, log

from mxfp4_validate.bench.spec import GRAPH_TOKENS, Row, measured

#: Regimes by tokens a call: decode steps are what graphs are captured for, everything longer is prefill.
DECODE, PREFILL = "decode", "prefill"


@dataclass(frozen=True)
class Crossing:
    """Where the faster of two rows changes: between tokens `low` and `high`, at about `tokens`; `after` is the faster one from there on.

    `clear` says that on both sides the boxes (first to third quartile) do not overlap. `mixed` says that at one of them the host's
    time is in one call and not in the other.
    """

    before: str
    after: str
    tokens: float
    low: int
    high: int
    clear: bool
    mixed: bool


@dataclass(frozen=True)
class Pair:
    """Two columns over the token counts both have: `ratios` is tokens -> median of `first` over median of `second`."""

    first: str
    second: str
    ratios: Mapping[int, float]
    crossings: tuple[Crossing, ...]

    @property
    def verdict(self) -> str:
        """A sentence: the crossings, or who is faster everywhere."""
        if not self.ratios:
            return "no token count was measured with both"
        if self.crossings:
            return "; ".join(_said(c) for c in self.crossings)
        low, high = min(self.ratios.values()), max(self.ratios.values())
        if low == high == 1:
            return "equal everywhere"
        faster, least, most = (self.first, 1 / high, 1 / low) if high <= 1 else (self.second, low, high)
        return f"{faster} is faster at every M measured, {least:.2f} to {most:.2f} times"


def _said(c: Crossing) -> str:
    doubts = ("" if c.clear else ", within the spread") + (", the host's time in one of them" if c.mixed else "")
    return f"{c.after} is faster from M = {c.tokens:.0f} on (between {c.low} and {c.high}{doubts})"


@dataclass(frozen=True)
class Advice:
    """The column to choose in a regime: `lead` is the runner-up's time over its, in the geometric mean over `tokens`."""

    regime: str
    tokens: tuple[int, ...]
    choose: str
    runner_up: str
    lead: float
    exceptions: tuple[tuple[int, str], ...]
    clear: bool

    @property
    def sentence(self) -> str:
        span = f"M = {self.tokens[0]} to {self.tokens[-1]}" if len(self.tokens) > 1 else f"M = {self.tokens[0]}"
        if not self.runner_up:
            return f"{self.regime} ({span}): {self.choose}, the only one measured"
        if not self.clear:
            return f"{self.regime} ({span}): {self.choose} and {self.runner_up} are equal within the spread"
        but = ", ".join(f"{who} at M = {m}" for m, who in self.exceptions)
        return f"{self.regime} ({span}): {self.choose}, {self.lead:.2f} times as fast as {self.runner_up}" + (
            f"; faster: {but}" * bool(but)
        )


def columns(rows: Sequence[Row]) -> dict[str, dict[int, Row]]:
    """Measured rows of one (shape, bias) as label -> tokens -> row."""
    found: dict[str, dict[int, Row]] = {}
    for row in sorted(measured(rows), key=lambda row: row.tokens):
        found.setdefault(row.label, {})[row.tokens] = row
    return found


def pairs(rows: Sequence[Row]) -> tuple[Pair, ...]:
    """Every two columns of one (shape, bias)."""
    found = columns(rows)
    return tuple(_pair(one, other, found[one], found[other]) for one, other in combinations(found, 2))


def _pair(first: str, second: str, one: Mapping[int, Row], other: Mapping[int, Row]) -> Pair:
    shared = [m for m in one if m in other]
    ratios = {m: _ms(one[m]) / _ms(other[m]) for m in shared}
    decided = [m for m in shared if ratios[m] != 1]  # a tie on the point belongs to neither side
    crossings = []
    for low, high in pairwise(decided):
        left, right = log(ratios[low]), log(ratios[high])
        if left * right >= 0:
            continue
        at = exp(log(low) + (log(high) - log(low)) * left / (left - right))
        before, after = (first, second) if left < 0 else (second, first)
        clear = all(apart(one[m], other[m]) for m in (low, high))
        crossings.append(Crossing(before, after, at, low, high, clear, any(_hosted(one[m]) != _hosted(other[m]) for m in (low, high))))
    return Pair(first, second, ratios, tuple(crossings))


def _hosted(row: Row) -> bool:
    return row.mode == "eager"


def apart(one: Row, other: Row) -> bool:
    """Whether the boxes of two rows do not overlap."""
    assert one.q1_ms is not None
    assert one.q3_ms is not None
    assert other.q1_ms is not None
    assert other.q3_ms is not None
    return one.q3_ms < other.q1_ms or other.q3_ms < one.q1_ms


def _ms(row: Row) -> float:
    assert row.median_ms is not None
    return row.median_ms


def fastest(found: Mapping[str, Mapping[int, Row]], tokens: int) -> str:
    """The fastest column at one M; empty if none was measured."""
    return min((label for label, line in found.items() if tokens in line), key=lambda label: _ms(found[label][tokens]), default="")


def advice(rows: Sequence[Row]) -> tuple[Advice, ...]:
    """One for each regime that was measured, over the token counts that every column of the regime has."""
    found = columns(rows)
    every = sorted({m for line in found.values() for m in line})
    regimes = ((DECODE, [m for m in every if m <= GRAPH_TOKENS]), (PREFILL, [m for m in every if m > GRAPH_TOKENS]))
    return tuple(a for name, tokens in regimes if tokens and (a := _advise(name, tokens, found)) is not None)


def _advise(regime: str, tokens: Sequence[int], found: Mapping[str, Mapping[int, Row]]) -> Advice | None:
    """A column with gaps is compared where it was measured only if all are: what failed at some M is no candidate for the regime."""
    whole = {label: line for label, line in found.items() if all(m in line for m in tokens)}
    if not whole:
        return None
    means = {label: exp(sum(log(_ms(line[m])) for m in tokens) / len(tokens)) for label, line in whole.items()}
    best, *others = sorted(means, key=lambda label: means[label])
    if not others:
        return Advice(regime, tuple(tokens), best, "", 1.0, (), True)
    exceptions = tuple((m, who) for m in tokens if (who := fastest(whole, m)) != best and apart(whole[who][m], whole[best][m]))
    clear = any(apart(whole[best][m], whole[others[0]][m]) for m in tokens)
    return Advice(regime, tuple(tokens), best, others[0], means[others[0]] / means[best], exceptions, clear)
