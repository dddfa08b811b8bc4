"""A kernel record as the page draws it: heat maps, worst cases, layouts, determinism, the whole table. Pure."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf

from mxfp4_validate.cases import SHAPES, TOKEN_COUNTS, MoeCase
from mxfp4_validate.errors import MxfpError
from mxfp4_validate.records.store import Result
from mxfp4_validate.reporting.inputs import KernelRecord
from mxfp4_validate.tolerances import BIT_EQUAL_SHARE, EXACT_RELATIVE_L2

WORST = 10


@dataclass(frozen=True)
class Cell:
    """The worst case of one shape and one M: its error over its budget (1.0 is the line), how hot (0..5, 5 is over), and its words."""

    ratio: str
    level: int
    text: str


@dataclass(frozen=True)
class HeatMap:
    """Rows are shapes, columns tokens M; a missing cell was not measured."""

    title: str
    backend: str
    columns: tuple[int, ...]
    rows: tuple[tuple[str, tuple[Cell | None, ...]], ...]
    reading: str


@dataclass(frozen=True)
class Strip:
    """One determinism or tactic-sweep result as counts."""

    check: str
    case_id: str
    outcome: str
    facts: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class CaseRow:
    """A row of the whole table; `detail` is what failed."""

    check: str
    case_id: str
    backend: str
    outcome: str
    different: str
    unexplained: str
    seconds: str
    detail: str = ""
    repro: str = ""


@dataclass(frozen=True)
class KernelView:
    anchor: str
    record: KernelRecord
    maps: tuple[HeatMap, ...]
    worst: tuple[CaseRow, ...]
    layouts: tuple[CaseRow, ...]
    read: tuple[tuple[str, str], ...]
    strips: tuple[Strip, ...]
    rows: tuple[CaseRow, ...]


def kernel_view(record: KernelRecord, at: int) -> KernelView:
    maps = [m for backend in dict.fromkeys(r.backend for r in record.results) for m in _maps(record, backend)]
    rows = tuple(map(_row, record.results))
    layouts = [_row(r) for r in record.results if r.family == "layout" or r.check.startswith("readout")]
    return KernelView(
        f"kernel-{at}", record, tuple(maps), _worst(record.results), tuple(layouts), _read(record.results), _strips(record.results), rows
    )


def repro(result: Result) -> str:
    """The command that repeats one item."""
    return shlex.join(["mxfp4-validate", "kernel", "--backend", result.backend, "--case", result.case_id, "--check", result.check])


def number(value: float) -> str:
    """A count with thousands kept apart, or a fraction to three digits."""
    return f"{value:,}" if isinstance(value, int) else f"{value:.3g}"


def _metric(result: Result, name: str) -> float | None:
    value = result.metrics.get(name)
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def _row(result: Result) -> CaseRow:
    different, unexplained = _metric(result, "different"), _metric(result, "unexplained")
    bad = result.outcome != "passed"
    return CaseRow(
        result.check,
        result.case_id,
        result.backend,
        result.outcome,
        "" if different is None else number(different),
        "" if unexplained is None else number(unexplained),
        f"{result.seconds:.2f}",
        result.message if bad else "",
        repro(result) if bad and result.outcome != "unavailable" else "",
    )


def _case(result: Result) -> MoeCase | None:
    try:
        return MoeCase.parse(result.case_id)
    except (MxfpError, ValueError):
        return None


def _over_bits(result: Result) -> float | None:
    """Share of differing bits over the share that may differ; over the line with any bit that nothing explains."""
    equal, unexplained = _metric(result, "bit_equal"), _metric(result, "unexplained")
    if not result.check.endswith("twin") or equal is None:
        return None
    return inf if unexplained or result.outcome != "passed" else (1 - equal) / (1 - BIT_EQUAL_SHARE.value)


def _over_exact(result: Result) -> float | None:
    error, limit = _metric(result, "exact_relative_l2"), _metric(result, "exact_limit") or EXACT_RELATIVE_L2.value
    return None if not result.check.endswith("twin") or error is None else error / limit


def _maps(record: KernelRecord, backend: str) -> list[HeatMap]:
    mine = [r for r in record.results if r.backend == backend]
    kinds: tuple[tuple[str, Callable[[Result], float | None], str], ...] = (
        (
            "bits that differ from the ordered twin, over the share that may",
            _over_bits,
            f"1.0 is {100 * (1 - BIT_EQUAL_SHARE.value):.2f} % of the outputs; every differing bit must be explained as well, one that is not is hot at once. "
            "Fewer than 16 rows are only asked for explanations: differences clump, so a small M may stand above 1 and pass.",
        ),
        (
            "distance from float64, over its budget",
            _over_exact,
            f"relative L2 over {EXACT_RELATIVE_L2.value:g} for four roundings to bf16 and in proportion to the root of their number for more: "
            "no correct W4A16 kernel exceeds it; measured up to 129 tokens.",
        ),
    )
    found = [_map(title, mine, backend, ratio, reading) for title, ratio, reading in kinds]
    return [m for m in found if m.rows]


def _map(title: str, results: Sequence[Result], backend: str, ratio: Callable[[Result], float | None], reading: str) -> HeatMap:
    cells: dict[tuple[str, int], tuple[float, Result]] = {}
    for result in results:
        case, value = _case(result), ratio(result)
        if case is not None and value is not None:
            key = (case.shape.name, case.num_tokens)
            if key not in cells or value > cells[key][0]:
                cells[key] = (value, result)
    tokens = tuple(sorted({m for _, m in cells}, key=lambda m: (m not in TOKEN_COUNTS, m)))
    names = sorted({name for name, _ in cells}, key=lambda name: (list(SHAPES).index(name) if name in SHAPES else 99, name))
    rows = tuple((name, tuple(_cell(cells.get((name, m))) for m in tokens)) for name in names)
    return HeatMap(title, backend, tokens, rows, reading)


def _cell(found: tuple[float, Result] | None) -> Cell | None:
    if found is None:
        return None
    value, result = found
    different, unexplained = _metric(result, "different") or 0, _metric(result, "unexplained") or 0
    elements = _metric(result, "elements") or 0
    text = (
        f"{result.case_id}: {number(different)} of {number(elements)} outputs differ, {number(unexplained)} unexplained, {result.outcome}"
    )
    failed = result.outcome != "passed"
    level = 5 if failed or value == inf else 0 if value == 0 else 1 + sum(value > edge for edge in (0.1, 0.5, 0.8))
    return Cell("bad" if value == inf else f"{value:.2f}", level, text)


def _worst(results: Sequence[Result]) -> tuple[CaseRow, ...]:
    """Failures first, then the cases with the lowest share of equal bits."""

    def badness(result: Result) -> tuple[bool, float, float, str]:
        equal = _metric(result, "bit_equal")
        return (
            result.outcome in ("passed", "unavailable"),
            -(_metric(result, "unexplained") or 0),
            1.0 if equal is None else equal,
            result.item_id,
        )

    ranked = sorted((r for r in results if r.outcome != "unavailable"), key=badness)
    return tuple(_row(r) for r in ranked[:WORST] if r.outcome != "passed" or (_metric(r, "bit_equal") or 1.0) < 1)


def _read(results: Sequence[Result]) -> tuple[tuple[str, str], ...]:
    """How much of the weights was read back or compared, summed over cases."""
    names = {
        "codes_read": "codes read back through the kernel",
        "scale_bytes_read": "scale bytes read back",
        "bytes": "packed bytes compared",
    }
    sums = {text: sum(int(_metric(r, name) or 0) for r in results if r.outcome == "passed") for name, text in names.items()}
    layouts = sorted({str(r.metrics["layout"]) for r in results if "layout" in r.metrics})
    return tuple((text, number(n)) for text, n in sums.items() if n) + tuple(("layout found", name) for name in layouts)


def _strips(results: Sequence[Result]) -> tuple[Strip, ...]:
    shown = ("calls", "repeats", "tactic_groups", "tactics", "orders", "bit_equal", "different", "tactic", "full_strength")
    return tuple(
        Strip(
            r.check,
            r.case_id,
            r.outcome,
            tuple((name.replace("_", " "), _fact(r.metrics[name])) for name in shown if name in r.metrics),
        )
        for r in results
        if r.family == "determinism"
    )


def _fact(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return number(value) if isinstance(value, int | float) else str(value)
