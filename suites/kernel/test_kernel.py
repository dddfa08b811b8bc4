"""Does the candidate kernel compute the right bits? One function a family of checks; the catalogue lists what each runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from mxfp4_validate.pytest_plugin import CheckItem

pytestmark = pytest.mark.kernel


@pytest.mark.family("probe")
def test_probe(check_item: CheckItem) -> None:
    """Inputs whose result is exact: every bit is known in advance."""
    check_item.require_passed()


@pytest.mark.family("random")
def test_random(check_item: CheckItem) -> None:
    """Random data against the ordered twin: equal, or explained value by value."""
    check_item.require_passed()


@pytest.mark.family("determinism")
def test_determinism(check_item: CheckItem) -> None:
    """The same call gives the same bits, and so does every tactic of one summation order."""
    check_item.require_passed()


@pytest.mark.family("metamorphic")
def test_metamorphic(check_item: CheckItem) -> None:
    """Related inputs give related outputs, whatever the reference thinks."""
    check_item.require_passed()


@pytest.mark.family("parallel")
def test_parallel(check_item: CheckItem) -> None:
    """Tensor- and expert-parallel ranks add up to the whole."""
    check_item.require_passed()


@pytest.mark.family("poison")
def test_poison(check_item: CheckItem) -> None:
    """What must not be read has no effect, and what must be written is."""
    check_item.require_passed()
