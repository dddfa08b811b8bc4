"""The parent's side: one child process a backend, deadlines it cannot escape, and a fresh child after every death."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace

from mxfp4_validate.worker.protocol import Answer, Request

#: What a fresh child may take on top of its first item's deadline: importing torch, creating a CUDA context, compiling kernels.
STARTUP_S = 180.0
LOG_TAIL = 4000
_BOOT = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from mxfp4_validate.worker.child import main; "
    "main(int(sys.argv[2]), int(sys.argv[3]))"
)


class ChildLost(Exception):
    """The child died or had to be killed; the message says how, with the tail of its log."""


class Child:
    """One process, its two pipes and its log. The same `sys.path` as here, so that it imports the same code."""

    def __init__(self, env: Mapping[str, str]) -> None:
        self.asked = 0
        self._checks = 0
        self._buffer = b""
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the child
        request_end, self._requests = os.pipe()
        self._answers, answer_end = os.pipe()
        path = json.dumps([entry or os.getcwd() for entry in sys.path] + [os.getcwd()])
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _BOOT, path, str(request_end), str(answer_end)],
                stdin=subprocess.DEVNULL, stdout=self._log, stderr=subprocess.STDOUT,
                pass_fds=(request_end, answer_end), start_new_session=True, env={**env, "PYTHONUNBUFFERED": "1"},
            )  # fmt: skip
        finally:
            os.close(request_end)
            os.close(answer_end)

    @property
    def pid(self) -> int:
        return self._process.pid

    def ask(self, request: Request, deadline_s: float) -> Answer:
        """The child's answer, or `ChildLost` if it dies or lets the deadline pass; then it is gone, with all its descendants."""
        self.asked += 1
        fresh = request.op != "check" or self._checks == 0
        self._checks += request.op == "check"
        allowed = deadline_s + STARTUP_S * fresh
        log_start = os.fstat(self._log.fileno()).st_size
        try:
            with contextlib.suppress(BrokenPipeError):
                os.write(self._requests, request.line(self.asked))
            line = self._read_line(time.monotonic() + allowed)
            if line is None:
                raise ChildLost(f"no answer within {allowed:g} s: the worker was killed as hanging{self._tail(log_start)}")
            if not line:
                raise ChildLost(f"the worker {self._death()} before it answered{self._tail(log_start)}")
            try:
                answer = Answer.read(line, self.asked)
            except ValueError as error:
                raise ChildLost(f"the worker sent garbage ({error}){self._tail(log_start)}") from error
        except BaseException:
            self.kill()
            raise
        if answer.outcome in ("error", "oom") or answer.discard:
            answer = replace(answer, message=answer.message + self._tail(log_start))
        return answer

    def _read_line(self, until: float) -> bytes | None:
        """One line; empty if the child is gone, None if `until` passed first."""
        while b"\n" not in self._buffer:
            left = until - time.monotonic()
            if left <= 0:
                return None
            if select.select([self._answers], [], [], min(left, 0.5))[0]:
                chunk = os.read(self._answers, 1 << 16)
                if not chunk:
                    return b""
                self._buffer += chunk
            elif self._process.poll() is not None and not select.select([self._answers], [], [], 0)[0]:
                return b""  # a descendant may still hold the pipe open
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line

    def _death(self) -> str:
        try:
            code = self._process.wait(5)
        except subprocess.TimeoutExpired:
            return "closed its pipe without exiting"
        if code >= 0:
            return f"exited with status {code}"
        with contextlib.suppress(ValueError):
            return f"was ended by {signal.Signals(-code).name} (signal {-code})"
        return f"was ended by signal {-code}"

    def _tail(self, start: int) -> str:
        """The end of what the child printed since `start`, as an indented block."""
        fd = self._log.fileno()
        size = os.fstat(fd).st_size
        begin = max(start, size - LOG_TAIL)
        text = os.pread(fd, max(0, size - begin), begin).decode(errors="replace").strip()
        return "\nworker's log:\n" + "\n".join(f"  | {line}" for line in text.splitlines()) if text else ""

    def kill(self) -> None:
        """End the child and every process it started, and release what is held here."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):  # a process stuck in the driver cannot be waited for
            self._process.wait(10)
        for fd in (self._requests, self._answers):
            with contextlib.suppress(OSError):
                os.close(fd)
        self._requests = self._answers = -1
        self._log.close()


class Worker:
    """A backend's child, replaced whenever it dies, hangs, loses its CUDA context or runs out of memory."""

    def __init__(self, backend: str, env: Mapping[str, str] | None = None, deadline_scale: float = 1.0, fault: str | None = None) -> None:
        self.backend = backend
        self.fault = fault
        self._env = dict(os.environ if env is None else env)
        self._scale = deadline_scale
        self._child: Child | None = None

    def availability(self) -> Answer:
        """`passed` with the backend's facts as metrics, `unavailable` with the reason, or `error` if asking it failed."""
        return self._ask(Request("availability", self.backend, fault=self.fault), 60.0, lost="error")

    def check(self, name: str, target: str, case_id: str, deadline_s: float, options: Mapping[str, object] | None = None) -> Answer:
        """Run one check on one case. Out of memory is tried once more, alone in a fresh child, and then stands."""
        request = Request("check", self.backend, name, target, case_id, dict(options or {}), self.fault)
        answer = self._ask(request, deadline_s, lost="failed")
        if answer.outcome != "oom":
            return answer
        again = self._ask(request, deadline_s, lost="failed")
        metrics = {**again.metrics, "oom_retries": 1}
        if again.outcome == "oom":
            return replace(again, message=f"OOM twice, the second time alone in a fresh worker: {again.message}", metrics=metrics)
        return replace(again, metrics=metrics)

    def _ask(self, request: Request, deadline_s: float, lost: str) -> Answer:
        if self._child is None:
            self._child = Child(self._env)
        started = time.monotonic()
        try:
            answer = self._child.ask(request, deadline_s * self._scale)
        except ChildLost as error:
            self._child = None
            return Answer(lost, str(error), seconds=time.monotonic() - started)
        except BaseException:
            self._child = None
            raise
        if answer.discard:
            self.close()
        return answer

    def close(self) -> None:
        """End the child, if there is one."""
        if self._child is not None:
            self._child.kill()
            self._child = None
