"""Row order and padding: what happens to canonical tensors before a layout sees them."""

from __future__ import annotations

import torch
from torch import Tensor

from mxfp4_validate.errors import ShapeError
from mxfp4_validate.formats.moe_weights import MoeWeights
from mxfp4_validate.formats.mxfp4 import BLOCK

TILE = 128  # the kernel's K tile; both GEMMs' K and each half of fc1 are padded to it


def padded(size: int) -> int:
    """The next multiple of 128."""
    return -(-size // TILE) * TILE


def _halves(t: Tensor, what: str) -> tuple[Tensor, Tensor]:
    if t.dim() < 2 or t.shape[1] % 2:
        raise ShapeError(f"{what} {tuple(t.shape)} is not [E, 2I, ...]: its second dimension must be two equal halves")
    half = t.shape[1] // 2
    return t[:, :half], t[:, half:]


def swap_halves(t: Tensor) -> Tensor:
    """[E, 2I, ...] rows [w1; w3] = [gate; up] <-> [w3; w1] = [up; gate], the order FlashInfer's fc1 wants. Its own inverse."""
    first, second = _halves(t, "w13")
    return torch.cat((second, first), 1)


def to_up_gate(t: Tensor) -> Tensor:
    """Canonical rows [w1; w3] = [gate; up] of weights, scales or biases [E, 2I, ...] -> [up; gate]."""
    return swap_halves(t)


def to_gate_up(t: Tensor) -> Tensor:
    """Inverse of `to_up_gate`."""
    return swap_halves(t)


def deinterleave_gpt_oss(t: Tensor) -> Tensor:
    """GPT-OSS rows gate_0, up_0, gate_1, up_1, ... -> canonical [gate; up]; for weights, scales and biases [E, 2I, ...] alike."""
    _halves(t, "gate_up")
    return torch.cat((t[:, 0::2], t[:, 1::2]), 1)


def interleave_gpt_oss(t: Tensor) -> Tensor:
    """Inverse of `deinterleave_gpt_oss`."""
    gate, up = _halves(t, "w13")
    return torch.stack((gate, up), 2).flatten(1, 2)


def pad_to(t: Tensor, rows: int, width: int | None = None) -> Tensor:
    """[E, r(, w)] -> [E, rows(, width)] with zeros: zero codes, scale byte 0 (read as a finite number by every kernel), zero biases."""
    shape = (t.shape[0], rows) if width is None else (t.shape[0], rows, width)
    if tuple(t.shape) == shape:
        return t
    if t.dim() != len(shape) or any(have > want for have, want in zip(t.shape, shape, strict=True)):
        raise ShapeError(f"cannot pad {tuple(t.shape)} to {shape}: a tensor is padded in its own dimensions, and never cut")
    out = t.new_zeros(shape)
    out[tuple(slice(0, n) for n in t.shape)] = t
    return out


def pad_halves(t: Tensor, half_rows: int, width: int | None = None) -> Tensor:
    """As `pad_to`, but each half of [E, 2I, ...] on its own: [E, 2 * half_rows, ...]."""
    first, second = _halves(t, "w13")
    if first.shape[1] == half_rows and (width is None or t.shape[2] == width):
        return t
    return torch.cat((pad_to(first, half_rows, width), pad_to(second, half_rows, width)), 1)


def pad_layer(weights: MoeWeights) -> MoeWeights:
    """The layer with H and I padded to multiples of 128, itself where they are: each half of w13's rows apart, zero codes, scale bytes 0.

    With an x padded by `pad_x`, the padded units' gate and up are 0, so is their activation, and the first H outputs are the layer's.
    """
    H, I = padded(weights.hidden_size), padded(weights.intermediate_size)  # noqa: E741
    return MoeWeights(
        w13=pad_halves(weights.w13, I, H // 2),
        w13_scale=pad_halves(weights.w13_scale, I, H // BLOCK),
        w2=pad_to(weights.w2, H, I // 2),
        w2_scale=pad_to(weights.w2_scale, H, I // BLOCK),
        w13_bias=None if weights.w13_bias is None else pad_halves(weights.w13_bias, I),
        w2_bias=None if weights.w2_bias is None else pad_to(weights.w2_bias, H),
    )


def trim_layer(weights: MoeWeights, hidden_size: int, intermediate_size: int) -> MoeWeights:
    """Inverse of `pad_layer`: the first `hidden_size` and `intermediate_size` of each, contiguous. Does not look at what it drops."""
    H, I = hidden_size, intermediate_size  # noqa: E741
    if weights.hidden_size < H or weights.intermediate_size < I:
        raise ShapeError(f"cannot trim a layer of H={weights.hidden_size}, I={weights.intermediate_size} to H={H}, I={I}")
    return MoeWeights(
        w13=_trim_halves(weights.w13, I, H // 2),
        w13_scale=_trim_halves(weights.w13_scale, I, H // BLOCK),
        w2=weights.w2[:, :H, : I // 2].contiguous(),
        w2_scale=weights.w2_scale[:, :H, : I // BLOCK].contiguous(),
        w13_bias=None if weights.w13_bias is None else _trim_halves(weights.w13_bias, I),
        w2_bias=None if weights.w2_bias is None else weights.w2_bias[:, :H].contiguous(),
    )


def _trim_halves(t: Tensor, half_rows: int, width: int | None = None) -> Tensor:
    halves = [half[:, :half_rows] for half in _halves(t, "w13")]
    return torch.cat(halves if width is None else [half[..., :width] for half in halves], 1)


def pad_x(x: Tensor) -> Tensor:
    """Activations [M, H] -> [M, Hp] with zeros, Hp the next multiple of 128; x itself where H is one."""
    if x.dim() != 2:
        raise ShapeError(f"x {tuple(x.shape)} must be [M, H]")
    return torch.nn.functional.pad(x, (0, padded(x.shape[1]) - x.shape[1])) if x.shape[1] % TILE else x
