"""The child: reads requests from one pipe, runs checks, answers on another; the only process of a run that imports torch."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import json
import os
import queue
import signal
import sys
import threading
import time
import traceback
from importlib import import_module
from pathlib import Path
from typing import Any

from mxfp4_validate.backends import registry
from mxfp4_validate.cases import MoeCase
from mxfp4_validate.checkpoints.config import ModelConfig, parse_case, read_config
from mxfp4_validate.errors import CheckFailed, MxfpError, NotSupported
from mxfp4_validate.worker.protocol import Answer, Request, jsonable

_CUDA_ERRORS = ("cuda error", "illegal memory access", "device-side assert", "cudaerror", "cublas_status_", "misaligned address")
_OOM = ("out of memory", "cublas_status_alloc_failed")
_PR_SET_PDEATHSIG = 1


class Bench:
    """Backends and their contexts, one at a time: a production layer takes gigabytes, so a second context would not fit."""

    def __init__(self) -> None:
        self._key: tuple[str, str | None] | None = None
        self._backend: Any = None
        self._context: Any = None

    def backend(self, spec: str, fault: str | None) -> Any:
        """The backend of `spec`, with `fault` injected if one is named."""
        if self._key != (spec, fault):
            self._key = self._context = self._backend = None
            backend: Any = registry.resolve(spec)
            if fault is not None:
                backend = import_module("mxfp4_validate.faults").inject(backend, fault)
            self._backend, self._key = backend, (spec, fault)
        return self._backend

    def context(self, request: Request) -> Any:
        """The one `Context` of the request's backend, with this request's options."""
        backend = self.backend(request.backend, request.fault)
        if self._context is None:
            from mxfp4_validate.checks.context import Context

            self._context = Context(backend)
        self._context.options = dict(request.options)
        return self._context

    def answer(self, request: Request) -> Answer:
        """What comes of a request; raises what the check or the backend raises."""
        if request.op == "availability":
            return _availability(self.backend(request.backend, request.fault))
        if request.op == "bench":
            return Answer("passed", metrics=jsonable(import_module("mxfp4_validate.bench.measure").answer(request.options)))
        if request.op != "check":
            raise MxfpError(f"unknown request {request.op!r}")
        module, _, name = request.target.partition(":")
        function = getattr(import_module(module if "." in module else f"mxfp4_validate.checks.{module}"), name)
        context = self.context(request)
        metrics = function(context, _case(request))
        if not isinstance(metrics, dict):
            raise MxfpError(f"check {request.check} returned {type(metrics).__name__} instead of its metrics")
        _synchronize(str(context.backend.device))
        return Answer("passed", metrics=jsonable(metrics))


def _case(request: Request) -> MoeCase:
    """The case a request names, whose shape is the catalogue's or that of a checkpoint's layer."""
    folder = request.options.get("checkpoint")
    return MoeCase.parse(request.case_id) if folder is None else parse_case(request.case_id, _config(str(folder)))


@functools.cache
def _config(folder: str) -> ModelConfig:
    """A checkpoint's configuration; cached, since a production model's headers take a second to read."""
    return read_config(Path(folder))


def _availability(backend: Any) -> Answer:
    found = backend.availability()
    if hasattr(found, "reason"):
        return Answer("unavailable", str(found.reason))
    return Answer("passed", metrics=jsonable(dict(found.facts)))


def _synchronize(device: str) -> None:
    """Surface asynchronous CUDA errors now, while they still belong to this case."""
    torch = sys.modules.get("torch")
    if device == "cuda" and torch is not None and torch.cuda.is_available():
        torch.cuda.synchronize()


def judge(error: BaseException) -> Answer:
    """Which outcome an exception is."""
    if isinstance(error, CheckFailed):
        return Answer("failed", str(error), jsonable(error.metrics))
    if isinstance(error, NotSupported):
        return Answer("unavailable", str(error))
    text = f"{type(error).__name__}: {error}"
    lowered = text.lower()
    names = {kind.__name__ for kind in type(error).__mro__}
    if isinstance(error, MemoryError) or "OutOfMemoryError" in names or any(mark in lowered for mark in _OOM):
        return Answer("oom", text, discard=True)
    if any(mark in lowered for mark in _CUDA_ERRORS):
        return Answer("failed", f"{text}\n{_trace(error)}", discard=True)
    if isinstance(error, MxfpError):
        return Answer("error", text)
    return Answer("error", f"{text}\n{_trace(error)}")


def _trace(error: BaseException) -> str:
    return "".join(traceback.format_exception(error)[-12:]).rstrip()


def handle(bench: Bench, request: Request) -> Answer:
    """The answer to a request, whatever the check does short of ending the process."""
    started = time.monotonic()
    try:
        answer = bench.answer(request)
    except BaseException as error:  # a check that calls sys.exit has not passed either
        answer = judge(error)
    return Answer(answer.outcome, answer.message, answer.metrics, time.monotonic() - started, answer.discard)


def _read_requests(source: int, requests: queue.Queue[bytes]) -> None:
    """Queue the lines of the request pipe; its end means that nobody waits for an answer any more."""
    with open(source, "rb") as lines:
        for line in lines:
            requests.put(line)
    os._exit(0)


def _die_with_parent() -> None:
    """Ask Linux to kill this process when its parent dies: a kernel that hangs never returns to read the pipe's end."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def main(source: int, sink: int) -> None:
    """Serve requests from file descriptor `source`, answering on `sink`, until the pipe ends."""
    _die_with_parent()
    for fd in (source, sink):
        os.set_inheritable(fd, False)  # a compiler left behind must not keep the pipe open
    requests: queue.Queue[bytes] = queue.Queue()
    threading.Thread(target=_read_requests, args=(source, requests), daemon=True).start()
    bench = Bench()
    while True:
        data = json.loads(requests.get())
        number = data.pop("id")
        line = handle(bench, Request(**data)).line(number)
        sys.stdout.flush()
        while line:
            line = line[os.write(sink, line) :]
