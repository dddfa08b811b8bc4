"""Names the plugin for runs from a checkout."""

import pytest

try:
    import mxfp4_validate  # noqa: F401
except ImportError as error:
    raise pytest.UsageError(f"mxfp4_validate cannot be imported ({error}); run: pip install -e .") from error

pytest_plugins = ["mxfp4_validate.pytest_plugin"]
