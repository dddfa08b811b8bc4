"""SwiGLU with the constants of both models, in whatever precision its arguments have: the one nonlinearity of an expert."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mxfp4_validate.errors import ShapeError, UsageError

if TYPE_CHECKING:
    from mxfp4_validate.cases import Activation


def swiglu(gate: Tensor, up: Tensor, activation: Activation, *, fminmax: bool = False) -> Tensor:
    """`min(g, L) * sigmoid(alpha * min(g, L)) * (clamp(u, -L, L) + beta)`, elementwise, every operation in the arguments' dtype.

    gate and up are [...] of one shape and one floating dtype, biases already added; so is the result. The gate is clamped above only, and
    `limit=None` clamps nothing. Source: `_apply_gate` of GptOssExperts and DeepseekV4Experts in Hugging Face transformers.

    A NaN in either argument comes out as NaN, as with torch.clamp. `fminmax=True` does as CUDA's fminf and fmaxf do, which return the
    argument that is a number: a NaN gate becomes L, a NaN up becomes L (the upper bound is applied first), so that a NaN from the first
    GEMM vanishes behind a finite limit. Without a limit there is nothing to hide it behind, and both agree.

    Raises `ShapeError` if shapes or dtypes differ or are not floating, `UsageError` for a limit that is not positive.
    """
    if gate.shape != up.shape or gate.dtype != up.dtype or not gate.is_floating_point():
        raise ShapeError(
            f"gate {tuple(gate.shape)} {gate.dtype} and up {tuple(up.shape)} {up.dtype} must have one shape and one floating dtype"
        )
    L = activation.limit
    if L is not None:
        if not L > 0:
            raise UsageError(f"activation limit={L} must be positive; limit=None means no clamp")
        if fminmax:
            bound = torch.full((), L, dtype=gate.dtype, device=gate.device)
            gate, up = torch.fmin(gate, bound), torch.fmax(torch.fmin(up, bound), -bound)
        else:
            gate, up = gate.clamp(max=L), up.clamp(-L, L)
    return gate * torch.sigmoid(activation.alpha * gate) * (up + activation.beta)
