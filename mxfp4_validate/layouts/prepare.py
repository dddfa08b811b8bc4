"""Canonical weights -> the tensors FlashInfer's SM90 kernel is called with, and back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from mxfp4_validate.formats.moe_weights import MoeWeights
from mxfp4_validate.formats.mxfp4 import BLOCK
from mxfp4_validate.layouts.rows import pad_halves, pad_to, padded, swap_halves, trim_layer

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from mxfp4_validate.layouts.base import Layout

#: Weights are reordered and padded a few experts at a time, so that the copies in flight stay near this size beside source and result.
CHUNK_BYTES = 1 << 28


@dataclass(frozen=True)
class Sm90Weights:
    """Arguments of `cutlass_fused_moe`.

    Attributes:
        fc1: [E, 2Ip, Hp/2] uint8 packed, rows [up; gate]; fc1_scale: the layout's scales of it; fc1_bias: [E, 2Ip] bfloat16 or None.
        fc2: [E, Hp, Ip/2] uint8 packed; fc2_scale; fc2_bias: [E, Hp] bfloat16 or None. Hp and Ip are H and I up to a multiple of 128.
    """

    fc1: Tensor
    fc1_scale: Tensor
    fc2: Tensor
    fc2_scale: Tensor
    fc1_bias: Tensor | None
    fc2_bias: Tensor | None
    hidden_size: int
    intermediate_size: int
    layout: str

    @property
    def num_experts(self) -> int:
        return self.fc1.shape[0]

    @property
    def padded_hidden(self) -> int:
        return self.fc2.shape[1]

    @property
    def padded_intermediate(self) -> int:
        return self.fc1.shape[1] // 2


def prepare_sm90(weights: MoeWeights, layout: Layout) -> Sm90Weights:
    """Swap [gate; up] to [up; gate], pad each half and each K to 128, pack. Raises `ShapeError` for what the layout cannot hold."""
    H, I = padded(weights.hidden_size), padded(weights.intermediate_size)  # noqa: E741
    return Sm90Weights(
        fc1=_pack(weights.w13, layout, (2 * I, H // 2), lambda t: pad_halves(swap_halves(t), I, H // 2)),
        fc1_scale=layout.pack_scales(pad_halves(swap_halves(weights.w13_scale), I, H // BLOCK)),
        fc2=_pack(weights.w2, layout, (H, I // 2), lambda t: pad_to(t, H, I // 2)),
        fc2_scale=layout.pack_scales(pad_to(weights.w2_scale, H, I // BLOCK)),
        fc1_bias=None if weights.w13_bias is None else pad_halves(swap_halves(weights.w13_bias), I),
        fc2_bias=None if weights.w2_bias is None else pad_to(weights.w2_bias, H),
        hidden_size=weights.hidden_size,
        intermediate_size=weights.intermediate_size,
        layout=layout.name,
    )


def _pack(weight: Tensor, layout: Layout, shape: tuple[int, int], arrange: Callable[[Tensor], Tensor]) -> Tensor:
    """Packed bytes [E, *shape] of `arrange(weight)`, a few experts at a time."""
    step = max(1, CHUNK_BYTES // (shape[0] * shape[1]))
    if weight.shape[0] <= step:
        return layout.pack_weights(arrange(weight))
    out = weight.new_empty((weight.shape[0], *shape))
    for source, target in zip(torch.split(weight, step), torch.split(out, step), strict=True):
        target.copy_(layout.pack_weights(arrange(source)))
    return out


def unpack_sm90(prepared: Sm90Weights, layout: Layout) -> MoeWeights:
    """What the kernel sees: the bytes unpacked, in canonical row order, pads still there ([E, 2Ip, Hp/2] and so on)."""
    return MoeWeights(
        w13=swap_halves(layout.unpack_weights(prepared.fc1)),
        w13_scale=swap_halves(layout.unpack_scales(prepared.fc1_scale)),
        w2=layout.unpack_weights(prepared.fc2),
        w2_scale=layout.unpack_scales(prepared.fc2_scale),
        w13_bias=None if prepared.fc1_bias is None else swap_halves(prepared.fc1_bias),
        w2_bias=prepared.fc2_bias,
    )


def unprepare_sm90(prepared: Sm90Weights, layout: Layout) -> MoeWeights:
    """Inverse of `prepare_sm90`: the canonical weights, pads dropped."""
    return trim_layer(unpack_sm90(prepared, layout), prepared.hidden_size, prepared.intermediate_size)
