"""A bench record as the page draws it: a log-log plot, the table beside it, crossovers, advice. Pure; all drawing is in the template."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import ceil, floor, log

from mxfp4_validate.bench import table
from mxfp4_validate.bench.crossover import Pair, advice, columns, fastest, pairs
from mxfp4_validate.bench.record import BenchRun
from mxfp4_validate.bench.spec import GRAPH_TOKENS, Row
from mxfp4_validate.reporting.inputs import BenchRecord

#: The plot's field in the units of its view box; labels of lines stand to its right.
WIDTH, HEIGHT = 640.0, 360.0
#: Marks by column, told apart by shape first; beyond them dashes change.
SHAPES = ("circle", "square", "triangle", "diamond", "cross", "bar")
#: Least distance of two labels at the right edge.
LABEL_STEP = 14.0


@dataclass(frozen=True)
class Dot:
    """One measured point: its place, its quartiles' places, and its words."""

    x: float
    y: float
    low: float
    high: float
    text: str


@dataclass(frozen=True)
class Line:
    """A column of the table as a line; `style` 0.. chooses colour, mark and dash together; `floor` lines have no dots."""

    label: str
    style: int
    mark: str
    path: str
    dots: tuple[Dot, ...]
    label_y: float


@dataclass(frozen=True)
class Plot:
    """Ticks are (place, label). `crossings` are (place, words); `decode_x` is where decode ends, None if it is outside."""

    lines: tuple[Line, ...]
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]
    crossings: tuple[tuple[float, str], ...]
    decode_x: float | None
    summary: str


@dataclass(frozen=True)
class Cell:
    """One number of the table: ms, how many times the floor, its mode, whether it is the fastest at its M."""

    ms: str
    over: str
    mode: str
    best: bool


@dataclass(frozen=True)
class SideView:
    """One (shape, bias) of a record."""

    anchor: str
    title: str
    plot: Plot | None
    labels: tuple[str, ...]
    rows: tuple[tuple[int, tuple[Cell | None, ...], str], ...]
    pairs: tuple[tuple[str, str], ...]
    advice: tuple[str, ...]
    notes: tuple[str, ...]
    details: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class BenchView:
    anchor: str
    record: BenchRecord
    device: str
    clock: str
    sides: tuple[SideView, ...]
    absent: tuple[tuple[str, str], ...]


DETAILS = (
    "column",
    "M",
    "outcome",
    "mode",
    "median ms",
    "first quartile",
    "third quartile",
    "eager ms",
    "host ms",
    "floor ms",
    "tactic",
    "why",
)


def bench_view(record: BenchRecord, at: int) -> BenchView:
    run = record.run
    sides = tuple(_side(run, side, f"bench-{at}-{number}") for number, side in enumerate(run.sides()))
    clock = str(run.facts.get("device", {}).get("clock", ""))
    return BenchView(f"bench-{at}", record, run.device, clock, sides, run.absent())


def gaps(record: BenchRecord) -> list[tuple[str, str]]:
    """What a bench was asked for and does not hold: (what, why)."""
    run = record.run
    rows = [(f"bench of {name}", reason) for name, reason in run.absent()]
    missed: dict[tuple[str, str, str], list[int]] = {}
    for row in run.rows:
        if row.outcome != "measured":
            missed.setdefault((row.label, f"{row.shape}{' with biases' * row.bias}", _first(row.why)), []).append(row.tokens)
    rows += [(f"bench of {label}, {shape}, M = {', '.join(map(str, at))}", why) for (label, shape, why), at in missed.items()]
    return rows + ([(f"bench {run.id}", "cut short before its end")] if run.exit_status is None else [])


def command(run: BenchRun) -> str:
    """What to type to measure the same again."""
    s = run.settings
    line = ["mxfp4-validate", "bench"]
    for name in s["backends"]:
        line += ["--backend", name]
    for name in s["shapes"]:
        line += ["--shape", name]
    line += ["--tokens", ",".join(map(str, s["tokens"]))]
    for name in ("graph", "tuned", "bias", "repeats", "warmup", "seed"):
        line += [f"--{name}", str(s[name])]
    return shlex.join(line)


def _side(run: BenchRun, side: tuple[str, bool], anchor: str) -> SideView:
    rows = run.of(side)
    found = columns(rows)
    tokens = sorted({m for line in found.values() for m in line})
    cells = []
    for m in tokens:
        some = next(line[m] for line in found.values() if m in line)
        under = run.floor(some)
        said = "" if under is None else f"{table.ms(under.ms)} ({under.bound})"
        cells.append((m, tuple(_cell(run, line.get(m), fastest(found, m)) for line in found.values()), said))
    compared = pairs(rows)
    return SideView(
        anchor,
        table.title(run, side),
        _plot(run, found, tokens, compared) if len(tokens) > 1 else None,
        tuple(found),
        tuple(cells),
        tuple((f"{pair.first} and {pair.second}", pair.verdict) for pair in compared),
        tuple(a.sentence for a in advice(rows)),
        tuple(table.notes(rows)),
        tuple(_detail(run, row) for row in rows),
    )


def _cell(run: BenchRun, row: Row | None, best: str) -> Cell | None:
    if row is None or row.median_ms is None:
        return None
    under = run.floor(row)
    over = "" if under is None else f"\u00d7{row.median_ms / under.ms:.1f}"
    return Cell(table.ms(row.median_ms), over, row.mode, row.label == best)


def _detail(run: BenchRun, row: Row) -> tuple[str, ...]:
    under = run.floor(row)
    times = [table.ms(value) if value is not None else "" for value in (row.median_ms, row.q1_ms, row.q3_ms, row.eager_ms, row.host_ms)]
    floored = "" if under is None else table.ms(under.ms)
    return (row.label, str(row.tokens), row.outcome, row.mode, *times, floored, row.tactic, _first(row.why))


def _first(text: str) -> str:
    return (text.splitlines() or [""])[0]


@dataclass(frozen=True)
class Scale:
    """A logarithmic axis: `low` lies at `start`, `high` at `end`."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        return round(self.start + (self.end - self.start) * log(value / self.low) / log(self.high / self.low), 2)


def ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten within [low, high]."""
    decades = range(floor(log(low, 10)), ceil(log(high, 10)) + 1)
    return [v for d in decades for m in (1, 2, 5) if low <= (v := m * 10.0**d) <= high]


def _plot(run: BenchRun, found: Mapping[str, Mapping[int, Row]], tokens: Sequence[int], compared: Sequence[Pair]) -> Plot:
    floors = {m: under.ms for line in found.values() for m, row in line.items() if (under := run.floor(row)) is not None}
    values = [v for line in found.values() for row in line.values() for v in (row.q1_ms, row.q3_ms) if v]
    x = Scale(tokens[0], tokens[-1], 0, WIDTH)
    y = Scale(min([*values, *floors.values()]) / 1.15, max(values) * 1.15, HEIGHT, 0)
    lines = [_line(label, style, line, x, y) for style, (label, line) in enumerate(found.items())]
    if len(floors) > 1:
        path = "M" + "L".join(f"{x(m)} {y(ms)}" for m, ms in sorted(floors.items()))
        lines.append(Line("floor", -1, "none", path, (), y(floors[max(floors)])))
    crossings = [(x(c.tokens), f"M = {c.tokens:.0f}: {c.after} overtakes {c.before}") for pair in compared for c in pair.crossings]
    decode = x(GRAPH_TOKENS) if tokens[0] <= GRAPH_TOKENS < tokens[-1] else None
    spans = [
        f"{label} {table.ms(next(iter(line.values())).median_ms)} to {table.ms(list(line.values())[-1].median_ms)} ms"
        for label, line in found.items()
    ]
    said = f"Median time by tokens M, both axes logarithmic, M = {tokens[0]} to {tokens[-1]}: {'; '.join(spans)}."
    return Plot(
        _spread(lines),
        tuple((x(m), str(m)) for m in tokens),
        tuple((y(v), f"{v:g}") for v in ticks(y.low, y.high)),
        tuple(crossings),
        decode,
        said,
    )


def _line(label: str, style: int, line: Mapping[int, Row], x: Scale, y: Scale) -> Line:
    dots = []
    for m, row in line.items():
        assert row.median_ms is not None
        assert row.q1_ms is not None
        assert row.q3_ms is not None
        text = f"{label}, M = {m}: {table.ms(row.median_ms)} ms, quartiles {table.ms(row.q1_ms)} to {table.ms(row.q3_ms)}, {row.mode}"
        dots.append(Dot(x(m), y(row.median_ms), y(row.q1_ms), y(row.q3_ms), text))
    path = "M" + "L".join(f"{dot.x} {dot.y}" for dot in dots)
    return Line(label, style, SHAPES[style % len(SHAPES)], path, tuple(dots), dots[-1].y)


def _spread(lines: Sequence[Line]) -> tuple[Line, ...]:
    """The lines with their labels moved down where they would touch, and the whole column back up where that leaves the field."""
    order = sorted(range(len(lines)), key=lambda at: lines[at].label_y)
    places = [lines[at].label_y for at in order]
    for at, (above, below) in enumerate(pairwise(list(places))):
        places[at + 1] = max(below, places[at] + LABEL_STEP, above)
    over = max(0.0, places[-1] - HEIGHT) if places else 0.0
    moved = {at: round(place - over, 2) for at, place in zip(order, places, strict=True)}
    return tuple(Line(v.label, v.style, v.mark, v.path, v.dots, moved[at]) for at, v in enumerate(lines))
