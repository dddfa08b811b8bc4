"""MXFP4 blocks: 32 E2M1 codes along the reduced dimension share one E8M0 scale."""

from __future__ import annotations

import torch
from torch import Tensor

from mxfp4_validate.errors import ShapeError
from mxfp4_validate.formats import e2m1, e8m0

BLOCK = 32


def check_pair(codes: Tensor, scale: Tensor, what: str = "weight") -> None:
    """Raise `ShapeError` unless bytes [..., K/2] and scales [..., K/32] belong together."""
    e2m1.require_uint8(codes, what)
    e2m1.require_uint8(scale, f"{what} scale")
    want = (*codes.shape[:-1], codes.shape[-1] * 2 // BLOCK)
    if codes.shape[-1] * 2 % BLOCK or tuple(scale.shape) != want:
        raise ShapeError(f"{what} {tuple(codes.shape)} needs scales {want} (one a 32 codes), got {tuple(scale.shape)}")


def dequantise(packed: Tensor, scale: Tensor, meaning: e8m0.Meaning = e8m0.OCP, dtype: torch.dtype = torch.float64) -> Tensor:
    """Bytes [..., K/2] and scales [..., K/32] uint8 -> exact weights [..., K] in `dtype`."""
    check_pair(packed, scale)
    values = e2m1.decode(e2m1.unpack(packed), dtype)
    blocks = values.unflatten(-1, (-1, BLOCK)) * e8m0.decode(scale, meaning, dtype).unsqueeze(-1)
    result: Tensor = blocks.flatten(-2)
    return result
