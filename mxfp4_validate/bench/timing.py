"""The clock of a bench: lanes timed in turn with a cold L2 between CUDA events, and graphs captured for them. Runs in the child.

Every call is timed after a flush, the device idle before the next. What a number contains of the host depends on its mode, see `spec.MODES`.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

#: Calls before a capture, so that lazy initialisation and allocation are over.
CAPTURE_WARMUP = 3
#: The flush is this many times the L2, written and then read: read last, so that no timed call pays for writing its dirty lines back.
FLUSH_OF_L2 = 2
#: Flushes before a call launched ahead, most of a millisecond; a row whose launch takes the host longer says so.
HEAD_START = 12


@dataclass
class Lane:
    """One thing timed: what is called, how many flushes run before it, ms on the device and ms that the host took to launch it."""

    fire: Callable[[], object]
    flushes: int = 1
    samples: list[float] = field(default_factory=list)
    host: list[float] = field(default_factory=list)


class Flush:
    """Leaves nothing of earlier calls in the L2. Its buffer is made at the first use."""

    def __init__(self) -> None:
        self._buffer: Tensor | None = None

    def __call__(self) -> None:
        if self._buffer is None:
            size = FLUSH_OF_L2 * torch.cuda.get_device_properties(0).L2_cache_size
            self._buffer = torch.empty(size // 4, dtype=torch.int32, device="cuda")
        self._buffer.zero_()
        self._buffer.max()

    def ms(self) -> float:
        """What one flush takes, the best of a few."""
        return min(_gpu_ms(lambda: None, Lane(self))[0] for _ in range(5))


def capture(call: Callable[[], Tensor]) -> tuple[Any, Tensor]:
    """A CUDA graph of one call, and the output it writes at every replay."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(CAPTURE_WARMUP):
            call()
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = call()
    return graph, result


def first_cause(error: BaseException) -> BaseException:
    """The exception that began it: leaving a broken capture raises again."""
    while error.__context__ is not None:
        error = error.__context__
    return error


def time_lanes(flush: Callable[[], None], lanes: Sequence[Lane], warmup: int, repeats: int, device: str) -> None:
    """Milliseconds of every lane, in turn; one synchronisation a call, so that each starts from an idle device."""
    for turn in range(warmup + repeats):
        for lane in lanes:
            ms, host = _cpu_ms(lane.fire) if device == "cpu" else _gpu_ms(flush, lane)
            if turn >= warmup:
                lane.samples.append(ms)
                lane.host.append(host)


def _gpu_ms(flush: Callable[[], None], lane: Lane) -> tuple[float, float]:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    for _ in range(lane.flushes):
        flush()
    start.record()
    _, host = _cpu_ms(lane.fire)
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)), host


def _cpu_ms(fire: Callable[[], object]) -> tuple[float, float]:
    """Wall clock of the call, which on a CPU is both."""
    start = time.perf_counter()
    fire()
    passed = (time.perf_counter() - start) * 1e3
    return passed, passed


def relative_l2(found: Tensor, expected: Tensor) -> float:
    """Norm of the difference over the norm of `expected`; NaN if either holds one."""
    return float((found.double() - expected.double()).norm() / expected.double().norm())


def release(device: str) -> None:
    """Give freed memory back, so that the next layer finds it."""
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
