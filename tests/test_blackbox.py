"""The harness from outside: how each death of a worker, and each way to test nothing, ends."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def run(*args: str, tmp: Path, python: tuple[str, ...] = ("-m", "pytest")) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(ROOT), "FAKE_MARK": str(tmp / "mark")}
    return subprocess.run([sys.executable, *python, *args], cwd=ROOT, env=env, capture_output=True, text=True, timeout=300, check=False)


FAKE = ("-m", "kernel", "--backend=tests.fakes:factory")


def outcomes(folder: Path) -> dict[str, tuple[str, str, str]]:
    (file,) = folder.glob("*.sqlite")
    rows = sqlite3.connect(file).execute('SELECT "check", outcome, message, metrics FROM result').fetchall()
    return {row[0]: row[1:] for row in rows}


def test_every_death_is_one_failure(tmp_path: Path) -> None:
    done = run(*FAKE, "--catalogue=tests.fakes:CHECKS", f"--record={tmp_path}/r", "--deadline-scale=0.2", tmp=tmp_path)
    found = outcomes(tmp_path / "r")
    assert done.returncode == 1, done.stdout + done.stderr
    assert len(found) == 20
    assert {name for name, row in found.items() if row[0] == "passed"} == {f"good-{i}" for i in range(10)} | {"oom_once"}, found
    assert "SIGSEGV" in found["segfault"][1]
    assert "status 0" in found["leaves"][1]
    assert "last words" in found["leaves"][1]
    assert found["oom_always"][0] == "oom"
    assert json.loads(found["wrong"][2])["unexplained"] == 3
    assert "repro: mxfp4-validate kernel --backend tests.fakes:factory --case dsv4-mini/m1/random/s0 --check wrong" in done.stdout
    assert "tactic t7" in done.stdout


def test_two_workers_write_one_record(tmp_path: Path) -> None:
    done = run(*FAKE, "--catalogue=tests.fakes:GOOD", f"--record={tmp_path}/r", "-n2", tmp=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(outcomes(tmp_path / "r")) == 2


@pytest.mark.parametrize(
    ("args", "status", "says"),
    [
        (("-m", "kernal"), 4, "did you mean 'kernel'"),
        ((*FAKE, "--catalogue=tests.fakes:GOOD", "-k", "nothing_of_that_name"), 5, "deselected"),
        (("-m", "kernel", "--backend=tests.fakes:Absent", "--catalogue=tests.fakes:GOOD"), 5, "NOTHING WAS TESTED"),
        (
            ("-m", "kernel", "--backend=tests.fakes:Absent", "--catalogue=tests.fakes:GOOD", "--require-hardware"),
            1,
            "unavailable: no such card",
        ),
        (("-m", "kernel", "--backend=emulate:sm90-cutlas"), 4, "did you mean"),
        ((*FAKE, "--catalogue=tests.fakes:GOOD", "--case=nope"), 4, "--case 'nope'"),
        ((*FAKE, "--catalogue=tests.fakes:GOOD", "-p", "tests.eater"), 4, "vanished"),
        ((*FAKE, "--catalogue=tests.fakes:GOOD", "-p", "tests.eater", "-n2"), 4, "vanished"),
        ((*FAKE, "--catalogue=tests.fakes:GOOD", "-p", "tests.liar"), 4, "no result"),
    ],
)
def test_ends(args: tuple[str, ...], status: int, says: str, tmp_path: Path) -> None:
    done = run(*args, tmp=tmp_path)
    assert done.returncode == status, done.stdout + done.stderr
    assert says in done.stdout + done.stderr


def test_collecting_needs_no_torch(tmp_path: Path) -> None:
    block = "import sys; sys.modules['torch'] = None; import pytest; sys.exit(pytest.main(sys.argv[1:]))"
    started = time.monotonic()
    done = run(block, "-m", "kernel", "--collect-only", "-q", tmp=tmp_path, python=("-c",))
    print(f"collected in {time.monotonic() - started:.1f} s")
    assert done.returncode == 0, done.stdout + done.stderr
