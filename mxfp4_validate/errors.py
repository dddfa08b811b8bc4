"""The exception tree; every class knows the exit code a command ends with.

MxfpError                    1
  UsageError                 2   an argument, a file or a configuration is wrong
    ShapeError               2   a tensor cannot be laid out for the kernel
    ScaleError               2   a block scale is not an E8M0 byte
    UnknownName              2   a backend, case, check or fault that does not exist
  BackendUnavailable         2   a backend was asked for that cannot run here
  NotSupported               2   a backend that runs here has no way to run this case
  CheckFailed                1   the candidate computed wrong bits
  InvalidRun                 4   records that cannot be compared or trusted
  IncompleteRun              5   something planned did not run
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from difflib import get_close_matches


class MxfpError(Exception):
    """Base of everything this package raises on purpose."""

    exit_code = 1


class UsageError(MxfpError):
    """An argument, file or configuration is wrong; the message names it, its value and the way out."""

    exit_code = 2


class ShapeError(UsageError):
    """A tensor's shape or dtype cannot be laid out for the kernel."""


class ScaleError(UsageError):
    """A block scale is not representable as the E8M0 byte it is said to be."""


class UnknownName(UsageError):
    """A name that is not registered; the message lists the nearest ones."""

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        known = sorted(known)
        near = get_close_matches(name, known, n=3, cutoff=0.4)
        hint = f"did you mean {', '.join(near)}?" if near else f"known: {', '.join(known)}"
        super().__init__(f"unknown {kind} {name!r}; {hint}")


class BackendUnavailable(MxfpError):
    """A backend was required that cannot run on this machine."""

    exit_code = 2


class NotSupported(MxfpError):
    """A backend that runs on this machine has no way to run this case; the message says what its interface lacks, for the record."""

    exit_code = 2


class CheckFailed(MxfpError):
    """A check found wrong bits. `metrics` holds what was measured, for the record."""

    def __init__(self, message: str, metrics: Mapping[str, object] | None = None) -> None:
        super().__init__(message)
        self.metrics: dict[str, object] = dict(metrics or {})


class InvalidRun(MxfpError):
    """Records that cannot be compared or trusted."""

    exit_code = 4


class IncompleteRun(MxfpError):
    """Something that was planned did not run."""

    exit_code = 5
