"""Fetch the wheels that the tests read, without their dependencies, into .vendor/ (which git ignores): FlashInfer's helpers,
SGLang's flags and MoE classes, triton_kernels' layouts, OpenAI's torch reference, vLLM's flags."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

#: FlashInfer: one version of each layout, the last pinned one of layout A and the first of layout B. SGLang: the one the server recipes are for;
#: of the first whose Marlin knows GPT-OSS the sources alone, below.
#: package, version -> name of its folder in .vendor, and what is there when it is complete.
WHEELS = {
    ("flashinfer-python", "0.6.11.post1"): ("flashinfer-0.6.11.post1", "flashinfer/fused_moe"),
    ("flashinfer-python", "0.6.18.post1"): ("flashinfer-0.6.18.post1", "flashinfer/fused_moe"),
    ("sglang", "0.5.12.post1"): ("sglang-0.5.12.post1", "sglang/srt/server_args.py"),
}
#: Wheels of which the Python sources of one folder alone are kept: (package, version) -> (folder in .vendor, the folder inside the wheel).
PARTS = {
    ("sglang-kernel", "0.4.2.post2"): ("triton-kernels-0.4.2.post2", "triton_kernels"),
    ("sglang", "0.5.23"): ("sglang-0.5.23", "sglang"),
    ("gpt-oss", "0.0.9"): ("gpt-oss-0.0.9", "gpt_oss"),
    ("vllm", "0.33.0"): ("vllm-0.33.0", "vllm"),
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
    for (package, version), (name, part) in PARTS.items():
        if not (FOLDER / name / part).exists():
            take(package, version, part, FOLDER / name)
    return 0


def take(package: str, version: str, part: str, target: Path) -> None:
    """Unpack one folder of a wheel for Linux, whatever this machine is: Python sources, which run nowhere but in the tests."""
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target) as folder:
        platforms = [word for tag in ("manylinux2014", "manylinux_2_28", "manylinux_2_34") for word in ("--platform", f"{tag}_x86_64")]
        pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", *platforms, "--python-version", "3.12"]
        subprocess.run([*pip, "-d", folder, f"{package}=={version}"], check=True)
        with zipfile.ZipFile(next(Path(folder).glob("*.whl"))) as wheel:
            wheel.extractall(folder, [member for member in wheel.namelist() if member.startswith(f"{part}/") and member.endswith(".py")])
        (Path(folder) / part).rename(target / part)  # whole or not at all: a part that is there is not fetched again


if __name__ == "__main__":
    sys.exit(main())
