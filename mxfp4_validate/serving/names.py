"""Names that become files: nothing in them may leave their folder or hurt a terminal."""

from __future__ import annotations

import re
import unicodedata

from mxfp4_validate.errors import UsageError

_NAME = re.compile(r"[A-Za-z0-9._-]{1,100}")
_RESERVED = {"con", "prn", "aux", "nul", *(f"{kind}{n}" for kind in ("com", "lpt") for n in range(1, 10))}


def run_name(text: str) -> str:
    """`text` if it may name a run: letters, digits, dot, dash and underscore, at most 100, no reserved or dotted name."""
    if not _NAME.fullmatch(text) or text.strip(".") == "" or text.startswith(("-", ".")) or text.split(".")[0].lower() in _RESERVED:
        raise UsageError(f"name {text[:120]!r} may not name a run; use 1 to 100 of A-Z a-z 0-9 . _ -, beginning with a letter or digit")
    return text


def shown(text: str, most: int = 2000) -> str:
    """`text` for a terminal: control characters written out, so that a model or server cannot steer it."""
    cut = text if len(text) <= most else text[:most] + f"... ({len(text)} characters)"
    return "".join(c if c in "\n\t" or unicodedata.category(c)[0] != "C" else c.encode("unicode_escape").decode() for c in cut)
