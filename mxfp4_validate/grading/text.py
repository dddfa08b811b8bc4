"""Before any rule reads an answer: what the model says after its reasoning, in plain characters."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass

_OPEN, _CLOSE = "<think>", "</think>"
_SUPER = dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺", "0123456789-+", strict=True))
_SUB = dict(zip("₀₁₂₃₄₅₆₇₈₉", "0123456789", strict=True))
_SCRIPTS = re.compile(f"[{''.join(_SUPER)}]+|[{''.join(_SUB)}]+")
_NOT_ASCII = re.compile(r"[^\x00-\x7f]")
#: What compatibility normalisation leaves alone though a reader sees no difference: minus signs, dashes and primes.
_SAME = {"\u2212": "-", "\u2010": "-", "\u2011": "-", "\ufe63": "-", "\u2044": "/", "\u2215": "/", "\u200b": "", "\u2060": "", "\ufeff": ""}
#: Cyrillic and Greek capitals that look like the letters of the options.
_LOOKALIKE = str.maketrans("АВСΑΒϹ", "ABCABC")


@dataclass(frozen=True)
class Visible:
    """What is left to grade.

    Attributes:
        text: the part after the last closing think tag, in plain characters.
        cut: the text ends inside reasoning, so nothing in it is an answer.
        flags: `think-in-content` if reasoning stood in the content.
    """

    text: str
    cut: bool
    flags: tuple[str, ...]


def visible(text: str) -> Visible:
    """The answer part of `text`; linear in its length, whatever the text."""
    close = text.rfind(_CLOSE)
    opened = text.rfind(_OPEN)
    flags = ("think-in-content",) if close >= 0 or opened >= 0 else ()
    rest = text[close + len(_CLOSE) :] if close >= 0 else text
    return Visible("" if opened > close else plain(rest), opened > close, flags)


def plain(text: str) -> str:
    """Compatibility characters (full width, mathematical, other scripts' digits) as ASCII where there is one.

    Superscripts become `^{..}` first, because the standard normalisation would turn 10² into 102. It is applied a character at a time:
    on a long run of combining marks the standard one takes quadratic time.
    """
    if text.isascii():
        return text
    text = _SCRIPTS.sub(_script, text)
    known = {char: _plain_char(char) for char in set(_NOT_ASCII.findall(text))}
    return _NOT_ASCII.sub(lambda match: known[match[0]], text)


def _script(match: re.Match[str]) -> str:
    table, sign = (_SUPER, "^") if match[0][0] in _SUPER else (_SUB, "_")
    return sign + "{" + "".join(table[char] for char in match[0]) + "}"


def _plain_char(char: str) -> str:
    if char in _SAME:
        return _SAME[char]
    value = unicodedata.decimal(char, None)
    if value is not None:
        return str(value)
    folded = unicodedata.normalize("NFKC", char)
    # "1½" must not become 11/2: a fraction of one character keeps its distance from the digit before it.
    return " " + folded.replace("\u2044", "/") if unicodedata.numeric(char, 0) % 1 else folded


def latin(text: str) -> str:
    """Capitals of other scripts that look like A, B or C as those (policy: a model that writes them means the option)."""
    return text if text.isascii() else text.translate(_LOOKALIKE)
