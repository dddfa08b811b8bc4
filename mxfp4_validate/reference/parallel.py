"""Tensor and expert parallelism as algebra on canonical weights: shards, and the sum of their partial outputs."""

from __future__ import annotations

import torch
from torch import Tensor

from mxfp4_validate.cases import Parallel
from mxfp4_validate.errors import ShapeError, UsageError
from mxfp4_validate.formats.moe_weights import MoeWeights
from mxfp4_validate.formats.mxfp4 import BLOCK


def shard_tp(weights: MoeWeights, tp_size: int, tp_rank: int, *, bias_on_rank0: bool = True) -> MoeWeights:
    """Rank `tp_rank`'s slice of I, cut at whole 32-blocks: ceil(blocks / tp_size) a rank, fewer on the last.

    2880 by 4 gives 736, 736, 736, 672. Row order stays canonical: gate rows and up rows, their scales and w13_bias are cut alike, w2 and
    its scales along their columns. w2_bias [E, H] stays on rank 0 only, for arithmetic that adds whatever it is given;
    `bias_on_rank0=False` keeps it on every rank, for FlashInfer's kernel, which leaves it out itself when tp_rank is not 0.

    Raises `UsageError` for a rank that does not exist or if some rank would be left without a block.
    """
    Parallel(tp_size=tp_size, tp_rank=tp_rank)  # raises on a rank that does not exist
    I = weights.intermediate_size  # noqa: E741
    blocks = I // BLOCK
    share = -(-blocks // tp_size)
    if share * (tp_size - 1) >= blocks:
        raise UsageError(
            f"tp_size={tp_size}: intermediate_size={I} has {blocks} blocks of {BLOCK}, and {share} a rank leave none for the last; "
            "use a smaller tp_size"
        )
    low, high = share * tp_rank, min(share * (tp_rank + 1), blocks)
    rows = slice(low * BLOCK, high * BLOCK)

    def both(t: Tensor) -> Tensor:
        return torch.cat((t[:, :I][:, rows], t[:, I:][:, rows]), 1)

    keep_bias = tp_rank == 0 or not bias_on_rank0
    return MoeWeights(
        w13=both(weights.w13),
        w13_scale=both(weights.w13_scale),
        w2=weights.w2[:, :, low * BLOCK // 2 : high * BLOCK // 2].contiguous(),
        w2_scale=weights.w2_scale[:, :, low:high].contiguous(),
        w13_bias=None if weights.w13_bias is None else both(weights.w13_bias),
        w2_bias=weights.w2_bias if keep_bias else None,
    )


def shard_ep(weights: MoeWeights, ep_size: int, ep_rank: int) -> MoeWeights:
    """Rank `ep_rank`'s contiguous, equal share of the experts, biases included; its first expert's global id is ep_rank * E / ep_size.

    Ids stay global on every rank, as FlashInfer's kernel wants them. Raises `UsageError` for a rank that does not exist or if E is not a
    multiple of ep_size.
    """
    Parallel(ep_size=ep_size, ep_rank=ep_rank)  # raises on a rank that does not exist
    E = weights.num_experts
    if E % ep_size:
        raise UsageError(f"ep_size={ep_size}: {E} experts cannot be shared out equally; use a divisor of {E}")
    local = E // ep_size
    return weights.experts(slice(ep_rank * local, (ep_rank + 1) * local))


def combine(partials: list[Tensor]) -> Tensor:
    """Sum of the ranks' outputs [M, H], added in fp32 in rank order and rounded to bfloat16 once.

    An all-reduce may add in another order or round between ranks; compare with it only within a tolerance.
    Raises `UsageError` for an empty list, `ShapeError` for partials of different shapes.
    """
    _check(partials)
    total = partials[0].float()
    for partial in partials[1:]:
        total = total + partial.float()
    return total.bfloat16()


def combine_exact(partials: list[Tensor]) -> Tensor:
    """Sum of the ranks' outputs [M, H] in float64, not rounded. Raises what `combine` raises."""
    _check(partials)
    return torch.stack([p.double() for p in partials]).sum(0)


def _check(partials: list[Tensor]) -> None:
    if not partials:
        raise UsageError("there is nothing to combine: pass one partial output for each rank")
    shapes = {tuple(p.shape) for p in partials}
    if len(shapes) > 1:
        raise ShapeError(f"partial outputs must all be the same [M, H], got {sorted(shapes)}")
