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
from mxfp4_validate.divergence.signed import Drift, Ratio, drift, floor_logs, typical
from mxfp4_validate.divergence.statistic import Arm
from mxfp4_validate.statistics.distributions import beta_quantile, normal_quantile, t_quantile

FAIL, UNDECIDED, GO_ON = "FAIL", "UNDECIDED", "GO ON"


@dataclass(frozen=True)
class Decision:
    """What one candidate arm came to.

    Attributes:
        outcome: FAIL, UNDECIDED or GO_ON; reasons: why, one a line.
        kl, flips: the two ratios, None with too few sequences; tail: the largest sequence mean over the floor's largest.
        floor: the mean KL the ratio is taken to; assumed: whether that is `ASSUMED_FLOOR` because A/A was too quiet to be one.
        more: scored positions in all that would decide, None if it is decided or no number would.
        seen_share: share of sequences that an intermittent fault must touch to be met, with 95 % chance, in as many as keep it from going on.
        typical: the ratio of geometric means; drift: see `signed.drift`; None with too few sequences.
        declared: whether the floor is other accepted backends, because A/A was too quiet to be one.
        outstanding: sequences above `tail_factor` times the floor's largest.
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
    typical: Ratio | None = None
    drift: Drift | None = None
    declared: bool = False
    outstanding: int = 0


@dataclass(frozen=True, eq=False)
class Floor:
    """The runs of the floor as one: mean over runs of each sequence's KL, flips and log KL [S], over runs the largest KL of each.

    `scatter` is half the mean square of a position's log-ratio, in nat; see `Arm`.
    """

    kl: Floats
    flips: Floats
    logs: Floats
    peaks: Floats
    scatter: float
    assumed: bool = False
    declared: bool = False

    @property
    def largest(self) -> float:
        """The largest sequence mean of all runs."""
        return float(self.peaks.max())

    @property
    def least_outstanding(self) -> int:
        """How many sequences above `tail_factor` times the largest fail."""
        return 1 if self.assumed else int(table.TAIL_COUNT.value)

    @property
    def what(self) -> str:
        if self.assumed:
            return "an assumed floor"
        return "the declared backends" if self.declared else "the A/A floor"


def build_floor(runs: Sequence[Arm], declared: Sequence[Arm] = ()) -> Floor:
    """The floor of A/A runs, if their mean KL is at least `QUIET_FLOOR`.

    A server that repeats its own bits has none. Then it is that of `declared`, other accepted backends against the same baseline;
    without any, an assumed one.
    """
    if not runs:
        raise ValueError("no A/A run: score the baseline twice, without a floor there is nothing to compare with")
    if not _quiet(runs):
        return _measured(runs, False)
    if declared and not _quiet(declared):
        return _measured(declared, True)
    assumed, positions = table.ASSUMED_FLOOR.value, runs[0].positions
    flips = np.maximum(table.ASSUMED_FLIPS.value * positions, table.LEAST_FLIPS.value / positions.size)
    kl = np.full(positions.shape, assumed)
    return Floor(kl, flips, floor_logs([kl]), kl * table.ASSUMED_SPREAD.value, assumed, assumed=True)


def _quiet(runs: Sequence[Arm]) -> bool:
    """Whether hardly a sum was added up differently: in the mean, or in the typical sequence."""
    usual = float(np.exp(floor_logs([run.kl for run in runs]).mean()))
    return bool(np.mean([run.kl for run in runs]) < table.QUIET_FLOOR.value or usual < table.QUIET_TYPICAL.value)


def _measured(runs: Sequence[Arm], declared: bool) -> Floor:
    kl = np.mean([run.kl for run in runs], axis=0)
    flips = np.sum([run.flips for run in runs], axis=0)
    flips = (flips if flips.sum() >= table.LEAST_FLIPS.value else np.full(kl.shape, table.LEAST_FLIPS.value / kl.size)) / len(runs)
    logs, peaks = floor_logs([run.kl for run in runs]), np.max([run.kl for run in runs], axis=0)
    scatters = [run.scatter.sum() / run.positions.sum() for run in runs if run.scatter is not None]
    return Floor(kl, flips, logs, peaks, float(np.mean(scatters)) if scatters else float(kl.mean()), declared=declared)


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
    with np.errstate(over="ignore"):  # a bound without end is one
        return np.where(bound > 0, safe * (np.maximum(bound, 1e-300) / safe) ** stretch, 0.0)


def decide(
    candidate: Arm, runs: Sequence[Arm], limits: Limits | None = None, not_finite: int = 0, declared: Sequence[Arm] = ()
) -> Decision:
    """The verdict on one candidate arm.

    `runs` are the A/A runs, `declared` other accepted backends, `not_finite` the candidate's sequences that ended in NaN (not in its
    arm). With `not_finite` the arms hold the sequences that all of them scored.
    """
    limits = limits or Limits()
    if any(not np.array_equal(run.positions, candidate.positions) for run in (*runs, *declared)):
        raise ValueError("the arms scored different positions; compare arms of one corpus")
    floor = build_floor(runs, declared)
    seen = _measure(candidate, floor, limits)
    reasons, more = _failures(seen, floor, limits, not_finite), None
    outcome = FAIL if reasons else GO_ON
    if not reasons:
        reasons, more = _open_questions(candidate, seen, floor, limits)
        outcome = UNDECIDED if reasons else GO_ON
    share = least_share(candidate.kl.size, int(table.TAIL_COUNT.value) if floor.declared else 1)
    return Decision(
        outcome, tuple(reasons), seen.kl, seen.flips, seen.tail, float(floor.kl.mean()), floor.assumed, more, share,
        seen.typical, seen.drift, floor.declared, seen.outstanding,
    )  # fmt: skip


@dataclass(frozen=True)
class _Seen:
    """The statistics of one candidate; ratios and drift are None with too few sequences."""

    kl: Ratio | None
    flips: Ratio | None
    typical: Ratio | None
    drift: Drift | None
    tail: float
    outstanding: int


def _measure(candidate: Arm, floor: Floor, limits: Limits) -> _Seen:
    tail = float(candidate.kl.max()) / floor.largest
    outstanding = int((candidate.kl > limits.tail_factor * floor.largest).sum())
    if candidate.kl.size < table.LEAST_SEQUENCES.value:
        return _Seen(None, None, None, None, tail, outstanding)
    kl = Ratio(*map(float, ratio_bounds(candidate.kl, floor.kl, limits)))
    flips = Ratio(*map(float, ratio_bounds(candidate.flips, floor.flips, limits)))
    moved = None if candidate.drift is None else drift(candidate.drift, candidate.positions, limits.level)
    return _Seen(kl, flips, typical(candidate.kl, floor.logs, limits.level), moved, tail, outstanding)


def least_share(n: int, hits: int) -> float:
    """The share of sequences such that at least `hits` of n drawn ones are of that kind with 95 % chance (the binomial's tail is a beta's)."""
    return float(beta_quantile(0.95, hits, n - hits + 1)) if n >= hits else 1.0


def nothing_but_nan(sequences: int) -> Decision:
    """The verdict on a candidate that gave no number for any sequence."""
    reason = f"NaN: all {sequences} sequences ended in something that is no number"
    return Decision(FAIL, (reason,), None, None, float("nan"), float("nan"), False, None, least_share(sequences, 1))


def _failures(seen: _Seen, floor: Floor, limits: Limits, not_finite: int) -> list[str]:
    what, found = floor.what, []
    if not_finite:
        found.append(f"NaN: {not_finite} sequences ended in something that is no number")
    if seen.kl and seen.kl.lower > limits.ratio:
        found.append(f"FAIL-A: mean KL {seen.kl.estimate:.3g} times {what}, at least {seen.kl.lower:.3g} > {limits.ratio:g}")
    if seen.outstanding >= floor.least_outstanding:
        found.append(
            f"FAIL-B: {seen.outstanding} of the sequences, at most {seen.tail:.3g} times the largest mean KL of {what}, > {limits.tail_factor:g}"
        )
    if seen.flips and seen.flips.lower > limits.flip_ratio:
        found.append(
            f"FAIL-C: argmax flips {seen.flips.estimate:.3g} times {what}, at least {seen.flips.lower:.3g} > {limits.flip_ratio:g}"
        )
    if seen.typical and seen.typical.lower > limits.typical:
        found.append(f"FAIL-D: typical KL {seen.typical.estimate:.3g} times {what}, at least {seen.typical.lower:.3g} > {limits.typical:g}")
    margin = limits.drift * floor.scatter
    if seen.drift and seen.drift.least > margin:
        size = f"{seen.drift.estimate:+.2e} nat a position (t {seen.drift.t:+.1f})"
        found.append(f"FAIL-E: the log-probabilities drift to one side, {size}, at least {seen.drift.least:.2e} > {margin:.2e}")
    return found


def _open_questions(candidate: Arm, seen: _Seen, floor: Floor, limits: Limits) -> tuple[list[str], int | None]:
    """What keeps the run from going on, and the scored positions that would settle it."""
    n, positions = candidate.kl.size, float(candidate.positions.sum())
    if floor.assumed:
        if candidate.kl.mean() <= table.SAME.value and not candidate.flips.any():
            return [], None
        why = (
            "A/A repeats its own bits, so it does not show what rounding does; score it once more with sums in another order "
            "(batch, TP size), or declare another accepted backend"
        )
        return [why], None
    if seen.kl is None or seen.flips is None or seen.typical is None:
        least = int(table.LEAST_SEQUENCES.value)
        return [f"{n} sequences, the ratios need {least}"], ceil(positions * least / n)
    # Between backends a few sequences are most of the mean; what they do is for the tail, what the others do for the typical ratio.
    asked = [("typical KL", seen.typical, limits.typical)] if floor.declared else []
    asked += [] if floor.declared else [("mean KL", seen.kl, limits.ratio), ("argmax flips", seen.flips, limits.flip_ratio)]
    reasons, needed = [], 0.0
    if seen.outstanding and not floor.declared:  # a fault in a few sequences, or a rounding that weighed on one
        factor = f"at most {seen.tail:.3g} times the floor's largest mean KL, > {limits.tail_factor:g}"
        reasons.append(
            f"tail: {seen.outstanding} of {n} sequences, {factor}; {floor.least_outstanding} would fail, look at these and score more"
        )
        needed = positions * (1 + floor.least_outstanding / seen.outstanding)
    for name, ratio, limit in asked:
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
