"""The rest of a DeepSeek-V4 MoE layer around the routed experts: the shared expert, and where routed_scaling_factor is applied.

Both functions take the dtype they round to. None is mathematics: float64 throughout. A 16-bit dtype is what engines serve: every
tensor that is stored between kernels is rounded to it, from an fp32 number.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mxfp4_validate.errors import ShapeError, UsageError
from mxfp4_validate.reference.activation import swiglu

if TYPE_CHECKING:
    from mxfp4_validate.cases import Activation


class RoutedScale(StrEnum):
    """Where the one factor on the routed part sits. The two modes agree in mathematics and not in bits."""

    PREMULTIPLIED = "premultiplied"  # inside the routing weights already (transformers, vLLM, recent sglang): plain sum
    POST = "post"  # applied while adding the shared output (sglang 0.5.12 on SM90)


def shared_expert(
    x: Tensor, gate_w: Tensor, up_w: Tensor, down_w: Tensor, activation: Activation, dtype: torch.dtype | None = None
) -> Tensor:
    """`down(swiglu(gate(x), up(x)))` [M, H] with the routed experts' clamp, from x [M, H], gate_w and up_w [I, H], down_w [H, I].

    dtype None: float64. Otherwise x, both pre-activations, the activation (computed in fp32) and the result are rounded to it; weights
    count as they are given. A kernel's fp32 sums have an order of their own, so its bits may still differ from these.
    Source: DeepseekV4MLP of Hugging Face transformers.

    Raises `ShapeError` if the shapes do not belong together, `UsageError` for a dtype that nothing is served in.
    """
    I, H = gate_w.shape[0], x.shape[-1]  # noqa: E741
    if x.dim() != 2 or tuple(gate_w.shape) != (I, H) or up_w.shape != gate_w.shape or tuple(down_w.shape) != (H, I):
        shapes = ", ".join(f"{name} {tuple(t.shape)}" for name, t in (("x", x), ("gate_w", gate_w), ("up_w", up_w), ("down_w", down_w)))
        raise ShapeError(f"a shared expert takes x [M, H], gate_w and up_w [I, H], down_w [H, I]; got {shapes}")
    x = _stored(x, dtype)
    gate, up = (_work(_stored(x.double() @ w.double().t(), dtype), dtype) for w in (gate_w, up_w))
    act = _stored(swiglu(gate, up, activation), dtype)
    return _stored(act.double() @ down_w.double().t(), dtype)


def combine_shared(
    shared: Tensor, routed: Tensor, routed_scaling_factor: float, mode: RoutedScale, dtype: torch.dtype | None = None
) -> Tensor:
    """The layer's output [M, H] from shared and routed [M, H]: `shared + routed` or, in mode POST, `shared + rsf * routed`.

    dtype None: float64. Otherwise both are first rounded to it, as kernels hand them over, product and sum are taken in fp32, and the
    result is rounded once. With a factor of 1.5 the product is exact in fp32, so a fused multiply-add changes nothing. PREMULTIPLIED
    does not use the factor. Source: the `shared.add_(routed, alpha=rsf)` of sglang, and DeepseekV4SparseMoeBlock.

    Raises `ShapeError` if the shapes differ, `UsageError` for an unknown mode or a dtype that nothing is served in.
    """
    if mode not in tuple(RoutedScale):
        raise UsageError(f"mode={mode!r} must be one of {', '.join(f'RoutedScale.{m.name}' for m in RoutedScale)}")
    if shared.shape != routed.shape:
        raise ShapeError(f"shared {tuple(shared.shape)} and routed {tuple(routed.shape)} must be the same [M, H]")
    shared, routed = (_work(_stored(t, dtype), dtype) for t in (shared, routed))
    return _stored(shared + routed_scaling_factor * routed if mode == RoutedScale.POST else shared + routed, dtype)


def _stored(t: Tensor, dtype: torch.dtype | None) -> Tensor:
    """As a kernel stores it: fp32, then `dtype`; float64 if there is none."""
    if dtype not in (None, torch.bfloat16, torch.float16, torch.float32):
        raise UsageError(f"dtype={dtype} must be None (float64, exact) or what is served: torch.bfloat16, torch.float16, torch.float32")
    return t.double() if dtype is None else t.float().to(dtype)


def _work(t: Tensor, dtype: torch.dtype | None) -> Tensor:
    """As a kernel computes with it: float64 if exact, else fp32."""
    return t.double() if dtype is None else t.float()
