"""Names the plugin for runs from a checkout, and gives each of several test processes one thread of torch's."""

import os

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:  # two processes with a thread a core each take 2.7 times as long as with one thread each
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is imported, here and in what the tests start

try:
    import mxfp4_validate  # noqa: F401
except ImportError as error:
    raise pytest.UsageError(f"mxfp4_validate cannot be imported ({error}); run: pip install -e .") from error

pytest_plugins = ["mxfp4_validate.pytest_plugin"]
