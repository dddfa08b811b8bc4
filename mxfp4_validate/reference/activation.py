"""SwiGLU with the constants of both models, in whatever precision its arguments have."""

from __future__ import annotations

import torch
from torch import Tensor

from mxfp4_validate.cases import Activation


def swiglu(gate: Tensor, up: Tensor, activation: Activation, *, fminmax: bool = False) -> Tensor:
    """`min(g, L) * sigmoid(alpha * min(g, L)) * (clamp(u, -L, L) + beta)`, elementwise in the arguments' dtype.

    The gate is clamped above only. A NaN stays a NaN, as in torch; `fminmax=True` does as CUDA's fminf and fmaxf do instead, where a NaN
    gate becomes L and a NaN up becomes L, so that a NaN from GEMM1 vanishes.
    """
    if activation.limit is not None:
        limit = torch.full((), activation.limit, dtype=gate.dtype, device=gate.device)
        if fminmax:
            gate, up = torch.fmin(gate, limit), torch.fmax(torch.fmin(up, limit), -limit)
        else:
            gate, up = gate.clamp(max=activation.limit), up.clamp(-activation.limit, activation.limit)
    return gate * torch.sigmoid(activation.alpha * gate) * (up + activation.beta)
