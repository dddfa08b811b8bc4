"""What a run ran on: GPU, driver, versions, commit and the environment variables that matter; standard library only."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

from packaging.version import InvalidVersion, Version

import mxfp4_validate

PACKAGES = ("torch", "flashinfer-python", "flashinfer-jit-cache", "sglang", "sglang-kernel", "transformers", "triton", "numpy", "pytest")
#: Environment variables worth keeping; nothing else of the environment is ever read into a record.
ENV_NAMES = ("CUDA_VISIBLE_DEVICES", "CUDA_LAUNCH_BLOCKING", "FLASHINFER_DISABLE_VERSION_CHECK", "MXFP4_THOROUGH")

#: (distribution, first bad, last bad, notice)
KNOWN_BAD = (
    (
        "flashinfer-python",
        "0.6.10",
        "0.6.15.post1",
        "its SM90 grouped GEMM races on descriptors, so a few calls in thousands may return wrong rows "
        "(https://github.com/flashinfer-ai/flashinfer/issues/5438); judge it with `--check repeat`, or move to a later version",
    ),
)


def known_bad(distribution: str, version: str) -> str | None:
    """A notice if this version of a distribution is known to compute wrong bits, else None."""
    try:
        found = Version(version)
    except InvalidVersion:
        return None
    public = Version(found.public)  # a local suffix such as +cu130 names a build, not another version
    for name, first, last, notice in KNOWN_BAD:
        if name == distribution and Version(first) <= public <= Version(last):
            return f"{distribution} {version} is in the known-bad range {first}..{last}: {notice}"
    return None


def versions() -> dict[str, str]:
    """Installed versions by distribution, ours first; what is not installed is left out."""
    found = {"mxfp4-validate": mxfp4_validate.__version__}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def gpus() -> list[dict[str, str]]:
    """Name, driver, compute capability and memory of every GPU that nvidia-smi lists; empty without one."""
    fields = ("name", "driver_version", "compute_cap", "memory.total")
    text = _command("nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader")
    keys = ("name", "driver", "compute_cap", "memory")
    rows = [[cell.strip() for cell in line.split(",")] for line in text.splitlines()]
    return [dict(zip(keys, row, strict=True)) for row in rows if len(row) == len(keys)]


def visible_gpus(env: Mapping[str, str]) -> list[str]:
    """The entries of the caller's CUDA_VISIBLE_DEVICES (indices, UUIDs, MIG names), or all devices when it is unset."""
    chosen = env.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        entries = []
        for entry in (part.strip() for part in chosen.split(",")):
            if not entry or entry.startswith("-"):
                break  # CUDA ignores everything from the first invalid entry on
            entries.append(entry)
        return entries
    text = _command("nvidia-smi", "-L")
    slices = re.findall(r"^\s+MIG .*UUID:\s*(MIG-[^)\s]+)", text, re.MULTILINE)
    return slices or re.findall(r"^GPU (\d+):", text, re.MULTILINE)


def environment(env: Mapping[str, str]) -> dict[str, str]:
    """The allow-listed variables that are set."""
    return {name: env[name] for name in ENV_NAMES if name in env}


def commit() -> str | None:
    """The commit of the checkout this package runs from, `+dirty` if files differ from it; None outside a checkout."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None
    sha = _command("git", "-C", str(root), "rev-parse", "HEAD").strip()
    changed = _command("git", "-C", str(root), "status", "--porcelain", "--untracked-files=no").strip()
    return (sha + "+dirty" * bool(changed)) or None


def collect() -> dict[str, object]:
    """All of it as one JSON-able object; a probe that fails leaves its part empty. No host name, user name or home path."""
    return {
        "gpus": gpus(),
        "versions": versions(),
        "commit": commit(),
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "cpus": os.cpu_count(),
        "environment": environment(os.environ),
    }


def notices(env: Mapping[str, str], installed: Mapping[str, str]) -> list[str]:
    """What a reader must know before trusting anything: known-bad versions and switched-off safety checks."""
    found = [notice for name, version in installed.items() if (notice := known_bad(name, version))]
    if env.get("FLASHINFER_DISABLE_VERSION_CHECK") == "1":
        found.append("FLASHINFER_DISABLE_VERSION_CHECK=1: flashinfer may load binaries built for another version of itself")
    return found


def _command(*argv: str) -> str:
    """Standard output of a command, or nothing if it is missing, fails or hangs."""
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=20, check=False, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return ""
    return done.stdout if done.returncode == 0 else ""
