"""The verdict of a divergence run from sequence means: FAIL, UNDECIDED or GO ON; nothing here can say that a backend is right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import ceil, log, sqrt

import numpy as np

from mxfp4_validate.divergence import limits as table
from mxfp4_validate.divergence.limits import Limits
from mxfp4_validate.divergence.scores import Floats
from mxfp4_validate.divergence.statistic import Arm
from mxfp4_validate.statistics.distributions import normal_quantile, t_quantile

FAIL, UNDECIDED, GO_ON = "FAIL", "UNDECIDED", "GO ON"


@dataclass(frozen=True)
class Ratio:
    """Candidate over floor with one-sided bounds, each of the level asked for."""

    estimate: float
    lower: float
    upper: float


@dataclass(frozen=True)
class Decision:
    """What one candidate arm came to.

    Attributes:
        outcome: FAIL, UNDECIDED or GO_ON; reasons: why, one a line.
        kl, flips: the two ratios, None with too few sequences; tail: the largest sequence mean over the floor's largest.
        floor: the mean KL the ratio is taken to; assumed: whether that is `ASSUMED_FLOOR` because A/A was too quiet to be one.
        more: scored positions in all that would decide, None if it is decided or no number would.
        seen_share: share of sequences that an intermittent fault must touch to be met in one of them with 95 % chance.
    """

    outcome: str
    reasons: tuple[str, ...]
    kl: Ratio | None
    flips: Ratio | None
    tail: float
    floor: float
    assumed: bool
    more: int | None
    seen_share: float


@dataclass(frozen=True, eq=False)
class Floor:
    """The A/A runs as one: mean over runs of each sequence's KL and flips [S], and the largest sequence mean of all."""

    kl: Floats
    flips: Floats
    largest: float
    assumed: bool


def build_floor(runs: Sequence[Arm]) -> Floor:
    """The floor of A/A runs; the assumed one if their mean KL is below `QUIET_FLOOR`, a server that repeats its own bits."""
    if not runs:
        raise ValueError("no A/A run: score the baseline twice, without a floor there is nothing to compare with")
    kl = np.mean([run.kl for run in runs], axis=0)
    least = table.LEAST_FLIPS.value / kl.size
    flips = np.sum([run.flips for run in runs], axis=0)
    flips = (flips if flips.sum() >= table.LEAST_FLIPS.value else np.full(kl.shape, least)) / len(runs)
    largest = max(float(run.kl.max()) for run in runs)
    if kl.mean() >= table.QUIET_FLOOR.value:
        return Floor(kl, flips, largest, False)
    assumed = table.ASSUMED_FLOOR.value
    flips = np.maximum(table.ASSUMED_FLIPS.value * runs[0].positions, least)
    return Floor(np.full(kl.shape, assumed), flips, assumed * table.ASSUMED_SPREAD.value, True)


@lru_cache(maxsize=8)
def resamples(sequences: int, draws: int, seed: int) -> Floats:
    """How often each sequence is drawn [draws, sequences]: whole sequences with replacement, the same ones in every arm."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(sequences, np.full(sequences, 1 / sequences), draws).astype(np.float64)


def ratio_bounds(candidate: Floats, floor: Floats, limits: Limits) -> tuple[Floats, Floats, Floats]:
    """(estimate, lower, upper) of sum(candidate) / sum(floor) over the last axis [..., S], by a cluster bootstrap.

    The sequence is the unit: its positions share a text and a cache. Both sums are drawn with the same sequences, so a text's
    own difficulty drops out. Percentiles, stretched on the log scale by t / z * sqrt(S / (S - 1)) because resampling S
    sequences understates their spread (Hesterberg 2015); without that a ratio at the limit failed twice as often as it may.
    Says nothing about another boot of either server.
    """
    n = candidate.shape[-1]
    weights = resamples(n, limits.draws, limits.seed)
    drawn = (candidate @ weights.T) / np.maximum(floor @ weights.T, 1e-300)
    lower, upper = np.quantile(drawn, [1 - limits.level, limits.level], axis=-1)
    estimate = candidate.sum(-1) / floor.sum(-1)
    stretch = t_quantile(limits.level, n - 1) / normal_quantile(limits.level) * sqrt(n / (n - 1))
    return estimate, _stretched(estimate, lower, stretch), _stretched(estimate, upper, stretch)


def _stretched(estimate: Floats, bound: Floats, stretch: float) -> Floats:
    """The bound moved away from the estimate on the log scale; a bound of 0 stays."""
    safe = np.maximum(estimate, 1e-300)
    return np.where(bound > 0, safe * (np.maximum(bound, 1e-300) / safe) ** stretch, 0.0)


def decide(candidate: Arm, runs: Sequence[Arm], limits: Limits | None = None, not_finite: int = 0) -> Decision:
    """The verdict on one candidate arm; `runs` are the A/A runs, `not_finite` the candidate's sequences that ended in NaN (not in its arm).

    With `not_finite` the arms hold the sequences that all of them scored.
    """
    limits = limits or Limits()
    if any(not np.array_equal(run.positions, candidate.positions) for run in runs):
        raise ValueError("the arms scored different positions; compare arms of one corpus")
    floor, n = build_floor(runs), candidate.kl.size
    kl = flips = None
    if n >= table.LEAST_SEQUENCES.value:
        kl = Ratio(*map(float, ratio_bounds(candidate.kl, floor.kl, limits)))
        flips = Ratio(*map(float, ratio_bounds(candidate.flips, floor.flips, limits)))
    tail = float(candidate.kl.max()) / floor.largest
    reasons = _failures(kl, flips, tail, floor, limits, not_finite)
    outcome, more = (FAIL, None) if reasons else (GO_ON, None)
    if not reasons:
        reasons, more = _open_questions(candidate, kl, flips, floor, limits)
        outcome = UNDECIDED if reasons else GO_ON
    seen = 1 - 0.05 ** (1 / n)
    return Decision(outcome, tuple(reasons), kl, flips, tail, float(floor.kl.mean()), floor.assumed, more, seen)


def nothing_but_nan(sequences: int) -> Decision:
    """The verdict on a candidate that gave no number for any sequence."""
    reason = f"NaN: all {sequences} sequences ended in something that is no number"
    return Decision(FAIL, (reason,), None, None, float("nan"), float("nan"), False, None, 1 - 0.05 ** (1 / sequences))


def _failures(kl: Ratio | None, flips: Ratio | None, tail: float, floor: Floor, limits: Limits, not_finite: int) -> list[str]:
    what = "an assumed floor" if floor.assumed else "the A/A floor"
    found = []
    if not_finite:
        found.append(f"NaN: {not_finite} sequences ended in something that is no number")
    if kl and kl.lower > limits.ratio:
        found.append(f"FAIL-A: mean KL {kl.estimate:.3g} times {what}, at least {kl.lower:.3g} > {limits.ratio:g}")
    if tail > limits.tail_factor:
        found.append(f"FAIL-B: one sequence has {tail:.3g} times the largest mean KL of {what}, > {limits.tail_factor:g}")
    if flips and flips.lower > limits.flip_ratio:
        found.append(f"FAIL-C: argmax flips {flips.estimate:.3g} times {what}, at least {flips.lower:.3g} > {limits.flip_ratio:g}")
    return found


def _open_questions(candidate: Arm, kl: Ratio | None, flips: Ratio | None, floor: Floor, limits: Limits) -> tuple[list[str], int | None]:
    """What keeps the run from going on, and the scored positions that would settle it."""
    n, positions = candidate.kl.size, float(candidate.positions.sum())
    if floor.assumed:
        if candidate.kl.mean() <= table.SAME.value and not candidate.flips.any():
            return [], None
        why = "A/A repeats its own bits, so it does not show what rounding does; score it once more with sums in another order (batch, TP size)"
        return [why], None
    if kl is None or flips is None:
        least = int(table.LEAST_SEQUENCES.value)
        return [f"{n} sequences, the ratios need {least}"], ceil(positions * least / n)
    reasons, needed = [], 0.0
    for name, ratio, limit in (("mean KL", kl, limits.ratio), ("argmax flips", flips, limits.flip_ratio)):
        if ratio.upper > limit:
            reasons.append(f"{name}: between {ratio.lower:.3g} and {ratio.upper:.3g} times the floor, the limit is {limit:g}")
            needed = max(needed, positions * _factor(ratio, limit))
    return reasons, ceil(needed) if 0 < needed < 1e12 else None


def _factor(ratio: Ratio, limit: float) -> float:
    """How many times the corpus would put the limit outside the bounds, were the estimate right: widths shrink with the root of the size."""
    if ratio.estimate <= 0 or ratio.lower <= 0:
        return float("inf")
    distance = log(limit / ratio.estimate)
    width = log(ratio.upper / ratio.estimate) if distance > 0 else log(ratio.estimate / ratio.lower)
    return (width / distance) ** 2 if distance else float("inf")
