"""What missing samples could have been: the two ends of every completion, never a score."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Counts = NDArray[np.int64]


class Completion(NamedTuple):
    """Right answers [n] of each arm after filling in the missing samples."""

    candidate: Counts
    baseline: Counts


def worst_case(candidate: ArrayLike, baseline: ArrayLike, baseline_missing: ArrayLike) -> Completion:
    """The candidate's missing samples wrong, the baseline's right: no completion has a lower difference (Manski 1990).

    Each missing sample of 480 moves the bound by 0.21 points, so completing the run is the only good way.
    """
    return Completion(np.asarray(candidate, np.int64), np.asarray(baseline, np.int64) + np.asarray(baseline_missing, np.int64))


def best_case(candidate: ArrayLike, candidate_missing: ArrayLike, baseline: ArrayLike) -> Completion:
    """The opposite end: the candidate's missing samples right, the baseline's wrong."""
    return Completion(np.asarray(candidate, np.int64) + np.asarray(candidate_missing, np.int64), np.asarray(baseline, np.int64))


def score_bounds(right: ArrayLike, missing: ArrayLike, samples: int) -> tuple[float, float]:
    """Lowest and highest score of one arm over all completions, of `samples` planned."""
    low = int(np.sum(right))
    return low / samples, (low + int(np.sum(missing))) / samples
