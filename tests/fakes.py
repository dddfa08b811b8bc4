"""A backend without torch and checks that die in every way a kernel can; named on the command line by our own tests."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from mxfp4_validate.backends.base import Available, Unavailable
from mxfp4_validate.cases import SHAPES, MoeCase
from mxfp4_validate.catalogue import Check
from mxfp4_validate.errors import CheckFailed


class Fake:
    """Runs nothing; the checks below never call it."""

    name, device = "fake", "cpu"

    def availability(self) -> Available | Unavailable:
        return Available({"kind": "fake"})

    def rounding(self, *_: Any) -> Any: ...
    def tactics(self, *_: Any) -> Any: ...
    def prepare(self, *_: Any) -> Any: ...
    def run(self, *_: Any, **__: Any) -> Any: ...


class Absent(Fake):
    """Never available."""

    def availability(self) -> Unavailable:
        return Unavailable("no such card; buy one")


def factory() -> Fake:
    return Fake()


factory.device = "cpu"  # type: ignore[attr-defined]


def good(*_: Any) -> dict[str, object]:
    return {"bit_equal": 1.0}


def wrong(*_: Any) -> dict[str, object]:
    raise CheckFailed("three bits are wrong", {"unexplained": 3, "tactic": "t7"})


def leaves(*_: Any) -> dict[str, object]:
    print("last words", flush=True)
    os._exit(0)


def segfault(*_: Any) -> dict[str, object]:
    ctypes.string_at(0)
    return {}


def hangs(*_: Any) -> dict[str, object]:
    time.sleep(3600)
    return {}


def stopped(*_: Any) -> dict[str, object]:
    os.kill(os.getpid(), signal.SIGSTOP)
    return {}


def illegal(*_: Any) -> dict[str, object]:
    raise RuntimeError("CUDA error: an illegal memory access was encountered")


def oom_once(*_: Any) -> dict[str, object]:
    mark = Path(os.environ["FAKE_MARK"])
    if mark.exists():
        return {"pid": os.getpid()}
    mark.touch()
    raise RuntimeError("CUDA out of memory. Tried to allocate 3 GiB")


def oom_always(*_: Any) -> dict[str, object]:
    raise RuntimeError("CUDA out of memory")


def asserts_nothing(*_: Any) -> None:
    return None


def exits(*_: Any) -> dict[str, object]:
    sys.exit(0)


_CASE = (MoeCase(SHAPES["dsv4-mini"], 1),)
_DEADLY = ("wrong", "leaves", "segfault", "hangs", "stopped", "illegal", "oom_once", "oom_always", "asserts_nothing", "exits")


def _check(name: str, target: str, family: str = "probe") -> Check:
    return Check(name, family, "nothing", f"tests.fakes:{target}", _CASE, _CASE, 8.0)


#: Each way to die between two checks that pass.
CHECKS = tuple(c for i, name in enumerate(_DEADLY) for c in (_check(name, name), _check(f"good-{i}", "good")))
GOOD = (_check("good", "good"), _check("good-too", "good", "random"))
