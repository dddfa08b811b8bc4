"""Stands between us and one launched server, so that nothing of it outlives us: run by path, standard library only.

    python -I -S supervise.py MARK LAUNCHER_PID ARGV...

Standard input is a pipe whose other end only the launcher holds: a line `stop SECONDS` asks for an end, and end of file means that the
launcher is gone, however it died. Standard output carries one JSON object a line (`pid`, `exit`, `left`, `error`); the server's own two
streams are this process's standard error, which is the log. Every descendant is found again, also one that left the process group with
setsid or was orphaned: this process is the subreaper of its tree, and all of them carry MARK in their environment.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import signal
import subprocess
import sys
import time

MARK = "MXFP4_LAUNCH"
#: Seconds between SIGTERM and SIGKILL where nobody can be asked: the launcher died, or the server's first process ended by itself.
ORPHAN_GRACE = 2.0
#: How long a process may take to go after SIGKILL before it is given up: one stuck in a driver cannot be waited for.
KILL_WAIT = 20.0
_POLL = 0.1
_PDEATHSIG, _CHILD_SUBREAPER = 1, 36


def prctl(option: int, value: int) -> None:
    """Linux's prctl; nothing elsewhere."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)


def parents() -> dict[int, int]:
    """Process id -> its parent's, of all processes but zombies, which are dead already."""
    found = {}
    for name in os.listdir("/proc") if os.path.isdir("/proc") else ():
        if name.isdigit():
            with contextlib.suppress(OSError, ValueError, IndexError):
                with open(f"/proc/{name}/stat", "rb") as file:
                    state, parent = file.read().rpartition(b")")[2].split()[:2]  # a command's name may hold blanks and brackets
                if state not in (b"Z", b"X"):
                    found[int(name)] = int(parent)
    return found


def marked(mark: str) -> set[int]:
    """Processes that inherited the mark in their environment, this one excepted."""
    needle, found = f"{MARK}={mark}".encode(), set()
    for pid in parents():
        with contextlib.suppress(OSError), open(f"/proc/{pid}/environ", "rb") as file:
            if needle in file.read().split(b"\0"):
                found.add(pid)
    return found - {os.getpid()}


def tree(mark: str) -> set[int]:
    """Everything below this process, and everything marked."""
    above = parents()
    below: set[int] = set()
    fresh = {os.getpid()}
    while fresh:
        fresh = {pid for pid, parent in above.items() if parent in fresh} - below
        below |= fresh
    return below | marked(mark)


def send(pids: set[int], number: int) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)


def end(mark: str, grace: float) -> int:
    """For the supervisor: SIGTERM to all, SIGKILL after `grace` seconds to what is left, and reap; how many would not go."""
    if tree(mark):
        send(tree(mark), signal.SIGTERM)
        _gone(mark, grace)
    until = time.monotonic() + KILL_WAIT
    while (left := tree(mark)) and time.monotonic() < until:
        send(left, signal.SIGKILL)
        _gone(mark, 0.5)
    return len(left)


def sweep(mark: str) -> int:
    """For the launcher, should this process have been killed: SIGKILL to whatever carries the mark; how many would not go.

    It has children of its own, so it neither takes all that is below it nor collects the dead of others.
    """
    until = time.monotonic() + KILL_WAIT
    while (left := marked(mark)) and time.monotonic() < until:
        send(left, signal.SIGKILL)
        time.sleep(0.03)
    return len(left)


def _gone(mark: str, seconds: float) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        _reap()
        if not tree(mark):
            return
        time.sleep(0.03)


def _reap() -> dict[int, int]:
    """Collect the dead; process id -> exit status as `waitpid` gives it."""
    dead = {}
    with contextlib.suppress(ChildProcessError):
        while (one := os.waitpid(-1, os.WNOHANG))[0]:
            dead[one[0]] = one[1]
    return dead


def tell(**facts: object) -> None:
    with contextlib.suppress(OSError):  # nobody listens any more
        os.write(1, json.dumps(facts).encode() + b"\n")


def start(argv: list[str]) -> int:
    """The server's process id. Its first process dies with this one, should somebody kill this one."""
    server = subprocess.Popen(
        argv, stdin=subprocess.DEVNULL, stdout=2, start_new_session=True, preexec_fn=lambda: prctl(_PDEATHSIG, signal.SIGKILL)
    )
    return server.pid


def watch(server: int, mark: str, launcher: int) -> float:
    """Returns when there is something to end: the grace that its end gets."""
    buffer = b""
    while True:
        dead = _reap()
        if server in dead:
            tell(exit=os.waitstatus_to_exitcode(dead[server]))
            return ORPHAN_GRACE
        if _STOP or os.getppid() != launcher:  # a fork of the dead launcher may still hold the pipe open
            return ORPHAN_GRACE
        if select.select([0], [], [], _POLL)[0]:
            chunk = os.read(0, 4096)
            if not chunk:
                return ORPHAN_GRACE
            buffer += chunk
            if b"\n" in buffer:
                return float(buffer.split()[1])


_STOP: list[int] = []


def main() -> int:
    mark, launcher, argv = sys.argv[1], int(sys.argv[2]), sys.argv[3:]
    prctl(_CHILD_SUBREAPER, 1)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda got, _: _STOP.append(got))
    signal.signal(signal.SIGINT, lambda *_: None)  # Ctrl-C is the launcher's to handle; SIG_IGN would be inherited by the server
    try:
        server = start(argv)
    except OSError as error:
        tell(error=f"{argv[0]}: {error.strerror}")
        return 1
    tell(pid=server)
    grace = watch(server, mark, launcher)
    tell(left=end(mark, grace))
    return 0


if __name__ == "__main__":
    sys.exit(main())
