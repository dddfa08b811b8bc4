"""The statistic against whole vocabularies, scipy's entropy and a solver that knows nothing of how the bound is found."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.optimize import linprog

from mxfp4_validate.divergence import limits
from mxfp4_validate.divergence.scores import Scores
from mxfp4_validate.divergence.statistic import Compared, arm, columns, compare
from tests.divergence_rig import VOCABULARY, Floats, log_softmax, scores_of


def distributions(seed: int, n: int, noise: float, spread: float = 2.5) -> tuple[Floats, Floats, list[int]]:
    """Two whole vocabularies' log-probabilities [n, V] and a target each."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, spread, (n, VOCABULARY))
    other = logits + noise * rng.normal(0, 1, logits.shape)
    return log_softmax(logits), log_softmax(other), [int(i) for i in rng.integers(0, VOCABULARY, n)]


def compared(b: Floats, c: Floats, targets: list[int], top: int) -> Compared:
    return compare(scores_of(b, targets, top), scores_of(c, targets, top), targets)


@pytest.mark.parametrize("noise", [0.01, 0.3, 3.0])
def test_with_the_whole_vocabulary_listed_it_is_scipys_kl(noise: float) -> None:
    b, c, targets = distributions(1, 300, noise)
    found = compared(b, c, targets, VOCABULARY)
    assert found.kl == pytest.approx(stats.entropy(np.exp(b), np.exp(c), axis=1), rel=1e-9, abs=1e-14)
    assert found.bounded.max() == 0


def test_where_both_lists_name_the_same_tokens_it_is_scipys_kl_with_one_rest() -> None:
    b, c, targets = distributions(2, 400, 0.02)
    top, seen = 20, 0
    found = compared(b, c, targets, top)
    for i in range(len(targets)):
        mine, theirs = set(np.argsort(-b[i])[:top]), set(np.argsort(-c[i])[:top])
        if mine != theirs:
            continue
        seen += 1
        ids = sorted(mine | {targets[i]})
        p, q = np.exp(b[i, ids]), np.exp(c[i, ids])
        assert found.kl[i] == pytest.approx(stats.entropy([*p, 1 - p.sum()], [*q, 1 - q.sum()]), rel=1e-6, abs=1e-12)
    assert seen > 100, f"{seen} positions with the same tokens in both lists; the oracle saw too little"


@given(seed=st.integers(0, 10**6), noise=st.floats(0, 8), spread=st.floats(0.1, 8), top=st.sampled_from([1, 2, 5, 20, 49]))
@settings(max_examples=150, deadline=None)
def test_it_is_never_negative_and_never_above_the_whole_vocabularys(seed: int, noise: float, spread: float, top: int) -> None:
    b, c, targets = distributions(seed, 20, noise, spread)
    found = compared(b, c, targets, top)
    full = (np.exp(b) * (b - c)).sum(1)
    assert found.kl.min() >= 0
    excess = (found.kl - full).max()
    assert excess <= 2 * limits.REST_FLOOR.value, f"{excess:g} nat above the KL of whole vocabularies, of which it must be a lower bound"
    assert np.all((found.bounded >= 0) & (found.bounded <= 1 + 1e-9))


def cheapest(p: Floats, rest: float, cap: float, theirs: float, left: float) -> float:
    """The least sum(p log(p / q)) by linear programming over tangents of -log: an outer approximation, so never above the truth.

    Variables are q of the tokens B alone names, q of the rest, and a value each that stands for -log q.
    """
    weights = np.append(p, rest)
    k = len(weights)
    points = np.geomspace(1e-12, 1, 2000)
    rows, bounds = [], []
    for i in range(k):
        for x in points:  # t_i >= -log x - (q_i - x) / x
            row = np.zeros(2 * k)
            row[i], row[k + i] = -1 / x, -1
            rows.append(row)
            bounds.append(np.log(x) - 1)
    limits = [(1e-13, cap)] * len(p) + [(max(theirs, 1e-13), left)] + [(0, None)] * k
    equal = np.concatenate([np.ones(k), np.zeros(k)])[None]
    answer = linprog(np.concatenate([np.zeros(k), weights]), np.array(rows), np.array(bounds), equal, [left], limits)
    assert answer.success, answer.message
    return float(answer.fun + (weights * np.log(weights)).sum())


@pytest.mark.parametrize("case", range(6))
def test_tokens_that_only_the_baseline_names_get_the_cheapest_share_a_solver_finds(case: int) -> None:
    """Lists that share few tokens: C's shares of B's own tokens are capped by the end of C's list and crowded by C's own."""
    rng = np.random.default_rng(case)
    top = 3
    b = log_softmax(rng.normal(0, 2, (1, VOCABULARY)))
    c = log_softmax(np.where(rng.random((1, VOCABULARY)) < 0.5, b, rng.normal(0, 3, (1, VOCABULARY))))
    targets = [int(np.argmax(b))]
    found = compared(b, c, targets, top)
    mine, theirs = [int(i) for i in np.argsort(-b[0])[:top]], [int(i) for i in np.argsort(-c[0])[:top]]
    told = {*theirs, *targets}
    both, alone = [i for i in mine if i in told], [i for i in mine if i not in told]
    p, q = np.exp(b[0]), np.exp(c[0])
    known = float((p[both] * np.log(p[both] / q[both])).sum())
    rest, left = 1 - p[mine].sum(), 1 - q[both].sum()
    least = known + cheapest(
        p[alone], float(rest), float(q[theirs].min()), float(q[[i for i in theirs if i not in mine]].sum()), float(left)
    )
    assert found.kl[0] == pytest.approx(least, rel=2e-4, abs=2e-5), "not the least that both answers allow"


def test_the_chosen_tokens_ratio_estimates_the_whole_kl() -> None:
    """E[log p_B - log p_C] under B's own samples is the KL: 40,000 draws meet it within five standard errors."""
    b, c, _ = distributions(5, 40_000, 0.3)
    draws = (np.random.default_rng(0).random((len(b), 1)) > np.exp(b).cumsum(1)).sum(1).clip(0, VOCABULARY - 1)
    ratio = compared(b, c, [int(i) for i in draws], 1).log_ratio
    full = (np.exp(b) * (b - c)).sum(1).mean()
    error = ratio.std() / np.sqrt(len(ratio))
    assert abs(ratio.mean() - full) < 5 * error, f"{ratio.mean():.5f} and {full:.5f}, standard error {error:.5f}"


def test_equal_answers_differ_by_exactly_nothing() -> None:
    b, _, targets = distributions(6, 50, 0)
    found = compared(b, b, targets, 20)
    assert (found.kl.max(), np.abs(found.log_ratio).max(), found.flip.any(), np.abs(found.change).max()) == (0.0, 0.0, False, 0.0)


def single(top: dict[int, float], chosen: float = -9.0) -> Scores:
    p = np.log(list(top.values()))
    return Scores(np.array([chosen]), np.array([list(top)], np.int32), p[None])


def test_a_flip_needs_no_common_most_likely_token() -> None:
    cases = [
        ({1: 0.5, 2: 0.3}, {1: 0.4, 2: 0.39}, False),
        ({1: 0.5, 2: 0.3}, {2: 0.41, 1: 0.4}, True),
        ({1: 0.4, 2: 0.4}, {2: 0.41, 1: 0.4}, False),  # a tie in the baseline: either order is its own
        ({1: 0.5, 2: 0.3}, {7: 0.6, 8: 0.3}, True),
    ]
    for b, c, want in cases:
        assert bool(compare(single(b), single(c), [99]).flip[0]) is want, (b, c)


def test_llama_cpps_columns_by_hand() -> None:
    def row(kl: list[float], change: list[float], flip: list[bool]) -> Compared:
        n = len(kl)
        return Compared(np.array(kl), np.zeros(n), np.array(flip), np.array(change), np.zeros(n))

    found = columns([row([0.0, 1.0, 2.0], [0.1, -0.1, 0.2], [False, True, False]), row([3.0, 4.0], [0.0, -0.3], [False, False])])
    assert (found["mean_kld"], found["median_kld"], found["max_kld"], found["positions"]) == (2.0, 2.0, 4.0, 5.0)
    assert found["kld_90%"] == pytest.approx(3.6)
    assert found["kld_99.9%"] == pytest.approx(3.996)
    assert found["same_top_p_%"] == pytest.approx(80)
    assert found["mean_delta_p_%"] == pytest.approx(-2)
    assert found["rms_delta_p_%"] == pytest.approx(100 * np.sqrt((0.01 + 0.01 + 0.04 + 0.09) / 5))
    assert arm([row([0.0, 1.0, 2.0], [0, 0, 0], [False, True, False])]).kl[0] == 1.0


def test_arms_of_other_lengths_are_refused() -> None:
    b, c, targets = distributions(7, 4, 0.1)
    with pytest.raises(ValueError, match="4 and 3 scored positions for 4 targets"):
        compare(scores_of(b, targets, 5), scores_of(c[:3], targets[:3], 5), targets)
