"""E8M0: a byte b is the block scale 2^(b - 127). What bytes 0 and 255 mean differs between implementations.

Bytes 1..254 mean the same everywhere. OCP MX v1.0 (section 5.4.1) makes 0 the value 2^-127 and 255 a NaN; kernels that move the
byte into an exponent field read 0 as 0.0 and 255 as +Inf instead. A reference therefore takes the meaning as an argument.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from mxfp4_validate.formats.e2m1 import require_uint8

BIAS = 127
#: Bytes outside this range have not been seen in a released checkpoint; the loader warns about them.
PLAUSIBLE = range(100, 141)


@dataclass(frozen=True)
class Meaning:
    """What one implementation reads bytes 0 and 255 as."""

    name: str
    byte_0: float
    byte_255: float


OCP = Meaning("ocp", 2.0**-127, math.nan)
#: Hopper's fp32 exponent field: 0.0 and +Inf. Marlin and triton_kernels agree through bf16's exponent field.
EXPONENT_FIELD = Meaning("exponent-field", 0.0, math.inf)
#: torch.ldexp with b - 127. For 255 that is so where torch makes the factor first; 2.13 scales exactly, and codes below 1 stay finite.
OPENAI_TORCH = Meaning("openai-torch", 2.0**-127, math.inf)
#: By backend name; what is not listed is OCP.
MEANINGS: dict[str, Meaning] = {
    "sm90-cutlass": EXPONENT_FIELD,
    "marlin": EXPONENT_FIELD,
    "triton-kernels": EXPONENT_FIELD,
    "openai-torch": OPENAI_TORCH,
}


def decode(scale: Tensor, meaning: Meaning = OCP, dtype: torch.dtype = torch.float64) -> Tensor:
    """Bytes [...] uint8 -> scales [...] in `dtype` (float64 holds all of them exactly, float32 all but OCP's subnormal 2^-127's range)."""
    require_uint8(scale, "E8M0 scales")
    table = torch.ldexp(torch.ones(256, dtype=torch.float64), torch.arange(256) - BIAS)
    table[0], table[255] = meaning.byte_0, meaning.byte_255
    return table.to(device=scale.device, dtype=dtype)[scale.long()]
