"""One form for each question, whatever file it came from: canonical text, checked gold, an id and an option order derived from the text."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

from mxfp4_validate.errors import UsageError
from mxfp4_validate.questions.base import Question

LETTERS = "ABCD"
TEXT = ("question", "problem", "Question")
ANSWER = ("answer", "expected_answer", "Answer")
_WRONG = ("Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3")
_NUMBER = re.compile(r"-?\d{1,30}(?:\.\d{1,30})?")
_DEGREES = re.compile(r"\s*(?:\^\s*(?:\\circ|\{\s*\\circ\s*\})|°)$")


def canonical(text: str) -> str:
    """NFC, LF line ends, no blanks at the end of a line, none around the whole."""
    lines = unicodedata.normalize("NFC", text).replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return "\n".join(line.rstrip() for line in lines).strip()


def question(row: Mapping[str, Any], grader: str, where: str) -> Question:
    """The question that a row of a source holds.

    The id is derived from the canonical text, never taken from the row: so it is the same from every source, and a changed question cannot
    pass for the old one.

    Args:
        row: the columns `question`, `problem` or `Question`, and `answer` or `expected_answer`; for gpqa `Correct Answer` and
            `Incorrect Answer 1` to `3`.
        grader: `gsm8k`, `aime25` or `gpqa`.
        where: file and row, for the message.

    Raises:
        UsageError: a column is missing or empty, or the gold answer is none of the suite's.
    """
    text = column(row, TEXT, where)
    if grader == "gpqa":
        return _choice(text, [column(row, (name,), where) for name in ("Correct Answer", *_WRONG)])
    answer = column(row, ANSWER, where)
    gold = _aime_gold(answer, where) if grader == "aime25" else _number_gold(answer, where)
    return Question(identifier(grader, [text]), text, gold)


def identifier(grader: str, texts: Sequence[str]) -> str:
    """`aime25-` and ten hex digits of the texts' sha256; the texts are joined by NUL, which none of them holds."""
    return f"{grader}-{hashlib.sha256(chr(0).join(texts).encode('utf-8', 'surrogatepass')).hexdigest()[:10]}"


def permutation(key: str) -> tuple[int, ...]:
    """The order in which the options of the question with that id are shown: of all 24, the one its sha256 picks.

    Returns:
        Four places: the option shown at `i` stands at `permutation[i]` in the source, where 0 is the right one.
    """
    rank = int.from_bytes(hashlib.sha256(f"options of {key}".encode()).digest(), "big") % 24
    left, order = list(range(4)), []
    for remaining in (6, 2, 1, 1):
        place, rank = divmod(rank, remaining)
        order.append(left.pop(place))
    return tuple(order)


def source_options(asked: Question) -> tuple[str, ...]:
    """The options in the order of the source: the right one, then the three wrong ones."""
    restored = dict(zip(permutation(asked.id), asked.options, strict=True))
    return tuple(restored[place] for place in range(4))


def _choice(text: str, options: list[str]) -> Question:
    key = identifier("gpqa", [text, *options])
    order = permutation(key)
    # By place and never by text: two options of one question may read the same.
    return Question(key, text, LETTERS[order.index(0)], tuple(options[place] for place in order))


def column(row: Mapping[str, Any], names: Sequence[str], where: str) -> str:
    """The canonical text of the first of these columns that the row has; `UsageError` if it has none or an empty one."""
    for name in names:
        if name in row and row[name] is not None:
            text = canonical(str(row[name])).replace(chr(0), "")
            if not text:
                raise UsageError(f"{where}: column {name!r} is empty; every question needs a text and a gold answer")
            return text
    raise UsageError(f"{where}: no column {' or '.join(map(repr, names))}; it has {sorted(map(str, row))[:12]}")


def _number_gold(answer: str, where: str) -> str:
    """What stands after the last `####`, or all of it; thousands commas removed."""
    gold = answer.rpartition("####")[2].strip().replace(",", "").removeprefix("$").removesuffix(".0")
    if not _NUMBER.fullmatch(gold):
        raise UsageError(
            f"{where}: the gold answer {gold[:60]!r} is not a number; write it as digits, after '####' if a solution goes before"
        )
    return gold


def _aime_gold(answer: str, where: str) -> str:
    gold = _DEGREES.sub("", answer.strip("$ ")).removesuffix(".0")
    if not re.fullmatch(r"\d{1,4}", gold) or int(gold) > 999:
        raise UsageError(f"{where}: the gold answer {answer[:60]!r} is not an integer from 0 to 999, as every AIME answer is")
    return str(int(gold))
