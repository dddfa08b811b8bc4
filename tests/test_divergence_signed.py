"""Drift and typical ratio: nothing for noise that prefers no token, something for a shift, hand and scipy's numbers, and the cut of wild positions."""

from __future__ import annotations

from math import exp, log, sqrt

import numpy as np
import pytest
from scipy import stats

from mxfp4_validate.divergence import limits
from mxfp4_validate.divergence.signed import Drift, drift, floor_logs, logs, typical
from mxfp4_validate.divergence.statistic import Arm, Compared, arm, compare
from tests.divergence_rig import Floats, log_softmax, scores_of

SEQUENCES, POSITIONS, VOCABULARY, LEVEL = 48, 60, 40, 0.997
CLIP, SAME = limits.DRIFT_CLIP.value, limits.SAME.value


def drifted(noise: float = 0.0, scale: float = 1.0, own: bool = False, seed: int = 0) -> Drift:
    """The drift of a candidate whose logits are the baseline's times `scale` plus noise; `own`: the text is drawn from the baseline."""
    rng, rows = np.random.default_rng(seed), []
    for _ in range(SEQUENCES):
        logits = rng.normal(0, 2, (POSITIONS, VOCABULARY))
        b, c = log_softmax(logits), log_softmax(scale * logits + noise * rng.normal(0, 1, logits.shape))
        targets = [int(rng.choice(VOCABULARY, p=np.exp(row) / np.exp(row).sum()) if own else rng.integers(VOCABULARY)) for row in b]
        rows.append(compare(scores_of(b, targets, VOCABULARY), scores_of(c, targets, VOCABULARY), targets))
    made = arm(rows)
    assert made.drift is not None
    return drift(made.drift, made.positions, LEVEL)


@pytest.mark.parametrize("own", [False, True])
def test_noise_that_prefers_no_token_leaves_no_drift(own: bool) -> None:
    """Whoever wrote the text. Noise of 0.05 has a KL of 1e-3, and no drift of a third of that may be certain."""
    ts = [drifted(0.05, own=own, seed=seed) for seed in range(4)]
    assert max(abs(found.t) for found in ts) < 4, ts
    assert max(found.least for found in ts) < 3e-4, ts


def test_logits_one_percent_too_large_drift_on_foreign_text_and_hardly_on_the_baselines_own() -> None:
    foreign, own = drifted(0.02, 1.01), drifted(0.02, 1.01, own=True)
    assert abs(foreign.t) > 20, foreign
    assert foreign.least > 0.5 * abs(foreign.estimate) > 0
    assert abs(own.t) < abs(foreign.t) / 5, "the first order should cancel on tokens that the baseline drew"
    assert np.sign(drifted(0.02, 0.99).estimate) == -np.sign(foreign.estimate)


def test_a_wild_position_is_cut() -> None:
    """Sums by hand: what a position gives to the drift ends at the cut, and half its square at half the cut's square."""
    kl, ratio = np.array([0.1, 0.0, 0.0, 5.0]), np.array([0.15, 9.0, -9.0, 0.0])
    row = Compared(kl, ratio, np.zeros(4, bool), np.zeros(4), np.zeros(4))
    made = arm([row])
    assert made.drift is not None
    assert made.scatter is not None
    assert made.drift[0] == pytest.approx(0.05 + CLIP - CLIP - CLIP)
    assert made.scatter[0] == pytest.approx((0.15**2 + CLIP**2 + CLIP**2) / 2)
    assert made.kl[0] == pytest.approx(5.1 / 4), "the KL itself is not cut"


def test_one_wild_position_in_a_hundred_hides_no_drift() -> None:
    """One position in a hundred moves by three nats to either side, all others by a hundredth to one."""
    rng = np.random.default_rng(1)
    ratio = rng.normal(0.01, 0.03, (SEQUENCES, 100))
    ratio[:, 0] = rng.choice([-3.0, 3.0], SEQUENCES)
    still = np.zeros(100)
    made = arm([Compared(still, row, np.zeros(100, bool), still, still) for row in ratio])
    assert made.drift is not None
    cut, uncut = drift(made.drift, made.positions, LEVEL), drift(ratio.sum(1), made.positions, LEVEL)
    assert cut.least > 0 == uncut.least, (cut, uncut)
    assert cut.t > 2 * uncut.t


def test_the_ratio_estimator_by_hand() -> None:
    """9 / 60; residuals -0.5, -1, 1.5; the standard error sqrt(3 / 2 * 3.5) / 60."""
    found = drift(np.array([1.0, 2.0, 6.0]), np.array([10.0, 20.0, 30.0]), 0.9)
    error = sqrt(5.25) / 60
    half = stats.t.ppf(0.95, 2) * error
    assert (found.estimate, found.t, found.shows) == pytest.approx((0.15, 0.15 / error, half))
    assert found.least == pytest.approx(0.15 - half)
    assert drift(np.array([-1.0, -2.0, -6.0]), np.array([10.0, 20.0, 30.0]), 0.9).least == found.least


@pytest.mark.parametrize("seed", range(3))
def test_with_equal_lengths_it_is_scipys_t_test(seed: int) -> None:
    sums = np.random.default_rng(seed).normal(0.3, 1, 20)
    found = drift(sums, np.full(20, 7.0), 0.99)
    theirs = stats.ttest_1samp(sums / 7, 0)
    low, high = theirs.confidence_interval(0.99)
    assert found.t == pytest.approx(theirs.statistic)
    assert (high - low) / 2 == pytest.approx(found.shows)
    assert found.least == pytest.approx(max(low, -high, 0.0))


def test_a_drift_of_nothing_is_nothing() -> None:
    none = drift(np.zeros(20), np.full(20, 5.0), LEVEL)
    assert (none.estimate, none.t, none.least, none.shows) == (0.0, 0.0, 0.0, 0.0)
    sure = drift(np.full(20, 1.0), np.full(20, 5.0), LEVEL)  # no spread at all
    assert (sure.least, sure.t) == (pytest.approx(0.2), np.inf)


def lognormal(seed: int, middle: float, spread: float = 0.5) -> Floats:
    return middle * np.exp(np.random.default_rng(seed).normal(0, spread, 32))


def test_the_typical_ratio_is_scipys_paired_interval_on_logarithms() -> None:
    candidate, floor = lognormal(1, 3e-3), lognormal(2, 2e-3)
    found = typical(candidate, logs(floor), LEVEL)
    paired = stats.ttest_rel(np.log(candidate + SAME), np.log(floor + SAME))
    low, high = paired.confidence_interval(1 - 2 * (1 - LEVEL))  # each side of its own level
    ratio = stats.gmean(candidate + SAME) / stats.gmean(floor + SAME)
    assert (found.estimate, found.lower, found.upper) == pytest.approx((ratio, exp(low), exp(high)))


def test_a_difficult_text_drops_out_of_the_typical_ratio() -> None:
    text = lognormal(3, 1.0, spread=2.0)
    found = typical(1.2e-3 * text, logs(1e-3 * text), LEVEL)
    assert (found.estimate, found.lower, found.upper) == pytest.approx((1.2, 1.2, 1.2), rel=1e-3)


def test_three_wild_sequences_move_the_mean_and_hardly_the_typical_ratio() -> None:
    floor = lognormal(4, 1e-3, 0.1)
    candidate = floor * np.where(np.arange(32) < 3, 100.0, 1.0)
    assert candidate.mean() / floor.mean() > 8
    assert typical(candidate, logs(floor), LEVEL).estimate == pytest.approx(100 ** (3 / 32), rel=1e-3)


def test_a_kl_of_zero_has_a_logarithm() -> None:
    """Below what the printing of numbers makes nothing is told apart."""
    assert logs(np.zeros(3)).tolist() == pytest.approx([log(SAME)] * 3)
    same = typical(np.zeros(20), logs(np.zeros(20)), LEVEL)
    assert (same.estimate, same.lower, same.upper) == (1.0, 1.0, 1.0)
    assert typical(np.zeros(20), logs(np.full(20, 1e-3)), LEVEL).estimate == pytest.approx(1e-4, rel=1e-3)


def test_the_floors_logarithms_are_meaned_over_runs() -> None:
    found = floor_logs([np.array([1e-3, 1e-2]), np.array([1e-1, 1e-2])])
    assert np.exp(found).tolist() == pytest.approx([1e-2, 1e-2], rel=1e-3)


def test_an_arms_sums_are_one_a_sequence() -> None:
    three = np.ones(3)
    with pytest.raises(ValueError, match=r"one value a sequence"):
        Arm(three, three, three, np.ones(2), three)
    with pytest.raises(ValueError, match=r"one value a sequence"):
        Arm(np.ones((3, 1)), np.ones((3, 1)), np.ones((3, 1)))
