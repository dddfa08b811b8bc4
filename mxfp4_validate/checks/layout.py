"""Layout checks: the bytes handed to the kernel, against the definition of the layout and against the vendor's own helper."""

from __future__ import annotations

import torch
from torch import Tensor

from mxfp4_validate.cases import MoeCase
from mxfp4_validate.checks.context import Context
from mxfp4_validate.errors import CheckFailed, NotSupported
from mxfp4_validate.layouts.base import Layout
from mxfp4_validate.layouts.prepare import Sm90Weights, prepare_sm90, unprepare_sm90
from mxfp4_validate.layouts.rows import pad_halves, pad_to, swap_halves


def _require_same_bytes(found: Tensor, expected: Tensor, what: str) -> int:
    """Number of bytes compared; `CheckFailed` with the first different byte by coordinate."""
    if found.shape != expected.shape or found.dtype != expected.dtype:
        raise CheckFailed(f"{what}: {tuple(found.shape)} {found.dtype}, expected {tuple(expected.shape)} {expected.dtype}")
    if torch.equal(found.view(torch.uint8), expected.view(torch.uint8)):
        return found.numel() * found.element_size()
    wrong = found != expected
    first = tuple(wrong.nonzero()[0].tolist())
    raise CheckFailed(
        f"{what}: {int(wrong.sum())} of {wrong.numel()} elements differ, first at {list(first)}: {found[first].item()}, expected {expected[first].item()}",
        {"different": int(wrong.sum())},
    )


def round_trip(ctx: Context, case: MoeCase) -> dict[str, object]:
    """What the backend prepared is, byte for byte, our own pack of the canonical weights, and unpacks to them with zero pads."""
    weights, prepared = ctx.packed(case.shape, case.seed)
    layout: Layout | None = getattr(ctx.backend, "layout", None)
    if layout is None or not isinstance(prepared, Sm90Weights):
        if not hasattr(ctx.backend, "read"):
            raise NotSupported("its bytes are in the vendor's own layout, which is read out through the kernel (readout-fc1, readout-fc2)")
        back = ctx.backend.read(prepared)
        return {"bytes": sum(_require_same_bytes(back.tensors()[n], t, n) for n, t in weights.tensors().items()), "layout": "canonical"}
    expected = prepare_sm90(weights, layout)
    count = sum(_require_same_bytes(getattr(prepared, n), t, n) for n, t in vars(expected).items() if isinstance(t, Tensor))
    back = unprepare_sm90(prepared, layout)
    count += sum(_require_same_bytes(back.tensors()[n], t, f"{n} unpacked again") for n, t in weights.tensors().items())
    return {"bytes": count, "layout": layout.name}


def vendor(ctx: Context, case: MoeCase) -> dict[str, object]:
    """Our packed weights and scales equal what FlashInfer's own helpers make of the same rows."""
    from flashinfer.fused_moe import (
        interleave_moe_scales_for_sm90_mixed_gemm as vendor_scales,
    )
    from flashinfer.fused_moe import (
        interleave_moe_weights_for_sm90_mixed_gemm as vendor_weights,
    )

    weights, prepared = ctx.packed(case.shape, case.seed)
    if not isinstance(prepared, Sm90Weights):
        raise NotSupported("FlashInfer's helpers pack for FlashInfer's kernel; this backend has another layout")
    H, I = prepared.padded_hidden, prepared.padded_intermediate  # noqa: E741
    rows13 = pad_halves(swap_halves(weights.w13), I, H // 2)
    count = _require_same_bytes(prepared.fc1, vendor_weights(rows13, "fp4"), "fc1 against the vendor's pack")
    rows13 = pad_halves(swap_halves(weights.w13_scale), I, H // 32)
    count += _require_same_bytes(prepared.fc1_scale.view(torch.uint8), vendor_scales(rows13), "fc1 scales against the vendor's pack")
    count += _require_same_bytes(prepared.fc2, vendor_weights(pad_to(weights.w2, H, I // 2), "fp4"), "fc2 against the vendor's pack")
    count += _require_same_bytes(
        prepared.fc2_scale, vendor_scales(pad_to(weights.w2_scale, H, I // 32)), "fc2 scales against the vendor's pack"
    )
    return {"bytes": count, "layout": prepared.layout}
