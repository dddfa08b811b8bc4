"""Error rates of the default plans over 4,000 simulated runs each: no more than 5.5 % of wrong verdicts on either side."""

from __future__ import annotations

import numpy as np
import pytest

from mxfp4_validate.statistics import power, simulate
from mxfp4_validate.statistics.paired import mover
from mxfp4_validate.statistics.sequential import FAIL, PASS, first_crossing

RUNS = 4000
LIMIT = 0.055
AIME = simulate.question_rates(0.96, 0.32, 30)
GPQA = simulate.question_rates(0.735, 0.6, 198)
PLANS = {
    "gpqa 4/8/12/16": (GPQA, (4, 8, 12, 16), 0.025, 20),
    "gpqa x8": (GPQA, (8,), 0.03, 20),
    "aime25 8/16/24/32": (AIME, (8, 16, 24, 32), 0.03, 2),
    "aime25 x16": (AIME, (16,), 0.03, 2),
}


@pytest.mark.parametrize("name", PLANS)
def test_an_identical_candidate_rarely_fails(name: str) -> None:
    rates, looks, margin, _ = PLANS[name]
    got = simulate.repeated_plan(rates, rates, looks, margin, RUNS, seed=11)
    assert got.failed <= LIMIT
    assert got.passed > 0.87
    assert got.inconclusive == pytest.approx(1 - got.passed - got.failed)


@pytest.mark.parametrize("spread", ["all questions", "few questions"])
@pytest.mark.parametrize("name", PLANS)
def test_a_candidate_at_the_margin_rarely_passes(name: str, spread: str) -> None:
    rates, looks, margin, few = PLANS[name]
    worse = simulate.corrupted(rates, margin, None if spread == "all questions" else few)
    assert rates.mean() - worse.mean() == pytest.approx(margin)
    assert simulate.repeated_plan(worse, rates, looks, margin, RUNS, seed=12).passed <= LIMIT


@pytest.mark.parametrize("name", PLANS)
def test_a_broken_candidate_fails(name: str) -> None:
    rates, looks, margin, _ = PLANS[name]
    got = simulate.repeated_plan(simulate.corrupted(rates, 0.075), rates, looks, margin, RUNS, seed=13)
    assert got.failed > 0.99


@pytest.mark.parametrize("discordance", [0.015, 0.02, 0.03, 0.05, 0.08])
def test_single_answers_hold_both_errors(discordance: float) -> None:
    """GSM8K, 1319 x 1, margin 1.5 points: summed over every table, no chance involved, and the simulation agrees with the sum."""
    design = power.Design("gsm8k", 1319, 1, discordance=discordance)
    worse = power.Design("gsm8k", 1319, 1, discordance=discordance + 0.015)
    false_fail = power.fail_probability(design, 0.015)
    false_pass = power.pass_probability(worse, 0.015, true_difference=-0.015)
    assert false_fail <= LIMIT
    assert false_pass <= LIMIT
    simulated = (
        simulate.single_plan(1319, discordance, 0, 0.015, RUNS, seed=14).failed,
        simulate.single_plan(1319, discordance, 0.015, 0.015, RUNS, seed=15).passed,
    )
    assert simulated == pytest.approx((false_fail, false_pass), abs=4 * (0.05 * 0.95 / RUNS) ** 0.5)


def test_peeking_without_spending_would_break_the_limit() -> None:
    """The same looks at the plain critical value break the limit on either side: the tests above can fail."""
    looks, rng = (8, 16, 24, 32), np.random.default_rng(16)
    for loss, wrong in ((0.0, FAIL), (0.03, PASS)):
        arms = [simulate.cumulative_right(rates, looks, RUNS, rng) for rates in (simulate.corrupted(AIME, loss), AIME)]
        rows = [mover(arms[0][i], look, arms[1][i], look, 1.6449) for i, look in enumerate(looks)]
        codes, _ = first_crossing(np.stack([r.lower for r in rows], -1), np.stack([r.upper for r in rows], -1), 0.03)
        assert (codes == wrong).mean() > LIMIT
