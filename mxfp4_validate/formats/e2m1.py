"""E2M1: 4-bit floats, two a byte, low nibble first.

Source of the format: OCP Microscaling Formats v1.0, section 5.3.3: one sign bit, two exponent bits (bias 1), one mantissa bit,
no infinity and no NaN. Every value has at most two significant bits, which is why so many sums here are exact.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mxfp4_validate.errors import ShapeError, UsageError

#: Value of each of the 16 codes; bit 3 is the sign, so code 8 is -0.
VALUES: tuple[float, ...] = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
SIGN_BIT = 0x8
MAX = 6.0
#: Smallest step of the grid: every value is a multiple of it.
QUANTUM = 0.5


def decode(codes: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
    """Codes [...] uint8 in 0..15 -> their exact values [...] in `dtype` (bf16 and wider hold all of them)."""
    table = torch.tensor(VALUES, dtype=dtype, device=codes.device)
    return table[codes.long()]


def encode_exact(values: Tensor) -> Tensor:
    """Values [...] that lie on the E2M1 grid -> codes [...] uint8. Raises `UsageError` for any other value, never rounds."""
    table = torch.tensor(VALUES[:8], dtype=torch.float64, device=values.device)
    magnitude = values.double().abs()
    codes = torch.bucketize(magnitude, table).clamp(max=7)
    wrong = table[codes] != magnitude
    if wrong.any():
        raise UsageError(
            f"{values[wrong].flatten()[0].item()!r} is not an E2M1 value; the grid is 0, 0.5, 1, 1.5, 2, 3, 4, 6 and negatives"
        )
    return (codes + torch.signbit(values) * SIGN_BIT).to(torch.uint8)


def unpack(packed: Tensor) -> Tensor:
    """Bytes [..., K/2] uint8 -> codes [..., K] uint8; the low nibble is the even element."""
    require_uint8(packed, "packed E2M1 codes")
    return torch.stack((packed & 0xF, packed >> 4), dim=-1).flatten(-2)


def pack(codes: Tensor) -> Tensor:
    """Codes [..., K] uint8 in 0..15, K even -> bytes [..., K/2] uint8; the low nibble is the even element."""
    require_uint8(codes, "E2M1 codes")
    if codes.shape[-1] % 2:
        raise ShapeError(f"cannot pack {codes.shape[-1]} codes two a byte; the last dimension must be even")
    return codes[..., 0::2] | (codes[..., 1::2] << 4)


def require_uint8(tensor: Tensor, what: str) -> None:
    """Raise `ShapeError` unless `tensor` is uint8; says how int8 storage must be reinterpreted."""
    if tensor.dtype == torch.uint8:
        return
    way_out = "reinterpret it with .view(torch.uint8); .to() would convert values" if tensor.dtype == torch.int8 else "expected torch.uint8"
    raise ShapeError(f"{what} have dtype {tensor.dtype}: {way_out}")
