"""Our scale packers and `detect` against FlashInfer's own pure-Python helpers, of one version of each layout.

The helper is cut out of the vendor's file and run by itself: importing flashinfer would need its CUDA dependencies.
"""

from __future__ import annotations

import ast
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor

from mxfp4_validate.errors import ShapeError
from mxfp4_validate.layouts.detect import detect
from mxfp4_validate.layouts.sm90_a import SM90_A
from mxfp4_validate.layouts.sm90_b import SM90_B

if TYPE_CHECKING:
    from mxfp4_validate.layouts.base import Layout

VENDOR = Path(__file__).resolve().parent.parent / ".vendor"
HELPER = "interleave_moe_scales_for_sm90_mixed_gemm"
#: version -> (file of the helper, its layout)
VERSIONS = {"0.6.11.post1": ("core.py", SM90_A), "0.6.18.post1": ("prepare.py", SM90_B)}
SHAPES = ((1, 64, 4), (2, 128, 8), (3, 192, 92), (1, 5888, 92), (0, 64, 8))
Helper = Callable[..., Tensor]


def vendor_helper(version: str) -> Helper:
    """The vendor's function, without its decorators."""
    path = VENDOR / f"flashinfer-{version}" / "flashinfer" / "fused_moe" / VERSIONS[version][0]
    if not path.is_file():
        pytest.fail(f"{path} is missing: run `python tools/vendor.py`, which fetches it")
    found = [n for n in ast.parse(path.read_text()).body if isinstance(n, ast.FunctionDef) and n.name == HELPER]
    assert len(found) == 1, f"{path} defines {HELPER} {len(found)} times"
    found[0].decorator_list = []
    names: dict[str, Helper] = {}
    exec(compile(ast.Module(body=list(found), type_ignores=[]), str(path), "exec"), {"torch": torch}, names)
    return names[HELPER]


@pytest.fixture(params=VERSIONS)
def vendor(request: pytest.FixtureRequest) -> tuple[Helper, Layout]:
    return vendor_helper(request.param), VERSIONS[request.param][1]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_scales_equal_the_vendors(vendor: tuple[Helper, Layout], shape: tuple[int, int, int]) -> None:
    """Shape and every byte, on random bytes; and ours undone gives the source."""
    helper, layout = vendor
    scale = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(7))
    expected, found = helper(scale), layout.pack_scales(scale)
    assert found.shape == expected.shape, f"layout {layout.name}"
    assert torch.equal(found, expected), f"layout {layout.name} differs from the vendor's helper at {shape}"
    assert found.is_contiguous(), "the kernel is handed the storage"
    assert torch.equal(layout.unpack_scales(expected), scale), "the vendor's bytes do not unpack to the source"


def test_detect_knows_the_vendors_helper(vendor: tuple[Helper, Layout]) -> None:
    helper, layout = vendor
    assert detect(helper) is layout


@pytest.mark.parametrize("group_size", [64, 128])
def test_vendor_a_takes_group_sizes_the_kernel_does_not_read_and_we_refuse(group_size: int) -> None:
    """Why `pack_scales` checks: the helper of layout A re-interleaves by another factor without a word."""
    scale = torch.randint(0, 256, (1, 64, 8), dtype=torch.uint8)
    assert vendor_helper("0.6.11.post1")(scale, group_size).dim() == 3, "the vendor no longer accepts it; the check may go"
    with pytest.raises(ShapeError, match=f"group_size={group_size}"):
        SM90_A.pack_scales(scale, group_size)


@pytest.mark.parametrize("version", VERSIONS)
def test_gpt_oss_scales_unpadded_are_refused_by_both(version: str) -> None:
    """H = 2880 has 90 scales a row, no multiple of four."""
    scale = torch.zeros(1, 2880, 90, dtype=torch.uint8)
    with pytest.raises(ValueError, match="90"):
        vendor_helper(version)(scale)
    with pytest.raises(ShapeError, match="2880 is not a multiple of 128"):
        VERSIONS[version][1].pack_scales(scale)


def test_versions_are_those_that_the_tool_fetches() -> None:
    from tools import vendor

    fetched = tuple(version for package, version in vendor.WHEELS if package == "flashinfer-python")
    assert tuple(VERSIONS) == fetched, "tests/test_vendor_helpers.py and tools/vendor.py name different versions"
