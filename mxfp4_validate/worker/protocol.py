"""What parent and child say to each other: one JSON object a line, never a pickle."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

#: What can come of a check. `oom` and `error` count as failures everywhere; they are kept apart so that a reader knows which it was.
OUTCOMES = ("passed", "failed", "error", "oom", "unavailable")


@dataclass(frozen=True)
class Request:
    """One thing asked of a child. `target` is a check's `module:function`; `fault` names a deliberate fault to inject."""

    op: str  # check | availability | bench
    backend: str
    check: str = ""
    target: str = ""
    case_id: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    fault: str | None = None

    def line(self, number: int) -> bytes:
        return json.dumps({"id": number, **asdict(self)}).encode() + b"\n"


@dataclass(frozen=True)
class Answer:
    """What came of it. `discard` asks the parent to end the child, whose CUDA context can no longer be trusted."""

    outcome: str
    message: str = ""
    metrics: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    discard: bool = False

    def line(self, number: int) -> bytes:
        return json.dumps({"id": number, **asdict(self)}, allow_nan=False).encode() + b"\n"

    @classmethod
    def read(cls, line: bytes, number: int) -> Answer:
        """The answer in a line; raises `ValueError` if it is not a well-formed answer to request `number`."""
        data = json.loads(line)
        if not isinstance(data, dict) or data.pop("id", None) != number or data.get("outcome") not in OUTCOMES:
            raise ValueError(f"not an answer to request {number}: {line[:200]!r}")
        try:
            return cls(**data)
        except TypeError as error:
            raise ValueError(str(error)) from error


def jsonable(value: object) -> Any:
    """`value` with everything JSON cannot hold turned into strings, NaN and infinities included."""
    if value is None or isinstance(value, bool | str | int):
        return value if type(value) in (bool, str, int, type(None)) else _plain(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else str(float(value))
    if isinstance(value, Mapping):
        return {str(k): jsonable(v) for k, v in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [jsonable(v) for v in value]
    return str(value)


def _plain(value: object) -> Any:
    """Subclasses of str and int (enum members, say) as the plain type."""
    return str(value) if isinstance(value, str) else int(value)  # type: ignore[call-overload]
