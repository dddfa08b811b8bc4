"""What a layout is: two bijections of bytes, weights and scales, that say no to every shape the kernel cannot take."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mxfp4_validate.errors import ShapeError, UsageError
from mxfp4_validate.formats.e2m1 import require_uint8
from mxfp4_validate.formats.mxfp4 import BLOCK

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor


class LayoutUnknown(UsageError):
    """The installed kernel's scale helper returned something that is neither layout A nor layout B."""


@dataclass(frozen=True)
class Layout:
    """A named pair of bijections.

    `pack_weights`: [E, N, K/2] uint8 -> uint8 of the same shape; `pack_scales`: [E, N, K/32] uint8 -> uint8 as the kernel reads it.
    `row_multiple` is what N must be a multiple of for the scales (weights need 16). All raise `ShapeError` for shapes that the vendor's
    helpers take without a word and then leave partly unwritten or read outside of.
    """

    name: str
    row_multiple: int
    weights_forward: Callable[[Tensor], Tensor]
    weights_inverse: Callable[[Tensor], Tensor]
    scales_forward: Callable[[Tensor], Tensor]
    scales_inverse: Callable[[Tensor], Tensor]

    def pack_weights(self, weight: Tensor) -> Tensor:
        """[E, N, K/2] uint8, N % 16 == 0, K % 64 == 0 -> packed bytes of the same shape."""
        check_weights(weight)
        return self.weights_forward(weight)

    def unpack_weights(self, packed: Tensor) -> Tensor:
        """Inverse of `pack_weights`."""
        check_weights(packed)
        return self.weights_inverse(packed)

    def pack_scales(self, scale: Tensor, group_size: int = BLOCK) -> Tensor:
        """[E, N, K/32] uint8, K % 128 == 0 -> packed scale bytes. MXFP4's group is 32; the kernel reads no other."""
        if group_size != BLOCK:
            raise ShapeError(f"group_size={group_size}: the kernel always reads one scale a {BLOCK} codes, whatever the helper accepts")
        _check_3d(scale, "scales", "[E, rows, K/32]")
        _, rows, groups = scale.shape
        if groups % 4:
            raise ShapeError(f"scales {tuple(scale.shape)}: K = {groups * BLOCK} is not a multiple of 128; pad K with zero codes first")
        if rows % self.row_multiple:
            raise ShapeError(f"scales {tuple(scale.shape)}: layout {self.name} needs rows % {self.row_multiple} == 0; pad the rows first")
        return self.scales_forward(scale)

    def unpack_scales(self, packed: Tensor) -> Tensor:
        """Inverse of `pack_scales`: -> [E, N, K/32] uint8. Raises `ShapeError` for scales of another layout's shape."""
        require_uint8(packed, "packed scales")
        return self.scales_inverse(packed)


def _check_3d(tensor: Tensor, what: str, shape: str) -> None:
    require_uint8(tensor, what)
    if tensor.dim() != 3:
        raise ShapeError(f"{what} must be {shape}, got {tuple(tensor.shape)}")


def check_weights(weight: Tensor) -> None:
    """Raise `ShapeError` unless weight is [E, N, K/2] uint8 with N % 16 == 0 and K % 64 == 0."""
    _check_3d(weight, "weights", "[E, N, K/2]")
    _, rows, half_k = weight.shape
    if rows % 16:
        raise ShapeError(f"weights {tuple(weight.shape)}: N = {rows} is not a multiple of 16; the vendor's kernel would leave the expert")
    if half_k % 32:
        raise ShapeError(f"weights {tuple(weight.shape)}: K = {2 * half_k} is no multiple of 64; the vendor's kernel would skip the tail")
