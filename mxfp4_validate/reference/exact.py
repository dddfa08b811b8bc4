"""The exact oracle: the layer in float64 from the canonical bytes. Every other oracle is held against it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mxfp4_validate.errors import ShapeError, UsageError
from mxfp4_validate.formats import e8m0, mxfp4
from mxfp4_validate.reference.activation import swiglu

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mxfp4_validate.cases import Activation
    from mxfp4_validate.formats.moe_weights import MoeInputs, MoeWeights


def exact_moe(
    weights: MoeWeights,
    inputs: MoeInputs,
    activation: Activation,
    meaning: e8m0.Meaning = e8m0.OCP,
    *,
    rows: Tensor | slice | None = None,
    first_expert: int = 0,
) -> Tensor:
    """The routed output [M, H] float64: `sum_j w_j * (W2 swiglu(W13 x + b13) + b2)` over the slots j of a token, with no rounding point.

    Nothing is rounded but by float64 itself (2^-53 an operation), on the CPU as on a GPU; experts are dequantised one at a time.
    `rows` computes these tokens only, in this order, and returns [len(rows), H]. `first_expert` is the global id of the weights' first
    expert, for a rank of expert parallelism. Skipped are ids outside first_expert..first_expert+E-1, -1 included, and slots whose routing
    weight is exactly 0: they add nothing even if their expert's output is Inf or NaN, where a kernel may compute 0 * Inf = NaN.
    A token without a slot left is 0. Formula: GptOssExperts and DeepseekV4Experts of Hugging Face transformers.

    Raises `ShapeError` if x is not as wide as the weights or ids and routing weights differ in shape, `UsageError` for a negative
    first_expert or tensors on different devices.
    """
    inputs = inputs if rows is None else inputs.rows(rows)
    local = _local_ids(weights, inputs, first_expert)
    routing = inputs.topk_weights.double()
    local = torch.where(routing == 0, -1, local)
    out = torch.zeros(inputs.x.shape[0], weights.hidden_size, dtype=torch.float64, device=inputs.x.device)
    for expert, token, slot in _by_expert(local, weights.num_experts):
        y = _expert(weights, expert, inputs.x[token], activation, meaning)[-1]
        out.index_add_(0, token, routing[token, slot, None] * y)
    return out


@dataclass(frozen=True)
class ExactStages:
    """Intermediates of every (token, slot), float64; slots whose id is skipped are 0.

    gate and up [M, k, I] have their bias and are not clamped yet; act [M, k, I] enters the second GEMM; y [M, k, H] has the second bias
    and not yet the routing weight.
    """

    gate: Tensor
    up: Tensor
    act: Tensor
    y: Tensor


def exact_stages(
    weights: MoeWeights, inputs: MoeInputs, activation: Activation, meaning: e8m0.Meaning = e8m0.OCP, *, first_expert: int = 0
) -> ExactStages:
    """What `exact_moe` computes on the way, with its arguments and errors; for a few rows, as it holds M * k * (3I + H) numbers.

    A slot of routing weight 0 is computed like any other, because routing weights play no part in these stages.
    """
    local = _local_ids(weights, inputs, first_expert)
    widths = (weights.intermediate_size,) * 3 + (weights.hidden_size,)
    stages = [torch.zeros(*local.shape, width, dtype=torch.float64, device=inputs.x.device) for width in widths]
    for expert, token, slot in _by_expert(local, weights.num_experts):
        for target, value in zip(stages, _expert(weights, expert, inputs.x[token], activation, meaning), strict=True):
            target[token, slot] = value
    return ExactStages(*stages)


def _local_ids(weights: MoeWeights, inputs: MoeInputs, first_expert: int) -> Tensor:
    """Ids [M, k] int64 counted from the weights' first expert, after checking that weights and inputs belong together."""
    if inputs.x.shape[1] != weights.hidden_size:
        raise ShapeError(f"x {tuple(inputs.x.shape)} must be [M, H] with the weights' H={weights.hidden_size}")
    if inputs.topk_ids.shape != inputs.topk_weights.shape:
        shapes = f"topk_ids {tuple(inputs.topk_ids.shape)} and topk_weights {tuple(inputs.topk_weights.shape)}"
        raise ShapeError(f"{shapes} must be the same [M, k]")
    if first_expert < 0:
        raise UsageError(f"first_expert={first_expert} must be the global id of the weights' first expert, 0 or more")
    devices = sorted({str(t.device) for t in (weights.w13, inputs.x, inputs.topk_ids, inputs.topk_weights)})
    if len(devices) > 1:
        raise UsageError(f"weights and inputs lie on different devices ({', '.join(devices)}); move them with .to(device)")
    return inputs.topk_ids.long() - first_expert


def _by_expert(local: Tensor, num_experts: int) -> Iterator[tuple[int, Tensor, Tensor]]:
    """(expert, tokens, slots) for every local expert that local ids [M, k] name; all other ids are passed over."""
    for expert in sorted(set(local.flatten().tolist())):
        if 0 <= expert < num_experts:
            token, slot = (local == expert).nonzero(as_tuple=True)
            yield expert, token, slot


def _expert(
    weights: MoeWeights, expert: int, x: Tensor, activation: Activation, meaning: e8m0.Meaning
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One expert's rows: gate, up (with bias, before the clamp), activation [m, I] and y with bias [m, H], all float64."""
    h = x.double() @ mxfp4.dequantise(weights.w13[expert], weights.w13_scale[expert], meaning).t()
    if weights.w13_bias is not None:
        h = h + weights.w13_bias[expert].double()
    gate, up = h.chunk(2, dim=-1)
    act = swiglu(gate, up, activation)
    y = act @ mxfp4.dequantise(weights.w2[expert], weights.w2_scale[expert], meaning).t()
    return gate, up, act, y if weights.w2_bias is None else y + weights.w2_bias[expert].double()
