"""Letter rules, for GPQA: last box, then an announced letter, then a last line that is a letter, as a weak one. Never a guess."""

from __future__ import annotations

import re

from mxfp4_validate.grading.base import Grade
from mxfp4_validate.grading.boxes import Announced, after, announced, last_box
from mxfp4_validate.grading.text import latin, visible

TWO = "two"
_WRAPPER = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mathit|mathsf|boldsymbol|boxed|fbox|mbox)\s*\{")
_DRESS = " \t\n*_`$\\(){}[]<>\"'.,:;!~|"
#: A letter that opens a text: dressed or not, and bounded, so that neither Carbon nor C60 nor C-H is one.
_FIRST = re.compile(r"[\s*_`$\\(\[{<\"'~:]*(?:option|choice|letter)?[\s*_`$\\(\[{<\"'~:]*([A-Za-z])(?![A-Za-z0-9]|['’]\w|[-‑]\w|_\{|\^)")
_ALSO = re.compile(
    r"[\s*_`$\\)\]}]*(?:\b(?:and|or)\b|[/&,+|])[\s*_`$\\(\[{]*(?:(?:and|or)\s+)?([A-D])(?![A-Za-z0-9]|['’]\w|[-‑]\w)([\s*_`$\\)\]}]*[a-z])?"
)
#: "A" opens many sentences as an article; after it, only these words leave it a letter.
_ARTICLE = re.compile(r"[ \t]+(?!(?:because|since|as|is|and|or|with|which|due|based|given|from|in|by|for|so|where)\b)[a-z]")
_LINE = re.compile(r"[\s>*_`$\\(\[{]*(?:option|choice|letter)?[\s*_`$\\(\[{]*([A-D])([\s*_`$\\\]})]*[.:)]?[*_`$\s]*)$", re.IGNORECASE)
_LISTED = re.compile(r"[\s>*_`\-]*\(?([A-D])[*_`]*(?:\)|[.:](?=\s))")


def grade_letter(text: str, gold: str, *, strict: bool) -> Grade:
    """The grade of an answer that should be one of the letters A to D; `strict` takes a closed box or `Answer: X` alone."""
    seen = visible(text)
    if seen.cut:
        return Grade(False, None, "cut", flags=seen.flags)
    body = latin(seen.text)
    box = last_box(body, strict=strict)
    if box.cut:
        return Grade(False, None, "cut", flags=seen.flags)
    flags = seen.flags
    if box.content is not None:
        letter = _boxed_letter(box.content)
        if letter is not None:
            return _judged(letter, gold, "boxed", flags, weak=not box.braced)
        flags = (*flags, "unparsed")
    for place in reversed(announced(body)):
        letter = _announced_letter(body, place) if place.formal or not strict else None
        if letter is not None:
            return _judged(letter, gold, "answer-phrase", seen.flags)
        if place.formal:
            break
    letter = None if strict else _last_line(body)
    if letter is None:
        return Grade(False, None, "nothing", flags=flags)
    return _judged(letter, gold, "letter-line", seen.flags, weak=True)


def _judged(letter: str, gold: str, rule: str, flags: tuple[str, ...], *, weak: bool = False) -> Grade:
    if letter == TWO:
        return Grade(False, None, "two-answers", flags=flags)
    return Grade(letter == gold, letter, rule, weak, flags)


def _boxed_letter(content: str) -> str | None:
    """The letter in a box: alone, or followed by `)`, `.` or `:` and the option's text."""
    bare = _WRAPPER.sub("{", content[:400])
    alone = bare.strip(_DRESS)
    if re.fullmatch(r"[A-Da-d]", alone):
        return alone.upper()
    match = _FIRST.match(bare)
    if not match or match[1] not in "ABCD":
        return None
    if _also(re.sub(r"[{}]", " ", bare), match):
        return TWO
    rest = bare[match.end() :].lstrip("*_`$} \t")
    return match[1] if rest[:1] in (")", ".", ":", "]") or bare[match.end() :].lstrip("*_`$ \t")[:1] == "}" else None


def _also(text: str, match: re.Match[str]) -> bool:
    """Whether another letter is named together with the one found."""
    also = _ALSO.match(text, match.end())
    listed = also is not None and "," in also[0] and also[2] is not None  # "C, A is wrong because" goes on to speak of A
    return also is not None and also[1] != match[1] and not listed


def _announced_letter(text: str, place: Announced) -> str | None:
    line = _WRAPPER.sub("{", after(text, place.end))
    match = _FIRST.match(line)
    if not match:
        return None
    letter = match[1]
    rest = line[match.end() :]
    if letter.islower():
        # "a" and "b" are words and variables: in lower case a letter must be all there is.
        ended = letter in "abcd" and not re.sub(r"</?\w+>", "", rest).strip(_DRESS)
        return letter.upper() if ended else None
    if letter not in "ABCD" or (letter == "A" and _ARTICLE.match(rest)):
        return None
    return TWO if _also(line, match) else letter


def _last_line(text: str) -> str | None:
    """The letter of the last line that is not blank; the tail of a list of options is no answer."""
    lines = [line for line in text[-4000:].split("\n") if line.strip()][-4:]
    if not lines:
        return None
    match = _LINE.match(lines[-1][:400]) or _LISTED.match(lines[-1][:400])
    if not match:
        return None
    letter = match[1].upper()
    if match[1].islower() and len(lines[-1].strip(_DRESS)) > 1:
        return None
    others = {found[1] for line in lines[:-1] if (found := _LISTED.match(line[:400]))}
    return TWO if others - {letter} else letter
