"""Is an MXFP4 (W4A16) mixture-of-experts backend still right, and where is it wrong?

Importing this package imports neither torch nor pytest: `--collect-only`, `list` and `doctor` stay fast and work anywhere.
"""

__version__ = "0.2.0"
