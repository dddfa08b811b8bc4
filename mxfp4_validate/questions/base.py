"""Questions as every later stage sees them: an id, a text, a gold answer, and for multiple choice the options in the order shown."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field

from mxfp4_validate.errors import UsageError


@dataclass(frozen=True)
class Question:
    """One question.

    Attributes:
        id: stable and unique in its set; records of two runs are paired by it.
        text: the problem, as it stands in the source (canonical form: NFC, no trailing blanks, LF line ends).
        gold: the right answer: an integer or decimal as a string, or the letter of the right option as shown.
        options: the options in the order shown, empty for free answers.
    """

    id: str
    text: str
    gold: str
    options: tuple[str, ...] = ()


@dataclass(frozen=True)
class QuestionSet:
    """A set with its origin. `sha256` is that of the canonical rows, in order of id, whatever file they came from."""

    suite: str
    questions: tuple[Question, ...]
    source: str
    revision: str = ""
    notes: tuple[str, ...] = field(default=())

    def __post_init__(self) -> None:
        seen: dict[str, int] = {}
        for place, question in enumerate(self.questions):
            if question.id in seen:
                raise UsageError(f"{self.source}: duplicate question id {question.id!r} in rows {seen[question.id]} and {place}")
            seen[question.id] = place
            for name in ("text", "gold"):
                if not getattr(question, name).strip():
                    raise UsageError(f"{self.source}: question {question.id!r} (row {place}) has an empty {name}")

    @property
    def sha256(self) -> str:
        return digest(self.questions)

    def row_hashes(self) -> dict[str, str]:
        """The hash of each row by id, so that a difference between two sets can be named."""
        return {question.id: digest([question]) for question in self.questions}


def digest(questions: Iterable[Question]) -> str:
    """sha256 of the rows as canonical JSON lines in order of id."""
    rows = sorted((asdict(question) for question in questions), key=lambda row: str(row["id"]))
    lines = "\n".join(json.dumps(row, ensure_ascii=True, sort_keys=True, separators=(",", ":")) for row in rows)
    return hashlib.sha256(lines.encode()).hexdigest()
