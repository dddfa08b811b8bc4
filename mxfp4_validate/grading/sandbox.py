"""Code of others on text of others: one child process, JSON lines, ten seconds a question.

`math_verify` stops itself by a signal that works in the main thread alone, and some patterns never stop. So both run in a child that is
killed when it is late, which any thread may ask; the next question starts a new one.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from mxfp4_validate.errors import MxfpError, UsageError

LIMIT = 10.0  # seconds for one answer
_START = 120.0  # seconds for the imports, which on a busy machine take many
_CHILD = Path(__file__).with_name("sandbox_child.py")
_WAYS = {
    "equal": "pip install 'mxfp4-validate[math]'",
    "gpt-oss": "pip install gpt-oss",
}


class Failed(MxfpError):
    """The child raised, died or was late; the grade is unknown."""


class _Child:
    def __init__(self) -> None:
        # -P: the child's own folder stays out of its import path, where it would hide modules of the same names.
        # A session of its own, so that Ctrl-C reaches the parent alone and no answer is graded by a dying child.
        command = [sys.executable, "-P", str(_CHILD)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True)
        self.ready: set[str] = set()

    def ask(self, request: dict[str, Any], limit: float) -> dict[str, Any]:
        """The child's reply; an empty one if it died or was killed for being late."""
        assert self.process.stdin
        assert self.process.stdout
        timer = threading.Timer(limit, self.process.kill)
        timer.start()
        try:
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except OSError:
            line = ""
        finally:
            timer.cancel()
        if not line.endswith("\n"):
            self.stop()  # wait for its death, or the next answer would go to a dying child
            return {}
        reply = json.loads(line)
        return reply if isinstance(reply, dict) else {}

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            if stream:
                with contextlib.suppress(OSError):  # what was still to be flushed has no reader
                    stream.close()


_lock = threading.Lock()
_child: _Child | None = None


def ask(operation: str, *, limit: float = LIMIT, **arguments: str) -> object:
    """The result of one operation of the child (`equal`, `gpt-oss`), from any thread.

    Raises:
        Failed: it raised, or took longer than `limit` seconds.
        UsageError: the package it needs is not installed.
    """
    global _child
    with _lock:
        if _child is None or _child.process.poll() is not None:
            close()
            _child = _Child()
        if operation not in _child.ready:
            _prepare(_child, operation)
        reply = _child.ask({"operation": operation, "arguments": arguments}, limit)
    if "result" not in reply:
        raise Failed(f"{operation}: {reply.get('error', f'no result within {limit:g} s')}")
    return reply["result"]


def _prepare(child: _Child, operation: str) -> None:
    reply = child.ask({"prepare": operation}, _START)
    if "missing" in reply:
        raise UsageError(f"grading mode needs {reply['missing']!r}, which is not installed: {_WAYS[operation]}, or use mode 'lenient'")
    if "result" not in reply:
        raise Failed(f"{operation}: {reply.get('error', 'the child process did not start')}")
    child.ready.add(operation)


def close() -> None:
    """End the child, if there is one."""
    global _child
    if _child is not None:
        _child.stop()
        _child = None


atexit.register(close)
