"""Poison: bytes that must not be read or must be written are made visible."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor
from torch.utils import deterministic

from mxfp4_validate.cases import Activation, MoeCase
from mxfp4_validate.checks.calls import call, require_again
from mxfp4_validate.checks.context import Context
from mxfp4_validate.errors import CheckFailed
from mxfp4_validate.formats.moe_weights import MoeInputs, MoeWeights
from mxfp4_validate.reference.twin import Twin, twin_moe


@contextlib.contextmanager
def uninitialised_memory_is_nan() -> Iterator[None]:
    """Inside, `torch.empty` returns NaN (0xFF for bytes): what a helper leaves unwritten shows."""
    before = torch.are_deterministic_algorithms_enabled(), deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    torch.use_deterministic_algorithms(True, warn_only=True)
    deterministic.fill_uninitialized_memory = True  # type: ignore[attr-defined]
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=True)
        deterministic.fill_uninitialized_memory = before[1]  # type: ignore[attr-defined]


def _again(ctx: Context, case: MoeCase, weights: MoeWeights, inputs: MoeInputs, out: Tensor, base: Tensor, what: str) -> dict[str, object]:
    """`require_again` with the twin of `weights`, which have no poison in them."""

    def expected() -> Twin:
        return twin_moe(weights, inputs, case.shape.activation, ctx.backend.rounding())

    return require_again(ctx, out, base, expected, what)


def pads(ctx: Context, case: MoeCase) -> dict[str, object]:
    """Prepared and run with poisoned fresh memory: pads of weights, scales, x and output are written, and unwritten tails would show."""
    weights, prepared = ctx.layer(case.shape, case.seed)
    inputs = ctx.inputs(case)
    base = call(ctx, prepared, inputs, case.shape.activation)
    with uninitialised_memory_is_nan():
        again = ctx.backend.prepare(weights)
        out = call(ctx, again, inputs, case.shape.activation)
    return _again(ctx, case, weights, inputs, out, base, "fresh memory filled with NaN and 0xFF") | {"nan": int(base.isnan().sum())}


def unused_experts(ctx: Context, case: MoeCase) -> dict[str, object]:
    """Experts that no token chose get scale byte 0xFF (Inf or NaN) everywhere: not one output bit changes."""
    weights, prepared = ctx.layer(case.shape, case.seed)
    inputs = ctx.inputs(case)
    used = torch.zeros(weights.num_experts, dtype=torch.bool, device=ctx.device)
    local = inputs.topk_ids[(inputs.topk_ids >= 0) & (inputs.topk_ids < weights.num_experts)]
    used[local.long()] = True
    if bool(used.all()):
        raise CheckFailed(f"{case.case_id} uses every expert; the check needs unused ones, so the case is wrong")
    s13, s2 = weights.w13_scale.clone(), weights.w2_scale.clone()
    s13[~used], s2[~used] = 0xFF, 0xFF
    out = call(ctx, ctx.backend.prepare(weights.with_(w13_scale=s13, w2_scale=s2)), inputs, case.shape.activation)
    base = call(ctx, prepared, inputs, case.shape.activation)
    return _again(ctx, case, weights, inputs, out, base, "unused experts poisoned") | {"unused": int((~used).sum())}


def zero_weight(ctx: Context, case: MoeCase) -> dict[str, object]:
    """Slots with routing weight 0 add nothing: removing them (id -1) gives the same bits."""
    weights, prepared = ctx.layer(case.shape, case.seed)
    inputs = ctx.inputs(case)
    base = call(ctx, prepared, inputs, case.shape.activation)
    without = replace(inputs, topk_ids=torch.where(inputs.topk_weights == 0, -1, inputs.topk_ids).int())
    out = call(ctx, prepared, without, case.shape.activation)
    return _again(ctx, case, weights, without, out, base, "slots of weight 0 removed")


def scale_codes(ctx: Context, case: MoeCase) -> dict[str, object]:
    """Scale bytes 0 and 255 mean what the backend declares (for the SM90 kernel 0.0 and +Inf), read one at a time through fc2.

    Unit 0 is 1 for every token (gate driven to the limit, up bias 1) and fc2's column 0 holds code 1.0, so out = scale of block 0.
    """
    weights = ctx.weights(case.shape, case.seed)
    E, H, I = weights.num_experts, weights.hidden_size, weights.intermediate_size  # noqa: E741
    bias = torch.zeros(E, 2 * I, dtype=torch.bfloat16, device=ctx.device)
    bias[:, 0], bias[:, I] = 64.0, 1.0
    w2 = torch.zeros_like(weights.w2)
    w2[:, :, 0] = 0x02
    ids = torch.zeros(3, 1, dtype=torch.int32, device=ctx.device)
    x = torch.zeros(3, H, dtype=torch.bfloat16, device=ctx.device)
    inputs = MoeInputs(x, ids, torch.ones_like(ids, dtype=torch.float32))
    metrics: dict[str, object] = {}
    meaning = ctx.backend.rounding().e8m0
    for byte, want in ((0, meaning.byte_0), (1, 2.0**-126), (254, 2.0**127), (255, meaning.byte_255)):
        scale = torch.full_like(weights.w2_scale, 127)
        scale[:, :, 0] = byte
        probe = weights.with_(w13=torch.zeros_like(weights.w13), w13_bias=bias, w2=w2, w2_scale=scale, w2_bias=None)
        out = call(ctx, ctx.backend.prepare(probe), inputs, Activation(0.0, 0.0, 2.0))
        got = float(out[0, 0])
        metrics[f"byte_{byte}"] = got
        # 0 * Inf inside the block is NaN where a kernel multiplies before it adds, and Inf where the whole chunk's sum is scaled.
        if got != want and not (want == float("inf") and got != got):
            raise CheckFailed(f"scale byte {byte} is read as {got}, declared {want} ({meaning.name})", metrics)
    return metrics
