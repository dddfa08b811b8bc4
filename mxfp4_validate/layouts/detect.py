"""Which layout the installed kernel wants, told by what its scale helper returns."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mxfp4_validate.layouts.base import Layout, LayoutUnknown
from mxfp4_validate.layouts.sm90_a import SM90_A
from mxfp4_validate.layouts.sm90_b import SM90_B


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
    raise LayoutUnknown(
        f"the vendor's scale helper turned [1, 64, 4] into {tuple(found.shape)}, neither layout A [1, 1, 256] nor layout B [1, 1, 1, 16, 16]; "
        "this FlashInfer version is not known to this package"
    )
