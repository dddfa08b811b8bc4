"""A sample as it is stored: its state, the raw texts, and a checksum over both."""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass

from mxfp4_validate.errors import InvalidRun
from mxfp4_validate.records.durable import sealed, unsealed
from mxfp4_validate.states import STATES

COLUMNS = (
    "question_id, repeat, state, content, reasoning, finish_reason, prompt_tokens, completion_tokens, reasoning_tokens, seconds, boot, model, "
    "attempts, flags, error, at, checksum"
)


@dataclass(frozen=True)
class Sample:
    """One planned (question, repeat) and how it ended. Texts may hold anything a server can send, lone surrogates included."""

    question_id: str
    repeat: int
    state: str
    content: str = ""
    reasoning: str = ""
    finish_reason: str = ""
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    reasoning_tokens: int | None = None
    seconds: float = 0.0
    boot: str = ""
    model: str = ""
    attempts: int = 0
    flags: tuple[str, ...] = ()
    error: str = ""
    at: str = ""

    def __post_init__(self) -> None:
        if self.state not in STATES:
            raise ValueError(f"unknown state {self.state!r}")

    def row(self) -> tuple[object, ...]:
        """Values in the order of `COLUMNS`, texts compressed, the checksum last."""
        values = (
            self.question_id,
            self.repeat,
            self.state,
            pack(self.content),
            pack(self.reasoning),
            self.finish_reason,
            self.prompt_tokens,
            self.completion_tokens,
            self.reasoning_tokens,
            float(self.seconds),
            self.boot,
            self.model,
            self.attempts,
            json.dumps(self.flags),
            self.error,
            self.at,
        )
        return sealed(values)

    @classmethod
    def from_row(cls, row: tuple[object, ...]) -> Sample:
        """Inverse of `row`; `InvalidRun` names the sample if a byte of it changed since it was written."""
        values = list(unsealed(row, f"sample {row[0]!r} repeat {row[1]}"))
        values[3], values[4], values[13] = unpack(values[3]), unpack(values[4]), tuple(json.loads(str(values[13])))
        return cls(*values)


#: Longest text that is unpacked: twice the largest answer a client takes. A few bytes of a made-up record may unpack to anything.
MOST_UNPACKED = 512 << 20


def pack(text: str) -> bytes:
    """Compressed UTF-8 that keeps lone surrogates."""
    return zlib.compress(text.encode("utf-8", "surrogatepass"), 6)


def unpack(data: object) -> str:
    """Inverse of `pack`."""
    if not isinstance(data, bytes):
        raise InvalidRun("a stored text is not bytes")
    stream = zlib.decompressobj()
    text = stream.decompress(data, MOST_UNPACKED)
    if not stream.eof:
        raise InvalidRun(f"a stored text is cut, or longer than {MOST_UNPACKED} bytes")
    return text.decode("utf-8", "surrogatepass")
