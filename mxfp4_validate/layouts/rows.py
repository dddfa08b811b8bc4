"""Row order and padding: what happens to canonical tensors before a layout sees them."""

from __future__ import annotations

import torch
from torch import Tensor

from mxfp4_validate.errors import ShapeError

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
    out = t.new_zeros(shape)
    out[tuple(slice(0, n) for n in t.shape)] = t
    return out


def pad_halves(t: Tensor, half_rows: int, width: int | None = None) -> Tensor:
    """As `pad_to`, but each half of [E, 2I, ...] on its own: [E, 2 * half_rows, ...]."""
    first, second = _halves(t, "w13")
    if first.shape[1] == half_rows and (width is None or t.shape[2] == width):
        return t
    return torch.cat((pad_to(first, half_rows, width), pad_to(second, half_rows, width)), 1)
