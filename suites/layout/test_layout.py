"""Are the bytes handed to the kernel the right bytes?"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from mxfp4_validate.pytest_plugin import CheckItem

pytestmark = [pytest.mark.layout, pytest.mark.kernel]


@pytest.mark.family("layout")
def test_layout(check_item: CheckItem) -> None:
    """Packing is a bijection that agrees with the vendor's."""
    check_item.require_passed()
