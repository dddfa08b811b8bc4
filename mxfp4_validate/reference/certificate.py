"""The certificate oracle: outputs that every correct kernel must return bit for bit, whatever its summation order.

For a sum of dyadic products let q be the largest power of two that divides all non-zero ones and S the sum of their magnitudes. If
S <= 2^22 q, each partial sum in any order and grouping is a multiple of q below 2^24 q, so fp32 and a tensor core with 24 bits hold it
exactly. The test is made per element, so it also tells on real weights where bit equality may be demanded.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mxfp4_validate.cases import Activation
from mxfp4_validate.formats import mxfp4
from mxfp4_validate.formats.moe_weights import MoeInputs, MoeWeights
from mxfp4_validate.reference.activation import swiglu
from mxfp4_validate.reference.gemm import least_bit
from mxfp4_validate.reference.interval import DEAD, Interval, activate, round_bf16
from mxfp4_validate.reference.rounding import RoundingModel
from mxfp4_validate.tolerances import CERTIFICATE_QUANTA

_BLOCK_ELEMENTS = 1 << 27
#: alpha * gate from which 1 - sigmoid < 3.4e-4, under an eighth of a bf16 step: any rounding of the activation takes it for 1.
SATURATED = 8.0


@dataclass(frozen=True)
class Certified:
    """`value` [M, H] bfloat16; `holds` [M, H] bool: every kernel with these rounding points must return it; `class_a`: no rounding at all."""

    value: Tensor
    holds: Tensor
    class_a: Tensor


def exact_in_any_order(x: Tensor, w: Tensor) -> Tensor:
    """[m, N] bool: is sum_k x[m, k] w[n, k] exact in every order? x [m, K], w [N, K] float64 holding float32 numbers."""
    lx, lw = least_bit(x.float()), least_bit(w.float())
    total = x.abs() @ w.abs().t()
    row, column = (t.masked_fill(t == 0, torch.inf).amin(1) for t in (lx, lw))
    holds = total <= CERTIFICATE_QUANTA.value * row[:, None] * column[None, :]
    # The common quantum of a whole row is pessimistic: where it fails, take each element's own non-zero products.
    doubtful = ~holds.all(1)
    step = max(1, _BLOCK_ELEMENTS // max(1, w.numel()))
    for rows in doubtful.nonzero().flatten().split(step):
        products = lx[rows, None, :] * lw[None, :, :]
        quantum = products.masked_fill_(products == 0, torch.inf).amin(2)
        holds[rows] = total[rows] <= CERTIFICATE_QUANTA.value * quantum
    return holds


def certified_moe(weights: MoeWeights, inputs: MoeInputs, activation: Activation, model: RoundingModel) -> Certified:
    """The layer with `model`'s rounding points and exact sums, and where no freedom of order, grouping or intrinsics can change a bit."""
    M, k = inputs.topk_ids.shape
    shape, device = (M * k, weights.hidden_size), inputs.x.device
    y, sure, plain = (
        torch.zeros(shape, dtype=torch.float64, device=device),
        torch.ones(shape, dtype=torch.bool, device=device),
        torch.ones(shape, dtype=torch.bool, device=device),
    )
    ids = inputs.topk_ids.long().flatten()
    for expert in ids.unique().tolist():
        if 0 <= expert < weights.num_experts:
            pairs = (ids == expert).nonzero().squeeze(1)
            for block in pairs.split(4096):
                y[block], sure[block], plain[block] = _expert(weights, expert, inputs.x[block // k], activation, model)
    return _finish(y.view(M, k, -1), sure.view(M, k, -1), plain.view(M, k, -1), inputs.topk_weights, model)


def _expert(weights: MoeWeights, expert: int, x: Tensor, activation: Activation, model: RoundingModel) -> tuple[Tensor, Tensor, Tensor]:
    """One expert's rows: (y + bias2 as float64 of fp32 numbers, certified, unrounded), each [m, H]."""
    w13 = mxfp4.dequantise(weights.w13[expert], weights.w13_scale[expert], model.e8m0)
    w2 = mxfp4.dequantise(weights.w2[expert], weights.w2_scale[expert], model.e8m0)
    xd = x.double()
    total = xd @ w13.t()
    h = Interval(round_bf16(total.float()) if model.h_bf16 else total.float())
    pre = h if weights.w13_bias is None else h.add(weights.w13_bias[expert])
    pre = pre.map(round_bf16) if model.bias1_bf16 else pre
    act = activate(pre, activation, model)
    low, high = act.ends()
    sums = exact_in_any_order(xd, w13)
    half = sums.shape[1] // 2
    certain = (low == high) & sums[:, :half] & sums[:, half:]
    flat = (h.value.double() == total).view(-1, 2, half).all(1) & (
        pre.value.double() == _plus(h.value.double(), weights.w13_bias, expert)
    ).view(-1, 2, half).all(1)
    a = act.value.double()
    flat &= _unrounded(pre.value.double(), activation) == a
    y = a @ w2.t()
    used = (w2 != 0).double().t()
    sure = exact_in_any_order(a, w2) & ((~certain).double() @ used == 0)
    rounded = round_bf16(y.float()).double()
    plain = (rounded == y) & ((~(certain & flat)).double() @ used == 0)
    held = _plus(rounded if model.y_bf16 else y.float().double(), weights.w2_bias, expert).float()
    return (round_bf16(held) if model.bias2_bf16 else held).double(), sure, plain


def _unrounded(pre: Tensor, activation: Activation) -> Tensor:
    """The activation [m, I] that class A demands exactly: g (u + beta) where the sigmoid is saturated at 1 in bf16, 0 where it is dead."""
    gate, up = pre.chunk(2, dim=-1)
    linear = swiglu(gate, up, replace(activation, alpha=0.0), fminmax=True) * 2  # sigmoid(0) is 1/2
    z = activation.alpha * gate.clamp(max=torch.inf if activation.limit is None else activation.limit)
    exact = swiglu(gate, up, activation, fminmax=True)
    return torch.where(z >= SATURATED, linear, torch.where(z < DEAD, 0.0, exact))


def _plus(rows: Tensor, bias: Tensor | None, expert: int) -> Tensor:
    return rows if bias is None else rows + bias[expert].double()


def _finish(y: Tensor, sure: Tensor, plain: Tensor, topk_weights: Tensor, model: RoundingModel) -> Certified:
    """Weighted sum over slots, certified like any other sum of products."""
    w = (round_bf16(topk_weights) if model.weight_bf16 else topk_weights).double()[:, :, None]
    terms = w * y
    if model.slot_bf16:
        terms = round_bf16(terms.float()).double()
    quantum = (least_bit(w.float()) * least_bit(y.float())).masked_fill(terms == 0, torch.inf).amin(1)
    total = terms.sum(1)
    holds = sure.all(1) & (terms.abs().sum(1) <= CERTIFICATE_QUANTA.value * quantum)
    value = total.float().bfloat16()
    return Certified(value, holds, holds & plain.all(1) & (value.double() == total))
