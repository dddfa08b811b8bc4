"""Number rules, for GSM8K and AIME: last box, then an announced number, then the last number as a weak one."""

from __future__ import annotations

import re
from fractions import Fraction

from mxfp4_validate.grading.base import Grade
from mxfp4_validate.grading.boxes import Announced, after, announced, last_box
from mxfp4_validate.grading.text import visible
from mxfp4_validate.grading.value import integer, number, shown

#: Every number in prose. A minus sign counts only where nothing stands before it that it could subtract from.
_NUMBER = re.compile(r"(?:(?<![\w)\]}.])-)?\$?\s?\d[\d,]*(?:\.\d+)?(?!\d)")
_DIRECT = re.compile(r"[\s*_`$\\(\[{~:≈=]*(?:approximately|about|exactly|simply|just)?[\s*_`$\\(\[{~]*$", re.IGNORECASE)
_SUMS = re.compile(r"\s*(?:[-+*/×÷^=:]|\\times|\\cdot|\\div|x(?=\s*\d))\s*[-$(\\]?\s*[\d(\\]")
_SENTENCE = re.compile(r"[.!?;](?=\s|$)")


def grade_number(text: str, gold: str, *, strict: bool, whole: bool) -> Grade:
    """The grade of an answer that should be a number.

    Args:
        gold: an integer or a decimal as a string.
        strict: only a closed `\\boxed{...}` counts.
        whole: AIME: a value that is no integer from 0 to 999 gets the flag `out-of-range`.
    """
    seen = visible(text)
    if seen.cut:
        return Grade(False, None, "cut", flags=seen.flags)
    box = last_box(seen.text, strict=strict)
    if box.cut:
        return Grade(False, None, "cut", flags=seen.flags)
    if box.content is not None:
        return _judged(number(box.content), " ".join(box.content.split())[:80], gold, "boxed", seen.flags, weak=not box.braced, whole=whole)
    if strict:
        return Grade(False, None, "nothing", flags=seen.flags)
    for place in reversed(announced(seen.text)):
        found = _announced_number(seen.text, place)
        if found is not None:
            return _judged(found, "", gold, "answer-phrase", seen.flags, weak=False, whole=whole)
        if place.formal:
            break
    last = _last_number(seen.text)
    if last is None:
        return Grade(False, None, "nothing", flags=seen.flags)
    return _judged(_found(last), last[0][:80], gold, "last-number", seen.flags, weak=True, whole=whole)


def _judged(value: Fraction | None, raw: str, gold: str, rule: str, flags: tuple[str, ...], *, weak: bool, whole: bool) -> Grade:
    if value is None:
        return Grade(False, raw, rule, weak, (*flags, "unparsed"))
    if whole and (value.denominator != 1 or not 0 <= value <= 999):
        flags = (*flags, "out-of-range")
    return Grade(value == Fraction(gold), shown(value), rule, weak, flags)


def _announced_number(text: str, place: Announced) -> Fraction | None:
    """The number that an announcement announces, or None if it is not one plain number."""
    line = after(text, place.end).replace("{,}", ",").replace("\\$", "$").replace("\\,", ",")
    end = _SENTENCE.search(line)
    sentence = line[: end.start()] if end else line
    matches = list(_NUMBER.finditer(sentence))
    if not matches:
        return None
    first = matches[0]
    if _SUMS.match(sentence, first.end()):
        last = sentence.rpartition("=")[2] if "=" in sentence else ""
        results = list(_NUMBER.finditer(last))
        return _found(results[0]) if results else number(sentence) if not re.fullmatch(r"\s*\d+\s*[-–—]\s*\d+\s*", sentence) else None
    if len(matches) == 1 or _DIRECT.match(sentence[: first.start()]):
        return _found(first)
    return None


def _found(match: re.Match[str]) -> Fraction | None:
    return integer("".join(match[0].split()))


def _last_number(text: str) -> re.Match[str] | None:
    last = None
    for match in _NUMBER.finditer(text):
        last = match
    return last
