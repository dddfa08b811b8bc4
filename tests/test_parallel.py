"""Shards of tensor and expert parallelism add up to the single-rank layer, bytes and bias counted once."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest
import torch
from torch import Tensor

from mxfp4_validate.cases import GPT_OSS
from mxfp4_validate.errors import ShapeError, UsageError
from mxfp4_validate.formats.moe_weights import MoeInputs, MoeWeights
from mxfp4_validate.reference.exact import exact_moe
from mxfp4_validate.reference.parallel import combine, combine_exact, shard_ep, shard_tp

E, H, K, M = 8, 64, 3, 17


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make_weights(I: int, biased: bool = True, experts: int = E) -> MoeWeights:  # noqa: E741
    def draw(seed: int, *shape: int, low: int = 0, high: int = 256) -> Tensor:
        return torch.randint(low, high, shape, generator=generator(seed), dtype=torch.uint8)

    return MoeWeights(
        w13=draw(0, experts, 2 * I, H // 2),
        w13_scale=draw(1, experts, 2 * I, H // 32, low=122, high=127),
        w2=draw(2, experts, H, I // 2),
        w2_scale=draw(3, experts, H, I // 32, low=115, high=125),
        w13_bias=torch.randn(experts, 2 * I, generator=generator(4)).bfloat16() if biased else None,
        w2_bias=torch.randn(experts, H, generator=generator(5)).bfloat16() if biased else None,
    )


def make_inputs() -> MoeInputs:
    """A fifth of the ids is -1 or foreign, and one token has no expert at all."""
    ids = torch.rand(M, E, generator=generator(6)).topk(K, dim=1).indices.int()
    draw = torch.rand(M, K, generator=generator(7))
    ids = torch.where(draw < 0.1, -1, torch.where(draw > 0.9, E + 2, ids)).int()
    ids[3] = -1
    return MoeInputs(torch.randn(M, H, generator=generator(8)).bfloat16(), ids, torch.rand(M, K, generator=generator(9)))


INPUTS = make_inputs()


def require_sum(partials: list[Tensor], whole: Tensor, what: str) -> None:
    total = combine_exact(partials)
    error = float(((total - whole).abs() / torch.maximum(whole.abs(), whole.pow(2).mean().sqrt())).max())
    print(f"{what}: max relative error {error:.2e}")
    assert error <= 1e-12, f"{what}: relative error {error:.2e}"


# Multiples of every size, 11 and 15 blocks as the uneven 2880 has 90, and a single block a rank.
TP = [(2, 64), (2, 352), (4, 128), (4, 352), (4, 480), (8, 256), (8, 480), (8, 2880)]


@pytest.mark.parametrize("biased", [True, False], ids=["bias", "plain"])
@pytest.mark.parametrize(("size", "inter"), TP)
def test_tp_ranks_add_up(size: int, inter: int, biased: bool) -> None:
    weights = make_weights(inter, biased)
    partials = [exact_moe(shard_tp(weights, size, rank), INPUTS, GPT_OSS) for rank in range(size)]
    require_sum(partials, exact_moe(weights, INPUTS, GPT_OSS), f"TP={size} I={inter}")


@pytest.mark.parametrize("size", [2, 4, 8])
def test_ep_ranks_add_up(size: int) -> None:
    """Ids stay global; what is -1 or foreign everywhere adds nothing anywhere."""
    weights = make_weights(96)
    local = E // size
    partials = [exact_moe(shard_ep(weights, size, rank), INPUTS, GPT_OSS, first_expert=rank * local) for rank in range(size)]
    whole = exact_moe(weights, INPUTS, GPT_OSS)
    require_sum(partials, whole, f"EP={size}")
    assert not whole[3].any(), "the token without an expert"
    valid = (INPUTS.topk_ids >= 0) & (INPUTS.topk_ids < E)
    without = replace(INPUTS, topk_weights=torch.where(valid, INPUTS.topk_weights, 0.0))
    assert torch.equal(exact_moe(weights, without, GPT_OSS), whole), "the weight of an ignored id plays no part"


def test_tp_within_ep() -> None:
    weights, partials = make_weights(352), []
    for ep, tp in product(range(2), range(4)):
        shard = shard_tp(shard_ep(weights, 2, ep), 4, tp)
        partials.append(exact_moe(shard, INPUTS, GPT_OSS, first_expert=ep * E // 2))
    require_sum(partials, exact_moe(weights, INPUTS, GPT_OSS), "EP=2 x TP=4")


def test_tp_second_bias_counts_once() -> None:
    """Kept on every rank it counts tp_size times, which is fault F37."""
    weights = make_weights(128)
    assert weights.w2_bias is not None
    whole = exact_moe(weights, INPUTS, GPT_OSS)
    kept = combine_exact([exact_moe(shard_tp(weights, 4, r, bias_on_rank0=False), INPUTS, GPT_OSS) for r in range(4)])
    valid = (INPUTS.topk_ids >= 0) & (INPUTS.topk_ids < E)
    bias = weights.w2_bias.double()[INPUTS.topk_ids.long().clamp(0, E - 1)]
    once = (torch.where(valid, INPUTS.topk_weights, 0.0).double()[..., None] * bias).sum(1)
    torch.testing.assert_close(kept - whole, 3 * once, rtol=1e-10, atol=1e-10, msg=lambda text: f"three biases too many: {text}")
    assert [shard_tp(weights, 4, r).w2_bias is not None for r in range(4)] == [True, False, False, False]
    assert all(shard_tp(weights, 4, r).w13_bias is not None for r in range(4)), "every rank has the first bias of its own rows"


@pytest.mark.parametrize(
    ("inter", "size", "widths"),
    [(2880, 4, [736, 736, 736, 672]), (2880, 8, [384] * 7 + [192]), (352, 4, [96, 96, 96, 64]), (2048, 8, [256] * 8), (64, 1, [64])],
)
def test_tp_widths_and_bytes(inter: int, size: int, widths: list[int]) -> None:
    """Shards put side by side are the bytes they were cut from, gate and up each in order."""
    weights = make_weights(inter, experts=2)
    shards = [shard_tp(weights, size, rank) for rank in range(size)]
    assert [s.intermediate_size for s in shards] == widths
    for name in ("w13", "w13_scale", "w13_bias"):
        halves = [getattr(s, name).chunk(2, dim=1) for s in shards]
        whole = torch.cat([h[0] for h in halves] + [h[1] for h in halves], 1)
        assert torch.equal(whole, getattr(weights, name)), name
    for name in ("w2", "w2_scale"):
        assert torch.equal(torch.cat([getattr(s, name) for s in shards], 2), getattr(weights, name)), name
        assert all(getattr(s, name).is_contiguous() for s in shards), name


def test_ep_bytes() -> None:
    weights = make_weights(64)
    shards = [shard_ep(weights, 4, rank) for rank in range(4)]
    for name, tensor in weights.tensors().items():
        assert torch.equal(torch.cat([getattr(s, name) for s in shards]), tensor), name


def test_combine_adds_in_fp32_in_rank_order_and_rounds_once() -> None:
    def one(*values: float) -> list[Tensor]:
        return [torch.tensor([[v]]).bfloat16() for v in values]

    assert combine(one(256, 1, 1)).item() == 258, "bf16 additions would leave 256"
    assert combine(one(2.0**24, 1, -(2.0**24))).item() == 0, "the 1 is lost in fp32 in this order"
    assert combine(one(2.0**24, -(2.0**24), 1)).item() == 1
    assert combine_exact(one(2.0**24, 1, -(2.0**24))).item() == 1
    assert combine([torch.tensor([[257.0]]), torch.tensor([[1.0]])]).item() == 258, "fp32 partials are not rounded first"
    assert combine(one(3)).dtype == torch.bfloat16
    assert combine_exact(one(3)).dtype == torch.float64


WEIGHTS = make_weights(352)
BAD = {
    "tp rank": (UsageError, r"tp_rank=2 is not a rank of tp_size=2", lambda: shard_tp(WEIGHTS, 2, 2)),
    "tp size 0": (UsageError, r"tp_size=0", lambda: shard_tp(WEIGHTS, 0, 0)),
    "tp negative": (UsageError, r"tp_rank=-1", lambda: shard_tp(WEIGHTS, 2, -1)),
    "tp empty rank": (UsageError, r"tp_size=8: intermediate_size=352 has 11 blocks", lambda: shard_tp(WEIGHTS, 8, 0)),
    "tp more than blocks": (UsageError, r"tp_size=12", lambda: shard_tp(WEIGHTS, 12, 0)),
    "ep rank": (UsageError, r"ep_rank=4", lambda: shard_ep(WEIGHTS, 4, 4)),
    "ep size 0": (UsageError, r"ep_size=0", lambda: shard_ep(WEIGHTS, 0, 0)),
    "ep uneven": (UsageError, r"ep_size=3: 8 experts .* divisor of 8", lambda: shard_ep(WEIGHTS, 3, 0)),
    "combine nothing": (UsageError, r"nothing to combine", lambda: combine([])),
    "combine_exact nothing": (UsageError, r"nothing to combine", lambda: combine_exact([])),
    "combine shapes": (ShapeError, r"\(1, 2\)", lambda: combine([torch.zeros(1, 2), torch.zeros(1, 3)])),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments_say_what_is_wrong(name: str) -> None:
    error, message, call = BAD[name]
    with pytest.raises(error, match=message):
        call()
