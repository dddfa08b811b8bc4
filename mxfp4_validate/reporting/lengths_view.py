"""How long answers are, in bins: drift of the length precedes drift of the score. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import log2

from mxfp4_validate.reporting.inputs import EvalLeg

_BINS = 28


@dataclass(frozen=True)
class Lengths:
    """Completion tokens of both legs as shares by bin; `cap` is where the cap stands, None if unknown. x runs over 0..1."""

    edges: tuple[int, ...]
    baseline: tuple[float, ...]
    candidate: tuple[float, ...]
    top: float
    cap: int | None
    cap_x: float | None
    medians: tuple[float, float]


def lengths(legs: Sequence[EvalLeg]) -> Lengths | None:
    """Completion tokens in bins whose edges grow by a constant factor."""
    tokens = [sorted(row.tokens for row in leg.answers if row.tokens) for leg in legs]
    if not all(tokens):
        return None
    caps = {leg.cap for leg in legs}
    cap = caps.pop() if len(caps) == 1 else None
    low, high = log2(min(t[0] for t in tokens)), log2(max(*(t[-1] for t in tokens), cap or 1)) + 1e-9
    step = max(high - low, 1.0) / _BINS
    counts = [[0] * _BINS for _ in tokens]
    for row, values in zip(counts, tokens, strict=True):
        for value in values:
            row[min(_BINS - 1, int((log2(value) - low) / step))] += 1
    shares = [tuple(round(c / len(values), 4) for c in row) for row, values in zip(counts, tokens, strict=True)]
    edges = tuple(round(2 ** (low + i * step)) for i in range(_BINS + 1))
    cap_x = round((log2(cap) - low) / (step * _BINS), 4) if cap and log2(cap) <= high else None
    middle = [float(values[len(values) // 2]) for values in tokens]
    second = shares[1] if len(shares) > 1 else ()
    return Lengths(edges, shares[0], second, max(max(row) for row in shares), cap, cap_x, (middle[0], middle[-1]))
