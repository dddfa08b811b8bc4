"""Exact tests inside questions: do two arms differ at all, and do the server boots of one arm differ?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mxfp4_validate.statistics.distributions import Floats, log_binomial

#: Relative slack when counting outcomes as extreme as the one seen, so that rounding cannot split a tie.
_TIE = 1 - 1e-9


@dataclass(frozen=True)
class ExactTest:
    """p-values of "no change at all": `fewer` that the candidate's events are rarer, `more` that they are commoner."""

    fewer: float
    more: float
    two_sided: float


@dataclass(frozen=True)
class Heterogeneity:
    """Do boots differ? p-value, each boot's excess of events over its expectation, and the index of the oddest boot."""

    p: float
    excess: tuple[float, ...]
    oddest: int
    exact: bool


def _hypergeometric(good: int, bad: int, draws: int) -> Floats:
    """Chances of 0..draws good ones when `draws` are taken from good + bad."""
    x = np.arange(draws + 1)
    possible = (x <= good) & (draws - x <= bad)
    pmf: Floats = np.zeros(draws + 1)
    taken = x[possible]
    pmf[possible] = np.exp(log_binomial(good, taken) + log_binomial(bad, draws - taken) - log_binomial(good + bad, draws))
    pmf /= pmf.sum()
    return pmf


def null_distribution(events: ArrayLike, first: ArrayLike, second: ArrayLike) -> Floats:
    """Chances of every total of the first arm's events, given each question's events over both arms and its samples in each.

    Inside a question the samples are exchangeable if nothing changed, so the first arm's share is hypergeometric; the
    total is the convolution over questions.
    """
    rows, counts = np.unique(np.stack(np.broadcast_arrays(events, first, second), -1).reshape(-1, 3), axis=0, return_counts=True)
    total = np.ones(1)
    for (m, a, b), count in zip(rows.tolist(), counts.tolist(), strict=True):
        pmf = _hypergeometric(m, a + b - m, a)
        for _ in range(count if a else 0):
            total = np.convolve(total, pmf)
    return total


def stratified(candidate: ArrayLike, candidate_samples: ArrayLike, baseline: ArrayLike, baseline_samples: ArrayLike) -> ExactTest:
    """Exact stratified test of equal event rates (Birch 1964; the exact Cochran-Mantel-Haenszel test), questions as strata.

    Events may be right answers or truncated ones; samples may differ by question. With one sample each it is the exact
    McNemar test. Conservative: its size at 5 % is about 4 %. It can find a change, never show that there is none: that
    takes a margin.
    """
    candidate, baseline = np.asarray(candidate, np.int64), np.asarray(baseline, np.int64)
    pmf = null_distribution(candidate + baseline, np.asarray(candidate_samples, np.int64), np.asarray(baseline_samples, np.int64))
    seen = int(candidate.sum())
    fewer, more = float(pmf[: seen + 1].sum()), float(pmf[seen:].sum())
    two_sided = float(pmf[pmf <= pmf[seen] / _TIE].sum())
    return ExactTest(min(fewer, 1.0), min(more, 1.0), min(two_sided, 1.0))


def heterogeneity(events: ArrayLike, samples: ArrayLike, permutations: int = 4999, seed: int = 0) -> Heterogeneity:
    """Permutation test that boots do not matter, from events and samples [n, boots], permuting boots inside each question.

    Two boots: exact, by convolution. More: seeded Monte Carlo with (1 + hits) / (1 + draws), which is a valid p-value at any
    number of draws. Blind where a question was asked in one boot only, and always 1 when there is nothing to permute.
    """
    events, samples = np.asarray(events, np.int64), np.asarray(samples, np.int64)
    used = samples.sum(0) > 0
    total = samples.sum(1, keepdims=True)
    expected = (events.sum(1, keepdims=True) * samples / np.maximum(total, 1)).sum(0)
    excess = events.sum(0) - expected
    scale = np.sqrt(np.maximum(samples.sum(0), 1))
    oddest = int(np.argmax(np.abs(excess) / scale)) if excess.size else -1
    # Questions without a choice keep their own expectation whatever is permuted.
    free = (events.sum(1) > 0) & (events.sum(1) < total[:, 0]) & ((samples > 0).sum(1) > 1)
    shown = tuple(float(x) for x in excess)
    if not free.any():
        return Heterogeneity(1.0, shown, oddest, True)
    columns = np.flatnonzero(used)
    if len(columns) == 2:
        first, second = columns
        pmf = null_distribution(events[free].sum(1), samples[free, first], samples[free, second])
        distance = np.abs(np.arange(pmf.size) - pmf @ np.arange(pmf.size))
        seen = abs(float(excess[first]))
        return Heterogeneity(min(1.0, float(pmf[distance >= seen * _TIE - 1e-9].sum())), shown, oddest, True)
    drawn = _permuted(events[free], samples[free], permutations, np.random.default_rng(seed))
    constant = events[~free].sum(0) - expected
    statistic = (((drawn + constant) / scale) ** 2).sum(1)
    seen_statistic = float(((excess / scale) ** 2).sum())
    return Heterogeneity((1 + int((statistic >= seen_statistic * _TIE).sum())) / (1 + permutations), shown, oddest, False)


def _permuted(events: NDArray[np.int64], samples: NDArray[np.int64], draws: int, rng: np.random.Generator) -> Floats:
    """Events by boot [draws, boots] summed over questions, boots shuffled inside each: multivariate hypergeometric."""
    total = np.zeros((draws, samples.shape[1]))
    # Questions of the same layout share one call; only their sum matters.
    rows, counts = np.unique(np.column_stack([samples, events.sum(1)]), axis=0, return_counts=True)
    for row, count in zip(rows, counts.tolist(), strict=True):
        for _ in range(count):
            total += rng.multivariate_hypergeometric(row[:-1], int(row[-1]), size=draws, method="marginals")
    return total
