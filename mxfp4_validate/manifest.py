"""How many items a backend must be put through: counts kept apart from the catalogue, so that a lost check or case cannot go unnoticed."""

from __future__ import annotations

import tomllib
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

from mxfp4_validate.catalogue import FAMILIES, Item

PATH = Path(__file__).with_name("manifest.toml")
_HEAD = "# Items by device and family; written by `mxfp4-validate list --manifest`. A run that collects fewer ends with status 4.\n"


def load(path: Path = PATH) -> dict[str, dict[str, int]]:
    """Counts by device and family."""
    with path.open("rb") as file:
        return tomllib.load(file)


def count(items: Iterable[Item]) -> dict[str, int]:
    """Items by family, in the catalogue's order of families."""
    found = Counter(item.check.family for item in items)
    return {family: found[family] for family in FAMILIES if found[family]}


def render(by_device: Mapping[str, Iterable[Item]]) -> str:
    """The file's text for what a catalogue holds now."""
    tables = [f"\n[{device}]\n" + "".join(f"{family} = {n}\n" for family, n in count(items).items()) for device, items in by_device.items()]
    return _HEAD + "".join(tables)


def differences(expected: Mapping[str, int], found: Mapping[str, int], where: str) -> list[str]:
    """One line for each family whose number is not the expected one."""
    return [
        f"{where}: family {family} has {found.get(family, 0)} items, the manifest says {expected.get(family, 0)}"
        for family in FAMILIES
        if found.get(family, 0) != expected.get(family, 0)
    ]
