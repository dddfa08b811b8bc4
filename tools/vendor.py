"""Fetch the FlashInfer versions whose helpers the tests compare with, without their dependencies, into .vendor/ (which git ignores)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

#: One version of each layout: the last pinned one of layout A, the first of layout B.
VERSIONS = ("0.6.11.post1", "0.6.18.post1")
FOLDER = Path(__file__).resolve().parent.parent / ".vendor"


def main() -> int:
    """Install what is missing; the exit status is that of the first pip that fails."""
    for version in VERSIONS:
        target = FOLDER / f"flashinfer-{version}"
        if (target / "flashinfer" / "fused_moe").is_dir():
            print(f"{target}: present")
            continue
        pip = [sys.executable, "-m", "pip", "install", "--no-deps", "--target", str(target), f"flashinfer-python=={version}"]
        status = subprocess.run(pip, check=False).returncode
        if status:
            print(f"{target}: pip failed with status {status}; install flashinfer-python=={version} there by hand", file=sys.stderr)
            return status
    return 0


if __name__ == "__main__":
    sys.exit(main())
