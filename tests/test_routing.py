"""Routing against formulas written out anew: softmax identity, ties, the DeepSeek-V4 score, hash tables, and clear refusals."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mxfp4_validate.errors import ShapeError, UsageError
from mxfp4_validate.reference.routing import (
    default_tid2eid,
    gate_logits,
    looks_default,
    route_deepseek_v4,
    route_gpt_oss,
    route_hash,
    sqrt_softplus,
)


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def close(got: Tensor, want: Tensor, what: str) -> None:
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-15, msg=lambda text: f"{what}: {text}")


def test_gpt_oss_equals_full_softmax_renormalised() -> None:
    logits = 3 * normal(1, 40, 32)
    ids, weights = route_gpt_oss(logits, 4)
    full = logits.softmax(1).gather(1, ids)
    close(weights, full / full.sum(1, keepdim=True), "softmax over the selected")
    close(weights.sum(1), torch.ones(40, dtype=torch.float64), "sum of weights")
    assert (weights.diff(dim=1) <= 0).all(), "slots descend"
    assert ids.dtype == torch.int64


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(-2, 2), min_size=5, max_size=70), st.integers(1, 5))
def test_ties_go_to_the_smaller_id(levels: list[int], top_k: int) -> None:
    """Against Python's own stable sort; -0.0 ties with 0.0."""
    logits = torch.tensor([[-0.0 if v == 0 and i % 2 else float(v) for i, v in enumerate(levels)]], dtype=torch.float64)
    want = sorted(range(len(levels)), key=lambda i: (-levels[i], i))[:top_k]
    assert route_gpt_oss(logits, top_k)[0][0].tolist() == want
    assert route_deepseek_v4(logits, None, top_k, premultiply=False)[0][0].tolist() == want


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_dtype_of_the_logits_is_kept(dtype: torch.dtype) -> None:
    logits, table = normal(1, 9, 8).to(dtype), default_tid2eid(9, 3, 8)
    assert route_gpt_oss(logits, 3)[1].dtype == dtype
    assert route_deepseek_v4(logits, torch.zeros(8, dtype=dtype), 3, premultiply=True)[1].dtype == dtype
    assert route_hash(logits, table, torch.arange(9), premultiply=True)[1].dtype == dtype
    assert gate_logits(logits, logits, dtype=torch.float32).dtype == torch.float32


def test_score_is_exact_where_torch_changes_branch() -> None:
    """Against math.log1p in Python floats, on both sides of torch's threshold of 20."""
    z = [-700.0, -40.0, -5.0, -0.1, 0.0, 0.1, 5.0, 19.9, 20.1, 25.0, 40.0, 800.0]
    want = [math.sqrt(max(v, 0.0) + math.log1p(math.exp(-abs(v)))) for v in z]
    got = sqrt_softplus(torch.tensor(z, dtype=torch.float64))
    close(got, torch.tensor(want, dtype=torch.float64), "sqrt(softplus)")
    theirs = torch.nn.functional.softplus(torch.tensor(z, dtype=torch.float64)).sqrt()
    assert float((got / theirs - 1).abs().max()) < 5.1e-11


def by_hand(logits: Tensor, bias: Tensor, top_k: int, factor: float) -> list[dict[int, float]]:
    """DeepSeek-V4's learned routing in Python floats: id -> weight of every token."""
    routed = []
    for row in logits.tolist():
        score = [math.sqrt(math.log1p(math.exp(z))) for z in row]
        chosen = sorted(range(len(row)), key=lambda e: -(score[e] + float(bias[e])))[:top_k]
        total = sum(score[e] for e in chosen)
        routed.append({e: factor * score[e] / total for e in chosen})
    return routed


@pytest.mark.parametrize(("premultiply", "factor"), [(True, 1.5), (False, 1.0)])
def test_deepseek_v4_by_hand(premultiply: bool, factor: float) -> None:
    """The bias selects and does not weigh; the factor enters only if premultiplied."""
    logits, bias = 2 * normal(1, 30, 16), normal(2, 16)
    ids, weights = route_deepseek_v4(logits, bias, 6, premultiply=premultiply)
    for row, want in enumerate(by_hand(logits, bias, 6, factor)):
        got = dict(zip(ids[row].tolist(), weights[row].tolist(), strict=True))
        assert got.keys() == want.keys(), f"token {row}"
        assert all(math.isclose(got[e], want[e], rel_tol=1e-12) for e in want), f"token {row}"
    close(weights.sum(1), torch.full((30,), factor, dtype=torch.float64), "sum of weights")


def test_deepseek_v4_without_renormalising() -> None:
    logits = normal(1, 30, 16)
    ids, weights = route_deepseek_v4(logits, None, 6, routed_scaling_factor=2.5, renormalise=False)
    close(weights, 2.5 * sqrt_softplus(logits).gather(1, ids), "bare scores times the factor")


def test_hash_reads_the_table_and_the_learned_scores() -> None:
    logits, tokens = normal(1, 20, 16), torch.arange(20) % 7
    table = normal(2, 7, 16).topk(6, dim=1).indices.int()
    ids, weights = route_hash(logits, table, tokens, premultiply=False)
    assert torch.equal(ids, table[tokens].long())
    scores = sqrt_softplus(logits).gather(1, ids)
    close(weights, scores / scores.sum(1, keepdim=True), "scores of the table's experts")
    scaled = route_hash(logits, table, tokens, routed_scaling_factor=1.5)[1]
    close(scaled, 1.5 * weights, "premultiplied")


@pytest.mark.parametrize(("vocab", "top_k", "experts"), [(1000, 6, 256), (5, 3, 64), (129, 6, 8), (10, 1, 1), (4, 4, 4)])
def test_default_tables_are_recognised(vocab: int, top_k: int, experts: int) -> None:
    table = default_tid2eid(vocab, top_k, experts)
    assert table.tolist() == [[(t + j) % experts for j in range(top_k)] for t in range(vocab)]
    assert looks_default(table.int())
    assert looks_default(table, experts)
    assert looks_default(torch.zeros_like(table), experts)
    wraps = experts > 1 and vocab + top_k - 1 > experts
    assert looks_default(table, experts + 1) != wraps, "a table that wraps belongs to one E; zeros and short ones to several"
    assert looks_default(torch.zeros_like(table)), "transformers' initial zeros"


def test_loaded_tables_are_not_taken_for_default() -> None:
    table = default_tid2eid(1000, 6, 256)
    shuffled = table[torch.randperm(1000, generator=torch.Generator().manual_seed(0))]
    assert not looks_default(shuffled)
    touched = table.clone()
    touched[700, 3] = (touched[700, 3] + 1) % 256
    assert not looks_default(touched)
    assert not looks_default(table + 1)
    assert not looks_default(torch.ones(20, 6, dtype=torch.int64))


def test_gate_logits_by_hand() -> None:
    x, weight, bias = normal(1, 4, 6).bfloat16(), normal(2, 3, 6).bfloat16(), normal(3, 3).bfloat16()
    want = [[sum(float(a) * float(b) for a, b in zip(r, w, strict=True)) + float(c) for w, c in zip(weight, bias, strict=True)] for r in x]
    close(gate_logits(x, weight, bias), torch.tensor(want, dtype=torch.float64), "x W^T + b")


LOGITS = torch.zeros(5, 8)
TABLE = default_tid2eid(10, 3, 8)
NAN = torch.full((5, 8), torch.nan)
BAD = {
    "top_k 0": (UsageError, r"top_k=0 must lie in 1\.\.num_experts=8", lambda: route_gpt_oss(LOGITS, 0)),
    "top_k 9": (UsageError, r"top_k=9", lambda: route_deepseek_v4(LOGITS, None, 9, premultiply=True)),
    "logits 1-d": (ShapeError, r"\[M, E\]", lambda: route_gpt_oss(LOGITS[0], 2)),
    "logits integer": (ShapeError, r"int64", lambda: route_gpt_oss(LOGITS.long(), 2)),
    "logits NaN": (UsageError, r"NaN", lambda: route_gpt_oss(NAN, 2)),
    "bias NaN": (UsageError, r"NaN", lambda: route_deepseek_v4(LOGITS, NAN[0], 2, premultiply=True)),
    "bias short": (ShapeError, r"correction_bias \(7,\)", lambda: route_deepseek_v4(LOGITS, torch.zeros(7), 2, premultiply=True)),
    "token beyond table": (
        UsageError, r"token id 10 lies outside 0\.\.9", lambda: route_hash(LOGITS, TABLE, torch.full((5,), 10), premultiply=True)
    ),
    "token negative": (UsageError, r"token id -1", lambda: route_hash(LOGITS, TABLE, torch.full((5,), -1), premultiply=True)),
    "too few tokens": (ShapeError, r"token_ids", lambda: route_hash(LOGITS, TABLE, torch.zeros(4).long(), premultiply=True)),
    "float tokens": (ShapeError, r"token_ids", lambda: route_hash(LOGITS, TABLE, torch.zeros(5), premultiply=True)),
    "entry beyond experts": (
        UsageError, r"tid2eid entry 8 .*8 experts", lambda: route_hash(LOGITS, TABLE + 1, torch.arange(5) + 5, premultiply=True)
    ),
    "looks default k > E": (UsageError, r"top_k=3", lambda: looks_default(TABLE, 2)),
    "float table": (ShapeError, r"tid2eid", lambda: looks_default(TABLE.double())),
    "empty table": (ShapeError, r"not empty", lambda: looks_default(TABLE[:0])),
    "default k > E": (UsageError, r"top_k=9", lambda: default_tid2eid(10, 9, 8)),
    "gate shapes": (ShapeError, r"weight \(8, 4\)", lambda: gate_logits(LOGITS, torch.zeros(8, 4))),
    "gate bias": (ShapeError, r"bias \(3,\)", lambda: gate_logits(LOGITS, torch.zeros(4, 8), torch.zeros(3))),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments_say_what_is_wrong(name: str) -> None:
    error, message, call = BAD[name]
    with pytest.raises(error, match=message):
        call()
