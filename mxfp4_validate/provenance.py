"""What really ran: standard-library probes of versions, GPU and driver, each guarded."""

from __future__ import annotations

from packaging.version import InvalidVersion, Version

#: (distribution, first bad, last bad, notice).
KNOWN_BAD = (
    ("flashinfer-python", "0.6.10", "0.6.15.post1", "weights' TMA descriptors are updated in place, a race (flashinfer issue #5438)"),
)


def known_bad(distribution: str, version: str) -> str | None:
    """The notice for a version with a known defect, or None."""
    try:
        found = Version(version)
    except InvalidVersion:
        return None
    for name, first, last, notice in KNOWN_BAD:
        if name == distribution and Version(first) <= found <= Version(last):
            return f"{distribution} {version}: {notice}"
    return None
