"""A bench on the terminal: a line a row as it is measured, and at the end the table, the crossovers and the advice. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from mxfp4_validate.bench.crossover import advice, columns, fastest, pairs
from mxfp4_validate.bench.record import BenchRun
from mxfp4_validate.bench.spec import Row


def ms(value: float | None) -> str:
    """Milliseconds to four significant digits."""
    return "-" if value is None else f"{value:#.4g}".rstrip(".")


def row_line(row: Row) -> str:
    """One row as soon as it is measured."""
    where = f"{row.shape + ' +bias' * row.bias:<18} m={row.tokens:<5} {row.label:<28}"
    if row.median_ms is None:
        return f"{where} {row.outcome}: {row.why.splitlines()[0] if row.why else ''}"
    eager = f"  (eager {ms(row.eager_ms)})" if row.eager_ms is not None else ""
    tuned = f"  tactic {row.tactic}" if row.tuned else ""
    return f"{where} {ms(row.median_ms):>8} ms  [{ms(row.q1_ms)}, {ms(row.q3_ms)}]  {row.mode}{eager}{tuned}"


def summary(run: BenchRun) -> str:
    """Table, crossovers, advice and what is missing, for every (shape, bias)."""
    lines = [f"device {run.device}; {run.facts.get('device', {}).get('clock', '')}"]
    for side in run.sides():
        rows = run.of(side)
        lines += ["", title(run, side), *grid(run, rows)]
        lines += [f"  {pair.first} / {pair.second}: {pair.verdict}" for pair in pairs(rows)]
        lines += [f"  {found.sentence}" for found in advice(rows)]
        lines += [f"  note: {note}" for note in notes(rows)]
    lines += [f"unavailable: {name}: {reason}" for name, reason in run.absent()]
    return "\n".join(lines)


def title(run: BenchRun, side: tuple[str, bool]) -> str:
    E, H, I, k = run.settings["shapes"][side[0]]  # noqa: E741
    return f"{side[0]} (E={E}, H={H}, I={I}, top-{k}), {'with' if side[1] else 'without'} biases"


def grid(run: BenchRun, rows: Sequence[Row]) -> list[str]:
    """M down, columns across: median ms and, behind x, how many times the floor; a star marks the fastest, e a time with the host's in it."""
    found = columns(rows)
    if not found:
        return ["  nothing was measured"]
    tokens = sorted({m for line in found.values() for m in line})
    table = [["M", *found, "floor"]]
    for m in tokens:
        some = next(line[m] for line in found.values() if m in line)
        floor = run.floor(some)
        cells = [str(m)]
        for label, line in found.items():
            row = line.get(m)
            over = f" x{row.median_ms / floor.ms:.1f}" if row and row.median_ms and floor else ""
            mark = "" if row is None else ("*" if fastest(found, m) == label else "") + ("e" if row.mode == "eager" else "")
            cells.append("-" if row is None else f"{ms(row.median_ms)}{over}{mark}")
        table.append([*cells, "unknown" if floor is None else f"{ms(floor.ms)} {floor.bound}"])
    widths = [max(len(line[at]) for line in table) for at in range(len(table[0]))]
    return ["  " + "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in table]


def notes(rows: Iterable[Row]) -> list[str]:
    """What a reader must know of the numbers, each said once with the columns it is about."""
    said: dict[str, list[str]] = {}
    for row in rows:
        reasons = [*row.notes]
        if row.outcome != "measured":
            reasons.append(f"{row.outcome}: {row.why.splitlines()[0] if row.why else ''}")
        elif row.why.startswith("not captured"):
            reasons.append(row.why)
        for text in reasons:
            said.setdefault(text, []).append(f"{row.label} m={row.tokens}" if row.outcome != "measured" else row.label)
    return [f"{', '.join(dict.fromkeys(who))}: {text}" for text, who in said.items()]
