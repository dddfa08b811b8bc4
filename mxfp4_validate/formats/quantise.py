"""Reals -> MXFP4 bytes, for tests and probes: two quantisers, named after the rule by which they choose a block's shared exponent.

The rules choose exponents one apart whenever a block's largest magnitude has a mantissa in (1.5, 2), so "quantised to MXFP4" says nothing
without the rule. Quantise once and keep the bytes: they are the ground truth of every comparison here, never the reals they came from.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mxfp4_validate.errors import ShapeError, UsageError
from mxfp4_validate.formats import e2m1, e8m0
from mxfp4_validate.formats.mxfp4 import BLOCK

#: Halfway points between neighbouring magnitudes of `e2m1.VALUES`; ties go to the even code.
MIDPOINTS: tuple[float, ...] = (0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0)
#: floor(log2) of the largest E2M1 magnitude, 6.
EMAX = 2


def quantise_ocp(values: Tensor) -> tuple[Tensor, Tensor]:
    """Values [..., K] float32, bfloat16 or float16, K % 32 == 0 -> (bytes [..., K/2] uint8, scales [..., K/32] uint8).

    The rule is that of OCP Microscaling Formats v1.0, section 6.3.
    The shared exponent is floor(log2(amax)) - 2, so that amax / scale lies in [4, 8) and what exceeds 6 saturates to 6: up to 25 % error on
    the largest element. A block of zeros gets byte 0. Elements are rounded to nearest, ties to even; a negative one that rounds to zero
    gives code 8 (-0). Raises `ShapeError` for another dtype or K, `UsageError` for an infinity or a NaN.
    """
    blocks, amax = _blocks(values)
    _, exponent = torch.frexp(amax)  # amax = m * 2^exponent with m in [0.5, 1), so floor(log2(amax)) = exponent - 1
    biased = (exponent - 1 - EMAX + e8m0.BIAS).clamp(min=0)
    return _encode(blocks, torch.where(amax == 0, 0, biased).to(torch.uint8))


def quantise_round_up(values: Tensor) -> tuple[Tensor, Tensor]:
    """As `quantise_ocp`, with scale 2^ceil(log2(amax / 6)), the default of triton_kernels' `downcast_to_mxfp`: nothing saturates.

    Computed as there, on the bits of the float32 quotient: adding all ones below the exponent field carries into it unless amax / 6 is a
    power of two. A quotient of 0 gives byte 0 and magnitudes 0, since byte 0 is the scale 0.0 there.
    """
    blocks, amax = _blocks(values)
    bits = (amax.float() / 6.0).view(torch.int32)  # amax came from float32 or narrower: .float() is exact
    scale = ((bits + 0x007FFFFF) >> 23).to(torch.uint8)
    return _encode(torch.where(scale.unsqueeze(-1) == 0, blocks * 0.0, blocks), scale)


def _blocks(values: Tensor) -> tuple[Tensor, Tensor]:
    """(values [..., K/32, 32] float64, largest magnitudes [..., K/32] float64), checked."""
    if values.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise ShapeError(f"values have dtype {values.dtype}; the rules are stated on float32 bits, so pass float32, bfloat16 or float16")
    if values.dim() == 0 or values.shape[-1] % BLOCK:
        raise ShapeError(f"values {tuple(values.shape)}: the last dimension must be a multiple of {BLOCK}, a block; pad it with zeros")
    finite = values.isfinite()
    if not finite.all():
        at = (~finite).nonzero()[0].tolist()
        raise UsageError(f"values{at} = {values[tuple(at)].item()}: MXFP4 elements are finite; replace or clamp it first")
    blocks = values.double().reshape(*values.shape[:-1], values.shape[-1] // BLOCK, BLOCK)
    return blocks, blocks.abs().amax(-1)


def _encode(blocks: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Round float64 blocks / 2^(scale - 127) to nearest on the E2M1 grid, ties to even codes, magnitudes above 6 to 6."""
    scaled = torch.ldexp(blocks.abs(), (e8m0.BIAS - scale.int()).unsqueeze(-1))  # a power of two: exact in float64
    middle = torch.tensor(MIDPOINTS, dtype=torch.float64, device=blocks.device)
    below, above = torch.bucketize(scaled, middle), torch.bucketize(scaled, middle, right=True)  # they differ on a tie alone
    codes = torch.where(below % 2 == 0, below, above) + torch.signbit(blocks) * e2m1.SIGN_BIT
    return e2m1.pack(codes.to(torch.uint8).flatten(-2)), scale
