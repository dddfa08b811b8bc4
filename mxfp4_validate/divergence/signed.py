"""Two statistics that a few wild sequences cannot drown: the typical ratio of KLs, and a drift of the log-probabilities to one side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import copysign, inf, sqrt

import numpy as np

from mxfp4_validate.divergence import limits as table
from mxfp4_validate.divergence.scores import Floats
from mxfp4_validate.statistics.distributions import t_quantile


@dataclass(frozen=True)
class Ratio:
    """Candidate over floor with one-sided bounds, each of the level asked for."""

    estimate: float
    lower: float
    upper: float


@dataclass(frozen=True)
class Drift:
    """Mean of log p_B - log p_C - KL of the corpus's tokens, each position cut at `DRIFT_CLIP`, in nat a position.

    Attributes:
        t: the estimate over its standard error; least: a bound from below on its size, two-sided, 0 where the interval holds 0.
        shows: the size that a drift must have to be told from 0 with so many sequences.
    """

    estimate: float
    t: float
    least: float
    shows: float


def logs(kl: Floats) -> Floats:
    """Logarithm of sequence means [.., S]; what is below `SAME` counts as that, for it is the printing of numbers."""
    return np.log(kl + table.SAME.value)


def typical(candidate: Floats, floor: Floats, level: float) -> Ratio:
    """exp of the mean over sequences of log K_s(C) - log K_s(floor) [S], with one-sided t bounds.

    A geometric mean: where a rounding chooses another expert, a sequence's KL is a hundred times the usual one, and a handful of those
    is most of the mean. Each sequence is paired with itself in the floor, so a text's own difficulty drops out.
    """
    gap = logs(candidate) - floor
    half = t_quantile(level, gap.size - 1) * gap.std(ddof=1) / sqrt(gap.size)
    return Ratio(*(float(np.exp(gap.mean() + shift)) for shift in (0.0, -half, half)))


def drift(sums: Floats, positions: Floats, level: float) -> Drift:
    """The drift from each sequence's sum [S] of log-ratio - KL and its number of positions: a ratio estimator over whole sequences.

    Noise of the logits that prefers no token has mean log-ratio = KL, whoever wrote the text (second order), so nothing is left of it.
    A systematic change moves the log-ratio of tokens that B itself did not draw in the first order, where the KL moves in the second: 1 %
    too much of one layer shows here long before it shows there. On tokens that B drew at temperature 1 the first order cancels, so a
    corpus must hold others too, prompts for instance.
    """
    n, total = sums.size, positions.sum()
    estimate = float(sums.sum() / total)
    error = sqrt(n / (n - 1) * float(((sums - estimate * positions) ** 2).sum())) / float(total)
    shows = t_quantile((1 + level) / 2, n - 1) * error
    t = estimate / error if error else copysign(inf, estimate) if estimate else 0.0
    return Drift(estimate, t, max(abs(estimate) - shows, 0.0), shows)


def floor_logs(runs: Sequence[Floats]) -> Floats:
    """Mean over runs of the logarithms of each sequence's KL [S]."""
    mean: Floats = np.mean([logs(run) for run in runs], axis=0)
    return mean
