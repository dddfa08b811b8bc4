"""Second implementations of what `mxfp4_validate.layouts` does, written out index by index; nothing here may import the package.

Three kinds: the layouts as formulas of a stored element's place (gather form), the vendor's interleave kernels as their threads' loops, and
the path from checkpoint rows to stored bytes as one index formula.
"""

from __future__ import annotations

import torch
from torch import Tensor

#: Layout B: nibble of the gathered word, low to high -> the word's bits that its value bits 0, 1, 2 and its sign go to.
NIBBLE_BITS = (
    (6, 7, 8, 15), (22, 23, 24, 31), (3, 4, 5, 12), (19, 20, 21, 28), (0, 1, 2, 9), (16, 17, 18, 25), (13, 10, 11, 14), (29, 26, 27, 30),
)  # fmt: skip


def codes_of(packed: Tensor) -> Tensor:
    """One expert's bytes [N, K/2] -> its codes [N, K]; the low nibble is the even column."""
    column = torch.arange(2 * packed.shape[1])
    return packed[:, column // 2] >> (column % 2 * 4).to(torch.uint8) & 15


def at(codes: Tensor, row: Tensor, column: Tensor) -> Tensor:
    """codes[row, column], broadcast, through one flat index."""
    return codes.flatten()[row * codes.shape[1] + column]


def weights_a(codes: Tensor, rows: Tensor) -> Tensor:
    """Layout A's stored bytes of some rows of an expert of codes [N, K].

    Row 16R + 8m + i, column 64p + 32c + 8t + 4q + 2h + s holds the code of row 16R + 8s + i, column 64p + 32c + 16m + 8q + 2t + h.
    """
    row, column = rows[:, None], torch.arange(codes.shape[1])[None]
    R, m, i = row // 16, row // 8 % 2, row % 8
    p, c, t, q, h, s = column // 64, column // 32 % 2, column // 8 % 4, column // 4 % 2, column // 2 % 2, column % 2
    stored = at(codes, (16 * R + i) + 8 * s, 16 * m + (64 * p + 32 * c + 8 * q + 2 * t + h))
    return stored[:, 0::2] | stored[:, 1::2] << 4


def weights_b(codes: Tensor, rows: Tensor) -> Tensor:
    """Layout B's stored bytes of some rows: row 16R + i + 8 (m mod 2), bytes 32p + 16 (m div 2) + 4t hold the word of (R, i, p, m, t)."""
    row, words = rows[:, None], torch.arange(codes.shape[1] // 8)[None]  # four bytes each
    p, u, t = words // 8, words // 4 % 2, words % 4
    upper, m = row // 16 * 16 + row % 8, 2 * u + row // 8 % 2
    word = torch.zeros(1, dtype=torch.int64)
    for n, targets in enumerate(NIBBLE_BITS):
        moved = torch.tensor([sum((code >> bit & 1) << target for bit, target in enumerate(targets)) for code in range(16)])
        byte = n // 2  # bytes of the gathered word: (upper row, x), (lower row, x), (upper row, x + 4), (lower row, x + 4)
        x = 32 * p + 8 * m + t + 4 * (byte // 2)
        word = word | moved[at(codes, upper + 8 * (byte % 2), 2 * x + n % 2).int()]
    return torch.stack([word >> (8 * b) & 255 for b in range(4)], -1).flatten(1).to(torch.uint8)


WEIGHTS = {"sm90_a": weights_a, "sm90_b": weights_b}


def scales_a(scale: Tensor) -> Tensor:
    """OUT[b, 4r + j] = S[r, 4b + j] of one expert's scales [N, K/32]."""
    b, w = torch.arange(scale.shape[1] // 4)[:, None], torch.arange(4 * scale.shape[0])[None]
    return scale[w // 4, 4 * b + w % 4]


def scales_b(scale: Tensor) -> Tensor:
    """OUT[R, b, f, 4g + j] = S[64R + 16g + f, 4b + j], g and j in 0..3, f in 0..15."""
    R, b, f, w = torch.meshgrid(*(torch.arange(n) for n in (scale.shape[0] // 64, scale.shape[1] // 4, 16, 16)), indexing="ij")
    return scale[64 * R + 16 * (w // 4) + f, 4 * b + w % 4]


SCALES = {"sm90_a": scales_a, "sm90_b": scales_b}


def kernel_a(source: list[int], n: int, k: int) -> list[int]:
    """FlashInfer 0.6.11's interleave kernel as its threads' loops: one lane a byte column of a 64-column partition, two rows 8 apart."""
    out = [0] * len(source)
    for pair in range(n // 2):
        upper = pair // 8 * 16 + pair % 8
        for partition in range(k // 64):
            for lane in range(32):
                at = partition * 32 + lane
                a, b = source[upper * (k // 2) + at], source[(upper + 8) * (k // 2) + at]
                to = (upper + lane // 8 % 2 * 8) * (k // 2) + partition * 32 + lane // 16 * 16 + lane % 4 * 4 + lane % 8 // 4 * 2
                out[to] = a % 16 + b % 16 * 16
                out[to + 1] = a // 16 + b // 16 * 16
    return out


#: (mask, shift left or, negative, right) in the order of 0.6.18's kernel.
STEPS_B = (
    (0x80, 24), (0x70, 18), (0x08, 12), (0x07, 6), (0x8000, 13), (0x7000, 7), (0x0800, 1), (0x0700, -5),
    (0x800000, 2), (0x700000, -4), (0x080000, -10), (0x070000, -16),
    (0x80000000, -1), (0x10000000, 1), (0x60000000, -3), (0x08000000, -13), (0x01000000, -11), (0x06000000, -15),
)  # fmt: skip


def kernel_b(source: list[int], n: int, k: int) -> list[int]:
    """FlashInfer 0.6.18's interleave kernel as its threads' loops: a lane gathers four bytes, moves bits, writes four bytes."""
    out = [0] * len(source)
    for pair in range(n // 2):
        upper = pair // 8 * 16 + pair % 8
        for partition in range(k // 64):
            for lane in range(16):
                at = upper * (k // 2) + partition * 32 + lane // 4 * 8 + lane % 4
                four = (source[at], source[at + 4 * k], source[at + 4], source[at + 4 * k + 4])  # 4k bytes are 8 rows
                word = sum(byte << 8 * j for j, byte in enumerate(four))
                moved = sum((word & mask) << by if by > 0 else (word & mask) >> -by for mask, by in STEPS_B)
                to = (upper + lane // 4 % 2 * 8) * (k // 2) + partition * 32 + lane // 8 * 16 + lane % 4 * 4
                out[to : to + 4] = [moved >> 8 * j & 255 for j in range(4)]
    return out


KERNELS = {"sm90_a": kernel_a, "sm90_b": kernel_b}


def fc1(rows: Tensor, size: int, padded: int, width: int, order: str) -> Tensor:
    """Rows of the checkpoint [2I, ...] at their places in the padded [up; gate] matrix [2Ip, width]; zero elsewhere.

    `order`: "interleaved", where row 2i is gate i and row 2i + 1 up i, or "w1w3", where row i is gate i and row I + i up i.
    """
    out = torch.zeros(2 * padded, width, dtype=rows.dtype)
    unit = torch.arange(size)
    gate, up = (2 * unit, 2 * unit + 1) if order == "interleaved" else (unit, size + unit)
    out[unit, : rows.shape[1]] = rows[up]
    out[padded + unit, : rows.shape[1]] = rows[gate]
    return out


def fc2(rows: Tensor, padded: int, width: int) -> Tensor:
    """Rows of the down projection in the padded matrix; zero elsewhere."""
    out = torch.zeros(padded, width, dtype=rows.dtype)
    out[torch.arange(rows.shape[0]), : rows.shape[1]] = rows
    return out
