"""One server process under its supervisor: started from argv, watched, ended with everything it started."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from mxfp4_validate.endpoint import supervise
from mxfp4_validate.errors import IncompleteRun, UsageError

#: The end of a log is read from this many bytes: the last lines of a server that prints whole configurations.
TAIL_BYTES = 64 << 10


class Process:
    """A server in a session of its own below a supervisor that ends it all when we stop, exit, or are killed (see `supervise`)."""

    def __init__(self, argv: Sequence[str], env: Mapping[str, str], log: Path) -> None:
        if os.name != "posix":
            raise UsageError("servers are launched on POSIX systems alone; start it yourself and give its --base-url")
        self.log, self._file = _new_log(log)
        self.pid = 0
        self.exit: int | None = None  # the first process's status, negative for a signal
        self._mark = uuid.uuid4().hex
        self._lines = b""
        self._left: int | None = None
        self._ooms = _oom_kills()
        command = [sys.executable, "-I", "-S", supervise.__file__, self._mark, str(os.getpid()), *argv]
        with self._file:
            self._supervisor = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._file, start_new_session=True,
                env={**os.environ, **env, supervise.MARK: self._mark},
            )  # fmt: skip
        try:
            self._await_start()
        except BaseException:
            self.stop(0)
            raise

    def _await_start(self) -> None:
        until = time.monotonic() + 30
        while not self.pid:
            for fact in self._facts(0.2):
                if "error" in fact:
                    raise UsageError(f"the server cannot be started: {fact['error']}; is it installed, and is argv[0] on the PATH?")
                self.pid = int(fact.get("pid", 0))
            if not self.pid and (self._supervisor.poll() is not None or time.monotonic() > until):
                raise IncompleteRun(f"the supervisor of the server did not start; its output is in {self.log}")

    def _facts(self, wait: float) -> list[dict[str, Any]]:
        """What the supervisor said since the last call."""
        pipe = self._supervisor.stdout
        assert pipe is not None
        if pipe.closed or not select.select([pipe], [], [], wait)[0]:
            return []
        self._lines += os.read(pipe.fileno(), 1 << 16)
        *whole, self._lines = self._lines.split(b"\n")
        return [json.loads(line) for line in whole]

    def poll(self) -> str:
        """How the server ended, in words; "" while it runs."""
        if self.exit is None:
            for fact in self._facts(0):
                self.exit = fact.get("exit", self.exit)
        if self.exit is not None:
            return self._death(self.exit)
        if self._left is not None:
            return "was stopped"
        if self._supervisor.poll() is not None:
            return "lost its supervisor, which somebody killed"
        return ""

    def _death(self, code: int) -> str:
        if code >= 0 and code - 128 != signal.SIGKILL:
            return f"exited with status {code}"
        number = -code if code < 0 else code - 128
        name = signal.Signals(number).name if number in set(signal.Signals) else "an unnamed one"
        text = f"was ended by signal {number} ({name})"
        if number != signal.SIGKILL:
            return text
        ooms = _oom_kills() - self._ooms
        if ooms > 0:
            return f"{text}: the kernel's out-of-memory killer, {ooms} times since the start; it needs more host memory"
        # SGLang kills itself so when one of its schedulers fails: without the kernel's count, its log decides.
        return (
            f"{text}, which nobody here sent: the kernel's out-of-memory killer (see dmesg), or the server itself after an error in its log"
        )

    def stop(self, grace: float = 30.0) -> int:
        """SIGTERM to all that it started, SIGKILL after `grace` seconds; how many processes would not go. Twice does no harm."""
        if self._left is not None:
            return self._left
        pipe, said = self._supervisor.stdin, self._supervisor.stdout
        assert pipe is not None
        assert said is not None
        with contextlib.suppress(OSError, ValueError):
            pipe.write(f"stop {grace}\n".encode())
            pipe.flush()
        try:
            self._supervisor.wait(grace + supervise.KILL_WAIT + 10)
        except BaseException as error:  # its own deadline, or Ctrl-C while waiting: no grace then
            self._supervisor.kill()
            self._supervisor.wait()
            if not isinstance(error, subprocess.TimeoutExpired):
                supervise.sweep(self._mark)
                raise
        finally:
            with contextlib.suppress(OSError):
                pipe.close()
        for fact in self._facts(0):
            self.exit = fact.get("exit", self.exit)
        said.close()
        self._left = supervise.sweep(self._mark)  # finds something only if the supervisor was killed
        return self._left

    def tail(self, lines: int = 20) -> list[str]:
        """The log's last lines, without empty ones; raw text."""
        with self.log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL_BYTES))
            text = file.read().decode("utf-8", "replace")
        # A progress bar rewrites its line with carriage returns: what stands at the end is the line.
        shown = [part for line in text.split("\n") if (part := line.rstrip().rpartition("\r")[2].strip())]
        return shown[-lines:]


def _new_log(path: Path) -> tuple[Path, BinaryIO]:
    """A file that was not there, `NAME.2.log` where the name is taken: logs of earlier boots are kept. Ours alone to read: it may hold keys."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for number in range(1, 10_000):
            one = path if number == 1 else path.with_suffix(f".{number}{path.suffix}")
            with contextlib.suppress(FileExistsError):
                return one, os.fdopen(os.open(one, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_NOFOLLOW, 0o600), "wb")
    except OSError as error:
        raise UsageError(f"the server's log {str(path)!r} cannot be written: {error.strerror}; choose another folder") from error
    raise UsageError(f"the server's log {str(path)!r} exists 9999 times; choose another folder")


def _oom_kills() -> int:
    """How often the kernel ended a process of this control group for memory; 0 where that is not counted."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        text = Path("/sys/fs/cgroup/memory.events").read_text()
        return next((int(line.split()[1]) for line in text.splitlines() if line.startswith("oom_kill ")), 0)
    return 0
