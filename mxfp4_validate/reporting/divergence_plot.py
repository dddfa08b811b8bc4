"""Every sequence's mean KL against the floor's, both axes logarithmic and alike. Pure; the drawing is in the template."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mxfp4_validate.divergence import limits as table
from mxfp4_validate.divergence.rule import Floor
from mxfp4_validate.reporting.bench_view import Scale, ticks
from mxfp4_validate.reporting.inputs import SequenceRow

#: The field's side in the units of its view box.
SIDE = 360.0
#: Sequences that are named, the largest.
NAMED = 10


@dataclass(frozen=True)
class Plot:
    """`cloud` is a path with a dot a sequence; `named` are (x, y, words) of the largest; `limit_y` is where a sequence is too large."""

    cloud: str
    named: tuple[tuple[float, float, str], ...]
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]
    limit_y: float | None
    limit_text: str
    summary: str


def plot(rows: Sequence[SequenceRow], floor: Floor, factor: float) -> Plot:
    """A line at `factor` times the floor's largest sequence. What is 0 or below the printing of numbers lies on the edge."""
    least = table.SAME.value
    limit = factor * floor.largest
    values = [max(value, least) for row in rows for value in (row.kl, row.floor)]
    low, high = min(values) / 1.3, max([*values, limit]) * 1.3
    x, y = Scale(low, high, 0, SIDE), Scale(low, high, SIDE, 0)
    places = {row.place: (x(max(row.floor, least)), y(max(row.kl, least))) for row in rows}
    largest = sorted(rows, key=lambda row: -row.kl)[:NAMED]
    named = tuple(
        (*places[r.place], f"sequence {r.place}: candidate {r.kl:.3g}, floor {r.floor:.3g} nat, {r.flips} flips") for r in largest
    )
    marks = ticks(low, high)
    marks = marks if len(marks) <= 8 else [v for v in marks if f"{v:e}".startswith("1.0")]
    above = sum(row.kl > row.floor for row in rows)
    said = (
        f"Mean KL of {len(rows)} sequences, candidate against floor, both axes logarithmic: {above} of {len(rows)} lie above the diagonal; "
        f"candidate {min(r.kl for r in rows):.3g} to {max(r.kl for r in rows):.3g} nat, floor {min(r.floor for r in rows):.3g} to "
        f"{max(r.floor for r in rows):.3g} nat."
    )
    return Plot(
        "".join(f"M{a} {b}h0" for a, b in places.values()),
        named,
        tuple((x(v), f"{v:g}") for v in marks),
        tuple((y(v), f"{v:g}") for v in marks),
        y(limit),
        f"{factor:g} times the floor's largest",
        said,
    )
