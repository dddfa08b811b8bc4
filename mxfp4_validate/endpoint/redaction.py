"""What of a launched server's words must not be echoed: keys and tokens that its environment or its command line holds."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from mxfp4_validate.endpoint.address import Secret

_NAME = re.compile(r"(?:KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS?)$", re.IGNORECASE)
#: A flag whose next word, or whose part after =, is a secret. Tokens as a count (`--max-total-tokens`) end otherwise.
_FLAG = re.compile(r"^--?[A-Za-z0-9-]*(?:api-key|hf-token|auth-token|secret|password|passwd)$", re.IGNORECASE)
#: Shapes of keys that a server may print without our having given them.
_SHAPES = re.compile(r"\b(?:hf_[A-Za-z0-9]{16,}|sk-[A-Za-z0-9_-]{16,}|gh[pousr]_[A-Za-z0-9]{16,})|(?<=Bearer )[^\s'\",;]{6,}")


class Redactor:
    """Takes the secrets of one launch out of text."""

    def __init__(self, env: Mapping[str, str], argv: Sequence[str], *known: Secret) -> None:
        values = {value for name, value in env.items() if _NAME.search(name)}
        for word, after in zip(argv, [*argv[1:], ""], strict=False):  # the last word has none after it, and there may be no word
            flag, equals, value = word.partition("=")
            if _FLAG.match(flag):
                values.add(value if equals else after)
        # Longest first: one may be the beginning of another.
        self._secrets = [*known, *(Secret(value) for value in sorted(values, key=len, reverse=True))]

    def __call__(self, text: str) -> str:
        for secret in self._secrets:
            text = secret.redact(text)
        return _SHAPES.sub("[redacted]", text)

    def scrub(self, path: Path) -> None:
        """Rewrite a finished log without the secrets, if it holds any. A line at a time: logs of long runs do not fit the memory."""
        temporary = path.with_name(path.name + ".tmp")
        changed = False
        with (
            path.open("rb") as source,
            open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600), "wb") as target,
        ):
            for line in source:
                clear = self(line.decode("utf-8", "surrogateescape")).encode("utf-8", "surrogateescape")
                changed |= clear != line
                target.write(clear)
        if changed:
            temporary.replace(path)
        else:
            temporary.unlink()
