"""The boxes of an answer, and the phrases that announce one; both in one pass over the text."""

from __future__ import annotations

import re
from collections import deque
from dataclasses import dataclass

_START = re.compile(r"\\(?:boxed|fbox|framebox)(?![A-Za-z])")
_STRICT = re.compile(r"\\boxed(?=\{)")
_BARE = re.compile(r"[ \t]*(-?\$?\d[\d,]*(?:\.\d+)?|[A-D](?![A-Za-z0-9]))")
_BRACE = re.compile(r"\\[\\{}]|[{}]")
_BLANK = re.compile(r"[ \t\n]*")
_SIZE = re.compile(r"(?:[ \t]*\[[^\[\]{}\n]{0,20}\])*")


@dataclass(frozen=True)
class Boxed:
    """The last box: its content, or None if there is no filled one; `cut` if the text ends inside a box."""

    content: str | None
    cut: bool = False
    braced: bool = True


def last_box(text: str, *, strict: bool = False) -> Boxed:
    r"""The content of the last box that is filled; `strict` accepts `\boxed{...}` alone.

    A box that is never closed after all complete ones means the text was cut: nothing before it is taken instead. An empty box, as in
    a repeated instruction, is passed over; so is one whose only content is such a box.
    """
    closing = _closing(text)
    inner = len(text)  # start of the box looked at before: one that holds it has nothing of its own to say
    for match in reversed(list((_STRICT if strict else _START).finditer(text))):
        size = _SIZE.match(text, match.end())
        brace = _BLANK.match(text, size.end() if size else match.end())
        place = brace.end() if brace else match.end()
        if text[place : place + 1] == "{":
            if place not in closing:
                return Boxed(None, cut=True)
            if closing[place] > inner:
                continue
            inner = match.start()
            content = text[place + 1 : closing[place]]
            if content.strip(" \t\n~$\\,.?_"):
                return Boxed(content)
        else:
            bare = _BARE.match(text, match.end())
            if bare:
                return Boxed(bare[1], braced=False)
    return Boxed(None)


def _closing(text: str) -> dict[int, int]:
    """For each brace that is closed, where."""
    pairs: dict[int, int] = {}
    waiting: list[int] = []
    for match in _BRACE.finditer(text):
        if match[0] == "{":
            waiting.append(match.start())
        elif match[0] == "}" and waiting:
            pairs[waiting.pop()] = match.start()
    return pairs


_ANNOUNCED = re.compile(
    r"""(?ix)
    (?P<mark> \#\#\#\# )
    | \b(?: answers? | (?:correct|right|best|final|chosen) [ ] (?:option|choice|letter|value|result) )
      [*_`]{0,3} [ \t]?
      (?P<sign> : | = | - | – | — | \b(?:is|are|must[ ]be|should[ ]be|would[ ]be|equals?)\b [ \t]? :? )
    """
)


@dataclass(frozen=True)
class Announced:
    """Where an announced answer begins; `formal` if by a colon, a dash or four hashes and not in prose."""

    end: int
    formal: bool


def announced(text: str) -> list[Announced]:
    """The last places where a phrase announces an answer, in order; 200 at most, so that a loop of them stays cheap to read."""
    last = deque(_ANNOUNCED.finditer(text), maxlen=200)
    return [Announced(m.end(), m["mark"] is not None or not m["sign"].strip(" \t:").isalpha()) for m in last]


def after(text: str, place: int, limit: int = 300) -> str:
    """What follows an announcement: the rest of its line, or the next line if that says nothing; at most `limit` characters."""
    window = text[place : place + limit]
    first, _, rest = window.partition("\n")
    if first.strip(" \t*_`$:"):
        return first
    return next((line for line in rest.split("\n") if line.strip(" \t*_`$")), "")
