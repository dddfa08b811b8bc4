"""A divergence record as the page draws it: decision, ratios, columns beside the floor's, worst sequences, arms, a plot. Pure."""

from __future__ import annotations

import shlex
from dataclasses import asdict, dataclass
from math import isfinite
from typing import Any

from mxfp4_validate.divergence.analyse import plain
from mxfp4_validate.divergence.limits import Limits
from mxfp4_validate.divergence.rule import Decision, Floor
from mxfp4_validate.divergence.signed import Ratio
from mxfp4_validate.reporting.divergence_plot import Plot, plot
from mxfp4_validate.reporting.inputs import DivergenceRecord, moe_backend

SAID = {
    "GO ON": "No divergence beyond the baseline's own. This passes nothing by itself: it lets the evals begin.",
    "FAIL": "The candidate leaves the baseline further than the floor does.",
    "UNDECIDED": "Neither a failure nor free of one: what is missing stands below.",
    "INCOMPLETE": "Not everything was scored, so nothing was decided.",
    "INVALID": "The record cannot be judged.",
}


@dataclass(frozen=True)
class DivergenceView:
    """`statistics`: (name, estimate, lower, upper, when it fails); `columns`: (name, candidate, floor); `worst`: cells of a row.

    `different` and `equal`: (value, one text an arm); an equal value has one text.
    """

    anchor: str
    record: DivergenceRecord
    said: str
    reasons: tuple[str, ...]
    facts: tuple[tuple[str, str], ...]
    statistics: tuple[tuple[str, str, str, str, str], ...]
    columns: tuple[tuple[str, str, str], ...]
    floor_name: str
    worst: tuple[tuple[str, ...], ...]
    arms: tuple[tuple[str, ...], ...]
    different: tuple[tuple[str, tuple[str, ...]], ...]
    equal: tuple[tuple[str, str], ...]
    plot: Plot | None
    level: str


def divergence_view(record: DivergenceRecord, at: int) -> DivergenceView:
    found, floor = record.found, record.floor
    columns = [(name, _number(value), _number(found.floor_columns.get(name))) for name, value in found.columns.items()] if found else []
    different, equal = _identities(record)
    return DivergenceView(
        f"divergence-{at}",
        record,
        SAID[record.outcome],
        found.decision.reasons if found else (record.refused,),
        _facts(record),
        _statistics(found.decision, floor, found.limits) if found and floor else (),
        tuple(columns),
        "floor" if floor is None else "declared" if floor.declared else "A/A",
        _worst(record),
        tuple(_arm_cells(record)),
        different,
        equal,
        plot(record.rows, floor, found.limits.tail_factor) if found and floor and not floor.assumed and len(record.rows) > 1 else None,
        f"{100 * (found.limits if found else Limits()).level:g} %",
    )


def _number(value: float | None) -> str:
    return f"{value:.4g}".replace("-", "\u2212", value < 0) if value is not None and isfinite(value) else "\u2013"


def _floor_text(record: DivergenceRecord) -> str:
    """What the candidate was held against."""
    if record.found is None or record.floor is None:
        return "none"
    d, boots = record.found.decision, {arm.row.boot for arm in record.arms if arm.row.role in ("baseline", "floor")}
    size = f"mean KL {_number(d.floor)} nat"
    if d.assumed:
        return f"assumed, {size}: A/A repeats its own bits, or nearly, and no other backend was declared"
    if d.declared:
        names = ", ".join(arm.row.name for arm in record.arms if arm.row.role == "declared")
        return f"declared backends ({names}), {size}: A/A repeats its own bits, or nearly"
    runs = sum(arm.row.role == "floor" for arm in record.arms)
    return f"A/A, {size}: {runs} more run{'s' * (runs != 1)} of the baseline, {len(boots)} boot{'s' * (len(boots) != 1)} in all"


def _facts(record: DivergenceRecord) -> tuple[tuple[str, str], ...]:
    c = record.corpus
    asked = "" if c.requests is None else f" in {c.requests} requests"
    sent = sum(arm.sent for arm in record.arms)
    rows = [
        ("floor", _floor_text(record)),
        ("corpus", f"{c.sha256}, {c.sequences} sequences"),
        ("corpus made by", c.made_by),
        ("width", f"{c.width} positions a request at most, protocol {c.protocol}"),
        (
            "cost",
            f"{c.scored} positions scored an arm{asked}, {100 * c.aime_share:.2g} % of the tokens of an AIME25 run; {sent} tokens sent in all",
        ),
    ]
    if record.found:
        d = record.found.decision
        rows += [("to decide", f"about {d.more} scored positions")] if d.more else []
        rows.append(("an intermittent fault", f"must touch {100 * d.seen_share:.2g} % of sequences to be met with 95 % chance"))
        rows += [("no number", f"candidate, sequences {_places(record.found.not_finite)}")] if record.found.not_finite else []
    return tuple((name, value) for name, value in rows if value)


def _places(places: tuple[int, ...], most: int = 20) -> str:
    return ", ".join(map(str, places[:most])) + (f" and {len(places) - most} more" if len(places) > most else "")


def _statistics(d: Decision, floor: Floor, limits: Limits) -> tuple[tuple[str, str, str, str, str], ...]:
    """Each statistic beside the limit that it was judged by, the rule's own or a calibration's."""
    rows = [
        _ratio("mean KL over the floor", d.kl, limits.ratio),
        _ratio("typical KL over the floor", d.typical, limits.typical),
        _ratio("argmax flips over the floor", d.flips, limits.flip_ratio),
    ]
    least = f"{floor.least_outstanding} sequences above" if floor.least_outstanding > 1 else "above"
    rows.append(("worst sequence over the floor's largest", _number(d.tail), "", "", f"{least} {limits.tail_factor:g}"))
    if d.drift is None:
        return (*rows, ("drift to one side", "unknown, too few sequences", "", "", ""))
    size = f"{_number(d.drift.estimate)} nat a position, t {_number(d.drift.t)}; one of {_number(d.drift.shows)} would show"
    limit = f"lower above {_number(limits.drift * floor.scatter)}"
    return (*rows, ("drift to one side", size, _number(d.drift.least), "", limit))


def _ratio(name: str, ratio: Ratio | None, limit: float) -> tuple[str, str, str, str, str]:
    if ratio is None:
        return name, "unknown, too few sequences", "", "", f"lower above {limit:g}"
    return name, _number(ratio.estimate), _number(ratio.lower), _number(ratio.upper), f"lower above {limit:g}"


def _worst(record: DivergenceRecord) -> tuple[tuple[str, ...], ...]:
    rows = {row.place: row for row in record.rows}
    worst = [rows[place] for place in record.found.worst if place in rows] if record.found else []
    return tuple(
        (str(r.place), str(r.positions), _number(r.kl), _number(r.floor), _number(r.kl / r.floor if r.floor else None), str(r.flips))
        for r in worst
    )


def _arm_cells(record: DivergenceRecord) -> list[tuple[str, ...]]:
    """Name, role, boot, backend, sequences, sequences without a number, tokens sent. No address: it belongs to a machine."""
    found: list[tuple[str, ...]] = []
    for arm in record.arms:
        backend = moe_backend(arm.row.identity) or "unknown"
        scored = f"{arm.answered} of {record.corpus.sequences}"
        found.append((arm.row.name, arm.row.role, arm.row.boot, backend, scored, str(len(arm.not_finite)), str(arm.sent)))
    return found


def _identities(record: DivergenceRecord) -> tuple[tuple[tuple[str, tuple[str, ...]], ...], tuple[tuple[str, str], ...]]:
    """Values that differ between the arms, and those that do not."""
    different, equal = [], []
    for name in sorted({key for arm in record.arms for key in arm.row.identity}):
        values = tuple(str(arm.row.identity.get(name, "\u2013")) for arm in record.arms)
        if len(set(values)) > 1:
            different.append((name, values))
        else:
            equal.append((name, values[0]))
    return tuple(different), tuple(equal)


def gaps(record: DivergenceRecord) -> list[tuple[str, str]]:
    """What a reader could believe to be covered and is not: (what, why)."""
    name, total, rows = f"divergence {record.source.name}", record.corpus.sequences, []
    for arm in record.arms:
        if arm.answered < total:
            rows.append((f"{name}: {total - arm.answered} of {total} sequences of arm {arm.row.name}", "not scored yet"))
    if record.found is None:
        return [*rows, (f"{name}: no decision", record.refused)]
    d = record.found.decision
    if d.assumed:
        rows.append((f"{name}: what rounding alone does on this server", "A/A repeats its own bits, the floor is assumed"))
    if d.floor == d.floor:  # a candidate without any number was compared with nothing
        rows.append((f"{name}: faults in fewer than {100 * d.seen_share:.2g} % of sequences", "met with less than 95 % chance"))
    return rows


def command(record: DivergenceRecord) -> str:
    """What to type to score the same again; the addresses and the requests in flight are not in a record."""
    arms = [arm.row for arm in record.arms]
    baseline = {row.boot for row in arms if row.role == "baseline"}
    floors = [row for row in arms if row.role == "floor"]
    line = ["mxfp4-validate", "diverge", "BASELINE_URL", "CANDIDATE_URL", "--corpus", "CORPUS.json", "--width", str(record.corpus.width)]
    line += ["--protocol", record.corpus.protocol]
    for row in floors:
        again = row.boot in baseline
        line += ["--floor", "BASELINE_URL" if again else "FLOOR_URL"] if len(floors) > 1 or not again else []
    line += [word for row in arms if row.role == "declared" for word in ("--declared", "DECLARED_URL")]
    return shlex.join(line)


def provenance(record: DivergenceRecord) -> tuple[tuple[str, str], ...]:
    rows = (("record", record.source.name), ("sha256", record.source.sha256), ("corpus", record.corpus.sha256))
    return (*rows, ("begun", record.created), ("scored with", f"mxfp4-validate {record.version}"))


def embedded(record: DivergenceRecord) -> dict[str, Any]:
    """The record for the page's JSON: decision, columns, arms, a row a sequence; what is no number is null."""
    found = record.found
    about = {"id": record.run_id, "created": record.created, "version": record.version, "corpus": asdict(record.corpus)}
    arms = [
        {"name": a.row.name, "role": a.row.role, "boot": a.row.boot, "identity": dict(a.row.identity), "answered": a.answered}
        for a in record.arms
    ]
    said: dict[str, Any] = {"source": asdict(record.source), "run": about, "candidate": record.candidate, "arms": arms}
    said |= {"outcome": record.outcome, "refused": record.refused}
    if found:
        said |= {"decision": plain(asdict(found.decision)), "columns": plain(found.columns), "floor_columns": plain(found.floor_columns)}
        said |= {"worst": list(found.worst), "not_finite": list(found.not_finite)}
    rows = [[r.place, r.positions, r.kl, r.flips, r.floor] for r in record.rows]
    return said | {"row_columns": ["place", "positions", "kl", "flips", "floor_kl"], "rows": rows}
