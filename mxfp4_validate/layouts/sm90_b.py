"""Layout B: FlashInfer 0.6.18 and later, 32-bit words with their bits rearranged, and scales folded into 16-byte rows.

The word of (R, i, p, m, t) gathers four bytes of rows 16R + i and 16R + 8 + i: source columns x = 32p + 8m + t and x + 4. Its 32 bits are
permuted so that the kernel gets bf16 patterns by masks and shifts, and it is stored at row 16R + i + 8 (m mod 2), bytes
32p + 16 (m div 2) + 4t. `BIT_RUNS` lists the permutation as runs (source bit, target bit, length).
"""

from __future__ import annotations

import torch
from torch import Tensor

from mxfp4_validate.errors import ShapeError
from mxfp4_validate.layouts import gpu
from mxfp4_validate.layouts.base import Layout
from mxfp4_validate.layouts.sm90_a import _chunked

#: (lowest source bit, lowest target bit, number of bits); a nibble is three value bits and a sign.
BIT_RUNS: tuple[tuple[int, int, int], ...] = (
    (0, 6, 3), (3, 15, 1),
    (4, 22, 3), (7, 31, 1),
    (8, 3, 3), (11, 12, 1),
    (12, 19, 3), (15, 28, 1),
    (16, 0, 3), (19, 9, 1),
    (20, 16, 3), (23, 25, 1),
    (24, 13, 1), (25, 10, 2), (27, 14, 1),
    (28, 29, 1), (29, 26, 2), (31, 30, 1),
)  # fmt: skip


def _move(word: Tensor, source: int, target: int, length: int) -> Tensor:
    """Bits source..source+length-1 of int32 words, at `target`; masks are applied where no sign bit is dragged."""
    run = (1 << length) - 1
    if target >= source:
        return (word & _int32(run << source)) << (target - source)
    return (word >> (source - target)) & _int32(run << target)


def _int32(value: int) -> int:
    return value - (1 << 32) if value >> 31 else value


def _permute_bits(word: Tensor, inverse: bool) -> Tensor:
    out = torch.zeros_like(word)
    for source, target, length in BIT_RUNS:
        out |= _move(word, target, source, length) if inverse else _move(word, source, target, length)
    return out


def _forward(weight: Tensor, out: Tensor) -> None:
    E, N, half = weight.shape
    # Rows R s i, bytes p, m = (u, v) with m = 2u + v, x-half d, t.
    source = weight.reshape(E * N // 16, 2, 8, half // 32, 2, 2, 2, 4)  # R s i p u v d t
    words = source.permute(0, 5, 2, 3, 4, 7, 6, 1).contiguous()  # R v i p u t d s: bytes (d, s) low to high
    target = out.view(torch.int32).view(E * N // 16, 2, 8, half // 32, 2, 4)
    target.copy_(_permute_bits(words.view(E * N // 16, 2, 8, half // 32, 2, 4, 4).view(torch.int32).squeeze(-1), inverse=False))


def _inverse(packed: Tensor, out: Tensor) -> None:
    E, N, half = packed.shape
    words = _permute_bits(packed.contiguous().view(torch.int32), inverse=True).view(torch.uint8)
    source = words.view(E * N // 16, 2, 8, half // 32, 2, 4, 2, 2)  # R v i p u t d s
    out.view(E * N // 16, 2, 8, half // 32, 2, 2, 2, 4).copy_(source.permute(0, 7, 2, 3, 4, 1, 6, 5))


def _scales_forward(scale: Tensor) -> Tensor:
    """[E, N, K/32] -> [E, N/64, K/128, 16, 16]: sixteen bytes are the four scales of rows r, r + 16, r + 32, r + 48 of a 64-row block."""
    E, rows, groups = scale.shape
    return scale.reshape(E, rows // 64, 4, 16, groups // 4, 4).permute(0, 1, 4, 3, 2, 5).reshape(E, rows // 64, groups // 4, 16, 16)


def _scales_inverse(packed: Tensor) -> Tensor:
    if packed.dim() != 5 or packed.shape[3:] != (16, 16):
        raise ShapeError(f"packed scales {tuple(packed.shape)} are not layout B's [E, N/64, K/128, 16, 16]; another layout packed them")
    E, row_blocks, k_blocks = packed.shape[:3]
    return packed.reshape(E, row_blocks, k_blocks, 16, 4, 4).permute(0, 1, 4, 3, 2, 5).reshape(E, row_blocks * 64, k_blocks * 4)


def _carry(weight: Tensor, inverse: bool) -> Tensor:
    on_gpu = gpu.carry(weight, BIT_RUNS, layout_b=True, inverse=inverse)
    return _chunked(weight, _inverse if inverse else _forward) if on_gpu is None else on_gpu


SM90_B = Layout("sm90_b", 64, lambda w: _carry(w, False), lambda p: _carry(p, True), _scales_forward, _scales_inverse)
