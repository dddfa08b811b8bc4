"""A plugin that takes an item away and tells nobody."""

import pytest


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list) -> None:
    del items[0]
