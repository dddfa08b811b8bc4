"""Layout A: FlashInfer 0.6.10 to 0.6.15.post1, a permutation of nibbles and a regrouping of scales.

Row n = 16R + 8s + i, column k = 64p + 32c + 16m + 8q + 2t + h goes to row 16R + 8m + i, column 64p + 32c + 8t + 4q + 2h + s: sixteen
columns of two rows eight apart are shuffled among themselves. In bytes (two columns h = 0, 1 each), the byte of (s, m, q, t) holds two
nibbles h; the packed byte of (m, t, q, h) holds the two nibbles s. So a packed pair of bytes (h = 0, 1) is the 2 x 2 transpose of a pair
of source bytes (s = 0, 1), and the rest is a permutation of bytes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mxfp4_validate.errors import ShapeError
from mxfp4_validate.layouts import gpu
from mxfp4_validate.layouts.base import Layout

#: Experts are packed a few at a time, so that scratch stays below this.
SCRATCH_BYTES = 1 << 29


def _chunked(weight: Tensor, one: object) -> Tensor:
    """Apply `one` to slices of experts."""
    assert callable(one)
    out = torch.empty_like(weight, memory_format=torch.contiguous_format)
    per_expert = max(1, weight[0].numel()) if weight.shape[0] else 1
    step = max(1, SCRATCH_BYTES // per_expert)
    for block, target in zip(torch.split(weight, step), torch.split(out, step), strict=True):
        one(block, target)
    return out


def _forward(weight: Tensor, out: Tensor) -> None:
    E, N, half = weight.shape
    # Axes of bytes: R s i | p c m q t. Read both rows s as planes.
    source = weight.reshape(E * N // 16, 2, 8, half // 32, 2, 2, 2, 4)
    target = out.view(E * N // 16, 2, 8, half // 32, 2, 4, 2, 2)  # R m i | p c t q h
    low, high = source[:, 0], source[:, 1]  # R i p c m q t
    for h, byte in ((0, (low & 0xF) | (high << 4)), (1, (low >> 4) | (high & 0xF0))):
        # R i p c m q t -> R m i p c t q
        target[..., h].copy_(byte.permute(0, 4, 1, 2, 3, 6, 5))


def _inverse(packed: Tensor, out: Tensor) -> None:
    E, N, half = packed.shape
    source = packed.reshape(E * N // 16, 2, 8, half // 32, 2, 4, 2, 2)
    target = out.view(E * N // 16, 2, 8, half // 32, 2, 2, 2, 4)
    first, second = source[..., 0], source[..., 1]  # R m i p c t q, h = 0 and 1
    for s, byte in ((0, (first & 0xF) | (second << 4)), (1, (first >> 4) | (second & 0xF0))):
        # R m i p c t q -> R i p c m q t
        target[:, s].copy_(byte.permute(0, 2, 3, 4, 1, 6, 5))


def _scales_forward(scale: Tensor) -> Tensor:
    """[E, N, K/32] -> [E, K/128, 4N]: the four scales of a 128-wide K block side by side, row after row. The identity at K = 128."""
    E, rows, groups = scale.shape
    return scale.reshape(E, rows, groups // 4, 4).permute(0, 2, 1, 3).reshape(E, groups // 4, rows * 4)


def _scales_inverse(packed: Tensor) -> Tensor:
    if packed.dim() != 3 or packed.shape[2] % 4:
        raise ShapeError(f"packed scales {tuple(packed.shape)} are not layout A's [E, K/128, 4N]; another layout packed them")
    E, blocks, width = packed.shape
    return packed.reshape(E, blocks, width // 4, 4).permute(0, 2, 1, 3).reshape(E, width // 4, blocks * 4)


def _carry(weight: Tensor, inverse: bool) -> Tensor:
    on_gpu = gpu.carry(weight, (), layout_b=False, inverse=inverse)
    return _chunked(weight, _inverse if inverse else _forward) if on_gpu is None else on_gpu


SM90_A = Layout("sm90_a", 1, lambda w: _carry(w, False), lambda p: _carry(p, True), _scales_forward, _scales_inverse)
