"""A run's results as terminal lines: a table by family, what failed, what was not tested. A pure function of records."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mxfp4_validate.records.store import Result


#: Reasons for what was not tested that a backend's lines spell out.
REASONS = 6


def summary(results: Sequence[Result], planned: Mapping[tuple[str, str], int], facts: Mapping[str, str]) -> list[str]:
    """Lines for `planned` items by (backend, family) and the results there are; `facts` has a line of facts by backend."""
    rows = [["backend", "family", "passed", "failed", "skipped", "not run", "seconds", "worst"]]
    for (backend, family), total in planned.items():
        mine = [r for r in results if (r.backend, r.family) == (backend, family)]
        passed, skipped = (sum(r.outcome == outcome for r in mine) for outcome in ("passed", "unavailable"))
        counts = (passed, len(mine) - passed - skipped, skipped, total - len(mine))
        rows.append([backend, family, *map(str, counts), f"{sum(r.seconds for r in mine):.1f}", worst(mine)])
    lines = [f"{backend}: {line}" for backend, line in facts.items()] + _aligned(rows)
    return lines + _how(results) + _slowest(results) + _findings(results) + _untested(results, planned)


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Names to the left, counts to the right, the last column as it is."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [cell.ljust(width) if i < 2 else cell.rjust(width) for i, (cell, width) in enumerate(zip(row, widths, strict=True))]
        lines.append("  ".join([*cells[:-1], row[-1]]).rstrip())
    return lines


def worst(results: Sequence[Result]) -> str:
    """The lowest `bit_equal` and the total `unexplained` of those results that carry them, as `name value`."""
    equal, unexplained = _numbers(results, "bit_equal"), _numbers(results, "unexplained")
    found = [f"bit_equal {min(equal):.6g}"] if equal else []
    return ", ".join(found + ([f"unexplained {sum(unexplained):.6g}"] if unexplained else []))


def _numbers(results: Sequence[Result], name: str) -> list[float]:
    values = [r.metrics.get(name) for r in results]
    return [value for value in values if isinstance(value, int | float) and not isinstance(value, bool)]


def _how(results: Sequence[Result]) -> list[str]:
    """How the failures failed, where it was not by wrong bits."""
    kinds = [r.outcome for r in results if r.outcome not in ("passed", "failed", "unavailable")]
    return ["of the failed: " + ", ".join(f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(kinds))] if kinds else []


def _slowest(results: Sequence[Result], count: int = 5) -> list[str]:
    ran = sorted((r for r in results if r.outcome != "unavailable"), key=lambda r: -r.seconds)[:count]
    return ["slowest: " + ", ".join(f"{r.item_id} {r.seconds:.1f} s" for r in ran)] if ran else []


def _findings(results: Sequence[Result]) -> list[str]:
    """What passed but must be known: metrics `finding` or `waiver`, and retries."""
    named = [(name, r) for name in ("finding", "waiver") for r in results if r.metrics.get(name)]
    lines = [f"{name}: {r.backend} {r.item_id}: {r.metrics[name]}" for name, r in named]
    retried = [r.item_id for r in results if r.outcome == "passed" and r.metrics.get("oom_retries")]
    return lines + [f"passed only alone, after running out of memory: {item}" for item in retried]


def _untested(results: Sequence[Result], planned: Mapping[tuple[str, str], int]) -> list[str]:
    lines = []
    reasons = Counter((r.backend, (r.message.splitlines() or [""])[0]) for r in results if r.outcome == "unavailable")
    for backend in dict.fromkeys(backend for backend, _ in planned):
        missing = []
        for (name, family), total in planned.items():
            ran = sum((r.backend, r.family) == (name, family) and r.outcome != "unavailable" for r in results)
            missing += [f"{family} {total - ran} of {total}"] if name == backend and ran < total else []
        if missing:
            lines.append(f"not tested: {backend}: {', '.join(missing)}")
            mine = [f"  {count}: {reason}" for (name, reason), count in reasons.most_common() if name == backend]
            lines += mine[:REASONS] + [f"  and {len(mine) - REASONS} more reasons, in the record"] * (len(mine) > REASONS)
    return lines
