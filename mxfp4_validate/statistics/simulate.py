"""Simulated comparisons, vectorised over runs: for the tests, the benchmarks and `plan`; they use the very bounds of the verdict."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mxfp4_validate.statistics.distributions import Floats, beta_quantile
from mxfp4_validate.statistics.paired import Bounds, mover, tango
from mxfp4_validate.statistics.sequential import FAIL, PASS, critical_values, first_crossing, look_fractions


@dataclass(frozen=True)
class Rates:
    """Shares of simulated runs by decision, and the repeats they used on average."""

    passed: float
    failed: float
    repeats: float

    @property
    def inconclusive(self) -> float:
        return 1 - self.passed - self.failed


def question_rates(accuracy: float, icc: float, questions: int) -> Floats:
    """Chances [n] of a right answer: evenly spaced quantiles of a Beta with that mean and intraclass correlation."""
    concentration = 1 / icc - 1
    middle = (np.arange(questions) + 0.5) / questions
    return beta_quantile(middle, accuracy * concentration, (1 - accuracy) * concentration)


def corrupted(rates: ArrayLike, loss: float, questions: int | None = None) -> Floats:
    """The same questions after losing `loss` of the mean: every rate scaled down, or only those of the first (hardest last) `questions`."""
    rates = np.asarray(rates, float).copy()
    hit = np.argsort(-rates)[: questions or rates.size]
    share = loss * rates.size / rates[hit].sum()
    if share > 1:
        raise ValueError(f"{hit.size} questions hold less than a loss of {loss}")
    rates[hit] *= 1 - share
    return rates


def cumulative_right(rates: ArrayLike, looks: tuple[int, ...], runs: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Right answers [looks, runs, n] after each look's repeats."""
    rates = np.asarray(rates, float)
    steps = np.diff((0, *looks))
    return np.cumsum([rng.binomial(step, rates, (runs, rates.size)) for step in steps], axis=0)


def repeated_plan(
    candidate: ArrayLike, baseline: ArrayLike, looks: tuple[int, ...], margin: float, runs: int, seed: int = 0, alpha: float = 0.05
) -> Rates:
    """Decisions of a plan with two repeats or more at each look, for question rates [n] of both arms."""
    rng = np.random.default_rng(seed)
    right_c, right_b = (cumulative_right(rates, looks, runs, rng) for rates in (candidate, baseline))
    z = critical_values(look_fractions(looks), alpha)
    rows = [mover(right_c[i], look, right_b[i], look, z[i]) for i, look in enumerate(looks)]
    return _rates(rows, looks, margin)


def single_plan(questions: int, discordance: float, loss: float, margin: float, runs: int, seed: int = 0, alpha: float = 0.05) -> Rates:
    """Decisions of a plan with one answer a question: `discordance` flips both ways by chance, and `loss` more one way."""
    gained, lost = discordance / 2, discordance / 2 + loss
    counts = np.random.default_rng(seed).multinomial(questions, [gained, lost, 1 - gained - lost], runs)
    return _rates([tango(counts[:, 0], counts[:, 1], questions, critical_values((1.0,), alpha)[0])], (1,), margin)


def _rates(rows: list[Bounds], looks: tuple[int, ...], margin: float) -> Rates:
    codes, at = first_crossing(np.stack([row.lower for row in rows], -1), np.stack([row.upper for row in rows], -1), margin)
    return Rates(float((codes == PASS).mean()), float((codes == FAIL).mean()), float(np.asarray(looks)[at].mean()))
