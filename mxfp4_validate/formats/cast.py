"""Block scales as checkpoints and engines store them -> E8M0 bytes, by bits, never by a converting cast.

A converting cast to float8_e8m0fnu rounds to a power of two and drops the sign, so it hides wrong scales; it is not used here.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from mxfp4_validate.errors import ScaleError
from mxfp4_validate.formats import e8m0

#: Storage whose bytes are the E8M0 bytes already.
BYTE_DTYPES = (torch.uint8, torch.int8, torch.float8_e8m0fnu)
#: dtype -> (integer of the same width, mantissa bits); both have E8M0's bias and an 8-bit exponent field.
FLOAT_DTYPES = {torch.float32: (torch.int32, 23), torch.bfloat16: (torch.int16, 7)}
#: 2^0: what a scale tensor that was created as ones and never loaded holds.
UNFILLED = e8m0.BIAS


class SuspiciousScale(UserWarning):
    """Scale bytes outside `e8m0.PLAUSIBLE`: possible, but not seen in a released checkpoint."""


def scale_bytes(scales: Tensor) -> Tensor:
    """Scales of any shape -> their E8M0 bytes, uint8 of the same shape; OCP MX v1.0 section 5.4.1: byte b is 2^(b - 127).

    Accepts uint8, int8 and float8_e8m0fnu (viewed), and float32 and bfloat16 that hold exact powers of two in 2^-126..2^127 (their exponent
    field). Raises `ScaleError`, naming the first offending index and value, for byte 255 and for a float that is no such power: zero,
    negative, subnormal, infinite, NaN, or with mantissa bits; and for any other dtype. Warns `SuspiciousScale` with a count and an example
    for bytes outside `e8m0.PLAUSIBLE`.
    """
    if scales.dtype in BYTE_DTYPES:
        result = scales.view(torch.uint8)
        _refuse(scales, result == 255, "is byte 255, E8M0's NaN; the shard is uninitialised or damaged")
    elif scales.dtype in FLOAT_DTYPES:
        integer, mantissa = FLOAT_DTYPES[scales.dtype]
        bits = scales.view(integer)
        field = bits >> mantissa  # negative where the sign bit is set
        wrong = (bits & ((1 << mantissa) - 1) != 0) | (field < 1) | (field > 254)
        _refuse(scales, wrong, "is not a power of two in 2^-126..2^127; a block scale is one, so these are not E8M0 scales")
        result = field.to(torch.uint8)
    else:
        accepted = ", ".join(str(d) for d in (*BYTE_DTYPES, *FLOAT_DTYPES))
        raise ScaleError(f"scales have dtype {scales.dtype}; accepted are {accepted}. Load the checkpoint's own bytes, unconverted")
    _warn(result)
    return result


def looks_unfilled(scale: Tensor) -> bool:
    """Whether every one of these E8M0 bytes is 127 (scale 1.0): a shard created as ones and never loaded. False for an empty tensor."""
    return scale.numel() > 0 and bool((scale == UNFILLED).all())


def _first(wrong: Tensor) -> tuple[int, ...]:
    """Coordinates of the first true element, in row-major order."""
    flat = int(wrong.flatten().int().argmax())
    return tuple(int(i) for i in torch.unravel_index(torch.tensor(flat), wrong.shape))


def _refuse(scales: Tensor, wrong: Tensor, why: str) -> None:
    if not wrong.any():
        return
    at = _first(wrong)
    value = scales[at].view(torch.uint8).item() if scales.dtype in BYTE_DTYPES else scales[at].item()
    raise ScaleError(f"scales{list(at)} = {value!r} {why} ({int(wrong.sum())} of {wrong.numel()} are like it)")


def _warn(scale: Tensor) -> None:
    low, high = e8m0.PLAUSIBLE.start, e8m0.PLAUSIBLE.stop - 1
    odd = (scale < low) | (scale > high)
    if odd.any():
        at = _first(odd)
        warnings.warn(
            f"{int(odd.sum())} of {odd.numel()} scale bytes lie outside {low}..{high}, e.g. scales{list(at)} = {scale[at].item()}; "
            "check the loader if the checkpoint is a released one",
            SuspiciousScale,
            stacklevel=3,
        )
