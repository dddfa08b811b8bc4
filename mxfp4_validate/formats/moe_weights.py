"""`MoeWeights`: the canonical bytes of one MoE layer, before any backend's layout."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor

from mxfp4_validate.errors import ShapeError
from mxfp4_validate.formats import mxfp4


@dataclass(frozen=True)
class MoeWeights:
    """Weights of E experts as bytes, in checkpoint-neutral row order.

    Attributes:
        w13: [E, 2I, H/2] uint8, two E2M1 codes a byte. Rows 0..I-1 are gate (w1), rows I..2I-1 are up (w3), never interleaved.
        w13_scale: [E, 2I, H/32] uint8 E8M0.
        w2: [E, H, I/2] uint8; w2_scale: [E, H, I/32] uint8.
        w13_bias: [E, 2I] bfloat16 in the same row order, or None; w2_bias: [E, H] bfloat16 or None.
    """

    w13: Tensor
    w13_scale: Tensor
    w2: Tensor
    w2_scale: Tensor
    w13_bias: Tensor | None = None
    w2_bias: Tensor | None = None

    def __post_init__(self) -> None:
        mxfp4.check_pair(self.w13, self.w13_scale, "w13")
        mxfp4.check_pair(self.w2, self.w2_scale, "w2")
        experts, rows, half_h = self.w13.shape
        if rows % 2 or tuple(self.w2.shape) != (experts, half_h * 2, rows // 4):
            raise ShapeError(
                f"w13 {tuple(self.w13.shape)} is [E, 2I, H/2], so w2 must be {(experts, half_h * 2, rows // 4)}, got {tuple(self.w2.shape)}"
            )
        for name, bias, want in (("w13_bias", self.w13_bias, (experts, rows)), ("w2_bias", self.w2_bias, (experts, half_h * 2))):
            if bias is not None and (tuple(bias.shape) != want or bias.dtype != torch.bfloat16):
                raise ShapeError(f"{name} must be {want} bfloat16, got {tuple(bias.shape)} {bias.dtype}")

    @property
    def num_experts(self) -> int:
        return self.w13.shape[0]

    @property
    def hidden_size(self) -> int:
        return self.w2.shape[1]

    @property
    def intermediate_size(self) -> int:
        return self.w13.shape[1] // 2

    def with_(self, **changes: Any) -> Self:
        """A copy with some tensors replaced (Tensor, or None for a bias)."""
        return replace(self, **changes)

    def map(self, fn: Callable[[Tensor], Tensor]) -> Self:
        """A copy with `fn` applied to every tensor that is present."""
        return self.with_(**{name: fn(t) for name, t in self.tensors().items()})

    def to(self, device: torch.device | str) -> Self:
        return self.map(lambda t: t.to(device))

    def experts(self, index: slice | Tensor) -> Self:
        """The experts chosen by `index`, in its order."""
        return self.map(lambda t: t[index])

    def tensors(self) -> dict[str, Tensor]:
        """The tensors that are present, by field name."""
        return {name: t for name, t in vars(self).items() if t is not None}


@dataclass(frozen=True)
class MoeInputs:
    """What one call gets: x [M, H] bfloat16, topk_ids [M, k] int32 (global; -1 or foreign = skip), topk_weights [M, k] float32."""

    x: Tensor
    topk_ids: Tensor
    topk_weights: Tensor

    def __post_init__(self) -> None:
        tokens = self.x.shape[0]
        for name, tensor, dtype in (
            ("x", self.x, torch.bfloat16),
            ("topk_ids", self.topk_ids, torch.int32),
            ("topk_weights", self.topk_weights, torch.float32),
        ):
            if tensor.dim() != 2 or tensor.shape[0] != tokens or tensor.dtype != dtype:
                raise ShapeError(f"{name} must be [M={tokens}, ...] {dtype}, got {tuple(tensor.shape)} {tensor.dtype}")

    def rows(self, index: Tensor | slice) -> Self:
        """The tokens chosen by `index`, in its order."""
        return replace(self, x=self.x[index], topk_ids=self.topk_ids[index], topk_weights=self.topk_weights[index])

    def to(self, device: torch.device | str) -> Self:
        return replace(self, x=self.x.to(device), topk_ids=self.topk_ids.to(device), topk_weights=self.topk_weights.to(device))
