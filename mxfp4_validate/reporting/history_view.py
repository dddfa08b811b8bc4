"""Several runs of one thing over time: a series a gate, with the steps in it. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import isnan

from mxfp4_validate.reporting.gates import signed, title
from mxfp4_validate.reporting.inputs import EvalPair, Inputs, KernelRecord


@dataclass(frozen=True)
class Point:
    """One run of a series: x 0..100; y of the value and its interval on a 0..30 field, None where there is none."""

    x: float
    y: float | None
    low: float | None
    high: float | None
    outcome: str
    text: str


@dataclass(frozen=True)
class Series:
    name: str
    points: tuple[Point, ...]
    steps: tuple[str, ...]


def history(inputs: Inputs) -> tuple[Series, ...]:
    """A series for every backend with several records and every eval with several pairs, oldest first."""
    found = []
    for backend in dict.fromkeys(r.backend for record in inputs.kernels for r in record.results):
        records = sorted(
            (r for r in inputs.kernels if any(x.backend == backend for x in r.results)), key=lambda r: (r.run.created, r.run.id)
        )
        found += [_series(backend, [_kernel_point(r, backend) for r in records])] if len(records) > 1 else []
    for suite in dict.fromkeys(pair.suite for pair in inputs.pairs):
        pairs = [p for p in inputs.pairs if p.suite == suite and p.verdict and p.candidate and not isnan(p.verdict.estimate)]
        pairs.sort(key=lambda p: (p.candidate.run.created if p.candidate else "", p.baseline.run.id))
        found += [_series(title(suite), [_eval_point(p) for p in pairs])] if len(pairs) > 1 else []
    return tuple(found)


Value = tuple[float, float, float, str, str]


def _kernel_point(record: KernelRecord, backend: str) -> Value:
    """Share of passed items among those that ran, in points."""
    mine = [r for r in record.results if r.backend == backend and r.outcome != "unavailable"]
    share = 100 * sum(r.outcome == "passed" for r in mine) / max(1, len(mine))
    text = f"{record.run.created[:10]} {record.source.name}: {sum(r.outcome == 'passed' for r in mine)} of {len(mine)} passed"
    return share, share, share, "PASS" if share == 100 else "FAIL", text


def _eval_point(pair: EvalPair) -> Value:
    v, candidate = pair.verdict, pair.candidate
    assert v is not None
    assert candidate is not None
    text = f"{candidate.run.created[:10]} {candidate.source.name}: {signed(v.estimate)} [{signed(v.lower)}, {signed(v.upper)}] {v.outcome}"
    return 100 * v.estimate, 100 * v.lower, 100 * v.upper, str(v.outcome), text


def _series(name: str, values: Sequence[Value]) -> Series:
    """Scaled to the field; a step is a neighbour whose interval does not overlap, or another outcome."""
    low, high = min(v[1] for v in values), max(v[2] for v in values)
    span = high - low or 1.0

    def y(value: float) -> float:
        return round(28 - 26 * (value - low) / span, 2)

    width = 100 / max(1, len(values) - 1)
    points = tuple(Point(round(i * width, 2), y(v[0]), y(v[1]), y(v[2]), v[3], v[4]) for i, v in enumerate(values))
    steps = [f"{b[4]} (before: {a[3]})" for a, b in pairwise(values) if a[3] != b[3] or a[1] > b[2] or a[2] < b[1]]
    return Series(name, points, tuple(steps))
