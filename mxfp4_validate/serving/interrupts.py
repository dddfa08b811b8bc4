"""What SIGINT and SIGTERM do while answers come in: nothing that was answered is lost."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

from mxfp4_validate.endpoint.collect import Collector


class Interrupts:
    """SIGINT and SIGTERM while anything is collected: the first writes what has come back, the second leaves at once."""

    _LABELS: ClassVar = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}

    def __init__(self) -> None:
        self._collectors: list[Collector] = []
        self._label = ""
        self._before: dict[signal.Signals, Any] = {}

    @contextmanager
    def stopping(self, collector: Collector) -> Iterator[None]:
        """Signals stop this collector, too, as long as the context lasts."""
        loop = asyncio.get_running_loop()
        if not self._collectors:
            self._before = {number: signal.getsignal(number) for number in self._LABELS}
            for number, label in self._LABELS.items():
                loop.add_signal_handler(number, self._interrupted, label)
        self._collectors.append(collector)
        if self._label:
            collector.stop("interrupted", self._label)
        try:
            yield
        finally:
            self._collectors.remove(collector)
            for number, handler in () if self._collectors else self._before.items():
                loop.remove_signal_handler(number)
                signal.signal(number, handler)  # asyncio leaves the default, which would end us without a word

    def _interrupted(self, label: str) -> None:
        if self._label:
            os._exit(130)
        self._label = label
        print(f"\n{label}: writing what has come back; once more to leave at once", file=sys.stderr, flush=True)
        for collector in self._collectors:
            collector.stop("interrupted", label)
