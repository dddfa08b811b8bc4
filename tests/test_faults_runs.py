"""Rows C1, C2, C9, C12 to C15 and C18: whole evals that are interrupted, killed, doubled and resumed."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mxfp4_validate import cli
from mxfp4_validate.records.evals import EvalStore
from tests.fault_server import Act, FaultServer, Request, answer, completion, http, status
from tests.store_rig import Forker, eval_args, final, number_of, right, slowly, wait_for, write_questions

ROOT = Path(__file__).resolve().parent.parent


pytestmark = pytest.mark.usefixtures("bare_surroundings")


@pytest.fixture
def forker(tmp_path: Path) -> Iterator[Forker]:
    helper = Forker(tmp_path / "log.txt")
    yield helper
    helper.close()


@pytest.mark.parametrize(("row", "number"), [("c01", signal.SIGINT), ("c18", signal.SIGTERM)])
def test_c01_c18_signals_at_random_instants(row: str, number: signal.Signals, tmp_path: Path, forker: Forker) -> None:
    """Ctrl-C or SIGTERM at 15 random instants of one run: exit 130 each time, every record valid, and the resumed end is the uninterrupted one."""
    asked = write_questions(tmp_path / "many.jsonl", 40)
    rng = random.Random(number)
    with FaultServer(slowly(0.02)) as server:
        argv = eval_args(server, asked, tmp_path / "run", "--concurrency", 2, "--repeats", 3)
        kept = 0
        for _ in range(15):
            before = len(server.requests)
            pid = forker.start(argv)
            wait_for(lambda before=before: len(server.requests) > before)
            time.sleep(rng.random() * 0.06)
            os.kill(pid, number)
            assert forker.wait() == 130, forker.text()[-2000:]
            there = len([state for state, _, _ in final(tmp_path / "run")["samples"].values() if state == "answered"])
            assert there >= kept, "an interrupted run lost samples"
            kept = there
        server.plan = right
        assert forker.run(argv) == 0, forker.text()[-2000:]
        assert forker.run(eval_args(server, asked, tmp_path / "golden", "--repeats", 3)) == 0
    assert final(tmp_path / "run") == final(tmp_path / "golden")
    assert "Traceback" not in forker.text()


def test_c01_second_interrupt_leaves_at_once(tmp_path: Path, questions: Path, forker: Forker) -> None:
    """Twice Ctrl-C while answers hang: gone within a second of the second one, and the record opens."""
    with FaultServer(lambda n, r: right(n, r) if number_of(r) < 4 else Act(delay=60)) as server:
        pid = forker.start(eval_args(server, questions, tmp_path / "run", "--concurrency", 12))
        wait_for(lambda: len(server.requests) == 12)
        os.kill(pid, signal.SIGINT)
        began = time.monotonic()
        os.kill(pid, signal.SIGINT)
        assert forker.wait() == 130
        assert time.monotonic() - began < 1.5
    assert set(final(tmp_path / "run")["samples"]) <= {(q[0], 0) for q in final(tmp_path / "run")["questions"]}


def test_c02_kills_of_whole_evals(tmp_path: Path, forker: Forker) -> None:
    """SIGKILL of `eval` at random instants, each time resumed: no answered sample is asked again, and the end is the uninterrupted one."""
    asked = write_questions(tmp_path / "many.jsonl", 40)
    rng, kept = random.Random(2), set[Any]()
    with FaultServer(slowly(0.05)) as server:
        argv = eval_args(server, asked, tmp_path / "run", "--concurrency", 2, "--repeats", 2)
        for _ in range(6):
            before = len(server.requests)
            pid = forker.start(argv)
            wait_for(lambda before=before: len(server.requests) > before)
            time.sleep(0.1 + rng.random() * 0.25)
            os.kill(pid, signal.SIGKILL)
            code = forker.wait()
            assert code == -signal.SIGKILL
            answered = {key for key, sample in final(tmp_path / "run")["samples"].items() if sample[0] == "answered"}
            assert kept <= answered
            kept = answered
        server.plan, before = right, len(server.requests)
        assert forker.run(argv) == 0, forker.text()[-2000:]
        assert len(server.requests) - before == 80 - len(kept)
        assert forker.run(eval_args(server, asked, tmp_path / "golden", "--repeats", 2, "--concurrency", 32)) == 0
    assert kept, "no kill came after the first commit"
    assert final(tmp_path / "run") == final(tmp_path / "golden")


def test_c09_two_processes_one_folder(tmp_path: Path, questions: Path, forker: Forker, capsys: pytest.CaptureFixture[str]) -> None:
    """The second is refused with the first one's pid; a lock whose holder was killed holds nobody up."""
    with FaultServer(slowly(5)) as server:
        argv = eval_args(server, questions, tmp_path / "run")
        pid = forker.start(argv)
        wait_for(lambda: len(server.requests) == 12)
        assert cli.main(argv) == 2
        assert f"another process (pid {pid}) is writing this run" in capsys.readouterr().err
        assert cli.main(["regrade", str(tmp_path / "run")]) == 2
        assert len(server.requests) == 12
        os.kill(pid, signal.SIGKILL)
        assert forker.wait() == -signal.SIGKILL
        assert (tmp_path / "run" / "run.lock").read_text() == str(pid)
        server.plan = right
        assert cli.main(argv) == 0
    assert len(final(tmp_path / "run")["samples"]) == 12


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--max-tokens", "65"], "max_tokens: the run has '64', asked for is '65'"),
        (["--temperature", "0.5"], "temperature: the run has '0.0', asked for is '0.5'"),
        (["--repeats", "2"], "repeats: the run has 1, asked for is 2"),
        (["--limit", "5"], "the questions or their order differ"),
    ],
)
def test_c10_resumed_with_another_configuration(
    more: list[str], says: str, tmp_path: Path, questions: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Refused with both values, before the first request, and the record is left as it was."""
    with FaultServer(lambda n, r: right(n, r) if number_of(r) < 6 else status(400, "no")) as server:
        assert cli.main(eval_args(server, questions, tmp_path / "run", "--concurrency", "1")) == 5
        data, before = (tmp_path / "run" / "run.sqlite").read_bytes(), len(server.requests)
        capsys.readouterr()
        assert cli.main(eval_args(server, questions, tmp_path / "run", *more)) == 2
        assert len(server.requests) == before
    assert says in capsys.readouterr().err
    assert (tmp_path / "run" / "run.sqlite").read_bytes() == data


def test_c12_memory(tmp_path: Path, forker: Forker) -> None:
    """100 answers of 1.6 MB, 32 at once: below 500 MB. The design's scale is 480 of 400,000 tokens, a text of the same size each, 64 at once."""
    questions, text = write_questions(tmp_path / "sums.jsonl", 100), "All work and no play. " * 72_000 + r"\boxed{%d}"
    with FaultServer(lambda n, r: answer(f"{n} {text % (2 * number_of(r))}")) as server:
        pid = forker.start(eval_args(server, questions, tmp_path / "run", "--concurrency", 32))
        peak, ended = 0, threading.Event()

        def watch() -> None:
            nonlocal peak
            while not ended.is_set():
                try:
                    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
                except OSError:
                    return
                peak = max([peak, *(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))])
                time.sleep(0.02)

        watcher = threading.Thread(target=watch)
        watcher.start()
        code = forker.wait()
        ended.set()
        watcher.join()
    assert code == 0, forker.text()[-2000:]
    assert 20_000 < peak < 500_000, f"{peak} KB"
    assert (tmp_path / "run" / "run.sqlite").stat().st_size < 20 << 20, "texts are not compressed"


def test_c13_exit_after_the_last_write(tmp_path: Path, questions: Path, forker: Forker) -> None:
    """Six runs as processes of their own: each is gone within 5 s of its last answer. An interpreter's own exit is part of the last one."""
    with FaultServer(right) as server:
        for number in range(6):
            began = time.monotonic()
            assert forker.run(eval_args(server, questions, tmp_path / f"run{number}", "--concurrency", 12)) == 0
            assert time.monotonic() - began < 8
        assert len(server.requests) == 72
        argv = eval_args(server, questions, tmp_path / "last")
        done = subprocess.run([sys.executable, "-m", "mxfp4_validate", *argv], cwd=ROOT, capture_output=True, timeout=40, check=False)
        assert done.returncode == 0, done.stderr


def test_c14_resumes_add_no_looks(tmp_path: Path, forker: Forker, capsys: pytest.CaptureFixture[str]) -> None:
    """A leg that took five resumes gets the verdict of the one that took none, look for look."""
    questions = write_questions(tmp_path / "sums.jsonl", 6)
    verdicts = []
    with FaultServer(right) as server:
        more = ("--repeats", "4", "--margin", "30")
        assert cli.main(eval_args(server, questions, tmp_path / "base", *more)) == 0
        server.set_info(boot_id="b")
        assert cli.main(eval_args(server, questions, tmp_path / "once", *more)) == 0
        for part in range(1, 7):
            server.plan = lambda n, r, part=part: right(n, r) if number_of(r) <= part else status(400, "not yet")
            code = cli.main(eval_args(server, questions, tmp_path / "often", "--concurrency", "1", *more))
            assert code == (5 if part < 6 else 0)
    for name in ("once", "often"):
        capsys.readouterr()
        assert cli.main(["compare", str(tmp_path / "base"), str(tmp_path / name), "--json"]) == 0
        verdicts.append(json.loads(capsys.readouterr().out)["verdict"])
    assert len(verdicts[0]["looks"]) == 1
    for verdict in verdicts:
        verdict["candidate"].pop("run_id")
    assert verdicts[0] == verdicts[1]
    assert final(tmp_path / "often") == final(tmp_path / "once")


def test_c15_first_outcome_is_kept_and_rerolls_are_marked(tmp_path: Path) -> None:
    """An answer cut in its body is asked again and marked; an answer that came is never asked again, however often the run is resumed."""
    questions, seen = write_questions(tmp_path / "sums.jsonl", 4), list[int]()

    def plan(n: int, request: Request) -> Act:
        i = number_of(request)
        seen.append(i)
        if i == 1 and seen.count(1) == 1:
            return Act([http(200, completion("half")[:40], length=4000)], end="close")
        return status(400, "later") if i == 4 and seen.count(4) < 3 else right(n, request)

    with FaultServer(plan) as server:
        argv = eval_args(server, questions, tmp_path / "run", "--concurrency", "1", "--retry-budget", "9")
        assert [cli.main(argv) for _ in range(4)] == [5, 5, 0, 0]
    assert [seen.count(i) for i in (1, 2, 3, 4)] == [2, 1, 1, 3]
    with EvalStore.open(tmp_path / "run") as store:
        rerolled = [sample for sample in store.samples() if "rerolled" in sample.flags]
        assert [sample.attempts for sample in rerolled] == [2]
        assert len([row for row in store.attempts() if row.question_id == rerolled[0].question_id]) == 2
