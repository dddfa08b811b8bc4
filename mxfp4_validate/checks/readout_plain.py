"""Probe R for a backend that takes no biases and computes silu(gate) * up alone (Marlin before #28231, DeepSeek-V4's classes).

What is not read is driven through the input: the gate of every unit reads a channel on which x is large, so that silu(gate) is gate to the
last bit of bf16. Gate codes are read by saturation too: with x large enough even 0.5 * 2^s is 128, where silu returns its argument, or 0;
the sign of x says which sign of code comes back and which is silenced.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mxfp4_validate.cases import Activation
from mxfp4_validate.checks.calls import call
from mxfp4_validate.checks.context import Context
from mxfp4_validate.comparison.bits import require_equal
from mxfp4_validate.formats import e2m1, mxfp4
from mxfp4_validate.formats.moe_weights import MoeInputs, MoeWeights

#: silu without a clamp that matters: the limit is there so that backends take their clamped path, which is the one on trial.
PLAIN = Activation(alpha=1.0, beta=0.0, limit=1e30)
#: Code 2 is 1.0 and code 7 is 6.0; a scale byte of 127 is 1.
ONE, SIX, UNIT = 2, 7, 127
#: silu(16) is 16 (1 - 1.1e-7): far below half a last place of bf16.
SATURATED = 16.0
#: silu(-128) is 0 in every implementation, e^128 being no fp32 number.
DEAD = 128.0


def _dense(w: MoeWeights, rows: Tensor) -> Tensor:
    """One [N, K] matrix of codes, packed, for every expert."""
    return e2m1.pack(rows).expand(w.num_experts, *rows.shape[:-1], rows.shape[-1] // 2).contiguous()


def _unit_w2(w: MoeWeights, first: int) -> tuple[Tensor, Tensor]:
    """fc2 whose output row o is unit (first + o) mod I, times 1."""
    rows = torch.zeros(w.hidden_size, w.intermediate_size, dtype=torch.uint8, device=w.w2.device)
    here = torch.arange(w.hidden_size, device=w.w2.device)
    rows[here, (first + here) % w.intermediate_size] = ONE
    return _dense(w, rows), torch.full_like(w.w2_scale, UNIT)


def _run(ctx: Context, w: MoeWeights, x: Tensor, expected: Tensor, what: str) -> int:
    """All experts on the tokens x [T, H]; expected [E, T, H] float32. Returns the number of values compared."""
    prepared = ctx.backend.prepare(w)
    for expert in range(w.num_experts):
        ids = torch.full((x.shape[0], 1), expert, dtype=torch.int32, device=x.device)
        out = call(ctx, prepared, MoeInputs(x, ids, torch.ones_like(ids, dtype=torch.float32)), PLAIN)
        require_equal(out.float(), expected[expert], f"readout of {what}, expert {expert} ([input channel, output row])")
    return expected.numel()


def _half(w: MoeWeights, half: str, first: int, meaning: object) -> Tensor:
    """[E, H, H] float32: for output row o the weights of unit (first + o) mod I, over input channels."""
    I = w.intermediate_size  # noqa: E741
    rows = slice(0, I) if half == "gate" else slice(I, None)
    unit = (first + torch.arange(w.hidden_size, device=w.w2.device)) % I
    matrix = mxfp4.dequantise(w.w13[:, rows], w.w13_scale[:, rows], meaning, torch.float32)  # type: ignore[arg-type]
    return matrix[:, unit].transpose(1, 2)


def fc1(ctx: Context, w: MoeWeights) -> int:
    """Every code and scale byte of w13; returns the number of values compared."""
    H, I, meaning = w.hidden_size, w.intermediate_size, ctx.backend.rounding().e8m0  # noqa: E741
    eye = torch.eye(H, dtype=torch.bfloat16, device=w.w2.device)
    count = 0
    for first in range(0, I, H):
        w2, w2_scale = _unit_w2(w, first)
        for driver, channels in ((0, slice(1, H)), (1, slice(0, 1))):
            count += _up(ctx, w.with_(w2=w2, w2_scale=w2_scale), eye, driver, channels, _half(w, "up", first, meaning))
        count += _gate(ctx, w.with_(w2=w2, w2_scale=w2_scale), eye, _half(w, "gate", first, meaning))
    return count


def _up(ctx: Context, w: MoeWeights, eye: Tensor, driver: int, channels: slice, up: Tensor) -> int:
    """Up codes of `channels`: gates read channel `driver` alone, on which up is silenced."""
    I, size = w.intermediate_size, 2.0 ** (UNIT - int(w.w13_scale.max()))  # noqa: E741
    codes, scale = e2m1.unpack(w.w13), w.w13_scale.clone()
    codes[:, :I] = 0
    codes[:, :, driver] = 0
    codes[:, :I, driver] = ONE
    scale[:, :I, 0] = UNIT
    x = (eye * size)[channels].clone()
    x[:, driver] = SATURATED
    return _run(
        ctx, w.with_(w13=e2m1.pack(codes), w13_scale=scale), x, up[:, channels] * (size * SATURATED), f"fc1 up, driven by channel {driver}"
    )


def _gate(ctx: Context, w: MoeWeights, eye: Tensor, gate: Tensor) -> int:
    """Gate codes: up of every unit is 1 on every channel, x so large that any non-zero gate saturates, once with either sign."""
    I = w.intermediate_size  # noqa: E741
    size, count = DEAD * 2.0 ** (1 + UNIT - int(w.w13_scale[:, :I].min())), 0
    codes, scale = e2m1.unpack(w.w13), w.w13_scale.clone()
    codes[:, I:] = ONE
    scale[:, I:] = UNIT
    for sign in (1.0, -1.0):
        driven = (gate * (sign * size)).clamp(min=0.0)
        expected = driven * (sign * size)
        count += _run(ctx, w.with_(w13=e2m1.pack(codes), w13_scale=scale), eye * (sign * size), expected, f"fc1 gate, x {sign:+.0f}")
    return count


def fc2(ctx: Context, w: MoeWeights) -> int:
    """Every code and scale byte of w2; returns the number of values compared."""
    H, I, meaning = w.hidden_size, w.intermediate_size, ctx.backend.rounding().e8m0  # noqa: E741
    matrix, count = mxfp4.dequantise(w.w2, w.w2_scale, meaning, torch.float32), 0
    for first in range(0, I, H):
        tokens = min(H, I - first)
        here = torch.arange(tokens, device=w.w2.device)
        half = torch.zeros(I, H, dtype=torch.uint8, device=w.w2.device)
        half[first + here, here] = ONE
        variant = w.with_(w13=_dense(w, torch.cat((half, half))), w13_scale=torch.full_like(w.w13_scale, UNIT))
        x = torch.eye(tokens, H, dtype=torch.bfloat16, device=w.w2.device) * SATURATED
        expected = matrix[:, :, first : first + tokens].transpose(1, 2) * SATURATED**2
        count += _run(ctx, variant, x, expected, "fc2")
    return count
