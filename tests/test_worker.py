"""The worker: every way a child can end is one answer, and the next question gets a live child."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from contextlib import closing
from enum import StrEnum
from pathlib import Path

import pytest

from mxfp4_validate.worker.parent import Worker
from mxfp4_validate.worker.pool import Pool, child_environment
from mxfp4_validate.worker.protocol import Answer, Request, jsonable

ROOT = Path(__file__).parents[1]
CASE = "dsv4-mini/m1/random/s0"
FAKE = "tests.fakes:factory"


def ask(worker: Worker, name: str, deadline_s: float = 60.0) -> Answer:
    return worker.check(name, f"tests.fakes:{name}", CASE, deadline_s)


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))


def test_a_death_costs_one_answer_and_a_pass_keeps_the_child(tmp_path: Path) -> None:
    with closing(Worker(FAKE, {**os.environ, "FAKE_MARK": str(tmp_path / "mark")})) as worker:
        assert ask(worker, "good").outcome == "passed"
        first = worker._child
        assert ask(worker, "wrong").metrics == {"unexplained": 3, "tactic": "t7"}
        assert worker._child is first  # wrong bits do not cost the layer that the child holds
        assert ask(worker, "exits").outcome == "error"
        died = ask(worker, "leaves")
        assert (died.outcome, "last words" in died.message) == ("failed", True)
        assert ask(worker, "good").outcome == "passed"
        assert worker._child is not first
        illegal = ask(worker, "illegal")
        assert illegal.outcome == "failed"
        assert worker._child is None  # a broken CUDA context is not used again


def test_out_of_memory_is_tried_once_more_in_a_fresh_child(tmp_path: Path) -> None:
    with closing(Worker(FAKE, {**os.environ, "FAKE_MARK": str(tmp_path / "mark")})) as worker:
        once = ask(worker, "oom_once")
        assert (once.outcome, once.metrics["oom_retries"]) == ("passed", 1)
        assert worker._child is not None
        assert once.metrics["pid"] == worker._child.pid
        always = ask(worker, "oom_always")
        assert (always.outcome, always.message.startswith("OOM twice")) == ("oom", True)


@pytest.mark.parametrize("name", ["hangs", "stopped"])
def test_a_hang_is_killed_at_its_deadline(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with closing(Worker(FAKE)) as worker:
        assert ask(worker, "good").outcome == "passed"  # the start-up allowance is spent
        assert worker._child is not None
        pid, started = worker._child.pid, time.monotonic()
        answer = ask(worker, name, 1.0)
        assert (answer.outcome, "killed as hanging" in answer.message) == ("failed", True)
        assert time.monotonic() - started < 20
        with pytest.raises(ProcessLookupError):
            os.killpg(pid, 0)


def test_a_child_does_not_outlive_its_parent() -> None:
    script = (
        "import time; from mxfp4_validate.worker.parent import Worker; w = Worker('tests.fakes:factory'); "
        "w.availability(); print(w._child.pid, flush=True); time.sleep(600)"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, env=env, text=True, cwd=ROOT) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        os.kill(child, 0)
        parent.kill()
    for _ in range(100):
        if not Path(f"/proc/{child}").exists() or Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
            return
        time.sleep(0.1)
    pytest.fail(f"child {child} still runs")


def test_a_backend_that_cannot_be_built_is_an_error_that_says_why() -> None:
    with closing(Worker("tests.fakes:nobody")) as worker:
        answer = worker.availability()
    assert answer.outcome == "error"
    assert "nobody" in answer.message


def test_one_gpu_a_worker_inside_what_the_caller_may_use() -> None:
    caller = {"CUDA_VISIBLE_DEVICES": "GPU-aa,5,MIG-bb", "PYTEST_XDIST_WORKER_COUNT": "4"}
    chosen = [child_environment({**caller, "PYTEST_XDIST_WORKER": f"gw{n}"})["CUDA_VISIBLE_DEVICES"] for n in range(4)]
    assert chosen == ["GPU-aa", "5", "MIG-bb", "GPU-aa"]
    assert child_environment(caller)["CUDA_VISIBLE_DEVICES"] == "GPU-aa"
    assert child_environment({"CUDA_VISIBLE_DEVICES": ""})["CUDA_VISIBLE_DEVICES"] == ""


def test_a_pool_holds_one_child() -> None:
    with closing(Pool(dict(os.environ), 1.0, None)) as pool:
        assert pool.availability(FAKE).metrics == {"kind": "fake"}
        first = pool.worker(FAKE)
        assert pool.availability("tests.fakes:Absent").outcome == "unavailable"
        assert first._child is None


class Colour(StrEnum):
    RED = "red"


def test_metrics_become_plain_json() -> None:
    given = {"nan": float("nan"), "inf": float("-inf"), 3: (1, {2.5}), "enum": Colour.RED, "path": Path("a"), "none": None, "flag": True}
    assert jsonable(given) == {"nan": "nan", "inf": "-inf", "3": [1, [2.5]], "enum": "red", "path": "a", "none": None, "flag": True}
    assert type(jsonable(given)["enum"]) is str


@pytest.mark.parametrize("line", [b"[]", b"{", b'{"id": 2, "outcome": "passed"}', b'{"id": 1, "outcome": "great"}', b'{"id": 1}'])
def test_garbage_is_not_an_answer(line: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        Answer.read(line, 1)


def test_answers_survive_the_pipe() -> None:
    answer = Answer("failed", "two\nlines \u2260", {"a": 1}, seconds=0.5)
    assert Answer.read(answer.line(7), 7) == answer
    assert Request("check", FAKE, "c", "m:f", CASE).line(1).count(b"\n") == 1
