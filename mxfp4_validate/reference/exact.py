"""The exact oracle: the layer in float64, no rounding anywhere. Every other oracle is held against it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mxfp4_validate.cases import Activation
from mxfp4_validate.formats import e8m0, mxfp4
from mxfp4_validate.formats.moe_weights import MoeInputs, MoeWeights
from mxfp4_validate.reference.activation import swiglu


def exact_moe(
    weights: MoeWeights, inputs: MoeInputs, activation: Activation, meaning: e8m0.Meaning = e8m0.OCP, *, first_expert: int = 0
) -> Tensor:
    """The layer's output [M, H] float64.

    Ids outside first_expert..first_expert+E-1 are skipped, -1 included. So are slots whose routing weight is exactly 0: they add nothing
    even if their expert is infinite.
    """
    out = torch.zeros(inputs.x.shape[0], weights.hidden_size, dtype=torch.float64, device=inputs.x.device)
    local = inputs.topk_ids.long() - first_expert
    local = torch.where(inputs.topk_weights == 0, -1, local)
    for expert in local.unique().tolist():
        if 0 <= expert < weights.num_experts:
            token, slot = (local == expert).nonzero(as_tuple=True)
            _, _, _, y = _expert(weights, expert, inputs.x[token], activation, meaning)
            out.index_add_(0, token, inputs.topk_weights[token, slot].double()[:, None] * y)
    return out


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


@dataclass(frozen=True)
class ExactStages:
    """Intermediates of every (token, slot), float64; skipped slots are 0. gate, up (pre-clamp) and act [M, k, I]; y [M, k, H] with bias."""

    gate: Tensor
    up: Tensor
    act: Tensor
    y: Tensor


def exact_stages(weights: MoeWeights, inputs: MoeInputs, activation: Activation) -> ExactStages:
    """As `exact_moe`, stage by stage; meant for a few rows, to measure what data does."""
    M, k = inputs.topk_ids.shape
    widths = (weights.intermediate_size,) * 3 + (weights.hidden_size,)
    stages = [torch.zeros(M, k, width, dtype=torch.float64, device=inputs.x.device) for width in widths]
    for expert in inputs.topk_ids.unique().tolist():
        if 0 <= expert < weights.num_experts:
            token, slot = (inputs.topk_ids == expert).nonzero(as_tuple=True)
            for target, value in zip(stages, _expert(weights, expert, inputs.x[token], activation, e8m0.OCP), strict=True):
                target[token, slot] = value
    return ExactStages(*stages)
