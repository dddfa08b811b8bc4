"""What a candidate is held against: A/A, declared backends where A/A repeats its own bits, or an assumption; and the rules by floor."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mxfp4_validate.divergence import calibrate, limits
from mxfp4_validate.divergence.analyse import analyse, sound_arms
from mxfp4_validate.divergence.corpus import Corpus, build
from mxfp4_validate.divergence.record import ArmRow, DivergenceStore, ScoreRow
from mxfp4_validate.divergence.rule import FAIL, GO_ON, UNDECIDED, Decision, decide
from mxfp4_validate.divergence.scores import Scores
from mxfp4_validate.divergence.statistic import Arm
from mxfp4_validate.divergence.yardstick import Yardstick
from mxfp4_validate.errors import IncompleteRun, InvalidRun, UsageError
from tests.divergence_rig import Floats, scores_of, toy_logprobs

KL, POSITIONS, SEQUENCES = 1e-3, 72.0, 64
PLACE = np.arange(SEQUENCES)


def arm(kl: Floats, flips: Floats | float = 2.0, drift: Floats | None = None, scatter: float | None = None) -> Arm:
    """`drift` and `scatter` are a position's."""
    positions = np.full(kl.shape, POSITIONS)
    sums = [None if value is None else value * positions for value in (drift, scatter)]
    return Arm(kl, np.broadcast_to(flips, kl.shape).astype(float), positions, *sums)


def sound(seed: int, spread: float = 0.1) -> Floats:
    return KL * np.exp(np.random.default_rng(seed).normal(0, spread, SEQUENCES))


def rules(decision: Decision) -> list[str]:
    return [reason[:6] for reason in decision.reasons]


SILENT = arm(np.zeros(SEQUENCES), 0.0)
#: What a rounding that chooses another expert does to three sequences of a floor.
WILD = np.where(PLACE < 3, 50.0, 1.0)


def test_the_typical_ratio_fails_what_wild_sequences_hide_from_the_mean() -> None:
    """Both arms hold the same three wild sequences; all others of the candidate lie twice as far."""
    floor = arm(sound(1) * WILD)
    found = decide(arm(sound(2) * np.where(PLACE < 3, 50.0, 2.0)), [floor])
    assert (found.outcome, rules(found)) == (FAIL, ["FAIL-D"])
    assert found.typical is not None
    assert found.typical.lower > limits.TYPICAL.value > found.typical.estimate / 1.4
    assert decide(arm(sound(2) * WILD), [floor]).outcome != FAIL


@pytest.mark.parametrize("side", [1, -1])
@pytest.mark.parametrize(("times", "want"), [(3.5, []), (5.0, ["FAIL-E"])])
def test_a_drift_to_either_side_fails_beyond_its_share_of_the_scatter(side: int, times: float, want: list[str]) -> None:
    """The KL is the floor's own, so nothing else sees it."""
    kl, level = sound(1), 2 * KL
    moved = side * times * level * np.exp(np.random.default_rng(3).normal(0, 0.05, SEQUENCES))
    decision = decide(arm(kl, drift=moved, scatter=level), [arm(kl, drift=np.zeros(SEQUENCES), scatter=level)])
    assert rules(decision) == want, decision
    assert decision.drift is not None
    assert np.sign(decision.drift.estimate) == side


def test_a_drift_that_is_not_certain_fails_nothing() -> None:
    """Ten times the scatter on average, but as large as its own error: the bound from below is what counts."""
    moved = KL * np.random.default_rng(0).normal(10, 60, SEQUENCES)
    decision = decide(arm(sound(1), drift=moved), [arm(sound(1), scatter=KL)])
    assert decision.drift is not None
    assert decision.drift.estimate > limits.DRIFT.value * KL
    assert rules(decision) == []


def test_the_drift_is_held_against_the_floors_scatter_and_its_kl_where_that_is_unknown() -> None:
    moved = np.full(SEQUENCES, 6e-3)
    for scatter, want in ((KL, ["FAIL-E"]), (2 * KL, []), (None, ["FAIL-E"])):
        assert rules(decide(arm(sound(1), drift=moved), [arm(sound(1), scatter=scatter)])) == want, scatter


def test_few_sequences_have_neither_ratio_nor_drift() -> None:
    kl = np.full(15, KL)
    decision = decide(arm(kl, drift=np.ones(15)), [arm(kl)])
    assert (decision.outcome, decision.typical, decision.drift) == (UNDECIDED, None, None)


def test_a_silent_a_and_a_gives_way_to_declared_backends() -> None:
    decision = decide(arm(sound(2)), [SILENT], declared=[arm(sound(1))])
    assert (decision.outcome, decision.declared, decision.assumed) == (GO_ON, True, False)
    assert decision.floor == pytest.approx(sound(1).mean())
    assert decide(arm(2 * sound(2)), [SILENT], declared=[arm(sound(1))]).outcome == FAIL
    assert decide(arm(2 * sound(2)), [SILENT]).outcome == UNDECIDED, "an assumed floor is far above both"


def test_an_a_and_a_with_noise_of_its_own_does_not_need_them() -> None:
    decision = decide(arm(3 * sound(2)), [arm(sound(1))], declared=[arm(10 * sound(3))])
    assert (decision.outcome, decision.declared) == (FAIL, False)
    assert "the A/A floor" in decision.reasons[0]


def test_one_wild_sequence_does_not_make_a_silent_floor_loud() -> None:
    """Its mean is 1.6e-3, far above a silent one's; the typical sequence tells."""
    almost = arm(np.where(PLACE == 0, 0.1, 1e-8), 0.0)
    assert almost.kl.mean() > 100 * limits.QUIET_FLOOR.value
    assert decide(arm(sound(1)), [almost]).assumed
    assert decide(arm(sound(1)), [almost], declared=[arm(sound(2))]).declared


def test_a_declared_backend_that_repeats_the_baselines_bits_is_no_floor() -> None:
    decision = decide(arm(sound(1)), [SILENT], declared=[SILENT])
    assert (decision.outcome, decision.assumed, decision.declared) == (UNDECIDED, True, False)
    assert "declare another accepted backend" in decision.reasons[0]


def test_three_sequences_must_stand_out_to_fail() -> None:
    """Fewer leave a run against A/A undecided, with what would decide; one is enough in an assumed floor."""
    for many, want in ((1, []), (2, []), (3, ["FAIL-B"])):
        candidate = arm(np.where(many > PLACE, 40.0, 1.0) * sound(1))
        decision = decide(candidate, [SILENT], declared=[arm(sound(1))])
        assert ([rule for rule in rules(decision) if rule == "FAIL-B"], decision.outstanding) == (want, many)
        ours = decide(candidate, [arm(sound(1))])
        assert ("FAIL-B" in rules(ours), ours.outcome) == (many == 3, FAIL if many == 3 else UNDECIDED)
        assert many == 3 or (ours.reasons[0].startswith(f"tail: {many} of") and ours.more)
    assert rules(decide(arm(np.where(PLACE < 1, 1.0, 0.0)), [SILENT])) == ["FAIL-B"]


def test_between_backends_an_uncertain_mean_is_not_asked() -> None:
    """Two wild sequences make the mean's upper bound large. With A/A that leaves the question open, with declared backends it does not."""
    floor, candidate = arm(sound(1)), arm(np.where(PLACE < 2, 2.9 * sound(1).max() / KL, 1.0) * sound(2), np.where(PLACE < 2, 20.0, 2.0))
    open_, settled = decide(candidate, [floor]), decide(candidate, [SILENT], declared=[floor])
    for found in (open_, settled):
        assert found.flips is not None
        assert found.flips.upper > limits.FLIP_RATIO.value, "the case is none"
    assert (open_.outcome, settled.outcome) == (UNDECIDED, GO_ON), (open_, settled)
    assert any("argmax flips" in reason for reason in open_.reasons)


def test_between_backends_a_mean_and_flips_that_certainly_lie_above_still_fail() -> None:
    """A quarter of the texts holds most of the KL, and there the candidate lies twice as far: the typical sequence does not."""
    heavy = PLACE < 16
    floor = arm(sound(1, 0.02) * np.where(heavy, 10.0, 1.0))
    decision = decide(arm(sound(2, 0.02) * np.where(heavy, 20.0, 1.0)), [SILENT], declared=[floor])
    assert (decision.outcome, rules(decision)) == (FAIL, ["FAIL-A"])
    assert "the declared backends" in decision.reasons[0]
    decision = decide(arm(sound(2), 5.0), [SILENT], declared=[arm(sound(1), 2.0)])
    assert rules(decision) == ["FAIL-C"]


def test_between_backends_the_typical_ratio_must_be_settled() -> None:
    """1.3 with a wide spread: neither above nor below 1.5."""
    decision = decide(arm(1.3 * KL * np.exp(np.linspace(-0.85, 0.85, SEQUENCES))), [SILENT], declared=[arm(sound(1))])
    assert decision.outcome == UNDECIDED
    assert [reason[:11] for reason in decision.reasons] == ["typical KL:"]
    assert decision.more is not None
    assert decision.more > SEQUENCES * POSITIONS


def test_several_declared_backends_are_one_floor() -> None:
    near, far = arm(sound(1)), arm(3 * sound(2))
    candidate = arm(2.5 * sound(3))
    assert decide(candidate, [SILENT], declared=[near]).outcome == FAIL
    both = decide(candidate, [SILENT], declared=[near, far])
    assert both.floor == pytest.approx((near.kl.mean() + far.kl.mean()) / 2)
    assert "FAIL-A" not in rules(both)


def test_a_silent_server_is_calibrated_by_declared_backends_against_each_other() -> None:
    silent = [arm(np.zeros(SEQUENCES), 0.0) for _ in range(3)]
    declared = [arm(sound(seed) * size) for seed, size in ((1, 1.0), (2, 1.0), (3, 3.0))]
    made = calibrate.calibrate(silent, {}, "c", 512, declared)
    assert made.declared
    assert made.ratio > 2.9, "the third stands at three times the others"
    assert made.typical > 2.9
    with pytest.raises(UsageError, match=r"declare 3 other accepted backends, of which there are 2"):
        calibrate.calibrate(silent, {}, "c", 512, declared[:2])


# Records.


def corpus() -> Corpus:
    rng = np.random.default_rng(0)
    return build([([int(t) for t in rng.integers(0, 50, 24)], 4) for _ in range(20)], "toy")


def said(made: Corpus, place: int, noise: float, seed: int) -> Scores:
    sequence = made.sequences[place]
    return scores_of(toy_logprobs(sequence.tokens, noise, seed)[sequence.start :], sequence.targets, 20)


def store_with(path: Path, candidate: float, other: str = "toy", lacks: int = 0) -> DivergenceStore:
    """A baseline that repeats its own bits, a declared backend that serves `other` and has not scored the last `lacks`, a candidate."""
    made = corpus()
    store = DivergenceStore.create(path, made, 20, 512, {})
    for name, role, model, noise, seed in (
        ("b", "baseline", "toy", 0.0, 0),
        ("aa", "floor", "toy", 0.0, 0),
        ("d", "declared", other, 0.05, 1),
        ("c", "candidate", "toy", candidate, 2),
    ):
        backend = "marlin" if role in ("baseline", "floor") else "triton"
        store.add_arm(ArmRow(name, role, name, "http://x", {"model": "toy", "model_path": model, "moe_backend": backend}))
        for place in range(20 - (lacks if role == "declared" else 0)):
            store.add(name, ScoreRow(place, said(made, place, noise, seed)))
    return store


def test_a_record_is_decided_by_its_declared_arm(tmp_path: Path) -> None:
    with store_with(tmp_path / "a.sqlite", 0.05) as store:
        fine = analyse(store, "c")
        aa, declared = sound_arms(store)
    assert (fine.decision.declared, fine.decision.assumed) == (True, False)
    assert fine.decision.outcome != FAIL, fine.decision
    assert fine.floor_columns["mean_kld"] == pytest.approx(declared[0].kl.mean()), "the floor's columns are not those of the floor"
    assert (len(aa), len(declared), aa[0].kl.max()) == (1, 1, 0.0)
    with store_with(tmp_path / "b.sqlite", 0.3) as store:
        broken = analyse(store, "c")
    assert (broken.decision.outcome, broken.decision.declared) == (FAIL, True)


def test_a_declared_arm_of_another_model_is_refused_by_name(tmp_path: Path) -> None:
    with store_with(tmp_path / "a.sqlite", 0.05, other="toy-2") as store:
        for ask in (lambda: analyse(store, "c"), lambda: sound_arms(store)):
            with pytest.raises(InvalidRun, match="declared arm 'd' serves another model: model_path differ"):
                ask()


def test_a_declared_arm_that_lacks_sequences_is_not_decided_by(tmp_path: Path) -> None:
    with store_with(tmp_path / "a.sqlite", 0.05, lacks=3) as store:
        for ask in (lambda: analyse(store, "c"), lambda: sound_arms(store)):
            with pytest.raises(IncompleteRun, match="arm 'd' lacks 3 sequences, the first is 17"):
                ask()


def test_a_declared_arm_with_nan_makes_the_run_invalid(tmp_path: Path) -> None:
    with store_with(tmp_path / "a.sqlite", 0.05, lacks=1) as store:
        store.add("d", ScoreRow(19, None, "null"))
        with pytest.raises(InvalidRun, match="'d' answered no number for sequence 19"):
            analyse(store, "c")


def test_a_yardstick_in_memory_decides_as_the_record_does(tmp_path: Path) -> None:
    made = corpus()
    arms = {key: [said(made, place, *key) for place in range(20)] for key in ((0.0, 0), (0.05, 1), (0.05, 2))}
    ruler = Yardstick(made, arms[0.0, 0], [arms[0.0, 0]], [arms[0.05, 1]])
    with store_with(tmp_path / "a.sqlite", 0.05) as store:
        theirs = analyse(store, "c").decision
    mine = ruler.judge(arms[0.05, 2])
    assert (mine.outcome, mine.floor, mine.declared) == (theirs.outcome, theirs.floor, True)
    assert mine.kl == theirs.kl
