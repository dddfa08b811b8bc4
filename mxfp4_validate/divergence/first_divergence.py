"""Greedy answers of two arms to the same prompts: where they first differ, and whether the candidate leaves earlier than A/A does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, exp, log, sqrt

import numpy as np
from numpy.typing import ArrayLike

from mxfp4_validate.statistics.distributions import normal_cdf, one_sided_z


@dataclass(frozen=True)
class Greedy:
    """One answer at temperature 0; `ended` is False if the token cap cut it."""

    tokens: tuple[int, ...]
    ended: bool


@dataclass(frozen=True)
class LogRank:
    """Arm 1 against arm 2.

    Attributes:
        observed, expected: first differences in arm 1, and how many there would be if both arms left at the same rate.
        z: above 0 if arm 1 leaves earlier; p: one-sided chance of that much by luck.
        hazard_ratio: Peto's estimate exp((O - E) / V), close to 1 only; events: first differences in both arms.
    """

    observed: float
    expected: float
    z: float
    p: float
    hazard_ratio: float
    events: int


def first_difference(a: Greedy, b: Greedy) -> tuple[int, bool]:
    """(tokens in common, whether a difference follows). False is censoring: they agree as far as both go.

    An answer that ended differs from one that goes on; one that the cap cut says nothing about what would have come.
    """
    common = next((i for i, (x, y) in enumerate(zip(a.tokens, b.tokens, strict=False)) if x != y), None)
    if common is not None:
        return common, True
    shorter, longer = sorted((a, b), key=lambda answer: len(answer.tokens))
    if len(shorter.tokens) == len(longer.tokens):
        return len(shorter.tokens), False
    return len(shorter.tokens), shorter.ended


def pairs(baseline: Sequence[Greedy], other: Sequence[Greedy]) -> tuple[list[int], list[bool]]:
    """First differences of answers to the same prompts, in order: (tokens in common, differs)."""
    found = [first_difference(a, b) for a, b in zip(baseline, other, strict=True)]
    return [time for time, _ in found], [event for _, event in found]


def log_rank(times: ArrayLike, events: ArrayLike, times2: ArrayLike, events2: ArrayLike) -> LogRank:
    """Mantel's log-rank test with the hypergeometric variance; `events` are False where the time is censored.

    Arm 1 is the candidate against the baseline, arm 2 the baseline's second run against its first. Both share the prompts and the
    baseline's answers, which the test does not know: such pairs leave at similar places, so its p is too large rather than too small.
    """
    time, event = np.concatenate([times, times2]).astype(float), np.concatenate([events, events2]).astype(bool)
    first = np.arange(time.size) < np.size(times)
    at = np.unique(time[event])
    risk = (time >= at[:, None]).sum(1).astype(float)
    risk1 = ((time >= at[:, None]) & first).sum(1).astype(float)
    died = ((time == at[:, None]) & event).sum(1).astype(float)
    expected = float((died * risk1 / risk).sum())
    observed = float((event & first).sum())
    variance = float((died * (risk1 / risk) * (1 - risk1 / risk) * (risk - died) / np.maximum(risk - 1, 1)).sum())
    if variance <= 0:  # nobody differs, or one arm is empty
        return LogRank(observed, expected, 0.0, 1.0 if observed <= expected else 0.5, 1.0, int(event.sum()))
    z = (observed - expected) / sqrt(variance)
    return LogRank(observed, expected, z, float(normal_cdf(-z)), exp((observed - expected) / variance), int(event.sum()))


def events_needed(hazard_ratio: float, alpha: float = 0.05, power: float = 0.8) -> int:
    """First differences in both arms together that show such a ratio of hazards one-sided, equal arms (Schoenfeld 1981)."""
    if hazard_ratio <= 0 or hazard_ratio == 1:
        raise ValueError(f"hazard ratio {hazard_ratio}: it must be above 0 and not 1, which no number of events can show")
    return ceil(4 * (one_sided_z(alpha) + one_sided_z(1 - power)) ** 2 / log(hazard_ratio) ** 2)
