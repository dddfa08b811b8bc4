"""Which layout the installed kernel wants, told by what its scale helper returns."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from mxfp4_validate.layouts.base import Layout, LayoutUnknown
from mxfp4_validate.layouts.sm90_a import SM90_A
from mxfp4_validate.layouts.sm90_b import SM90_B

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

#: What every message ends with.
WAY_OUT = "this FlashInfer version is not known here: install 0.6.11 to 0.6.15 (A), or 0.6.18 or later (B)"


def detect(scale_helper: Callable[[Tensor], Tensor]) -> Layout:
    """Call the vendor's scale helper on [1, 64, 4] uint8: [1, 1, 256] is layout A, [1, 1, 1, 16, 16] is layout B.

    Shape alone is not enough: the bytes must be those of our own packer. Raises `LayoutUnknown` otherwise.
    """
    probe = torch.arange(256, dtype=torch.uint8).view(1, 64, 4)
    try:
        found = scale_helper(probe)
    except Exception as error:
        raise LayoutUnknown(f"the vendor's scale helper refused a [1, 64, 4] uint8 tensor: {error}") from error
    for layout in (SM90_A, SM90_B):
        expected = layout.pack_scales(probe)
        if found.shape == expected.shape and torch.equal(found.cpu(), expected):
            return layout
        if found.shape == expected.shape:
            raise LayoutUnknown(f"the vendor's scale helper returned the shape of layout {layout.name} but other bytes; {WAY_OUT}")
    raise LayoutUnknown(
        f"the vendor's scale helper turned [1, 64, 4] into {list(found.shape)}, neither layout A [1, 1, 256] nor "
        f"layout B [1, 1, 1, 16, 16]; {WAY_OUT}"
    )
