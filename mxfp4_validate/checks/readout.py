"""Probe R: the kernel's own view of every weight code and every scale byte of a whole layer, read back bit for bit.

The layer's real fc1 (or fc2) bytes stay in place; only biases, the activation's constants and the other GEMM are chosen so that output
[token, row] is exactly one weight. Codes are read with the real scales, and scales with every code set to 1.0, so each byte is pinned on
its own. Code 8 (-0) and code 0 cannot be told apart by arithmetic and count as equal.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mxfp4_validate.cases import Activation, MoeCase
from mxfp4_validate.checks import readout_plain
from mxfp4_validate.checks.calls import call
from mxfp4_validate.checks.context import Context
from mxfp4_validate.comparison.bits import require_equal
from mxfp4_validate.errors import NotSupported
from mxfp4_validate.formats import e2m1, e8m0, mxfp4
from mxfp4_validate.formats.moe_weights import MoeInputs, MoeWeights

#: Backends whose activation has constants of its own are read by `readout_plain`, or with up's bias against a fixed beta.
#: alpha 0 makes the sigmoid 1/2; a bias of 64 drives one half to the limit 2, so the activation is the other half, unchanged.
READ = Activation(alpha=0.0, beta=0.0, limit=2.0)
DRIVE = 64.0
ALL_ONES = 0x22  # two codes of 1.0


@dataclass(frozen=True)
class Readout:
    """A prepared variant of the layer: `expected(expert)` [tokens, H] float32 is what token t must return."""

    name: str
    weights: MoeWeights
    x: Tensor
    view: str  # "up", "gate" or "w2"
    scale_of_x: float
    first: int = 0  # the first unit that is read; where I > H, one variant has room for H units only

    def expected(self, expert: int, meaning: e8m0.Meaning) -> Tensor:
        w, half = self.weights, self.weights.intermediate_size
        if self.view == "w2":
            return mxfp4.dequantise(w.w2[expert], w.w2_scale[expert], meaning, torch.float32)[:, self.first : self.first + len(self.x)].t()
        rows = slice(half, None) if self.view == "up" else slice(0, half)
        matrix = mxfp4.dequantise(w.w13[expert, rows], w.w13_scale[expert, rows], meaning, torch.float32)
        unit = (self.first + torch.arange(w.hidden_size, device=matrix.device)) % half
        return matrix[unit].t() * self.scale_of_x


def _unit_w2(w: MoeWeights, first: int) -> tuple[Tensor, Tensor]:
    """fc2 whose output row o is unit (first + o) mod I, unscaled."""
    E, H, I = w.num_experts, w.hidden_size, w.intermediate_size  # noqa: E741
    dense = torch.zeros(H, I, dtype=torch.uint8, device=w.w2.device)
    dense[torch.arange(H), (first + torch.arange(H)) % I] = 2
    return e2m1.pack(dense).expand(E, H, I // 2).contiguous(), torch.full_like(w.w2_scale, 127)


def _drive(w: MoeWeights, half: str, beta: float) -> Tensor:
    """fc1 bias that drives the half which is not read to the limit, and takes `beta` back from an up that is read."""
    bias = torch.zeros(w.num_experts, 2 * w.intermediate_size, dtype=torch.bfloat16, device=w.w2.device)
    bias[:, : w.intermediate_size] = DRIVE if half == "up" else 0.0
    bias[:, w.intermediate_size :] = DRIVE if half == "gate" else -beta
    return bias


def _fc1(w: MoeWeights, what: str, codes: Tensor, beta: float) -> Iterator[Readout]:
    # |u| = 6 * 2^(s - 127) * x, less beta, stays within the limit 2 for the largest scale in the layer.
    size = 2.0 ** (127 - int(w.w13_scale.max()) - 3)
    x = torch.eye(w.hidden_size, dtype=torch.bfloat16, device=w.w2.device) * size
    for first in range(0, w.intermediate_size, w.hidden_size):
        w2, w2_scale = _unit_w2(w, first)
        for half in ("up", "gate"):
            variant = MoeWeights(codes, w.w13_scale, w2, w2_scale, _drive(w, half, beta), None)
            factor = size if half == "up" else size * (1 + beta / 2)  # up at its limit 2 is 2 + beta, and the sigmoid is 1/2
            yield Readout(f"fc1 {half} {what}", variant, x, half, factor, first)


def _fc2(w: MoeWeights, what: str, codes: Tensor, beta: float) -> Iterator[Readout]:
    E, H, I = w.num_experts, w.hidden_size, w.intermediate_size  # noqa: E741
    for first in range(0, I, H):
        count = min(H, I - first)
        up = torch.zeros(I, H, dtype=torch.uint8, device=w.w2.device)
        up[first + torch.arange(count), torch.arange(count)] = 2
        w13 = torch.cat((torch.zeros_like(up), up))
        packed = e2m1.pack(w13).expand(E, 2 * I, H // 2).contiguous()
        variant = MoeWeights(packed, torch.full_like(w.w13_scale, 127), codes, w.w2_scale, _drive(w, "up", beta), None)
        yield Readout(f"fc2 {what}", variant, torch.eye(count, H, dtype=torch.bfloat16, device=w.w2.device), "w2", 1.0, first)


def _beta(ctx: Context) -> float:
    """What the backend adds to up if nothing can change it, else nothing."""
    fixed: float | None = getattr(ctx.backend, "fixed_beta", None)
    return READ.beta if fixed is None else fixed


def _read(ctx: Context, readout: Readout) -> int:
    """Run one variant over all experts; returns the number of values compared. Raises `CheckFailed` at the first wrong expert."""
    prepared = ctx.backend.prepare(readout.weights)
    tokens, values, meaning = readout.x.shape[0], 0, ctx.backend.rounding().e8m0
    for expert in range(readout.weights.num_experts):
        ids = torch.full((tokens, 1), expert, dtype=torch.int32, device=readout.x.device)
        out = call(ctx, prepared, MoeInputs(readout.x, ids, torch.ones_like(ids, dtype=torch.float32)), replace(READ, beta=_beta(ctx)))
        require_equal(
            out.float(), readout.expected(expert, meaning), f"readout of {readout.name}, expert {expert} ([input channel, output row])"
        )
        values += out.numel()
    return values


def _metrics(w: MoeWeights, tensors: list[Tensor], values: int) -> dict[str, object]:
    codes = sum(2 * t.numel() for t in tensors)
    scales = sum(t.numel() for t in ([w.w13_scale] if tensors[0] is w.w13 else [w.w2_scale]))
    return {"codes_read": codes, "scale_bytes_read": scales, "values_compared": values}


def fc1(ctx: Context, case: MoeCase) -> dict[str, object]:
    """Every code and scale byte of w13, gate and up."""
    weights = ctx.weights(case.shape, case.seed)
    ones = torch.full_like(weights.w13, ALL_ONES)
    try:
        values = sum(
            _read(ctx, r) for what, codes in (("codes", weights.w13), ("scales", ones)) for r in _fc1(weights, what, codes, _beta(ctx))
        )
    except NotSupported:
        values = sum(readout_plain.fc1(ctx, weights.with_(w13=codes, w13_bias=None, w2_bias=None)) for codes in (weights.w13, ones))
    return _metrics(weights, [weights.w13], values)


def fc2(ctx: Context, case: MoeCase) -> dict[str, object]:
    """Every code and scale byte of w2."""
    weights = ctx.weights(case.shape, case.seed)
    ones = torch.full_like(weights.w2, ALL_ONES)
    try:
        values = sum(
            _read(ctx, r) for what, codes in (("codes", weights.w2), ("scales", ones)) for r in _fc2(weights, what, codes, _beta(ctx))
        )
    except NotSupported:
        values = sum(readout_plain.fc2(ctx, weights.with_(w2=codes, w13_bias=None, w2_bias=None)) for codes in (weights.w2, ones))
    return _metrics(weights, [weights.w2], values)
