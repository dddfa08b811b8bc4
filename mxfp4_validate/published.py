"""Published scores with their protocols, and the band that an anchor check may ask of a baseline: a level shared by both legs shows nowhere else."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from mxfp4_validate.errors import UnknownName, UsageError
from mxfp4_validate.evalspec import EVALS
from mxfp4_validate.statistics.distributions import normal_quantile
from mxfp4_validate.statistics.intervals import wilson

#: Two-sided level of one row's band. High, because several rows stand for one model and a false alarm here stops a night's run; a baseline
#: with thinking off or answers cut misses by 5 to 25 points, ten times the width.
CONFIDENCE = 0.99


@dataclass(frozen=True)
class Published:
    """One published score.

    Attributes:
        score, sem, missing: percent; `sem` as printed, over runs; `missing` is the share without an answer; None where not given.
        repeats: 0 if the number of samples is not stated; max_tokens 0 and temperature None likewise.
        effort: `low`, `medium`, `high`, `max`, `none` for thinking off, "" if not stated.
        unusable: why it may not anchor a baseline, "" if it may.
    """

    model: str
    eval: str
    score: float
    questions: int
    repeats: int
    protocol: str
    source: str
    effort: str = ""
    sem: float | None = None
    missing: float | None = None
    temperature: float | None = None
    max_tokens: int = 0
    backend: str = ""
    hardware: str = ""
    date: str = ""
    unusable: str = ""

    def band(self) -> tuple[float, float]:
        """Where the true score lies by this row, as fractions: Wilson's interval of all samples as if independent.

        Wider than the truth where questions differ in difficulty (Hoeffding 1956), which is the safe side for a check that can only stop a
        run. `UsageError` if the row says no number of samples.
        """
        if not self.repeats:
            raise UsageError(f"{self.model} {self.eval} {self.score} ({self.source}) states no number of samples, so it has no band")
        low, high = wilson(self.score / 100, self.questions * self.repeats, normal_quantile(1 - (1 - CONFIDENCE) / 2))
        return float(low), float(high)

    def line(self) -> str:
        """The row for a reader."""
        size = f"{self.questions} x {self.repeats}" if self.repeats else f"{self.questions}, repeats not stated"
        parts = [self.effort and f"effort {self.effort}", self.protocol, self.backend, self.hardware, size, self.date, self.source]
        return f"{self.score:g} %: {'; '.join(part for part in parts if part)}" + (
            f" (not an anchor: {self.unusable})" if self.unusable else ""
        )


@dataclass(frozen=True)
class Anchor:
    """The band of a model in an eval, as fractions, and the rows it was made of."""

    low: float
    high: float
    rows: tuple[Published, ...]


def load() -> list[Published]:
    """All rows, in the file's order."""
    path = next((root / "published.toml" for root in EVALS if (root / "published.toml").is_file()), None)
    if path is None:
        raise UsageError("evals/published.toml is missing from this installation; reinstall mxfp4-validate")
    return parse(path.read_text(encoding="utf-8"), path)


def parse(text: str, where: Path) -> list[Published]:
    """Rows from the text of the file; `UsageError` names the row and the key."""
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{where}: {error}") from error
    if set(data) != {"score"}:
        raise UsageError(f"{where}: it must hold [[score]] tables and nothing else, it has {sorted(data)}")
    return [_row(table, f"{where}: score {at}") for at, table in enumerate(data["score"], 1)]


def _row(table: dict[str, Any], where: str) -> Published:
    known = {f.name for f in fields(Published)}
    if unknown := set(table) - known:
        raise UnknownName(f"key of {where}:", sorted(unknown)[0], known)
    if missing := {"model", "eval", "score", "questions", "repeats", "protocol", "source"} - set(table):
        raise UsageError(f"{where}: missing keys {sorted(missing)}")
    row = Published(**table)
    if not 0 <= row.score <= 100 or row.questions < 1 or row.repeats < 0:
        raise UsageError(f"{where}: score {row.score}, questions {row.questions}, repeats {row.repeats}: percent, at least 1, at least 0")
    if not row.source.startswith("https://"):
        raise UsageError(f"{where}: source is {row.source!r}, it must be a link")
    return row


def find(model: str, eval_name: str, effort: str | None = None) -> list[Published]:
    """The rows of a model in an eval; `UnknownName` for a model or an eval that has none at all. Effort None takes all."""
    rows = load()
    if model not in {row.model for row in rows}:
        raise UnknownName("model of the published scores", model, {row.model for row in rows})
    of_model = [row for row in rows if row.model == model]
    if eval_name not in {row.eval for row in of_model}:
        raise UnknownName(f"eval with a published score of {model}", eval_name, {row.eval for row in of_model})
    return [row for row in of_model if row.eval == eval_name and effort in (None, row.effort)]


def anchor(model: str, eval_name: str, effort: str) -> Anchor:
    """The band that covers every usable row of that effort: each is one draw of one laboratory, and none is the truth.

    `UsageError` lists the rows there are and why none of them may serve.
    """
    rows = find(model, eval_name)
    usable = tuple(row for row in rows if row.effort == effort and not row.unusable)
    if not usable:
        listed = "".join(f"\n  {row.line()}" for row in rows)
        raise UsageError(
            f"no published score of {model} on {eval_name} with effort {effort!r} may anchor a run; give --anchor LOW:HIGH.{listed}"
        )
    bands = [row.band() for row in usable]
    return Anchor(min(low for low, _ in bands), max(high for _, high in bands), usable)
