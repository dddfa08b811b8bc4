"""How many items a full run has, written down: a check or case that vanishes from catalogue or collection is noticed."""

from __future__ import annotations

import tomllib
from collections import Counter
from collections.abc import Iterable, Sequence
from importlib import util
from pathlib import Path

from mxfp4_validate.catalogue import CHECKS, FAMILIES, Check, Item
from mxfp4_validate.errors import UsageError

PATH = Path(__file__).with_name("manifest.toml")
DEVICES = ("cpu", "cuda")
Counts = dict[str, dict[str, int]]


def plan(checks: Iterable[Check], device: str, family: str | None = None) -> list[Item]:
    """The items of `checks` on a device, cases of a check in their order."""
    chosen = [check for check in checks if family in (None, check.family)]
    return [Item(check, case) for check in chosen for case in (check.cuda_cases if device == "cuda" else check.cpu_cases)]


def counts(checks: Iterable[Check] = CHECKS) -> Counts:
    """Items by device and family; families without any are left out."""
    checks = tuple(checks)
    found: Counts = {}
    for device in DEVICES:
        counted = Counter(item.check.family for item in plan(checks, device))
        found[device] = {family: counted[family] for family in FAMILIES if counted[family]}
    return found


def dumps(found: Counts) -> str:
    """The TOML that belongs in manifest.toml."""
    lines = ["# Items of a full run by device and family. Regenerate: python -m mxfp4_validate list --manifest > mxfp4_validate/manifest.toml"]
    for device, families in found.items():
        lines += ["", f"[{device}]", *(f"{family} = {count}" for family, count in families.items())]
    return "\n".join(lines) + "\n"


def load(path: Path = PATH) -> Counts:
    """The committed counts; `UsageError` if the file is missing or not what `dumps` writes."""
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
        return {device: {family: int(count) for family, count in data[device].items()} for device in DEVICES}
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise UsageError(f"the manifest {path.name} cannot be read ({error!r}); regenerate it with `list --manifest`") from error


def differences(found: Counts, expected: Counts) -> list[str]:
    """Where counts differ from the manifest, one line each."""
    lines = []
    for device in DEVICES:
        have, want = found.get(device, {}), expected.get(device, {})
        for family in sorted({*have, *want}):
            if have.get(family, 0) != want.get(family, 0):
                lines.append(f"{device} {family}: {have.get(family, 0)} items, the manifest says {want.get(family, 0)}")
    return lines


def suites_dir() -> Path:
    """Where the suites are: inside the installed package, or beside it in a checkout."""
    beside = Path(__file__).resolve().parent.parent / "suites"
    if (beside / "kernel" / "test_kernel.py").is_file() and (beside.parent / "pyproject.toml").is_file():
        return beside
    spec = util.find_spec("mxfp4_validate.suites")
    for place in (spec.submodule_search_locations or []) if spec else []:
        if (Path(place) / "kernel" / "test_kernel.py").is_file():
            return Path(place).resolve()
    raise UsageError("the suites are not installed beside mxfp4_validate; reinstall it, or run from a checkout")


def missing(expected: Sequence[str], selected: Iterable[str], limit: int = 5) -> str | None:
    """A line naming expected items that were not collected, or None."""
    gone = sorted(set(expected) - set(selected))
    if not gone:
        return None
    return f"{len(gone)} of {len(expected)} items were not collected: {', '.join(gone[:limit])}{', ...' * (len(gone) > limit)}"
