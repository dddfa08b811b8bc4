"""Does the candidate kernel compute the right bits on a checkpoint's own weights? Empty without --checkpoint."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from mxfp4_validate.pytest_plugin import CheckItem

pytestmark = pytest.mark.kernel


@pytest.mark.family("checkpoint")
def test_checkpoint(check_item: CheckItem) -> None:
    """Real bytes survive packing, are read back whole, and give certified and explained outputs."""
    check_item.require_passed()
