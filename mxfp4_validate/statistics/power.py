"""Before a run: what a design can resolve, and what it takes to resolve a margin."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import ceil, sqrt

import numpy as np
from numpy.typing import ArrayLike

from mxfp4_validate.statistics.distributions import Floats, log_binomial, normal_cdf, one_sided_z
from mxfp4_validate.statistics.paired import tango_statistic


@dataclass(frozen=True)
class Design:
    """A planned comparison, the same in both arms.

    Attributes:
        variance: mean of p(1-p) over the questions: what one sample of a question varies by, at k >= 2.
        discordance: share of questions whose answer differs between two runs of one server, at k = 1; measure it by A/A.
    """

    name: str
    questions: int
    repeats: int
    variance: float = 0.0
    discordance: float = 0.0

    def __post_init__(self) -> None:
        wanted = "discordance" if self.repeats == 1 else "variance"
        if not 0 < getattr(self, wanted) <= 1:
            raise ValueError(f"{self.name}: {self.repeats} repeats need a {wanted} above 0, it is {getattr(self, wanted)}")


@dataclass(frozen=True)
class PowerRow:
    """One line of a power table: margins that an identical candidate passes with .80 and .90."""

    design: Design
    se: float
    margin_80: float
    margin_90: float


def within_share(accuracy: float, icc: float) -> float:
    """Mean p(1-p) of questions with that accuracy, when the share `icc` of all variance lies between questions."""
    return accuracy * (1 - accuracy) * (1 - icc)


def measured_variance(right: ArrayLike, repeats: int) -> float:
    """Mean p(1-p) over questions from a stored run of k >= 2 repeats, unbiased (k/(k-1) corrects the plug-in)."""
    means = np.asarray(right, float) / repeats
    return float((means * (1 - means)).mean()) * repeats / (repeats - 1)


def standard_error(design: Design) -> float:
    """SE of candidate minus baseline on fixed questions: sqrt(2 w / nk), or sqrt(discordance / n) with one repeat.

    For an identical candidate. Wrong (too small) by tau^2 per boot where server boots differ.
    """
    if design.repeats == 1:
        return sqrt(design.discordance / design.questions)
    return sqrt(2 * design.variance / (design.questions * design.repeats))


def pass_probability(design: Design, margin: float, alpha: float = 0.05, true_difference: float = 0.0) -> float:
    """Chance of PASS at one look. k >= 2: normal. k = 1: exact over all discordant tables, because the normal flatters 200 questions."""
    z = one_sided_z(alpha)
    if design.repeats > 1:
        return float(normal_cdf((true_difference + margin) / standard_error(design) - z))
    weight, gained, lost = _tables(design.questions, design.discordance, true_difference)
    return float(weight[tango_statistic(gained, lost, design.questions, -margin) > z].sum())


def fail_probability(design: Design, margin: float, alpha: float = 0.05, true_difference: float = 0.0) -> float:
    """Chance of FAIL at one look: the upper bound below 0 and the lower one not above -margin. Computed as `pass_probability`."""
    z = one_sided_z(alpha)
    if design.repeats > 1:
        se = standard_error(design)
        return float(normal_cdf((min(-z * se, z * se - margin) - true_difference) / se))
    weight, gained, lost = _tables(design.questions, design.discordance, true_difference)
    n = design.questions
    return float(weight[(tango_statistic(gained, lost, n, 0.0) < -z) & (tango_statistic(gained, lost, n, -margin) <= z)].sum())


@lru_cache(maxsize=32)
def _tables(n: int, discordance: float, difference: float) -> tuple[Floats, Floats, Floats]:
    """Chances of every likely pair of (gained, lost) counts, with those counts as columns and rows."""
    rates = (discordance + difference) / 2, (discordance - difference) / 2
    if min(rates) < 0 or discordance > 1:
        raise ValueError(f"a difference of {difference} cannot come from a discordance of {discordance}")
    # Ten standard deviations and some hold all of the probability that counts.
    most = [min(n, ceil(n * rate + 10 * sqrt(n * rate) + 10)) for rate in rates]
    b, c = np.arange(most[0] + 1.0)[:, None], np.arange(most[1] + 1.0)[None, :]
    rest = n - b - c
    with np.errstate(divide="ignore", invalid="ignore"):
        log_rates = [np.where(x > 0, x * np.log(rate), 0.0) for x, rate in zip((b, c), rates, strict=True)]
        log_rest = np.where(rest > 0, rest * np.log(1 - discordance), 0.0)
        log_weight = log_binomial(n, b) + log_binomial(n - b, np.minimum(c, n - b)) + log_rates[0] + log_rates[1] + log_rest
    return np.where(rest >= 0, np.exp(log_weight), 0.0), b, c


def detectable_margin(design: Design, power: float = 0.9, alpha: float = 0.05) -> float:
    """Smallest margin that an identical candidate passes with that power: (z_alpha + z_power) SE, at k = 1 by the exact table."""
    start = (one_sided_z(alpha) + one_sided_z(1 - power)) * standard_error(design)
    if design.repeats > 1:
        return start
    low, high = 0.0, min(0.999, 4 * start + 10 / design.questions)
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (low, middle) if pass_probability(design, middle, alpha) >= power else (middle, high)
    return high


def repeats_needed(questions: int, variance: float, margin: float, power: float = 0.9, alpha: float = 0.05) -> int:
    """Repeats a question in each arm for an identical candidate to pass the margin with that power, by the normal formula."""
    z = one_sided_z(alpha) + one_sided_z(1 - power)
    return max(1, ceil(2 * variance / questions * (z / margin) ** 2 - 1e-9))


def table(designs: Iterable[Design], alpha: float = 0.05) -> Sequence[PowerRow]:
    """SE and detectable margins of each design."""
    return [PowerRow(d, standard_error(d), detectable_margin(d, 0.8, alpha), detectable_margin(d, 0.9, alpha)) for d in designs]
