"""How far a run is: states, tokens a second, time left. No accuracy: short answers finish first and are right more often."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable
from types import TracebackType
from typing import TextIO

from tqdm import tqdm


class Progress:
    """A bar on a terminal, a plain ASCII line every `every` seconds elsewhere."""

    def __init__(self, name: str, total: int, done: int, stream: TextIO | None = None, every: float = 30.0) -> None:
        self._stream = stream or sys.stderr
        self._total, self._done, self._name, self._every = total, done, name, every
        self._first_done, self._started = done, time.monotonic()
        self._said = self._started
        self._states: Counter[str] = Counter()
        self._tokens = 0
        self.extra: Callable[[], str] | None = None
        tty = self._stream.isatty()
        self._bar = (
            tqdm(total=total, initial=done, desc=name, file=self._stream, ascii=True, dynamic_ncols=True, unit="sample") if tty else None
        )

    def __call__(self, state: str, tokens: int | None) -> None:
        """One sample ended. `state` is `ok` or one of the missing states."""
        self._done += 1
        self._states[state] += 1
        self._tokens += tokens or 0
        now = time.monotonic()
        if self._bar is not None:
            self._bar.update(1)
            self._bar.set_postfix_str(self._note(now), refresh=False)
        elif now - self._said >= self._every:
            self._said = now
            self._stream.write(f"{self._name}: {self._done} of {self._total}, {self._note(now)}\n")
            self._stream.flush()

    def _note(self, now: float) -> str:
        seconds = max(now - self._started, 1e-9)
        rate = (self._done - self._first_done) / seconds
        left = f"{(self._total - self._done) / rate:.0f} s left" if rate else "time left unknown"
        bad = "".join(f", {state} {count}" for state, count in sorted(self._states.items()) if state != "ok")
        asked = f", {self.extra()}" if self.extra else ""
        return f"{self._tokens / seconds:.0f} tok/s, {left}{bad}{asked}"

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.close()
