"""The rule on made-up sequence means: how often it fails a sound candidate, what it sees, and what it does where A/A is silent."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from mxfp4_validate.divergence import calibrate, limits
from mxfp4_validate.divergence.limits import Limits
from mxfp4_validate.divergence.rule import (
    FAIL,
    GO_ON,
    UNDECIDED,
    build_floor,
    decide,
    least_share,
    nothing_but_nan,
    ratio_bounds,
    resamples,
)
from mxfp4_validate.divergence.statistic import Arm
from mxfp4_validate.errors import InvalidRun, UsageError
from tests.divergence_rig import Floats

POSITIONS, KL, FLIPS = 72, 1e-3, 0.02
FAST = Limits(draws=3000)


def simulated(runs: int, sequences: int, ratio: float, rng: np.random.Generator, text: Floats, heavy: float = 1.5) -> tuple[Floats, Floats]:
    """KL and flips [runs, sequences] of one arm: positions with log-normal tails, a difficulty of each text that all arms share.

    Flips grow with the root of the KL, as the amplitude of the noise does.
    """
    variation = (np.exp(heavy**2) - 1) / POSITIONS
    kl = text * KL * ratio * rng.gamma(1 / variation, variation, (runs, sequences))
    return kl, rng.binomial(POSITIONS, np.minimum(FLIPS * np.sqrt(ratio * text), 1)).astype(float)


def arm(kl: Floats, flips: Floats | float = 2.0) -> Arm:
    return Arm(np.asarray(kl, float), np.broadcast_to(flips, np.shape(kl)).astype(float), np.full(np.shape(kl), float(POSITIONS)))


def arms(runs: int, sequences: int, ratios: tuple[float, ...], seed: int, spread: float = 0.4) -> list[list[Arm]]:
    """`runs` comparisons, each a list of arms with those true ratios, over texts they share."""
    rng = np.random.default_rng(seed)
    text = np.exp(rng.normal(0, spread, (runs, sequences)))
    made = [simulated(runs, sequences, ratio, rng, text) for ratio in ratios]
    return [[arm(kl[i], flips[i]) for kl, flips in made] for i in range(runs)]


@cache
def decisions(sequences: int, ratios: tuple[float, ...], runs: int, seed: int = 0) -> list[str]:
    """Outcome and reasons of the whole rule: the first arm is the candidate, the others are A/A."""
    found = [decide(candidate, floor, FAST) for candidate, *floor in arms(runs, sequences, ratios, seed)]
    return [decision.outcome + "".join(reason[:6] for reason in decision.reasons) for decision in found]


@pytest.mark.parametrize("sequences", [16, 64])
def test_a_sound_candidate_fails_no_more_often_than_promised(sequences: int) -> None:
    """1,200 comparisons of a server with itself; three rules at 0.3 % each. A false FAIL rate above it would show as more than 21."""
    found = decisions(sequences, (1.0, 1.0), 1200)
    failed = sum(outcome.startswith(FAIL) for outcome in found)
    worst = int(stats.binom.ppf(0.999, len(found), 3 * (1 - FAST.level)))
    assert failed <= worst, f"{failed} of {len(found)} failed, {worst} at most"


@pytest.mark.parametrize("sequences", [16, 64])
def test_a_ratio_at_the_limit_itself_fails_at_the_nominal_rate(sequences: int) -> None:
    """The bootstrap's own error, which A/A far below the limit cannot show: 4,000 comparisons at exactly 1.5, KL and flips."""
    rng = np.random.default_rng(3)
    runs = 4000
    text = np.exp(rng.normal(0, 0.4, (runs, sequences)))
    kl, base = simulated(runs, sequences, 1.5, rng, text)[0], simulated(runs, sequences, 1.0, rng, text)
    flips = simulated(runs, sequences, 1.5**2, rng, text)[1]
    for name, candidate, floor in (("KL", kl, base[0]), ("flips", flips, np.maximum(base[1], 0.1))):
        lower = np.concatenate([ratio_bounds(candidate[i : i + 500], floor[i : i + 500], FAST)[1] for i in range(0, runs, 500)])
        failed = float((lower > 1.5).mean())
        assert failed <= 2.5 * (1 - FAST.level), f"{name}: {failed:.4f} failed at the limit, {1 - FAST.level:.4f} is promised"


def test_a_run_of_another_sound_kernel_goes_on_and_a_larger_one_is_clear() -> None:
    """Ratio 1.17 as measured for a legitimate other kernel: 256 sequences settle what 16 leave open."""
    small, large = decisions(16, (1.17, 1.0), 100), decisions(256, (1.17, 1.0), 100)
    assert sum(outcome == GO_ON for outcome in large) >= 90, large
    assert sum(outcome.startswith(UNDECIDED) for outcome in small) > 0, "16 sequences cannot tell 1.17 from 1.5 every time"
    assert not any(outcome.startswith(FAIL) for outcome in small + large)


def test_a_mean_three_times_the_floor_is_seen_in_sixteen_sequences() -> None:
    found = decisions(16, (2.9, 1.0), 200)
    assert sum("FAIL-A" in outcome for outcome in found) >= 190, found


def test_an_intermittent_fault_is_seen_by_the_tail_and_not_by_the_mean() -> None:
    """Five percent of 64 sequences at 60 times the KL: the tail rule needs three of them, and with one or two nothing goes on."""
    rng, tail, mean, kept = np.random.default_rng(8), 0, 0, 0
    for candidate, floor in arms(300, 64, (1.0, 1.0), 4):
        hit = rng.random(64) < 0.05
        decision = decide(arm(np.where(hit, 60.0, 1.0) * candidate.kl, candidate.flips), [floor], FAST)
        kept += decision.outcome != GO_ON
        assert decision.outcome != GO_ON or not hit.any()
        tail += any("FAIL-B" in reason for reason in decision.reasons)
        mean += any("FAIL-A" in reason for reason in decision.reasons)
    for seen, least in ((tail, 3), (kept, 1)):
        chance = stats.binom.sf(least - 1, 64, 0.05)
        assert seen >= stats.binom.ppf(0.001, 300, chance), f"{seen} of 300, {least} sequences are hit in {chance:.3f}"
    assert mean < 0.7 * kept, f"the mean saw {mean}, the tail kept {kept} from going on: the tail rule would not be needed"


@pytest.mark.parametrize(("n", "hits"), [(48, 1), (64, 3), (256, 3)])
def test_the_share_that_would_have_been_met(n: int, hits: int) -> None:
    assert stats.binom.sf(hits - 1, n, least_share(n, hits)) == pytest.approx(0.95)
    assert (least_share(2, 3), least_share(n, 1)) == (1.0, pytest.approx(1 - 0.05 ** (1 / n)))


def test_flips_alone_can_fail_a_candidate() -> None:
    rng = np.random.default_rng(0)
    kl = KL * np.exp(rng.normal(0, 0.2, 64))
    decision = decide(arm(kl, rng.binomial(POSITIONS, 0.06, 64)), [arm(kl, rng.binomial(POSITIONS, 0.02, 64))])
    assert [reason[:6] for reason in decision.reasons] == ["FAIL-C"]


def test_few_flips_of_a_and_a_are_no_rate() -> None:
    """No flip at all in A/A: the candidate's 3 are no evidence, its 40 are."""
    kl = np.full(32, KL)
    none = arm(kl, 0.0)
    few = arm(kl, np.array([1.0] * 3 + [0.0] * 29))
    assert not any("FAIL-C" in reason for reason in decide(few, [none]).reasons)
    assert any("FAIL-C" in reason for reason in decide(arm(kl, np.array([1.0, 2.0] * 13 + [0.0] * 6)), [none]).reasons)


def test_undecided_names_the_positions_that_would_decide() -> None:
    """With the number it names, and the same estimate, the limit lies outside the bounds."""
    candidate, floor = arms(1, 16, (1.2, 1.0), 11)[0]
    decision = decide(candidate, [floor])
    assert decision.outcome == UNDECIDED
    assert decision.more is not None
    times = decision.more / candidate.positions.sum()
    assert times > 1
    copies = int(np.ceil(times)) + 1
    more = [Arm(np.tile(a.kl, copies), np.tile(a.flips, copies), np.tile(a.positions, copies)) for a in (candidate, floor)]
    assert decide(more[0], more[1:]).outcome == GO_ON


def test_too_few_sequences_are_undecided_unless_three_stand_out() -> None:
    kl = np.full(8, KL)
    decision = decide(arm(1.1 * kl), [arm(kl)])
    assert (decision.outcome, decision.kl, decision.more) == (UNDECIDED, None, 16 * POSITIONS)
    assert decide(arm(np.append(kl[:6], [4 * KL] * 2)), [arm(kl)]).outcome == UNDECIDED
    assert decide(arm(np.append(kl[:5], [4 * KL] * 3)), [arm(kl)]).outcome == FAIL


def test_nan_is_a_failure_whatever_the_ratios_say() -> None:
    kl = np.full(32, KL)
    assert decide(arm(kl), [arm(kl)]).outcome == GO_ON
    decision = decide(arm(kl), [arm(kl)], not_finite=1)
    assert (decision.outcome, decision.reasons[0][:6]) == (FAIL, "NaN: 1")
    assert nothing_but_nan(4).outcome == FAIL


@pytest.mark.parametrize(
    ("kl", "want", "assumed"),
    [(0.0, GO_ON, True), (5e-8, GO_ON, True), (1e-5, UNDECIDED, True), (0.029, UNDECIDED, True), (0.031, FAIL, True)],
)
def test_a_server_that_repeats_its_own_bits_is_no_floor(kl: float, want: str, assumed: bool) -> None:
    """A/A of exactly 0: nothing changed goes on, rounding cannot be told from a small fault, what no rounding makes fails."""
    silent = arm(np.zeros(32), 0.0)
    decision = decide(arm(np.full(32, kl), 0.0), [silent])
    assert (decision.outcome, decision.assumed, decision.floor) == (want, assumed, limits.ASSUMED_FLOOR.value)
    if want == UNDECIDED:
        assert "repeats its own bits" in decision.reasons[0]


def test_a_silent_floor_still_sees_one_sequence_that_stands_out() -> None:
    kl = np.append(np.zeros(31), 0.31)
    assert [reason[:6] for reason in decide(arm(kl, 0.0), [arm(np.zeros(32), 0.0)]).reasons] == ["FAIL-B"]


def test_several_runs_make_one_floor() -> None:
    floor = build_floor([arm(np.array([1.0, 3.0]), np.array([4.0, 6.0])), arm(np.array([3.0, 5.0]), np.array([0.0, 2.0]))])
    assert (floor.kl.tolist(), floor.flips.tolist(), floor.largest) == ([2.0, 4.0], [2.0, 4.0], 5.0)
    with pytest.raises(ValueError, match="no A/A run"):
        build_floor([])


@given(scale=st.floats(1e-3, 1e3), seed=st.integers(0, 100))
@settings(max_examples=40, deadline=None)
def test_the_ratio_has_no_unit_and_its_bounds_are_in_order(scale: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    c, f = rng.lognormal(0, 1, 24), rng.lognormal(0, 1, 24)
    few = replace(FAST, draws=500)
    one, other = ratio_bounds(c, f, few), ratio_bounds(c * scale, f * scale, few)
    assert np.allclose(one, other)
    assert one[1] <= one[0] <= one[2]


def test_resampling_draws_whole_sequences_and_the_same_ones_every_time() -> None:
    weights = resamples(20, 2000, 1)
    assert set(weights.sum(1)) == {20.0}
    assert np.array_equal(weights, resamples.__wrapped__(20, 2000, 1))
    assert weights.var() == pytest.approx(1 - 1 / 20, rel=0.03)


def test_other_positions_are_refused() -> None:
    with pytest.raises(ValueError, match="different positions"):
        decide(arm(np.ones(16)), [Arm(np.ones(16), np.ones(16), np.ones(16))])


def calibrated(spread: float = 0.4, runs: int = 3, seed: int = 0) -> calibrate.Calibration:
    (found,) = arms(1, 64, (1.0,) * runs, seed, spread)
    return calibrate.calibrate(found, {"model": "m", "random_seed": "1"}, "c" * 64, 512)


def test_a_calibration_raises_a_limit_that_a_and_a_would_break_and_lowers_none() -> None:
    quiet = calibrated()
    assert (quiet.ratio, quiet.tail_factor, quiet.flip_ratio) == (1.5, 3.0, 1.5)
    (found,) = arms(1, 64, (1.0, 1.0, 1.0), 1)
    worst = np.arange(64) == found[0].kl.argmax()
    found.append(arm(found[0].kl * np.where(worst, 12.0, 2.0), found[0].flips * 2))  # a boot that is another one
    noisy = calibrate.calibrate(found, {}, "c" * 64, 512)
    assert min(noisy.ratio / 2, noisy.tail_factor / 4, noisy.flip_ratio / 1.8) > 1, noisy
    assert noisy.ratio >= max(noisy.ratios)
    for i, run in enumerate(found):
        decision = decide(run, found[:i] + found[i + 1 :], noisy.limits())
        assert decision.outcome != FAIL, f"run {i} against the others: {decision.reasons}"
    assert decide(found[3], found[:3]).outcome == FAIL, "the defaults would have passed it, the calibration was not needed"


def test_a_calibrated_tail_factor_keeps_heavy_tails_from_failing() -> None:
    """Positions and texts far heavier-tailed than measured: the default tail rule then fails A/A, the calibrated one hardly."""
    rng, default, own, runs = np.random.default_rng(2), 0, 0, 150
    text = np.exp(rng.normal(0, 0.8, (runs, 64)))
    made = [simulated(runs, 64, 1.0, rng, text, heavy=2.0) for _ in range(5)]
    for i in range(runs):
        candidate, *floor = (arm(kl[i], flips[i]) for kl, flips in made)
        found = calibrate.calibrate(floor, {}, "c", 512)
        tail = decide(candidate, floor[:1], FAST).tail
        default += tail > 3
        own += decide(candidate, floor, FAST).tail > found.tail_factor
    assert default >= 2, "the default never failed, this case shows nothing"
    assert own <= stats.binom.ppf(0.999, runs, 0.01), f"{own} of {runs} failed with their own tail factor"


def test_a_legitimate_other_backend_counts_in_a_calibration() -> None:
    (found,) = arms(1, 64, (1.0, 1.0, 1.0, 2.5), 5)
    *runs, other = found
    assert calibrate.calibrate(runs, {}, "c", 512).ratio == 1.5
    assert calibrate.calibrate(runs, {}, "c", 512, [other]).ratio > 2.3


def test_what_cannot_be_calibrated_is_refused() -> None:
    (found,) = arms(1, 64, (1.0, 1.0, 1.0), 6)
    silent = [arm(np.zeros(64), 0.0)] * 3
    for runs, message in (
        (found[:2], "2 A/A runs, a calibration needs 3"),
        ([Arm(a.kl[:8], a.flips[:8], a.positions[:8]) for a in found], "8 sequences, a calibration needs 16"),
        ([arm(a.kl.copy(), 0.0) for a in silent], "repeat each other's bits"),
    ):
        with pytest.raises(UsageError, match=message):
            calibrate.calibrate(runs, {}, "c", 512)


def test_a_calibration_belongs_to_its_server_and_corpus(tmp_path: Path) -> None:
    path, made = tmp_path / "c.json", calibrated()
    calibrate.save(made, path)
    assert calibrate.load(path, {"model": "m", "random_seed": "2"}, "c" * 64, 512) == replace(made, identity=made.identity)
    for identity, corpus, width, message in (
        ({"model": "other"}, "c" * 64, 512, "model is 'other', was 'm'"),
        ({"model": "m", "moe_backend": "x"}, "c" * 64, 512, "moe_backend is 'x', was 'unknown'"),
        ({"model": "m"}, "d" * 64, 512, "the corpus is dddddddddddd, was cccccccccccc"),
        ({"model": "m"}, "c" * 64, 8, "positions a request are 8, were 512"),
    ):
        with pytest.raises(UsageError, match=message):
            calibrate.load(path, identity, corpus, width)
    with pytest.raises(UsageError, match="cannot write"):
        calibrate.save(made, path)
    path.write_text(path.read_text().replace('"ratio": 1.5', '"ratio": 9.5'))
    with pytest.raises(InvalidRun, match="checksum"):
        calibrate.load(path, {"model": "m"}, "c" * 64, 512)
    for text in ("{}", "[1]", "no"):
        path.write_text(text)
        with pytest.raises(UsageError, match="is not a divergence calibration"):
            calibrate.load(path, {}, "c", 512)


def test_every_limit_says_why() -> None:
    assert len(limits.ALL) >= 20
    assert all(len(limit.reason) > 30 for limit in limits.ALL.values())
    assert (Limits().ratio, Limits().tail_factor, Limits().level) == (1.5, 3.0, 0.997)
