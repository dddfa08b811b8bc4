"""Every outcome and every reason, what missing samples may and may not do, and that a verdict depends on the records alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from mxfp4_validate import states
from mxfp4_validate.errors import IncompleteRun, InvalidRun, UsageError
from mxfp4_validate.statistics import paired, simulate
from mxfp4_validate.statistics.sequential import critical_values
from mxfp4_validate.verdicts import Leg, Outcome, Plan, Verdict, combine, compare, interval_text, points

FINGERPRINT = {"questions": "q1", "prompt": "p1", "grader": "3", "sampling": "T=1", "max_tokens": "1000", "profile": "ours"}
AIME = Plan(margin=0.03, looks=(16,), boot_variance=0.0)


def leg(name: str, right: Any, repeats: int, **changes: Any) -> Leg:
    """A complete leg with `right` [n] answers right, the wrong ones starting one repeat later with each question; two boots in turn."""
    right = np.asarray(right)
    n, order = len(right), np.arange(repeats)
    values: dict[str, Any] = {
        "run_id": name,
        "suite": "aime25",
        "question_ids": tuple(f"q{i}" for i in range(n)),
        "repeats": repeats,
        "states": np.full((n, repeats), states.ANSWERED),
        "correct": np.stack([np.roll(order < count, i) for i, count in enumerate(right)]),
        "boots": np.tile([f"{name}-{j % 2}" for j in range(repeats)], (n, 1)),
        "completion_tokens": np.full((n, repeats), 100.0),
        "fingerprint": FINGERPRINT,
        "identity": {"moe_runner_backend": name, "version": "0.5"},
    }
    return Leg(**values | changes)


def marked(one: Leg, state: str, cells: list[tuple[int, int]]) -> Leg:
    """The leg with some samples in another state, wrong."""
    new_states, correct = one.states.astype("<U20"), one.correct.copy()
    for cell in cells:
        new_states[cell], correct[cell] = state, False
    return replace(one, states=new_states, correct=correct)


def pair(right_b: Any, right_c: Any, repeats: int = 16, **changes: Any) -> tuple[Leg, Leg]:
    return leg("marlin", right_b, repeats, **changes), leg("flashinfer", right_c, repeats, **changes)


GOOD = [16] * 22 + [15, 15, 14, 14, 12, 12, 10, 8]


# --- outcomes ------------------------------------------------------------------------------------------------------------------


def test_equal_legs_pass() -> None:
    verdict = compare(*pair(GOOD, GOOD), AIME)
    assert verdict.outcome is Outcome.PASS
    assert verdict.exit_code == 0
    assert verdict.estimate == 0
    assert verdict.lower == -verdict.upper > -0.03
    assert verdict.method == "MOVER-Wilson"
    assert verdict.flags == ()
    assert verdict.reasons == ()
    assert verdict.needs == ""
    assert verdict.flipped == ()
    assert verdict.fail_p == 1
    assert verdict.headline.startswith("PASS aime25: candidate - baseline +0.00 pp, one-sided bounds [-")
    assert "±" not in verdict.headline
    assert [(row.name, row.expected) for row in verdict.identity] == [("moe_runner_backend", True)]


def test_a_clear_loss_fails() -> None:
    verdict = compare(*pair([16] * 30, [14] * 30), AIME)
    assert (verdict.outcome, verdict.exit_code) == (Outcome.FAIL, 1)
    assert "below 0 after 16 repeats" in verdict.reasons[0]
    assert verdict.estimate == pytest.approx(-0.125)
    assert verdict.exact is not None
    assert verdict.exact.fewer < 1e-6
    assert verdict.fail_p < 0.001
    assert len(verdict.flipped) == 30
    assert verdict.if_sampled is not None
    assert verdict.if_sampled.upper <= 0


def test_flips_are_sorted_by_change() -> None:
    verdict = compare(*pair([16, 16, 8, 16], [16, 4, 16, 8]), replace(AIME, margin=0.9))
    assert [(f.question_id, f.change) for f in verdict.flipped] == [("q1", -0.75), ("q3", -0.5), ("q2", 0.5)]
    assert verdict.flipped[0].baseline == (16, 16)
    assert verdict.flipped[0].candidate == (4, 16)


def test_small_but_significant_loss_and_unexpected_gain_are_flagged() -> None:
    loss = compare(*pair([16] * 200, [16] * 190 + [15] * 10), AIME)
    assert loss.outcome is Outcome.PASS
    assert "small but significant loss" in loss.flags
    gain = compare(*pair([16] * 190 + [12] * 10, [16] * 200), AIME)
    assert gain.outcome is Outcome.PASS
    assert any("unexpected gain" in flag for flag in gain.flags)


def test_inconclusive_says_what_would_decide() -> None:
    baseline, candidate = pair([16] * 10 + [8] * 20, [16] * 10 + [8] * 19 + [4])
    verdict = compare(baseline, candidate, AIME)
    assert (verdict.outcome, verdict.exit_code) == (Outcome.INCONCLUSIVE, 3)
    assert verdict.repeats_needed is not None
    assert verdict.repeats_needed > 16
    assert f"about {verdict.repeats_needed} repeats" in verdict.needs
    assert "no look left" in verdict.needs
    # As many times more repeats of the same rates do decide.
    factor = -(-verdict.repeats_needed // 16)
    more = pair([16 * factor] * 10 + [8 * factor] * 20, [16 * factor] * 10 + [8 * factor] * 19 + [4 * factor], 16 * factor)
    assert compare(*more, replace(AIME, looks=(16 * factor,))).outcome is not Outcome.INCONCLUSIVE


def test_single_answers_use_tango() -> None:
    baseline, candidate = pair([1] * 1250 + [0] * 69, [0] * 15 + [1] * 1250 + [0] * 54, 1)
    verdict = compare(baseline, candidate, Plan(margin=0.015, looks=(1,)))
    want = paired.tango(15, 15, 1319, critical_values((1.0,))[0])
    assert verdict.method == "Tango score"
    assert (verdict.lower, verdict.upper) == (float(want.lower), float(want.upper))
    assert verdict.outcome is Outcome.PASS
    assert verdict.baseline.fixed is None
    assert verdict.baseline.similar is not None
    assert verdict.baseline.se == verdict.baseline.similar.se


@pytest.mark.parametrize("repeats", [1, 2, 16])
@pytest.mark.parametrize("n", [1, 30])
@pytest.mark.parametrize("share", [0, 1])
def test_degenerate_legs_have_width(repeats: int, n: int, share: int) -> None:
    """480 of 480 against 480 of 480, all wrong, one question."""
    verdict = compare(*pair([share * repeats] * n, [share * repeats] * n, repeats), replace(AIME, looks=(repeats,)))
    assert verdict.estimate == 0
    assert verdict.lower < 0 < verdict.upper
    assert verdict.outcome is (Outcome.PASS if (n, repeats) == (30, 16) else Outcome.INCONCLUSIVE)
    assert np.isfinite([verdict.lower, verdict.upper, verdict.fail_p]).all()


def test_wide_boot_noise_widens_the_bounds() -> None:
    legs = pair(GOOD, GOOD)
    plain, wide = compare(*legs, AIME), compare(*legs, replace(AIME, boot_variance=0.02**2))
    assert plain.outcome is Outcome.PASS
    assert wide.outcome is Outcome.INCONCLUSIVE
    assert wide.se > plain.se
    assert any("boot noise not measured" in flag for flag in compare(*legs, replace(AIME, boot_variance=None)).flags)


def test_risen_truncation_fails_on_its_own() -> None:
    baseline, candidate = pair([16] * 30, [16] * 30)
    candidate = marked(candidate, states.TRUNCATED, [(i, 3) for i in range(7)])
    verdict = compare(baseline, candidate, AIME)
    assert verdict.looks[-1].outcome is Outcome.PASS
    assert verdict.outcome is Outcome.FAIL
    assert verdict.truncation_p == pytest.approx(0.5**7)  # one truncated of 32, in either arm alike, seven times
    assert "7 samples against 0" in verdict.reasons[0]
    fewer = compare(baseline, marked(candidate, states.ANSWERED, [(i, 3) for i in range(1, 7)]), AIME)
    assert not any("truncation" in reason for reason in fewer.reasons)


def test_boots_that_differ_are_unstable() -> None:
    baseline, candidate = pair([16] * 30, [16] * 30)
    bad = marked(candidate, states.ANSWERED, [(i, 1) for i in range(9)])
    verdict = compare(baseline, bad, replace(AIME, margin=0.2))
    assert (verdict.outcome, verdict.exit_code) == (Outcome.UNSTABLE, 1)
    assert verdict.boots_p == pytest.approx(2 * 0.5**9)
    assert "boot 'flashinfer-" in verdict.reasons[0]
    worse = marked(candidate, states.ANSWERED, [(i, j) for i in range(20) for j in (1, 3, 5, 7)])
    both = compare(baseline, worse, AIME)
    assert both.outcome is Outcome.FAIL  # a loss shown stays a loss
    assert any("boots of the candidate differ" in reason for reason in both.reasons)
    swapped = compare(replace(bad, run_id="odd"), candidate, AIME)
    assert swapped.outcome is Outcome.INVALID
    assert "baseline boots differ" in swapped.reasons[0]


@pytest.mark.parametrize(("boots", "text"), [("one", "one known boot"), ("", "no known boot")])
def test_few_boots_are_flagged(boots: str, text: str) -> None:
    verdict = compare(*pair(GOOD, GOOD, boots=np.full((30, 16), boots)), AIME)
    assert sum(text in flag for flag in verdict.flags) == 2


# --- looks ---------------------------------------------------------------------------------------------------------------------

LOOKS = Plan(margin=0.03, looks=(8, 16, 24, 32), boot_variance=0.0)


def _random_pair(seed: int, loss: float, repeats: int = 32) -> tuple[Leg, Leg]:
    rng = np.random.default_rng(seed)
    rates = simulate.question_rates(0.96, 0.32, 30)
    arms = [rng.random((30, repeats)) < p[:, None] for p in (rates, simulate.corrupted(rates, loss))]
    legs = pair([0] * 30, [0] * 30, repeats)
    return replace(legs[0], correct=arms[0]), replace(legs[1], correct=arms[1])


@pytest.mark.parametrize("seed", range(12))
def test_a_verdict_uses_nothing_after_its_look(seed: int) -> None:
    """Later repeats may be anything, missing or unplanned included, and the looks agree with a plain recomputation."""
    legs = _random_pair(seed, [0.0, 0.03, 0.1][seed % 3])
    verdict = compare(*legs, LOOKS)
    z = critical_values((0.25, 0.5, 0.75, 1.0))
    for row, critical in zip(verdict.looks, z, strict=False):
        b, c = (one.correct[:, : row.repeats].sum(1) for one in legs)
        want = paired.mover(c, row.repeats, b, row.repeats, critical)
        assert (row.lower, row.upper) == (float(want.lower), float(want.upper))
    assert all(row.outcome is Outcome.INCONCLUSIVE for row in verdict.looks[:-1])
    used = verdict.looks[-1].repeats
    garbled = [
        replace(one, states=np.where(np.arange(32) < used, one.states, states.TIMEOUT), correct=one.correct & (np.arange(32) < used))
        for one in legs
    ]
    assert compare(*garbled, LOOKS) == verdict
    assert compare(*(one.first(used) for one in legs), LOOKS) == verdict
    shuffled = legs[1].ordered(tuple(np.random.default_rng(seed).permutation(legs[1].question_ids).tolist()))
    assert compare(legs[0], shuffled, LOOKS) == verdict


def test_an_undecided_look_waits_for_the_next_one() -> None:
    legs = pair([14] * 30, [14] * 30, 32)
    unasked = [marked(one, states.NOT_RUN, list(product(range(30), range(8, 32)))) for one in legs]
    verdict = compare(*unasked, LOOKS)
    assert verdict.outcome is Outcome.INCONCLUSIVE
    assert [row.repeats for row in verdict.looks] == [8]
    assert verdict.repeats_needed == 16
    assert "extend both arms to 16 repeats (8 more)" in verdict.needs
    assert compare(legs[0], unasked[1], LOOKS) == compare(*unasked, LOOKS)  # a longer baseline changes nothing
    begun = marked(legs[1], states.TIMEOUT, [(0, 15)])
    with pytest.raises(IncompleteRun, match=r"candidate flashinfer: 1 of 480 samples of the first 16 repeats are missing \(timeout 1\)"):
        compare(legs[0], begun, LOOKS)


def test_a_resume_can_not_create_a_look() -> None:
    """While the second block fills up there is an IncompleteRun, never a verdict on a part of it."""
    legs = pair([14] * 30, [13] * 30, 32)
    for filled in (1, 100, 239):
        gaps = [cell for i, cell in enumerate(product(range(8, 16), range(30))) if i >= filled]
        partial = marked(legs[1], states.NOT_RUN, [(q, j) for j, q in gaps] + list(product(range(30), range(16, 32))))
        with pytest.raises(IncompleteRun):
            compare(legs[0], partial, LOOKS)


# --- missing samples -----------------------------------------------------------------------------------------------------------


def test_incomplete_runs_raise_with_counts() -> None:
    baseline, candidate = pair(GOOD, GOOD)
    broken = marked(marked(candidate, states.TIMEOUT, [(0, 0), (1, 0)]), states.SERVER_ERROR, [(2, 5)])
    with pytest.raises(IncompleteRun, match=r"candidate flashinfer: 3 of 480 .*server_error 1, timeout 2\), 0 allowed") as caught:
        compare(baseline, broken, AIME)
    assert caught.value.exit_code == 5
    with pytest.raises(IncompleteRun, match="baseline"):
        compare(marked(baseline, states.NOT_RUN, [(0, 0)]), candidate, AIME)
    with pytest.raises(IncompleteRun, match="beyond the 8 repeats"):
        compare(baseline, candidate.first(8), AIME)
    with pytest.raises(IncompleteRun):  # what was never planned cannot be allowed to be missing
        compare(baseline, candidate.first(8), replace(AIME, allow_missing=10_000))


def test_allowed_missing_samples_become_bounds() -> None:
    baseline, candidate = pair([16] * 30, [16] * 30)
    full = compare(baseline, candidate, AIME)
    broken = marked(candidate, states.TIMEOUT, [(0, 0), (1, 1), (2, 2)])
    verdict = compare(baseline, broken, replace(AIME, allow_missing=3))
    assert verdict.candidate.score == 1
    assert verdict.candidate.bounds == (477 / 480, 1)
    assert verdict.candidate.missing == 3
    assert verdict.differences is not None
    assert verdict.differences.as_scored == 0
    assert verdict.differences.worst_case == pytest.approx(-3 / 480)
    assert verdict.differences.best_case == 0
    assert verdict.lower < full.lower
    assert verdict.upper == full.upper
    assert verdict.if_sampled is None
    assert any("candidate misses 3 samples" in flag for flag in verdict.flags)
    undecided = compare(baseline, broken, replace(AIME, allow_missing=3, margin=0.008))
    assert undecided.needs.startswith("complete the 3 missing samples; then ")


def test_a_leg_that_lost_everything_has_no_score() -> None:
    baseline, candidate = pair(GOOD, GOOD)
    dead = marked(candidate, states.TRANSPORT_ERROR, list(product(range(30), range(16))))
    verdict = compare(baseline, dead, replace(AIME, allow_missing=480))
    assert verdict.outcome is Outcome.INCONCLUSIVE
    assert np.isnan([verdict.candidate.score, verdict.candidate.pass_at_k, verdict.candidate.mean_tokens]).all()
    assert verdict.candidate.fixed is None
    assert verdict.candidate.similar is None
    assert (verdict.lower, verdict.upper) < (-0.9, 0.1)
    assert "complete the 480 missing" in verdict.headline


def _grid(draw: st.DrawFn, n: int, k: int) -> tuple[np.ndarray, np.ndarray]:
    cells = draw(st.lists(st.sampled_from(states.STATES), min_size=n * k, max_size=n * k))
    right = draw(st.lists(st.booleans(), min_size=n * k, max_size=n * k))
    grid = np.array(cells).reshape(n, k)
    return grid, np.array(right).reshape(n, k) & (grid == states.ANSWERED)


@st.composite
def legs_with_anything(draw: st.DrawFn) -> tuple[Leg, Leg]:
    n, k = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    made = []
    for one in pair([0] * n, [0] * n, k):
        grid, right = _grid(draw, n, k)
        made.append(replace(one, states=grid, correct=right))
    return made[0], made[1]


def _numbers(verdict: Verdict) -> list[Any]:
    """All that a missing sample's kind must not touch."""
    rows = [
        (s.score, s.se, s.fixed, s.similar, s.bounds, s.answered_only, s.pass_at_k, s.by_repeat)
        for s in (verdict.baseline, verdict.candidate)
    ]
    return [repr(rows), repr(verdict.looks), verdict.outcome, repr(verdict.differences), repr(verdict.exact), verdict.truncation_p]


ANYTHING = Plan(margin=0.1, looks=(1,), allow_missing=1000, max_truncated=1.0)


@settings(max_examples=40, deadline=None)
@given(legs_with_anything(), st.data())
def test_scores_change_only_through_model_states(legs: tuple[Leg, Leg], data: st.DataObject) -> None:
    """Which way a sample went missing is without effect, and the score is right over present whatever else happened."""
    plan = replace(ANYTHING, looks=(legs[0].repeats,))
    verdict = compare(*legs, plan)
    for one, shown in zip(legs, (verdict.baseline, verdict.candidate), strict=True):
        kept = [(one.right[i][~one.missing[i]]) for i in range(len(one.question_ids))]
        means = [row.mean() for row in kept if row.size]
        assert np.isclose(shown.score, np.mean(means)) if means else np.isnan(shown.score)
        assert sum(shown.states.values()) == one.states.size
    kinds = data.draw(st.lists(st.sampled_from(states.MISSING_STATES), min_size=legs[1].states.size, max_size=legs[1].states.size))
    other = replace(legs[1], states=np.where(legs[1].missing, np.array(kinds).reshape(legs[1].states.shape), legs[1].states))
    assert _numbers(compare(legs[0], other, plan)) == _numbers(verdict)


@settings(max_examples=40, deadline=None)
@given(legs_with_anything(), st.data())
def test_no_way_to_complete_a_run_leaves_the_worst_and_best_case(legs: tuple[Leg, Leg], data: st.DataObject) -> None:
    plan = replace(ANYTHING, looks=(legs[0].repeats,))
    verdict = compare(*legs, plan)
    assert verdict.differences is not None
    completed = []
    for one in legs:
        fill = np.array(data.draw(st.lists(st.booleans(), min_size=one.states.size, max_size=one.states.size))).reshape(one.states.shape)
        completed.append(
            replace(one, states=np.where(one.missing, states.ANSWERED, one.states), correct=np.where(one.missing, fill, one.correct))
        )
    done = compare(*completed, plan)
    assert done.differences is not None
    assert verdict.differences.worst_case - 1e-12 <= done.differences.as_scored <= verdict.differences.best_case + 1e-12
    assert done.differences.worst_case == pytest.approx(done.differences.as_scored)


@settings(max_examples=40, deadline=None)
@given(legs_with_anything())
def test_losing_samples_never_turns_a_verdict_around(legs: tuple[Leg, Leg]) -> None:
    """A run with gaps may be undecided where the complete one decides; a PASS never becomes a FAIL by losing right answers."""
    complete = [replace(one, states=np.where(one.missing, states.ANSWERED, one.states)) for one in legs]
    gaps = [replace(full, states=np.where(one.missing, states.TIMEOUT, full.states)) for one, full in zip(legs, complete, strict=True)]
    plan = replace(ANYTHING, looks=(legs[0].repeats,), margin=0.5)
    before, after = compare(*complete, plan), compare(*gaps, plan)
    assume(before.truncation_p > 0.01 and after.truncation_p > 0.01)
    assert {before.outcome, after.outcome} != {Outcome.PASS, Outcome.FAIL}


# --- what a leg shows ----------------------------------------------------------------------------------------------------------


def test_summary_tells_unanswered_from_wrong() -> None:
    """The published AIME run: 453 of 480 right, 24 of the 27 others never answered; 99.34 % of those that did."""
    right = [16] * 27 + [7, 7, 7]
    candidate = leg("c", right, 16)
    wrong = [tuple(cell) for cell in np.argwhere(~candidate.correct).tolist()]
    candidate = marked(candidate, states.NO_ANSWER, wrong[:24])
    shown = compare(leg("b", right, 16), candidate, AIME).candidate
    assert shown.score == 453 / 480
    assert round(100 * shown.answered_only, 2) == 99.34
    assert [round(100 * x, 2) for x in shown.unanswered_bounds] == [94.38, 99.38]
    assert shown.states == {"answered": 456, "no_answer": 24}
    assert shown.pass_at_k == 1
    assert len(shown.by_repeat) == 16
    assert shown.run_sem == pytest.approx(shown.run_sd / 4)
    assert shown.mean_tokens == 100
    assert shown.fixed is not None
    assert shown.similar is not None
    assert shown.similar.upper - shown.similar.lower > shown.fixed.upper - shown.fixed.lower


@pytest.mark.parametrize("state", [states.TRUNCATED, states.NO_ANSWER, states.EMPTY])
def test_only_an_answer_can_be_right(state: str) -> None:
    one = leg("b", [2], 2)
    assert not replace(one, states=np.full((1, 2), state)).right.any()


# --- INVALID -------------------------------------------------------------------------------------------------------------------


def _renamed(one: Leg) -> Leg:
    return replace(one, question_ids=("other", *one.question_ids[1:]))


INVALID: dict[str, tuple[Callable[[Leg, Leg], tuple[Leg, Leg]], Plan, list[str]]] = {
    "same run": (lambda b, c: (b, replace(c, run_id=b.run_id)), AIME, ["both legs are run 'marlin'"]),
    "suite": (lambda b, c: (b, replace(c, suite="gpqa")), AIME, ["suite differs: baseline 'aime25', candidate 'gpqa'"]),
    "fingerprint": (
        lambda b, c: (b, replace(c, fingerprint=FINGERPRINT | {"max_tokens": "2000"})),
        AIME,
        ["max_tokens differs: baseline '1000', candidate '2000'"],
    ),
    "fingerprint unknown": (
        lambda b, c: (replace(b, fingerprint={k: v for k, v in FINGERPRINT.items() if k != "grader"}), c),
        AIME,
        ["grader differs: baseline not recorded, candidate '3'"],
    ),
    "questions": (
        lambda b, c: (b, _renamed(c)),
        AIME,
        ["1 of 30 questions are in the baseline only: q0", "1 of 30 questions are in the candidate only: other"],
    ),
    "while running": (
        lambda b, c: (replace(b, invalid=("model changed",)), replace(c, invalid=("canary failed",))),
        AIME,
        ["baseline: model changed", "candidate: canary failed"],
    ),
    "a/a": (
        lambda b, c: (b, c),
        replace(AIME, aa=True),
        ["an A/A comparison needs one configuration, moe_runner_backend differs: baseline 'marlin', candidate 'flashinfer'"],
    ),
    "truncated": (
        lambda b, c: (marked(b, states.TRUNCATED, [(29, j) for j in range(10)]), c),
        AIME,
        ["baseline truncated: 10 of 480 samples hit the cap (2.1 %, at most 2.0 % allowed); raise max_tokens"],
    ),
    "anchor above": (lambda b, c: (b, c), replace(AIME, anchor=(0.99, 1.0)), ["baseline not as expected: its score is 94.17 %"]),
    "anchor below": (lambda b, c: (b, c), replace(AIME, anchor=(0.5, 0.6)), ["the recorded band is [50.00, 60.00]"]),
}


@pytest.mark.parametrize("name", INVALID)
def test_every_reason_for_invalid(name: str) -> None:
    change, plan, wanted = INVALID[name]
    verdict = compare(*change(*pair(GOOD, GOOD)), plan)
    assert (verdict.outcome, verdict.exit_code) == (Outcome.INVALID, 4)
    assert len(verdict.reasons) == len(wanted)
    for reason, text in zip(verdict.reasons, wanted, strict=True):
        assert text in reason
    assert np.isnan([verdict.estimate, verdict.lower, verdict.upper]).all()
    assert wanted[0] in verdict.headline


def test_invalid_names_every_reason_at_once() -> None:
    baseline, candidate = pair(GOOD, GOOD)
    baseline = marked(baseline, states.TRUNCATED, [(29, j) for j in range(16)])
    verdict = compare(baseline, replace(candidate, suite="gpqa", invalid=("canary failed",)), AIME)
    assert len(verdict.reasons) == 3


def test_truncation_is_allowed_up_to_its_share_and_the_anchor_holds() -> None:
    baseline, candidate = pair(GOOD, GOOD)
    cells = [(29, int(j)) for j in np.flatnonzero(~baseline.correct[29])] + [(27, int(j)) for j in np.flatnonzero(~baseline.correct[27])][
        :1
    ]
    assert len(cells) == 9
    assert compare(marked(baseline, states.TRUNCATED, cells), candidate, replace(AIME, anchor=(0.93, 0.95))).outcome is Outcome.PASS


def test_an_a_a_comparison_and_a_look_into_the_mirror() -> None:
    same = {"moe_runner_backend": "marlin", "version": "0.5"}
    legs = pair(GOOD, GOOD, identity=same)
    assert compare(*legs, replace(AIME, aa=True)).flags == ()
    assert any("compare one with itself" in flag for flag in compare(*legs, AIME).flags)
    other = replace(legs[1], identity=same | {"version": "0.6", "gpu": "H200"})
    verdict = compare(legs[0], other, AIME)
    assert [(r.name, r.baseline, r.candidate, r.expected) for r in verdict.identity] == [
        ("gpu", "unknown", "H200", False),
        ("version", "0.5", "0.6", False),
    ]
    assert [flag for flag in verdict.flags if "not on trial" in flag] == [
        "differs although not on trial: gpu",
        "differs although not on trial: version",
    ]


# --- inputs --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"boots": np.full((2, 3), "")}, r"boots is \(2, 3\), 2 questions x 2 repeats expected"),
        ({"question_ids": ("a", "a")}, "occur twice: a"),
        ({"states": np.full((2, 2), "lost")}, "unknown states 'lost'"),
        ({"states": np.full((2, 2), states.TIMEOUT)}, "4 missing samples are marked right"),
    ],
)
def test_records_that_cannot_be_trusted(changes: dict[str, Any], text: str) -> None:
    with pytest.raises(InvalidRun, match=text) as caught:
        leg("b", [2, 2], 2, **changes)
    assert caught.value.exit_code == 4


def test_an_empty_leg_is_refused() -> None:
    nothing = np.zeros((1, 0))
    with pytest.raises(InvalidRun, match="hold no sample"):
        Leg("b", "s", ("q",), 0, nothing.astype(str), nothing.astype(bool), nothing.astype(str), nothing, {}, {})


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"margin": 3.0}, "0.03 is 3 points"),
        ({"margin": 0.0}, "margin is 0"),
        ({"looks": ()}, "looks are"),
        ({"looks": (8, 8)}, "increasing"),
        ({"looks": (0, 8)}, "increasing"),
        ({"alpha": 0.5}, "alpha is 0.5"),
    ],
)
def test_plans_that_make_no_sense(changes: dict[str, Any], text: str) -> None:
    with pytest.raises(UsageError, match=text):
        replace(AIME, **changes)


def test_numbers_in_words() -> None:
    assert points(-0.0123) == "-1.23 pp"
    assert interval_text(-0.01, -0.02, 0.005) == "-1.00 pp, one-sided bounds [-2.00, +0.50] pp"


# --- several benchmarks --------------------------------------------------------------------------------------------------------


def _with(outcome: Outcome, suite: str, **changes: Any) -> Verdict:
    return replace(compare(*pair(GOOD, GOOD), AIME), outcome=outcome, suite=suite, **changes)


PASSED = _with(Outcome.PASS, "gsm8k", fail_p=0.001)  # significant, and within the margin: no failure


@pytest.mark.parametrize(
    ("others", "outcome"),
    [
        ([], Outcome.PASS),
        ([_with(Outcome.INCONCLUSIVE, "gpqa")], Outcome.INCONCLUSIVE),
        ([_with(Outcome.INVALID, "gpqa"), _with(Outcome.INCONCLUSIVE, "aime25")], Outcome.INVALID),
        ([_with(Outcome.FAIL, "gpqa", fail_p=0.001), _with(Outcome.INVALID, "aime25")], Outcome.FAIL),
        ([_with(Outcome.FAIL, "gpqa", fail_p=0.03)], Outcome.INCONCLUSIVE),  # .06 after Holm
        ([_with(Outcome.FAIL, "gpqa", fail_p=0.03), _with(Outcome.FAIL, "aime25", fail_p=0.001)], Outcome.FAIL),
        ([_with(Outcome.UNSTABLE, "gpqa", boots_p=0.0005)], Outcome.FAIL),
        ([_with(Outcome.FAIL, "gpqa", truncation_p=0.0005)], Outcome.FAIL),
        ([_with(Outcome.UNSTABLE, "gpqa", boots_p=0.009)], Outcome.INCONCLUSIVE),
    ],
)
def test_combined_outcomes(others: list[Verdict], outcome: Outcome) -> None:
    got = combine([PASSED, *others])
    assert got.outcome is outcome
    assert got.exit_code == outcome.exit_code
    assert len(got.reasons) == len(others)
    assert set(got.adjusted) == {"gsm8k", *(v.suite for v in others)}


def test_combining_explains_a_failure_that_does_not_survive() -> None:
    got = combine([PASSED, _with(Outcome.FAIL, "gpqa", fail_p=0.03)])
    assert "alone a failure, not among 2 benchmarks (adjusted p = 0.060)" in got.reasons[0]
    assert combine([_with(Outcome.FAIL, "gpqa", fail_p=0.03)]).outcome is Outcome.FAIL


def test_combining_nothing_or_unlike_verdicts_is_refused() -> None:
    with pytest.raises(UsageError, match="no verdict"):
        combine([])
    with pytest.raises(UsageError, match=r"different alpha: \[0.01, 0.05\]"):
        combine([PASSED, _with(Outcome.PASS, "gpqa", alpha=0.01)])
