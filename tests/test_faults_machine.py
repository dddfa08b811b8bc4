"""Rows C6 to C8, C11, C16 and C17: disks, folders, clocks and terminals that do not do what they should."""

from __future__ import annotations

import errno
import fcntl
import os
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from mxfp4_validate import cli
from mxfp4_validate.errors import UsageError
from mxfp4_validate.records import durable, evals
from mxfp4_validate.records.evals import EvalStore
from mxfp4_validate.serving.lock import FolderLock, check_folder
from tests.fault_server import FaultServer, status
from tests.store_rig import create, eval_args, final, number_of, right, slowly, write_questions

ROOT = Path(__file__).resolve().parent.parent


pytestmark = pytest.mark.usefixtures("bare_surroundings")

#: As it is outside these tests.
CONNECT = durable.connect


class Failing:
    """A connection that fails at one call of all that are made, the way a full or broken disk does, and at every later one."""

    def __init__(self, db: sqlite3.Connection, disk: Disk) -> None:
        self._db, self._disk = db, disk

    def execute(self, *args: Any) -> Any:
        if args[0] != "ROLLBACK":
            self._disk.call()
        return self._db.execute(*args)

    def executemany(self, *args: Any) -> Any:
        self._disk.call()
        return self._db.executemany(*args)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._db, name)


class Disk:
    """Counts the calls of every connection to it; from call `at` on it is full or broken."""

    def __init__(self, at: int, text: str) -> None:
        self.at, self.text, self.calls = at, text, 0

    def call(self) -> None:
        self.calls += 1
        if self.calls >= self.at:
            error = sqlite3.OperationalError(self.text)
            error.sqlite_errorcode = sqlite3.SQLITE_FULL if "full" in self.text else sqlite3.SQLITE_IOERR
            raise error

    def connect(self, path: Path) -> Any:
        return Failing(CONNECT(path), self)


def failing_disk(at: int, text: str, monkeypatch: pytest.MonkeyPatch, server: FaultServer, questions: Path, out: Path) -> tuple[int, Disk]:
    """An `eval` on a disk that fails from call `at` on; its exit status."""
    disk = Disk(at, text)
    with monkeypatch.context() as patch:
        for module in (durable, evals):  # the one creates the file, the other goes on with it
            patch.setattr(module, "connect", disk.connect)
        return cli.main(eval_args(server, questions, out, "--concurrency", "4")), disk


@pytest.mark.parametrize(("row", "text"), [("c06", "database or disk is full"), ("c07", "disk I/O error")])
def test_c06_c07_disk_fails_at_call_i(
    row: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """From call i = 1..N on nothing can be written: exit 5 with the reason, no half sample, and a resume that ends as the golden run did."""
    questions = write_questions(tmp_path / "sums.jsonl", 3)
    with FaultServer(right) as server:
        code, disk = failing_disk(1 << 30, text, monkeypatch, server, questions, tmp_path / "golden")
        assert code == 0
        golden, calls = final(tmp_path / "golden"), disk.calls
        assert calls > 20
        for at in range(1 if row == "c06" else 2, calls + 1, 2):
            out = tmp_path / f"run{at}"
            before = len(server.requests)
            capsys.readouterr()
            code, _ = failing_disk(at, text, monkeypatch, server, questions, out)
            said = capsys.readouterr()
            if not (out / "run.sqlite").exists():  # it failed before anything was asked
                assert code == 2
                assert len(server.requests) == before
            else:
                assert code == 5, f"call {at}: {said.err}"
                samples = final(out)["samples"]
                with EvalStore.open(out) as store:
                    assert {(row.question_id, row.repeat) for row in store.attempts()} == set(samples)
                    assert all(set(store.grades(mode)) == set(samples) for mode in store.modes())
            assert text in said.err + said.out
            assert "Traceback" not in said.err
            assert cli.main(eval_args(server, questions, out)) == 0
            assert final(out) == golden, f"call {at}"


def test_c07_nothing_is_written_after_a_failed_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, questions: Path) -> None:
    """One failed COMMIT, all others would work: the run stops there all the same."""
    commits: list[int] = []

    class Once(Failing):
        def execute(self, *args: Any) -> Any:
            if args[0] == "COMMIT":
                commits.append(1)
                if len(commits) == 2:  # the first one creates the file
                    raise sqlite3.OperationalError("disk I/O error")
            return self._db.execute(*args)

    disk = Disk(1 << 30, "")
    for module in (durable, evals):
        monkeypatch.setattr(module, "connect", lambda path: Once(CONNECT(path), disk))
    with FaultServer(slowly(0.15)) as server:
        assert cli.main(eval_args(server, questions, tmp_path / "run", "--concurrency", "1")) == 5
        assert len(server.requests) < 12
    assert final(tmp_path / "run")["samples"] == {}


@pytest.mark.parametrize("error", [errno.EACCES, errno.EROFS, errno.ENOSPC])
def test_c08_folder_that_cannot_be_written(
    error: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, questions: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Found before the first request."""
    real = Path.open

    def refuse(self: Path, *args: Any, **kwargs: Any) -> Any:
        if self.name.startswith(".probe-"):
            raise OSError(error, os.strerror(error))
        return real(self, *args, **kwargs)

    monkeypatch.setattr(Path, "open", refuse)
    with FaultServer(right) as server:
        assert cli.main(eval_args(server, questions, tmp_path / "run")) == 2
        assert server.requests == server.others == []
    assert f"cannot write there: {os.strerror(error)}" in capsys.readouterr().err


def test_c08_folder_below_a_file(tmp_path: Path, questions: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with FaultServer(right) as server:
        assert cli.main(eval_args(server, questions, questions / "run")) == 2
        assert server.others == []
    assert "cannot write there" in capsys.readouterr().err


def test_c11_clock_jumps(tmp_path: Path, questions: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Labels from a clock that goes an hour back at each look: durations stay right, and so does the result."""
    hours = iter(range(10_000))

    def jumping() -> str:
        return f"2026-10-25T{23 - next(hours) % 24:02}:00:00+00:00"

    with FaultServer(slowly(0.05)) as server:
        assert cli.main(eval_args(server, questions, tmp_path / "golden")) == 0
        for module in ("records.evals", "endpoint.collect", "endpoint.writer"):
            monkeypatch.setattr(f"mxfp4_validate.{module}.now", jumping)
        monkeypatch.setattr(time, "time", lambda: -1e9 * next(hours))
        assert cli.main(eval_args(server, questions, tmp_path / "run")) == 0
        monkeypatch.undo()
    assert final(tmp_path / "run") == final(tmp_path / "golden")
    with EvalStore.open(tmp_path / "run") as store:
        assert all(0.05 <= row.seconds < 10 for row in store.attempts())


def test_c11_no_duration_is_of_the_wall_clock() -> None:
    for folder in ("endpoint", "serving", "records"):
        for path in (ROOT / "mxfp4_validate" / folder).glob("*.py"):
            text = path.read_text().replace("stamp() - time.time()", "")  # how far off a server's HTTP date is
            assert "time.time()" not in text, path.name


@pytest.mark.parametrize("error", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_c16_file_system_without_locks(error: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(UsageError, match="has no locks"), FolderLock(tmp_path):
        pass


@pytest.mark.parametrize("call", [(Path, "rename"), (os, "fsync")])
def test_c16_file_system_without_rename_or_sync(call: tuple[Any, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EIO, "no such thing here")

    monkeypatch.setattr(*call, refuse)
    with pytest.raises(UsageError, match="cannot write there: no such thing here"):
        check_folder(tmp_path)
    assert list(tmp_path.iterdir()) == [], "a probe was left behind"


def test_c16_file_system_that_forgets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "read_bytes", lambda self: b"")
    with pytest.raises(UsageError, match="does not give back what was written"):
        check_folder(tmp_path)


def test_c16_file_system_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The new file gets its name by a rename then, and still never over another one."""

    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, "no links")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    create(tmp_path / "run.sqlite").close()
    with pytest.raises(UsageError, match="cannot create"):
        create(tmp_path / "run.sqlite")
    assert [path.name for path in tmp_path.iterdir()] == ["run.sqlite"]


@pytest.mark.parametrize(
    "env",
    [
        {"LANG": "C", "LC_ALL": "C"},
        {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
        {"COLUMNS": "0", "LINES": "0", "TERM": "dumb"},
    ],
)
def test_c17_plain_lines_without_a_terminal(env: dict[str, str], tmp_path: Path, questions: Path) -> None:
    """Any locale and width, no terminal: ASCII lines of ours, no traceback when a server says something else."""
    with FaultServer(lambda n, r: right(n, r) if number_of(r) != 3 else status(400, "Gr\u00fc\u00dfe \u2192 \U0001f600")) as server:
        argv = eval_args(server, questions, tmp_path / "run", "--concurrency", "1")
        whole = {name: value for name, value in os.environ.items() if not name.startswith(("LC_", "LANG", "PYTHON"))} | env
        command = [sys.executable, "-m", "mxfp4_validate", *argv]
        run = subprocess.run(command, cwd=ROOT, env=whole, capture_output=True, timeout=40, check=False)
        assert run.returncode == 5, run.stderr
        assert b"Traceback" not in run.stderr
        assert b"\r" not in run.stderr + run.stdout
        assert b"\x1b" not in run.stderr + run.stdout
        assert all(ord(c) < 128 for c in run.stdout.decode() if c not in "Gr\u00fc\u00dfe \u2192 \U0001f600")
