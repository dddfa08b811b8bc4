"""The a-priori bound: a rigorous worst case for any inputs, wide by design. It catches catastrophes in regimes where no twin is exact.

Every quantity is carried as (exact value in float64, largest error of the kernel's). Signs are taken at their worst, so the bound is
some twenty times the errors seen and about 40 % of the output's RMS: use the twin for anything finer.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mxfp4_validate.cases import Activation
from mxfp4_validate.formats import mxfp4
from mxfp4_validate.formats.moe_weights import MoeInputs, MoeWeights
from mxfp4_validate.reference.rounding import RoundingModel
from mxfp4_validate.tolerances import ACTIVATION_CONSTANT, ACTIVATION_SLOPE, SILU_LIPSCHITZ

UNIT_BF16, UNIT_FP32 = 2.0**-8, 2.0**-24


def _gamma(K: int, model: RoundingModel) -> float:
    """Relative error of a K-long dot product against sum |terms|: 36 tensor-core units a chunk and the chain of K/32 additions, or a plain fp32 sum."""
    return 36 * 2.0**-23 + (K / 32 + 1) * UNIT_FP32 if model.promote else 18 / 16 * K * 2.0**-23


def _round(value: Tensor, error: Tensor, unit: float) -> Tensor:
    """Error after one more rounding."""
    return error + unit * (value.abs() + error)


def bounded_moe(weights: MoeWeights, inputs: MoeInputs, activation: Activation, model: RoundingModel) -> tuple[Tensor, Tensor]:
    """(exact output [M, H] float64, bound [M, H] float64): a correct kernel lies within `bound` of `exact`, element by element."""
    M, k = inputs.topk_ids.shape
    exact = torch.zeros(M, weights.hidden_size, dtype=torch.float64, device=inputs.x.device)
    bound, magnitude = torch.zeros_like(exact), torch.zeros_like(exact)
    for expert in inputs.topk_ids.unique().tolist():
        if not 0 <= expert < weights.num_experts:
            continue
        token, slot = (inputs.topk_ids == expert).nonzero(as_tuple=True)
        y, dy = _expert(weights, expert, inputs.x[token], activation, model)
        w = inputs.topk_weights[token, slot].double()[:, None]
        dy = dy + (UNIT_BF16 * (y.abs() + dy) if model.weight_bf16 else 0.0) + (UNIT_BF16 * (y.abs() + dy) if model.slot_bf16 else 0.0)
        exact.index_add_(0, token, w * y)
        bound.index_add_(0, token, w.abs() * dy)
        magnitude.index_add_(0, token, w.abs() * (y.abs() + dy))
    bound += (k + 1) * UNIT_FP32 * magnitude
    return exact, _round(exact, bound, UNIT_BF16)


def _expert(weights: MoeWeights, expert: int, x: Tensor, activation: Activation, model: RoundingModel) -> tuple[Tensor, Tensor]:
    """One expert: exact y + bias2 [m, H] and the bound on its error."""
    w13 = mxfp4.dequantise(weights.w13[expert], weights.w13_scale[expert], model.e8m0)
    w2 = mxfp4.dequantise(weights.w2[expert], weights.w2_scale[expert], model.e8m0)
    xd = x.double()
    h = xd @ w13.t()
    dh = _gamma(xd.shape[1], model) * (xd.abs() @ w13.abs().t())
    dh = _round(h, dh, UNIT_BF16) if model.h_bf16 else dh
    if weights.w13_bias is not None:
        h = h + weights.w13_bias[expert].double()
        dh = _round(h, dh, UNIT_BF16 if model.bias1_bf16 else UNIT_FP32)
    a, da = _activation(h, dh, activation, model)
    y = a @ w2.t()
    moved, size = da @ w2.abs().t(), (a.abs() + da) @ w2.abs().t()
    dy = _round(y, moved + _gamma(a.shape[1], model) * size, UNIT_BF16)
    if weights.w2_bias is not None:
        y = y + weights.w2_bias[expert].double()
        dy = _round(y, dy, UNIT_BF16 if model.bias2_bf16 else UNIT_FP32)
    return y, dy


def _activation(h: Tensor, dh: Tensor, activation: Activation, model: RoundingModel) -> tuple[Tensor, Tensor]:
    """Exact activation [m, I] and its error; where an interval lies wholly beyond the clamp the input's error is gone."""
    (g, u), (dg, du) = h.chunk(2, dim=-1), dh.chunk(2, dim=-1)
    if (limit := activation.limit) is not None:
        dg = torch.where(g - dg > limit, 0.0, dg)
        du = torch.where(u.abs() - du > limit, 0.0, du)
        g, u = g.clamp(max=limit), u.clamp(-limit, limit)
    s, u = g * torch.sigmoid(activation.alpha * g), u + activation.beta
    ds = SILU_LIPSCHITZ.value * dg
    for _ in range(4 * model.steps_bf16 + model.silu_bf16):  # alpha * g, the sigmoid, their product, and up + beta below count as one each
        ds = _round(s, ds, UNIT_BF16)
    df = ds * (u.abs() + du) + s.abs() * du
    relative = (ACTIVATION_CONSTANT.value + ACTIVATION_SLOPE.value * (activation.alpha * g).abs()) * 2.0**-23
    a = s * u
    return a, _round(a, df + relative * (a.abs() + df), UNIT_BF16)
