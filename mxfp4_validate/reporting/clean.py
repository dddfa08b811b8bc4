"""Text of models, servers and files made harmless to look at; escaping for HTML or XML is the template's work, on top of this."""

from __future__ import annotations

import json
import re
from typing import Any

#: Controls but newline and tab, C1, bidi overrides and isolates, line separators, surrogates, noncharacters.
_ODD = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff\ufdd0-\ufdef\ufff9-\uffff\U000e0000-\U000e007f]"
)
_MARKS = "\u0300-\u036f\u0483-\u0489\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20ff\ufe20-\ufe2f"
#: More than three combining marks on one letter are a tower that leaves its line.
_TOWER = re.compile(f"([{_MARKS}]{{3}})[{_MARKS}]+")
EXCERPT = 500


def clean(text: str) -> str:
    """`text` with every character that steers instead of being seen written out as its code, and towers of marks cut."""
    return _TOWER.sub(r"\1", _ODD.sub(lambda m: m[0].encode("unicode_escape").decode(), text))


def head_tail(text: str, most: int = EXCERPT) -> tuple[str, str]:
    """The first and the last `most` characters; the second is empty if the first is everything."""
    if len(text) <= 2 * most:
        return text, ""
    return text[:most], text[-most:]


def script_json(value: Any) -> str:
    """JSON that may stand inside a script element: ASCII, and nothing in it can close the element or open a comment."""
    text = json.dumps(value, allow_nan=False, ensure_ascii=True, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")
