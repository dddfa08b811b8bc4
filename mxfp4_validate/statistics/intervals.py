"""The score of one run: for exactly these questions (E1), and for questions like these (E2)."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

import numpy as np
from numpy.typing import ArrayLike

from mxfp4_validate.statistics.distributions import Floats, log_beta, t_quantile, two_sided_z

#: From this many questions on, E2 uses a variance; below, the beta-binomial posterior.
ENOUGH_QUESTIONS = 100


@dataclass(frozen=True)
class Interval:
    """An estimate with its standard error and a two-sided interval of the stated level."""

    estimate: float
    se: float
    lower: float
    upper: float
    level: float


def wilson(p: ArrayLike, n: ArrayLike, z: ArrayLike) -> tuple[Floats, Floats]:
    """Score bounds of a proportion p seen in n independent trials (Wilson 1927); n may be an effective, fractional number.

    Never degenerates: 0 of n and n of n have intervals of positive width. Wrong when the trials are not exchangeable:
    n must then be an effective number, which is what `fixed_questions` and `similar_questions` compute.
    """
    p, n, z = np.asarray(p, float), np.asarray(n, float), np.asarray(z, float)
    shrink = 1 + z**2 / n
    centre = (p + z**2 / (2 * n)) / shrink
    half = z / shrink * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    # A bound at the edge of the range is p itself up to rounding: keep it from passing p.
    return np.clip(np.minimum(centre - half, p), 0, 1), np.clip(np.maximum(centre + half, p), 0, 1)


def within_variance(right: ArrayLike, repeats: int) -> tuple[Floats, Floats]:
    """Score and its variance over fresh repeats of the same questions, from right answers [..., n] of `repeats` each.

    Unbiased: m(1-m)/(k-1) estimates the variance of a question's mean m of k Bernoulli samples. Needs k >= 2. Wrong (too
    small) when samples of one question are correlated, as they are when a server boot shifts all of them: see `boots`.
    """
    if repeats < 2:
        raise ValueError(f"the variance inside a question needs 2 repeats, there is {repeats}")
    means = np.asarray(right, float) / repeats
    return means.mean(-1), (means * (1 - means)).sum(-1) / ((repeats - 1) * means.shape[-1] ** 2)


def effective_samples(p: ArrayLike, variance: ArrayLike, samples: float) -> Floats:
    """Independent samples that would have this variance, at least `samples`: unequal questions only lower it (Hoeffding 1956)."""
    p, variance = np.asarray(p, float), np.asarray(variance, float)
    exchangeable: Floats = np.full(np.broadcast_shapes(p.shape, variance.shape), float(samples))
    np.divide(p * (1 - p), variance, out=exchangeable, where=variance > 0)
    return np.maximum(samples, exchangeable)


def fixed_from_variance(p: float, variance: float, samples: float, level: float = 0.95) -> Interval:
    """E1 from a score, its within-question variance and the number of samples, for numbers taken from a paper."""
    lower, upper = wilson(p, effective_samples(p, variance, samples), two_sided_z(level))
    return Interval(p, sqrt(variance), float(lower), float(upper), level)


def fixed_questions(right: ArrayLike, repeats: int, level: float = 0.95) -> Interval:
    """E1: where would the score on these very questions settle? Wilson on the effective number of samples.

    Says nothing about other questions, where it covers about half the time, and nothing about a second server boot.
    """
    p, variance = within_variance(right, repeats)
    return fixed_from_variance(float(p), float(variance), repeats * np.asarray(right).shape[-1], level)


def similar_questions(right: ArrayLike, repeats: int, level: float = 0.95) -> Interval:
    """E2: what would the score be on other questions like these?

    One repeat: plain Wilson. From 100 questions: Wilson on the effective sample of the clustered variance, with the t
    correction of Korn and Graubard (1998). Below: the beta-binomial posterior (Bowyer et al. 2025), because a variance
    from 30 questions near 100 % is far too small. Wrong when the questions are not a sample of anything.
    """
    right = np.asarray(right, float)
    n, z = right.shape[-1], two_sided_z(level)
    means = right / repeats
    p = float(means.mean())
    se = float(means.std(ddof=1)) / sqrt(n) if n > 1 else float("nan")
    if repeats == 1:
        lower, upper = wilson(p, n, z)
    elif n >= ENOUGH_QUESTIONS:
        n2 = min(n * repeats, p * (1 - p) / se**2 * (z / t_quantile((1 + level) / 2, n - 1)) ** 2) if se > 0 else n
        lower, upper = wilson(p, n2, z)
    else:
        low, high = _beta_binomial(right, repeats, level)
        # An equal-tailed interval leaves out a score of exactly 0 or 1; a reader expects the estimate inside.
        return Interval(p, se, min(low, p), max(high, p), level)
    return Interval(p, se, float(lower), float(upper), level)


def _beta_binomial(right: Floats, repeats: int, level: float) -> tuple[float, float]:
    """Equal-tailed posterior interval of the mean of the questions' Beta(t d, (1-t) d); prior t ~ U(0, 1), d ~ Gamma(1, 1)."""
    theta = (np.arange(600) + 0.5) / 600
    log_d = np.linspace(np.log(1e-3), np.log(50.0), 80)
    d = np.exp(log_d)
    a, b = np.outer(theta, d), np.outer(1 - theta, d)
    log_posterior = np.broadcast_to(log_d - d, a.shape).copy()  # Gamma(1, 1) on a log grid
    log_posterior -= right.size * log_beta(a, b)
    for value, count in zip(*np.unique(right, return_counts=True), strict=True):
        log_posterior += count * log_beta(a + value, b + repeats - value)
    weight = np.exp(log_posterior - log_posterior.max()).sum(1)
    cumulative = np.concatenate([[0.0], np.cumsum(weight) / weight.sum()])
    edges = np.arange(601) / 600
    tail = (1 - level) / 2
    return float(np.interp(tail, cumulative, edges)), float(np.interp(1 - tail, cumulative, edges))


def run_to_run(scores: ArrayLike) -> tuple[float, float]:
    """Standard deviation over the repeats' scores, and that over sqrt(k): what other tools print after their plus-minus sign.

    Neither is a confidence interval. Two standard errors cover .68 with 2 repeats, .92 with 16, and nothing at all at 100 %.
    """
    scores = np.asarray(scores, float)
    if scores.size < 2:
        return float("nan"), float("nan")
    deviation = float(scores.std(ddof=1))
    return deviation, deviation / sqrt(scores.size)
