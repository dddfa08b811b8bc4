"""Estimators against scipy, brute force, independent solvers and published numbers."""

from __future__ import annotations

from itertools import combinations, product
from math import comb, sqrt

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, stats

from mxfp4_validate.statistics import boots, exact, intervals, missing, multiple, paired, power, sequential, simulate

PRINTED = [90, 96.67, 96.67, 90, 93.33, 96.67, 96.67, 90, 100, 96.67, 93.33, 93.33, 96.67, 93.33, 93.33, 93.33]
Z95 = 1.6448536269514722


# --- one run -------------------------------------------------------------------------------------------------------------------


def test_the_printed_plus_minus_is_the_standard_deviation_over_repeats() -> None:
    """The published +/- 2.91 (SEM 0.73) is recovered from the sixteen printed repeats."""
    deviation, error = intervals.run_to_run(PRINTED)
    assert round(deviation, 2) == 2.91
    assert round(error, 2) == 0.73
    assert np.isnan(intervals.run_to_run([90.0])).all()


@pytest.mark.parametrize(("right", "n"), [(0, 7), (1, 7), (7, 7), (197, 200), (480, 480), (1, 1)])
@pytest.mark.parametrize("level", [0.8, 0.95, 0.99])
def test_wilson_agrees_with_scipy(right: int, n: int, level: float) -> None:
    want = stats.binomtest(right, n).proportion_ci(level, method="wilson")
    z = stats.norm.ppf((1 + level) / 2)
    assert np.allclose(intervals.wilson(right / n, n, z), (want.low, want.high), atol=1e-12)


def test_fixed_questions_from_a_stated_variance() -> None:
    """The seed's 94.38 and 97.29 with their run-to-run SEM as within-question error."""
    first = intervals.fixed_from_variance(453 / 480, 0.00728**2, 480)
    assert (round(100 * first.lower, 1), round(100 * first.upper, 1)) == (92.8, 95.6)
    second = intervals.fixed_from_variance(467 / 480, 0.00543**2, 480)
    assert (round(100 * second.lower, 1), round(100 * second.upper, 1)) == (96.0, 98.2)


def test_variance_inside_questions_is_unbiased() -> None:
    """Over all 2^3 outcomes of one question and both of another, weighted by chance, V1 averages to the true variance."""
    rates, k, mean = (0.3, 0.9), 3, 0.0
    for counts in product(range(k + 1), repeat=2):
        chance = np.prod([stats.binom.pmf(c, k, p) for c, p in zip(counts, rates, strict=True)])
        mean += chance * float(intervals.within_variance(counts, k)[1])
    assert mean == pytest.approx(sum(p * (1 - p) / k for p in rates) / 4)


def test_one_repeat_has_no_interval_for_fixed_questions() -> None:
    with pytest.raises(ValueError, match="needs 2 repeats"):
        intervals.fixed_questions([1, 0], 1)
    similar = intervals.similar_questions([1] * 197 + [0] * 3, 1)
    assert (round(100 * similar.lower, 1), round(100 * similar.upper, 1)) == (95.7, 99.5)


def test_fixed_interval_covers_at_its_level() -> None:
    """30 questions x 16 at 96 % on average: Wilson on the within-question variance covers 95 %, and is no wider than needed."""
    rates = simulate.question_rates(0.96, 0.32, 30)
    right = np.random.default_rng(1).binomial(16, rates, (8000, 30))
    p, variance = intervals.within_variance(right, 16)
    lower, upper = intervals.wilson(p, intervals.effective_samples(p, variance, 480), 1.959964)
    covered = float(((lower <= rates.mean()) & (rates.mean() <= upper)).mean())
    assert covered == pytest.approx(0.95, abs=0.01)  # four standard errors of 8,000 runs


def test_similar_questions_cover_other_questions() -> None:
    """30 new questions each time: the posterior covers, where the fixed-question interval does not come near."""
    rng = np.random.default_rng(2)
    hits = {"similar": 0, "fixed": 0}
    runs = 120
    for _ in range(runs):
        right = rng.binomial(16, rng.beta(0.96 * 2, 0.04 * 2, 30))
        for name, interval in (("similar", intervals.similar_questions(right, 16)), ("fixed", intervals.fixed_questions(right, 16))):
            hits[name] += interval.lower <= 0.96 <= interval.upper
    assert hits["similar"] / runs >= 0.95 - 3 * sqrt(0.95 * 0.05 / runs)
    assert hits["fixed"] / runs < 0.8


def test_beta_binomial_posterior_against_another_quadrature() -> None:
    right, k = np.array([16] * 24 + [15, 14, 12, 9, 16, 3]), 16
    theta, d = np.meshgrid(np.linspace(0.0005, 0.9995, 1000), np.linspace(0.025, 24.975, 500), indexing="ij")
    log = -d
    for value, count in zip(*np.unique(right, return_counts=True), strict=True):
        log = log + count * stats.betabinom.logpmf(value, k, theta * d, (1 - theta) * d)
    mass = np.exp(log - log.max()).sum(1)
    cumulative = np.cumsum(mass) / mass.sum()
    want = [theta[np.searchsorted(cumulative, q), 0] for q in (0.025, 0.975)]
    got = intervals.similar_questions(right, k)
    assert (got.lower, got.upper) == pytest.approx(want, abs=0.003)


def test_many_similar_questions_use_the_clustered_variance() -> None:
    right = np.random.default_rng(3).binomial(8, simulate.question_rates(0.735, 0.6, 198))
    got = intervals.similar_questions(right, 8)
    assert got.se == pytest.approx(np.std(right / 8, ddof=1) / sqrt(198))
    assert got.upper - got.lower == pytest.approx(2 * 1.972 * got.se, rel=0.03)  # t of 197 degrees; Wilson differs little here
    same = intervals.similar_questions([4] * 198, 8)
    assert np.allclose((same.lower, same.upper), intervals.wilson(0.5, 198, 1.959964), atol=1e-6)  # no spread at all: n questions


@pytest.mark.parametrize("right", [[16] * 30, [0] * 30, [16], [0]])
def test_an_interval_never_degenerates(right: list[int]) -> None:
    for interval in (
        intervals.fixed_questions(right, 16),
        intervals.similar_questions(right, 16),
        intervals.similar_questions(right[:1], 16),
    ):
        assert 0 <= interval.lower <= interval.estimate <= interval.upper <= 1
        assert interval.upper - interval.lower > 0.005


# --- two runs ------------------------------------------------------------------------------------------------------------------


def _tango_by_likelihood(b: int, c: int, n: int, z: float) -> tuple[float, float]:
    """Tango's bounds with the nuisance rate found by maximising the trinomial likelihood, not by its quadratic."""

    def statistic(d: float) -> float:
        low, high = max(0.0, -d) + 1e-13, (1 - d) / 2 - 1e-13

        def minus_log(q: float) -> float:
            return -(b * np.log(q + d) + c * np.log(q) + (n - b - c) * np.log(1 - 2 * q - d))

        q = optimize.minimize_scalar(minus_log, bounds=(low, high), method="bounded", options={"xatol": 1e-12}).x
        return float((b - c - n * d) / sqrt(n * (2 * q + d - d * d)))

    theta = (b - c) / n
    return tuple(optimize.brentq(lambda d, t=t: statistic(d) - t, *ends) for t, ends in ((z, (-0.999, theta)), (-z, (theta, 0.999))))


@pytest.mark.parametrize(("b", "c", "n"), [(1, 7, 21), (40, 20, 160), (5, 10, 100), (20, 21, 1319), (3, 1, 200), (9, 2, 12)])
def test_tango_against_an_independent_solver(b: int, c: int, n: int) -> None:
    got = paired.tango(b, c, n, 1.959964)
    assert (float(got.lower), float(got.upper)) == pytest.approx(_tango_by_likelihood(b, c, n, 1.959964), abs=2e-6)


def test_tango_on_published_tables() -> None:
    """Airway reactivity in 21 children, 1 and 7 discordant: -0.517 to -0.026 (Fagerland, Lydersen and Laake 2014)."""
    got = paired.tango(1, 7, 21, 1.959964)
    assert (round(float(got.lower), 3), round(float(got.upper), 3)) == (-0.517, -0.026)
    empty = paired.tango(0, 0, 44, 1.959964)  # closed form: z^2 / (n + z^2)
    assert float(empty.upper) == pytest.approx(1.959964**2 / (44 + 1.959964**2))
    assert float(empty.lower) == pytest.approx(-float(empty.upper))


def test_mover_by_hand_and_at_the_edge() -> None:
    got = paired.difference([16] * 30, 16, [16] * 30, 16, Z95)
    assert (got.method, got.estimate) == ("MOVER-Wilson", 0)
    assert -got.lower == got.upper == pytest.approx(0.0056, abs=5e-5)
    candidate, baseline = np.array([3, 4, 1, 4]), np.array([4, 4, 2, 3])
    got = paired.difference(candidate, 4, baseline, 4, Z95)
    arms = []
    for right in (candidate, baseline):
        m = right / 4
        variance = float((m * (1 - m) / 3).sum()) / 16
        n1 = max(16, m.mean() * (1 - m.mean()) / variance)
        arms.append((m.mean(), variance, *intervals.wilson(m.mean(), n1, Z95)))
    (pc, vc, lc, uc), (pb, vb, lb, ub) = arms
    assert got.lower == pytest.approx(pc - pb - np.hypot(pc - lc, ub - pb))
    assert got.upper == pytest.approx(pc - pb + np.hypot(uc - pc, pb - lb))
    assert got.se == pytest.approx(sqrt(vc + vb))


def test_mover_mirrors_and_takes_unequal_repeats_and_boots() -> None:
    rng = np.random.default_rng(4)
    c, b = rng.binomial(8, 0.7, 20), rng.binomial(16, 0.8, 20)
    there, back = paired.difference(c, 8, b, 16, Z95), paired.difference(b, 16, c, 8, Z95)
    assert (there.lower, there.upper) == pytest.approx((-back.upper, -back.lower))
    wide = paired.difference(c, 8, b, 16, Z95, boot_variance=1e-4, boots=(2, 4))
    assert wide.estimate - wide.lower == pytest.approx(np.hypot(there.estimate - there.lower, Z95 * sqrt(0.75e-4)))
    assert wide.se == pytest.approx(sqrt(there.se**2 + 0.75e-4))
    one = paired.difference(c > 4, 1, b, 16, Z95)
    assert one.method == "MOVER-Wilson"
    assert one.lower < one.estimate < one.upper


def test_single_answers_use_tango_with_boots_too() -> None:
    c, b = np.array([1, 1, 0, 1, 0] * 40), np.array([1, 0, 1, 1, 1] * 40)
    plain, wide = paired.difference(c, 1, b, 1, Z95), paired.difference(c, 1, b, 1, Z95, boot_variance=1e-3)
    assert plain.method == wide.method == "Tango score"
    assert plain.lower == pytest.approx(float(paired.tango(40, 80, 200, Z95).lower))
    assert wide.lower < plain.lower < plain.upper < wide.upper
    with pytest.raises(ValueError, match="same questions"):
        paired.difference([1, 0], 1, [1], 1, Z95)


def test_paired_t_is_scipy_and_survives_one_question() -> None:
    rng = np.random.default_rng(5)
    c, b = rng.binomial(8, 0.7, 20), rng.binomial(8, 0.8, 20)
    want = stats.ttest_rel(c / 8, b / 8).confidence_interval(0.9)
    got = paired.paired_t(c, 8, b, 8)
    assert (got.lower, got.upper) == pytest.approx((want.low, want.high))
    assert np.isnan(paired.paired_t([1], 8, [2], 8).lower)


# --- exact ---------------------------------------------------------------------------------------------------------------------


def test_one_sample_each_is_exact_mcnemar() -> None:
    rng = np.random.default_rng(6)
    for _ in range(50):
        c, b = rng.integers(0, 2, (2, int(rng.integers(1, 60))))
        gained, lost = int((c > b).sum()), int((c < b).sum())
        got = exact.stratified(c, 1, b, 1)
        if gained + lost == 0:
            assert got == exact.ExactTest(1, 1, 1)
            continue
        for side, value in (("less", got.fewer), ("greater", got.more), ("two-sided", got.two_sided)):
            assert value == pytest.approx(stats.binomtest(gained, gained + lost, alternative=side).pvalue)


def _enumerated(samples: list[list[int]], taken: list[int]) -> list[int]:
    """The first arm's total for every way of dealing each question's samples to the arms."""
    deals = [
        [sum(question[i] for i in pick) for pick in combinations(range(len(question)), k)]
        for question, k in zip(samples, taken, strict=True)
    ]
    return [sum(total) for total in product(*deals)]


@pytest.mark.parametrize("seed", range(8))
def test_stratified_test_by_enumeration(seed: int) -> None:
    """Every re-dealing of the samples inside each question, unequal arms included."""
    rng = np.random.default_rng(seed)
    k_c, k_b = [2, 2, 3, 1], [2, 3, 1, 1]
    answers = [rng.integers(0, 2, a + b).tolist() for a, b in zip(k_c, k_b, strict=True)]
    c = [sum(x[:k]) for x, k in zip(answers, k_c, strict=True)]
    b = [sum(x[k:]) for x, k in zip(answers, k_c, strict=True)]
    totals = np.array(_enumerated(answers, k_c))
    got = exact.stratified(c, k_c, b, k_b)
    assert got.fewer == pytest.approx(float((totals <= sum(c)).mean()))
    assert got.more == pytest.approx(float((totals >= sum(c)).mean()))


def test_two_boots_by_enumeration() -> None:
    answers, first = [[1, 1, 0, 0], [1, 0, 0, 0], [1, 1, 1, 1], [1, 1, 1, 0]], 2
    events = np.array([[sum(x[:first]), sum(x[first:])] for x in answers])
    totals = np.array(_enumerated(answers, [first] * 4))
    distance = np.abs(totals - totals.mean())
    got = exact.heterogeneity(events, np.full((4, 2), 2))
    assert got.exact
    assert got.p == pytest.approx(float((distance >= abs(events[:, 0].sum() - totals.mean()) - 1e-9).mean()))


def test_three_boots_monte_carlo_agrees_with_enumeration() -> None:
    answers = [[1, 0, 0], [1, 1, 0], [1, 0, 0], [1, 1, 0], [1, 0, 0]]  # one sample a boot; the first boot is always right
    events, samples = np.array(answers), np.ones((5, 3), int)
    shuffles = [list({tuple(np.roll(x, i)) for i in range(3)}) for x in answers]
    expected = events.mean(1).sum()
    statistics = [((np.sum(deal, 0) - expected) ** 2).sum() for deal in product(*shuffles)]
    want = float(np.mean(np.array(statistics) >= ((events.sum(0) - expected) ** 2).sum() - 1e-9))
    got = exact.heterogeneity(events, samples, permutations=20000)
    assert not got.exact
    assert got.oddest == 0
    assert got.p == pytest.approx(want, abs=4 * sqrt(want * (1 - want) / 20000))
    assert got == exact.heterogeneity(events, samples, permutations=20000)  # seeded


def test_boots_that_cannot_be_told_apart() -> None:
    assert exact.heterogeneity(np.zeros((3, 0), int), np.zeros((3, 0), int)).p == 1
    assert exact.heterogeneity([[4, 0]], [[4, 0]]).p == 1  # one boot only
    assert exact.heterogeneity([[1, 0], [0, 0]], [[1, 0], [0, 1]]).p == 1  # each question in one boot
    assert exact.heterogeneity([[4, 4], [0, 0]], [[4, 4], [4, 4]]).p == 1  # nothing varies


def test_heterogeneity_holds_its_size_and_sees_a_bad_boot() -> None:
    rng, rates = np.random.default_rng(7), simulate.question_rates(0.96, 0.32, 30)
    samples = np.full((30, 2), 8)
    null = [exact.heterogeneity(rng.binomial(8, rates[:, None], (30, 2)), samples).p for _ in range(1500)]
    assert np.mean(np.array(null) <= 0.01) <= 0.01 + 3 * sqrt(0.01 * 0.99 / 1500)
    bad = np.stack([rates, rates * 0.85], -1)
    seen = [exact.heterogeneity(rng.binomial(8, bad), samples) for _ in range(100)]
    assert np.mean([test.p <= 0.01 for test in seen]) > 0.9
    assert np.mean([test.excess[1] < 0 for test in seen]) > 0.95


# --- looks ---------------------------------------------------------------------------------------------------------------------


def test_critical_values_of_four_looks() -> None:
    """Lan-DeMets O'Brien-Fleming, one-sided .05. The design's 3.740, 2.541, 2.015, 1.721 were simulated; these are integrated."""
    got = sequential.critical_values((0.25, 0.5, 0.75, 1.0), 0.05)
    assert got == pytest.approx((3.7496, 2.5399, 2.0161, 1.7202), abs=1e-4)
    assert got == pytest.approx((3.740, 2.541, 2.015, 1.721), abs=0.01)
    assert sequential.critical_values((1.0,), 0.05) == pytest.approx((Z95,))
    with pytest.raises(ValueError, match="increase"):
        sequential.critical_values((0.5, 0.5, 1.0))


def test_looks_spend_alpha_and_no_more() -> None:
    """Brownian paths: the share that ever crosses is alpha, for equal looks and for odd ones."""
    rng = np.random.default_rng(8)
    for fractions in ((0.25, 0.5, 0.75, 1.0), (0.1, 0.6, 1.0)):
        steps = np.diff((0.0, *fractions))
        paths = np.cumsum(rng.normal(size=(200_000, len(steps))) * np.sqrt(steps), 1) / np.sqrt(fractions)
        crossed = (paths > sequential.critical_values(fractions)).any(1).mean()
        assert crossed == pytest.approx(0.05, abs=4 * sqrt(0.05 * 0.95 / 200_000))


def test_repeated_p_turns_at_the_boundary() -> None:
    fractions = (0.25, 0.5, 0.75, 1.0)
    boundary = sequential.critical_values(fractions, 0.05)
    for look in range(4):
        below = [0.0] * look
        assert sequential.repeated_p([*below, boundary[look] + 1e-3], fractions) < 0.05
        assert sequential.repeated_p([*below, boundary[look] - 1e-3], fractions) > 0.05
    assert sequential.repeated_p([0.0], fractions) == 1
    assert sequential.repeated_p([1.96], (1.0,)) == pytest.approx(0.025, abs=1e-4)
    assert sequential.repeated_p([0.0], (1.0,)) == 1


def test_first_crossing_decides() -> None:
    lower = np.array([[-0.05, -0.02], [-0.09, -0.02], [-0.05, -0.05], [-0.01, -0.01]])
    upper = np.array([[0.01, -0.01], [-0.01, 0.01], [0.01, 0.01], [-0.001, 0.1]])
    codes, at = sequential.first_crossing(lower, upper, 0.03)
    assert codes.tolist() == [1, -1, 0, 1]  # a small sure loss is inside the margin: PASS
    assert at.tolist() == [1, 0, 1, 0]


@pytest.mark.parametrize("repeats", [1, 2])
def test_curtailment_is_never_wrong(repeats: int) -> None:
    """Against every completion of small runs; and it does speak up when all is lost or won."""
    rng = np.random.default_rng(9)
    z, margin, spoke = 1.0, 0.2, 0
    for _ in range(90):
        n = 4
        baseline, answered = rng.integers(0, repeats + 1, n), rng.integers(0, repeats + 1, n)
        right = rng.binomial(answered, rng.choice([0.1, 0.5, 0.9]))
        can_pass, can_fail = sequential.curtailment(right, answered, repeats, baseline, z, margin)
        spoke += (not can_pass) + (not can_fail)
        for extra in product(*(range(repeats - a + 1) for a in answered)):
            d = paired.difference(right + np.array(extra), repeats, baseline, repeats, z)
            code = int(sequential.decide(d.lower, d.upper, margin))
            assert can_pass or code != sequential.PASS
            assert can_fail or code != sequential.FAIL
    assert spoke > 20


# --- the rest ------------------------------------------------------------------------------------------------------------------


def test_holm_by_hand() -> None:
    assert multiple.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert multiple.holm([0.9, 0.9]) == [1, 1]
    assert multiple.holm([]) == []
    assert multiple.intersection_union([True, True])
    assert not multiple.intersection_union([True, False])
    assert not multiple.intersection_union([])


def test_tau_squared_recovers_a_boot_effect() -> None:
    rng = np.random.default_rng(10)
    theta = rng.normal(0, sqrt(0.01**2 + 2 * 0.02**2), 20000)
    assert boots.tau_squared(theta, np.full(20000, 0.01)) == pytest.approx(0.02**2, rel=0.05)
    assert boots.tau_squared([0.001], [0.01]) == 0
    with pytest.raises(ValueError, match="as many"):
        boots.tau_squared([], [])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(*[st.integers(0, 3)] * 4), min_size=1, max_size=8), st.data())
def test_every_completion_lies_between_the_ends(rows: list[tuple[int, int, int, int]], data: st.DataObject) -> None:
    c, gone_c, b, gone_b = np.array(rows).T
    filled_c = c + np.array([data.draw(st.integers(0, int(g))) for g in gone_c])
    filled_b = b + np.array([data.draw(st.integers(0, int(g))) for g in gone_b])
    worst, best = missing.worst_case(c, b, gone_b), missing.best_case(c, gone_c, b)
    theta = (filled_c - filled_b).sum()
    assert (worst.candidate - worst.baseline).sum() <= theta <= (best.candidate - best.baseline).sum()
    low, high = missing.score_bounds(c, gone_c, 6 * len(c))
    assert low <= filled_c.sum() / (6 * len(c)) <= high


A4 = [  # questions, repeats, accuracy, ICC or discordance, SE, margins at 80 and 90 % power, in points, as the design's table has them
    (30, 4, 0.96, 0.32, 2.09, 5.19, 6.11),
    (30, 8, 0.96, 0.32, 1.48, 3.67, 4.32),
    (30, 16, 0.96, 0.32, 1.04, 2.59, 3.05),
    (30, 32, 0.96, 0.32, 0.74, 1.84, 2.16),
    (30, 64, 0.96, 0.32, 0.52, 1.29, 1.50),
    (198, 4, 0.735, 0.6, 1.40, 3.49, 4.10),
    (198, 8, 0.735, 0.6, 0.99, 2.47, 2.90),
    (198, 8, 0.87, 0.657, 0.70, 1.70, 2.02),
    (198, 16, 0.87, 0.657, 0.49, 1.24, 1.48),
    (200, 1, 0.0, 0.02, 1.00, 3.08, 3.69),
    (200, 1, 0.0, 0.03, 1.22, 3.52, 4.18),
    (200, 1, 0.0, 0.05, 1.58, 4.40, 5.04),
    (200, 1, 0.0, 0.08, 1.99, 5.28, 6.20),
    (1319, 1, 0.0, 0.02, 0.39, 1.00, 1.21),
    (1319, 1, 0.0, 0.03, 0.48, 1.23, 1.45),
    (1319, 1, 0.0, 0.05, 0.62, 1.57, 1.86),
    (1319, 1, 0.0, 0.08, 0.78, 1.94, 2.30),
]


@pytest.mark.parametrize(("n", "k", "accuracy", "spread", "se", "m80", "m90"), A4)
def test_power_table(n: int, k: int, accuracy: float, spread: float, se: float, m80: float, m90: float) -> None:
    design = power.Design("x", n, k, discordance=spread) if k == 1 else power.Design("x", n, k, power.within_share(accuracy, spread))
    (row,) = power.table([design])
    assert (100 * row.se, 100 * row.margin_80, 100 * row.margin_90) == pytest.approx((se, m80, m90), abs=0.05)


def test_power_agrees_with_simulation() -> None:
    single = power.Design("gsm8k", 1319, 1, discordance=0.03)
    assert power.pass_probability(single, 0.015) == pytest.approx(simulate.single_plan(1319, 0.03, 0, 0.015, 20000).passed, abs=0.01)
    assert power.fail_probability(single, 0.015) == pytest.approx(simulate.single_plan(1319, 0.03, 0, 0.015, 20000).failed, abs=0.01)
    rates = simulate.question_rates(0.735, 0.6, 198)
    design = power.Design("gpqa", 198, 8, float((rates * (1 - rates)).mean()))
    for loss in (0.0, 0.02):
        got = simulate.repeated_plan(simulate.corrupted(rates, loss), rates, (8,), 0.03, 4000)
        # A loss by corruption adds variance that the formula leaves out.
        assert power.pass_probability(design, 0.03, true_difference=-loss) == pytest.approx(got.passed, abs=0.03)
        assert power.fail_probability(design, 0.03, true_difference=-loss) == pytest.approx(got.failed, abs=0.03)


def test_repeats_needed_reaches_its_power() -> None:
    needed = power.repeats_needed(30, 0.02611, 0.03)
    assert power.detectable_margin(power.Design("a", 30, needed, 0.02611)) <= 0.03
    assert power.detectable_margin(power.Design("a", 30, needed - 1, 0.02611)) > 0.03
    assert power.repeats_needed(198, 0.039, 0.02, 0.8) == 7  # the design's table
    assert power.repeats_needed(30, 0.024, 0.03, 0.8) == 11
    assert power.repeats_needed(10_000, 1e-6, 0.5) == 1


def test_measured_variance_is_unbiased() -> None:
    rates = (0.2, 0.95)
    mean = sum(
        stats.binom.pmf(i, 4, rates[0]) * stats.binom.pmf(j, 4, rates[1]) * power.measured_variance([i, j], 4)
        for i in range(5)
        for j in range(5)
    )
    assert mean == pytest.approx((0.2 * 0.8 + 0.95 * 0.05) / 2)


def test_a_design_without_its_noise_is_refused() -> None:
    with pytest.raises(ValueError, match="discordance"):
        power.Design("x", 200, 1, variance=0.02)
    with pytest.raises(ValueError, match="variance"):
        power.Design("x", 200, 8, discordance=0.02)
    with pytest.raises(ValueError, match="cannot come from"):
        power.pass_probability(power.Design("x", 200, 1, discordance=0.02), 0.03, true_difference=-0.05)
    with pytest.raises(ValueError, match="hold less"):
        simulate.corrupted([0.5] * 30, 0.2, 2)


def test_hypergeometric_tables_sum_to_one() -> None:
    pmf = exact.null_distribution([3, 5], 4, 4)
    assert pmf.sum() == pytest.approx(1)
    want = sum(comb(4, x) * comb(4, 3 - x) * comb(4, y) * comb(4, 5 - y) for x in range(4) for y in range(5) if y >= 1 and x + y == 4)
    assert pmf[4] == pytest.approx(want / (comb(8, 3) * comb(8, 5)))
