"""Tensor and expert parallelism as algebra on canonical weights: shards, and the sum of their partial outputs."""

from __future__ import annotations

import torch
from torch import Tensor

from mxfp4_validate.errors import UsageError
from mxfp4_validate.formats.moe_weights import MoeWeights
from mxfp4_validate.formats.mxfp4 import BLOCK


def shard_tp(weights: MoeWeights, tp_size: int, tp_rank: int, *, bias_on_rank0: bool = True) -> MoeWeights:
    """Rank `tp_rank`'s slice of I, cut at whole 32-blocks: ceil(blocks / tp_size) blocks a rank, fewer on the last (2880 by 4: 736, 736, 736, 672).

    Canonical row order stays. w2_bias [E, H] stays on rank 0 only, or on every rank if not `bias_on_rank0` (for kernels that drop it
    themselves). Raises `UsageError` if a rank would be left without a block.
    """
    I = weights.intermediate_size  # noqa: E741
    blocks = I // BLOCK
    share = -(-blocks // tp_size)
    if not 0 <= tp_rank < tp_size or share * (tp_size - 1) >= blocks:
        raise UsageError(
            f"tp_size={tp_size}, tp_rank={tp_rank}: intermediate_size={I} has {blocks} blocks of 32, {share} a rank leave one empty; use a smaller tp_size"
        )
    low, high = share * tp_rank, min(share * (tp_rank + 1), blocks)
    rows = slice(low * BLOCK, high * BLOCK)

    def both(t: Tensor) -> Tensor:
        return torch.cat((t[:, :I][:, rows], t[:, I:][:, rows]), 1)

    keep_bias = weights.w2_bias is not None and (tp_rank == 0 or not bias_on_rank0)
    return MoeWeights(
        w13=both(weights.w13),
        w13_scale=both(weights.w13_scale),
        w2=weights.w2[:, :, low * BLOCK // 2 : high * BLOCK // 2].contiguous(),
        w2_scale=weights.w2_scale[:, :, low:high].contiguous(),
        w13_bias=None if weights.w13_bias is None else both(weights.w13_bias),
        w2_bias=weights.w2_bias if keep_bias else None,
    )


def shard_ep(weights: MoeWeights, ep_size: int, ep_rank: int) -> MoeWeights:
    """Rank `ep_rank`'s contiguous, equal share of the experts. Raises `UsageError` if E is not a multiple of ep_size."""
    E = weights.num_experts
    if not 0 <= ep_rank < ep_size or E % ep_size:
        raise UsageError(f"ep_size={ep_size}, ep_rank={ep_rank}: {E} experts cannot be shared out equally; use a divisor of {E} and a rank below it")
    local = E // ep_size
    return weights.experts(slice(ep_rank * local, (ep_rank + 1) * local))


def combine(partials: list[Tensor]) -> Tensor:
    """Sum of the ranks' outputs [M, H] bfloat16, in fp32 in rank order, rounded once."""
    total = partials[0].float()
    for partial in partials[1:]:
        total = total + partial.float()
    return total.bfloat16()


def combine_exact(partials: list[Tensor]) -> Tensor:
    """The same sum in float64, not rounded."""
    return torch.stack([p.double() for p in partials]).sum(0)
