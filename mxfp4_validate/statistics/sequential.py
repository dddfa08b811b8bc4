"""Looking more than once: spending the error over looks, deciding at the first crossing, and stopping when nothing can change."""

from __future__ import annotations

from functools import lru_cache
from math import sqrt

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mxfp4_validate.statistics.distributions import Floats, normal_cdf, normal_quantile
from mxfp4_validate.statistics.intervals import wilson
from mxfp4_validate.statistics.paired import arm, tango

#: What a look can say.
PASS, UNDECIDED, FAIL = 1, 0, -1
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(300)
_FAR = 9.0  # standard deviations beyond which a normal density is nothing


def obrien_fleming_spent(fraction: float, alpha: float) -> float:
    """One-sided error spent by information fraction t: 2 - 2 Phi(z / sqrt(t)) with z of alpha / 2 (Lan and DeMets 1983)."""
    return 2 * float(normal_cdf(normal_quantile(alpha / 2) / sqrt(fraction)))


@lru_cache(maxsize=4096)
def critical_values(fractions: tuple[float, ...], alpha: float = 0.05) -> tuple[float, ...]:
    """One-sided critical value at each look, fractions increasing to 1, so that all looks together spend `alpha`.

    The score process is a Brownian motion seen at the fractions; the density of those that have not crossed yet is carried
    from look to look by quadrature (Armitage, McPherson and Rowe 1969) and each boundary is solved for its share of
    error. Exact for normal statistics; close for MOVER and Tango bounds (simulated in the tests).
    """
    if not fractions or any(b <= a for a, b in zip((0.0, *fractions), fractions, strict=False)) or abs(fractions[-1] - 1) > 1e-9:
        raise ValueError(f"information fractions {fractions} must increase from above 0 to 1")
    spent = [obrien_fleming_spent(t, alpha) for t in fractions]
    values = [-normal_quantile(spent[0])]
    nodes, mass = _first_density(fractions[0], values[0])
    for before, now, old, new in zip(fractions, fractions[1:], spent, spent[1:], strict=False):
        step = sqrt(now - before)
        crossing = _boundary(nodes, mass, step, new - old)
        values.append(crossing / sqrt(now))
        grid, weights = _grid(-_FAR * sqrt(now), crossing)
        kernel = np.exp(-(((grid[:, None] - nodes) / step) ** 2) / 2) / (step * sqrt(2 * np.pi))
        nodes, mass = grid, weights * (kernel @ mass)
    return tuple(values)


def _grid(low: float, high: float) -> tuple[Floats, Floats]:
    half = (high - low) / 2
    return low + half * (_NODES + 1), half * _WEIGHTS


def _first_density(fraction: float, z: float) -> tuple[Floats, Floats]:
    scale = sqrt(fraction)
    grid, weights = _grid(-_FAR * scale, z * scale)
    return grid, weights * np.exp(-((grid / scale) ** 2) / 2) / (scale * sqrt(2 * np.pi))


def _boundary(nodes: Floats, mass: Floats, step: float, error: float) -> float:
    """The height that a path still inside passes with probability `error` after one more step, by bisection."""
    low, high = -_FAR, 40.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if float(mass @ normal_cdf((nodes - middle) / step)) > error else (low, middle)
    return (low + high) / 2


def look_fractions(looks: tuple[int, ...]) -> tuple[float, ...]:
    """Information at each look: complete repeats over the last look's."""
    return tuple(look / looks[-1] for look in looks)


def decide(lower: ArrayLike, upper: ArrayLike, margin: float) -> NDArray[np.int_]:
    """PASS if the lower bound is above -margin, else FAIL if the upper bound is below 0, else UNDECIDED."""
    lower, upper = np.asarray(lower, float), np.asarray(upper, float)
    return np.where(lower > -margin, PASS, np.where(upper < 0, FAIL, UNDECIDED))


def first_crossing(lower: ArrayLike, upper: ArrayLike, margin: float) -> tuple[NDArray[np.int_], NDArray[np.int_]]:
    """Decision and index of the look that gave it, looks on the last axis; undecided to the end gives the last look."""
    codes = decide(lower, upper, margin)
    decided = codes != UNDECIDED
    index = np.where(decided.any(-1), decided.argmax(-1), codes.shape[-1] - 1)
    return np.take_along_axis(codes, index[..., None], -1)[..., 0], index


def repeated_p(crossings: ArrayLike, fractions: tuple[float, ...]) -> float:
    """Smallest overall alpha whose boundary one of the looks seen so far crosses (Jennison and Turnbull's repeated p-value).

    `crossings` holds, for each look seen, the largest critical value at which it still rejects. Valid whatever look the
    run stopped at, and for one look the ordinary p-value. Reported as 1 when it would exceed one half.
    """
    seen = [float(x) for x in np.atleast_1d(np.asarray(crossings, float))]

    def rejects(alpha: float) -> bool:
        return any(x > z for x, z in zip(seen, critical_values(fractions, alpha), strict=False))

    if fractions == (1.0,):
        p = float(normal_cdf(-seen[0]))
        return p if p < 0.5 else 1.0
    low, high = -30.0, float(np.log(0.5))
    if not rejects(0.5):
        return 1.0
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (low, middle) if rejects(float(np.exp(middle))) else (middle, high)
    return float(np.exp(high))


def curtailment(right: ArrayLike, answered: ArrayLike, repeats: int, baseline: ArrayLike, z: float, margin: float) -> tuple[bool, bool]:
    """Can the look still PASS, can it still FAIL, when the candidate has `right` of `answered` so far and the baseline is complete?

    All [n]; the look is at `repeats` samples a question in both arms. Certain, not probable: it takes every remaining
    answer right or wrong and the widest and narrowest bounds any completion could have, so no error is spent and it may
    be asked after every sample. Slow to say so, because a MOVER bound is not monotone in the single answers.
    """
    right, answered, baseline = (np.asarray(x, float) for x in (right, answered, baseline))
    n, total = right.size, right.size * repeats
    completed = right + repeats - answered  # every remaining answer right
    if repeats == 1:  # Tango's bounds grow with every answer gained, so the two ends are completions themselves
        worst, best = (tango((c > baseline).sum(), (c < baseline).sum(), n, z) for c in (right, completed))
        return bool(best.lower > -margin), bool(worst.upper < 0 and worst.lower <= -margin)
    p_b, _, low_b, high_b = arm(baseline, repeats, z)
    worst_p, best_p = float(right.sum()) / total, float(completed.sum()) / total
    # Fewest effective samples, hence the widest limit below, at every score within reach.
    scores = np.linspace(worst_p, best_p, 65)
    widest = float((scores - wilson(scores, total, z)[0]).max())
    sure = worst_p - p_b - np.hypot(widest, high_b - p_b) > -margin
    return bool(best_p - high_b > -margin), bool(worst_p - low_b < 0 and not sure)
