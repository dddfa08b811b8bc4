"""An eval pair as the page draws it: coordinates and counts, made from the verdict and both legs. Pure; all drawing is in the template."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil, isnan

from mxfp4_validate.reporting.gates import change_text, signed
from mxfp4_validate.reporting.inputs import AnswerRow, EvalLeg, EvalPair
from mxfp4_validate.reporting.lengths_view import Lengths, lengths
from mxfp4_validate.states import ANSWERED, MODEL_STATES, TRUNCATED
from mxfp4_validate.statistics.distributions import one_sided_z

#: The five grades of a sample, in the order of the bars: key, word, what it means.
GRADES = (
    ("right", "right", "answered, and equal to the gold answer"),
    ("wrong", "wrong", "answered, and not equal to it"),
    ("none", "no answer", "stopped without an answer that could be read, or with nothing"),
    ("cut", "cut off", "hit the token cap"),
    ("missing", "missing", "no outcome of the model: an error, a timeout, or never asked; not scored"),
)
#: Questions a grid shows at most; beyond it those that changed come first, then those not always right. One or two repeats take little room.
GRID_ROWS, COMPACT_ROWS = 240, 1500
CHANGED_SHOWN = 60


def grade_of(row: AnswerRow) -> str:
    """Which of the five grades a sample has."""
    if row.state == ANSWERED:
        return "right" if row.correct else "wrong"
    if row.state == TRUNCATED:
        return "cut"
    return "none" if row.state in MODEL_STATES else "missing"


@dataclass(frozen=True)
class Bar:
    """One question of the change strip: x, height from the zero line (up is a gain), and its words."""

    x: float
    width: float
    y: float
    height: float
    kind: str
    text: str


@dataclass(frozen=True)
class GridRow:
    """One question: its grades by repeat in both legs, and whether it changed."""

    question_id: str
    baseline: tuple[str, ...]
    candidate: tuple[str, ...]
    change: str


@dataclass(frozen=True)
class Grid:
    """`compact`: with one or two repeats only changed questions are named, and come first."""

    rows: tuple[GridRow, ...]
    hidden: int
    repeats: int
    compact: bool


@dataclass(frozen=True)
class Segment:
    kind: str
    count: int
    x: float
    width: float


@dataclass(frozen=True)
class Changed:
    """A changed question with one answer of each leg: the first repeat in which they differ."""

    question_id: str
    gold: str
    counts: str
    change: str
    baseline: AnswerRow
    candidate: AnswerRow


@dataclass(frozen=True)
class EvalView:
    """Everything the page says of one comparison."""

    title: str
    anchor: str
    pair: EvalPair
    sentence: str
    strip: tuple[Bar, ...]
    unchanged: int
    grid: Grid
    bars: tuple[tuple[str, tuple[Segment, ...], int], ...]
    lengths: Lengths | None
    changed: tuple[Changed, ...]
    changed_total: int
    scores: tuple[tuple[str, str, str], ...]
    detectable: str


def eval_view(pair: EvalPair, at: int, named: str) -> EvalView:
    """The view of the pair number `at`, which the report calls `named`."""
    legs = [leg for leg in (pair.baseline, pair.candidate) if leg is not None]
    by_question = [_by_question(leg) for leg in legs]
    if len(legs) == 1:
        by_question.append({})
    changes = _changes(*by_question) if pair.candidate else {}
    bars = tuple(
        (name, _segments(leg), len(leg.answers))
        for name, leg in zip(("baseline", "candidate"), (pair.baseline, pair.candidate), strict=True)
        if leg
    )
    changed = _changed(pair, by_question, changes)
    sentence = (
        change_text(pair.verdict, named)
        if pair.verdict and not isnan(pair.verdict.estimate)
        else pair.refused or "One run alone is not judged."
    )
    return EvalView(
        title=named,
        anchor=f"eval-{at}",
        pair=pair,
        sentence=sentence,
        strip=_strip(changes),
        unchanged=sum(value == 0 for value in changes.values()),
        grid=_grid(by_question, changes, max(leg.run.repeats for leg in legs)),
        bars=bars,
        lengths=lengths(legs),
        changed=changed[:CHANGED_SHOWN],
        changed_total=len(changed),
        scores=tuple(_scores(legs)),
        detectable=_detectable(pair),
    )


def _by_question(leg: EvalLeg) -> dict[str, list[AnswerRow]]:
    rows: dict[str, list[AnswerRow]] = {question: [] for question in leg.leg.question_ids}
    for row in leg.answers:
        rows.setdefault(row.question_id, []).append(row)
    return rows


def _share(rows: Sequence[AnswerRow]) -> float | None:
    """Right of those that have an outcome; None if none has."""
    present = [row for row in rows if row.state in MODEL_STATES]
    return sum(grade_of(row) == "right" for row in present) / len(present) if present else None


def _changes(baseline: Mapping[str, Sequence[AnswerRow]], candidate: Mapping[str, Sequence[AnswerRow]]) -> dict[str, float]:
    """Candidate minus baseline by question, for questions both have an outcome of."""
    found = {}
    for question, rows in baseline.items():
        before, after = _share(rows), _share(candidate.get(question, ()))
        if before is not None and after is not None:
            found[question] = after - before
    return found


def _strip(changes: Mapping[str, float]) -> tuple[Bar, ...]:
    """Bars sorted by change over a 1000 x 100 field whose zero line is at 50; unchanged questions leave their room free."""
    order = sorted(changes.items(), key=lambda item: (item[1], item[0]))
    width = 1000 / max(1, len(order))
    bars = []
    for i, (question, change) in enumerate(order):
        if change:
            height = 50 * abs(change)
            top = 50 - height if change > 0 else 50.0
            kind = "gain" if change > 0 else "loss"
            words = f"{question} {signed(change)} points"
            bars.append(Bar(round(i * width, 2), round(max(width - 0.6, width * 0.6), 2), round(top, 2), round(height, 2), kind, words))
    return tuple(bars)


def _grid(by_question: Sequence[Mapping[str, Sequence[AnswerRow]]], changes: Mapping[str, float], repeats: int) -> Grid:
    baseline, candidate = by_question

    def grades(rows: Sequence[AnswerRow]) -> tuple[str, ...]:
        found = {row.repeat: grade_of(row) for row in rows}
        return tuple(found.get(repeat, "missing") for repeat in range(repeats))

    rows = [
        GridRow(q, grades(r), grades(candidate.get(q, ())) if candidate else (), signed(changes[q]) if changes.get(q) else "")
        for q, r in baseline.items()
    ]
    compact = repeats <= 2
    most = COMPACT_ROWS if compact else GRID_ROWS
    if len(rows) <= most:
        return Grid(tuple(sorted(rows, key=lambda row: not row.change) if compact else rows), 0, repeats, compact)
    # A large set: changed questions first, worst loss first, then those that are not always right, in the order of the set.
    place = {row.question_id: i for i, row in enumerate(rows)}
    spotless = {row.question_id for row in rows if set(row.baseline) | set(row.candidate) == {"right"}}
    rows.sort(key=lambda row: (row.question_id in spotless, not row.change, changes.get(row.question_id, 0.0), place[row.question_id]))
    return Grid(tuple(rows[:most]), len(rows) - most, repeats, compact)


def _segments(leg: EvalLeg) -> tuple[Segment, ...]:
    counts = Counter(grade_of(row) for row in leg.answers)
    counts["missing"] += leg.leg.states.size - len(leg.answers)
    found, x = [], 0.0
    for kind, _, _ in GRADES:
        width = 1000 * counts[kind] / max(1, leg.leg.states.size)
        if counts[kind]:
            found.append(Segment(kind, counts[kind], round(x, 2), round(width, 2)))
        x += width
    return tuple(found)


def _changed(pair: EvalPair, by_question: Sequence[Mapping[str, Sequence[AnswerRow]]], changes: Mapping[str, float]) -> tuple[Changed, ...]:
    """Changed questions, largest loss first."""
    found = []
    for question, change in sorted(changes.items(), key=lambda item: (item[1], item[0])):
        if not change:
            continue
        baseline, candidate = (list(rows.get(question, ())) for rows in by_question)
        other = {row.repeat: row for row in candidate}
        pairs = [(row, other[row.repeat]) for row in baseline if row.repeat in other]
        pairs.sort(key=lambda two: (grade_of(two[0]) == grade_of(two[1]), (grade_of(two[0]) == "right") != (change < 0), two[0].repeat))
        if pairs:
            counts = " \u2192 ".join(f"{sum(grade_of(r) == 'right' for r in rows)} of {len(rows)}" for rows in (baseline, candidate))
            found.append(Changed(question, pair.baseline.golds.get(question, ""), counts, signed(change), *pairs[0]))
    return tuple(found)


def _scores(legs: Sequence[EvalLeg]) -> list[tuple[str, str, str]]:
    """pass@1, majority@k and pass@k of each leg."""
    columns = []
    for leg in legs:
        rows = _by_question(leg)
        whole = [r for r in rows.values() if len(r) == leg.run.repeats and all(row.state in MODEL_STATES for row in r)]
        one = [share for share in map(_share, rows.values()) if share is not None]
        many = [_majority(r) for r in whole]
        ever = [any(grade_of(row) == "right" for row in r) for r in whole]
        columns.append([_percent(one), _percent(many), _percent([float(e) for e in ever])])
    k = legs[0].run.repeats
    names = ("pass@1", f"majority@{k}", f"pass@{k}") if k > 1 else ("pass@1",)
    return [(name, columns[0][i], columns[1][i] if len(columns) > 1 else "\u2013") for i, name in enumerate(names)]


def _percent(values: Sequence[float]) -> str:
    return f"{100 * sum(values) / len(values):.2f} %" if values else "\u2013"


def _majority(rows: Sequence[AnswerRow]) -> float:
    """1 if the commonest answer is right, the right one's share of a tie, 0 without an answer."""
    votes = Counter(row.answer for row in rows if row.state == ANSWERED and row.answer is not None)
    if not votes:
        return 0.0
    top = [answer for answer, count in votes.items() if count == max(votes.values())]
    right = {row.answer for row in rows if grade_of(row) == "right"}
    return sum(answer in right for answer in top) / len(top)


def _detectable(pair: EvalPair) -> str:
    """The loss this comparison would have called a FAIL nine times in ten, from its own standard error."""
    verdict = pair.verdict
    if verdict is None or isnan(verdict.se) or not verdict.looks:
        return "unknown: there is no comparison"
    loss = (verdict.looks[-1].critical + one_sided_z(0.1)) * verdict.se
    questions = len(pair.baseline.leg.question_ids)
    more = ceil(verdict.looks[-1].repeats * (loss / verdict.margin) ** 2) if verdict.margin else 0
    return (
        f"a loss of {100 * loss:.1f} points on these {questions} questions x {verdict.looks[-1].repeats} repeats would fail nine times in ten; "
        f"to see {100 * verdict.margin:.1f} points that often takes about {more} repeats"
    )
