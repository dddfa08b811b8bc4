"""What a stage comes to, and what it asks for next; plain data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from mxfp4_validate.plans.fleet import Up

PASS, FAIL, INVALID, INCONCLUSIVE = "PASS", "FAIL", "INVALID", "INCONCLUSIVE"


@dataclass(frozen=True)
class Result:
    """A stage that is over.

    Attributes:
        outcome: one of the four above, or a screen's GO ON (it found nothing, the dearer stages may begin).
        decides: whether a PASS or INCONCLUSIVE of it counts for the whole (a screen passes nothing).
        measured, limit, needs: one line each, for people; stops: whether no dearer stage may begin.
    """

    name: str
    outcome: str
    measured: str
    limit: str = ""
    needs: str = ""
    reasons: tuple[str, ...] = ()
    decides: bool = True
    stops: bool = False
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Turn:
    """The next thing to do: `run` with these legs' servers up. `scoring` asks for boots without speculation, `fresh` for unused ones."""

    legs: tuple[str, ...]
    run: Callable[[Mapping[str, Up]], None]
    scoring: bool = False
    fresh: bool = False
