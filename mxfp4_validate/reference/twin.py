"""The ordered twin: a backend's own rounding points and summation order, and per element the interval its remaining freedom allows.

What is free, and nothing else: bits that a tensor core cuts while it aligns the addends of one 32-wide chunk (`gemm.chunk_freedom`), and
the error of the activation's fast intrinsics (`interval.activation_error`). Both are bounded element by element and carried through every
later operation; all roundings are monotone, so an interval's ends are rounded like the value itself. An output that differs from the twin
and lies inside its interval is explained; one outside is not, and no share of such outputs is tolerated.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mxfp4_validate.cases import Activation
from mxfp4_validate.formats.moe_weights import MoeInputs, MoeWeights
from mxfp4_validate.reference.gemm import Sum, gemm
from mxfp4_validate.reference.interval import Interval, activate, round_bf16
from mxfp4_validate.reference.rounding import RoundingModel

#: Scratch of one expert's partial sums; bounds the rows taken at a time.
SCRATCH_BYTES = {"cuda": 6 << 30, "cpu": 256 << 20}


@dataclass(frozen=True)
class Twin:
    """What the backend must return: `value` [M, H] bfloat16, and `lower` <= candidate <= `upper` for each element."""

    value: Tensor
    lower: Tensor
    upper: Tensor

    @property
    def determined(self) -> float:
        """Share of elements whose interval is a single number: there, explained means bit-equal."""
        return float((self.lower == self.upper).double().mean())


def twin_moe(
    weights: MoeWeights,
    inputs: MoeInputs,
    activation: Activation,
    model: RoundingModel,
    *,
    first_expert: int = 0,
    add_w2_bias: bool = True,
) -> Twin:
    """The MoE layer as `model` computes it. Ids outside first_expert..first_expert+E-1 are skipped, -1 included.

    Raises nothing on NaN or Inf: they flow through as they would in the kernel.
    """
    M, top_k = inputs.topk_ids.shape
    y = Interval.zeros((M * top_k, weights.hidden_size), inputs.x.device)
    local = inputs.topk_ids.long().flatten() - first_expert
    for expert in local.unique().tolist():
        if 0 <= expert < weights.num_experts:
            pairs = (local == expert).nonzero().squeeze(1)
            for block in pairs.split(_rows_at_once(weights)):
                rows = expert_rows(weights, expert, inputs.x[block // top_k], activation, model)
                if add_w2_bias and weights.w2_bias is not None:
                    rows = rows.add(weights.w2_bias[expert])
                    rows = rows.map(round_bf16) if model.bias2_bf16 else rows
                y.put(block, rows)
    present = ((local >= 0) & (local < weights.num_experts)).view(M, top_k)
    return _finalise(y.unflatten(M, top_k), inputs.topk_weights, present, model)


def expert_rows(weights: MoeWeights, expert: int, x: Tensor, activation: Activation, model: RoundingModel) -> Interval:
    """One expert on its own rows x [m, H] -> y [m, H] before the second bias, float32 (bf16 numbers if `y_bf16`)."""
    first = gemm(x, weights.w13[expert], weights.w13_scale[expert], model, 0)
    h = _round_sum(first) if model.h_bf16 else Interval.around(first.value, first.radius)
    if weights.w13_bias is not None:
        h = h.add(weights.w13_bias[expert])
        h = h.map(round_bf16) if model.bias1_bf16 else h
    act = activate(h, activation, model)
    second = gemm(act.value, weights.w2[expert], weights.w2_scale[expert], model, 1, act.spread())
    return _round_sum(second) if model.y_bf16 else Interval.around(second.value, second.radius)


def _round_sum(total: Sum) -> Interval:
    return Interval.around(total.value, total.radius).map(round_bf16)


def _rows_at_once(weights: MoeWeights) -> int:
    per_row = 12 * max(weights.w13.shape[1] * weights.w13_scale.shape[2], weights.w2.shape[1] * weights.w2_scale.shape[2])
    return max(1, SCRATCH_BYTES[weights.w13.device.type] // per_row)


def _finalise(y: Interval, topk_weights: Tensor, present: Tensor, model: RoundingModel) -> Twin:
    """Sum over slots in slot order, fp32 fused multiply-adds, one rounding to bf16. y is [M, k, H]."""
    w = round_bf16(topk_weights) if model.weight_bf16 else topk_weights
    negative = (w < 0).unsqueeze(-1)
    low = y.low if y.low is None else torch.where(negative, y.high, y.low)  # type: ignore[arg-type]
    high = y.high if y.high is None else torch.where(negative, y.low, y.high)  # type: ignore[arg-type]
    value = sum_slots(y.value, w, present, model)
    lower, upper = (None if end is None else sum_slots(end, w, present, model) for end in (low, high))
    return Twin(value, value if lower is None else lower, value if upper is None else upper)


def sum_slots(rows: Tensor, w: Tensor, present: Tensor, model: RoundingModel) -> Tensor:
    """rows [M, k, H] float32, w [M, k] float32, present [M, k] bool -> [M, H] bfloat16: fp32 fused multiply-adds in slot order."""
    acc = torch.zeros(rows.shape[0], rows.shape[2], dtype=torch.float32, device=rows.device)
    for j in range(rows.shape[1]):
        term = w[:, j, None].double() * rows[:, j].double()  # exact: 24 by 24 bits
        # Else a fused multiply-add, up to a double rounding of one in 2^29.
        total = acc + round_bf16(term.float()) if model.slot_bf16 else (acc.double() + term).float()
        acc = torch.where(present[:, j, None], total, acc)
    return acc.bfloat16()
