"""The record of an eval run under kills, cuts, flipped bits and failing disks: nothing acknowledged is lost, nothing counts twice."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest

from mxfp4_validate.errors import InvalidRun, UsageError
from mxfp4_validate.grading.base import Grade
from mxfp4_validate.records import durable, evals
from mxfp4_validate.records.evals import AttemptRow, EvalStore
from mxfp4_validate.records.sample import Sample, pack

ROOT = Path(__file__).resolve().parent.parent
QUESTIONS, REPEATS = 10, 4
KEYS = [(f"q{i}", r) for r in range(REPEATS) for i in range(QUESTIONS)]


def entry(question: str, repeat: int) -> tuple[Sample, list[AttemptRow], dict[str, Grade]]:
    """A sample with an attempt and a grade, the same whenever it is made."""
    sample = Sample(question, repeat, "answered", content=f"{question} {repeat} " * 20, completion_tokens=40, boot="b", attempts=1)
    row = AttemptRow(question, repeat, "2026-01-01", "ok", 200, 0.5, "", "b", ())
    return sample, [row], {"lenient": Grade(repeat % 2 == 0, "1", "boxed")}


def create(path: Path, questions: int = QUESTIONS) -> EvalStore:
    rows = [(f"q{i}", "hash", '["1"]', "prompt") for i in range(questions)]
    return EvalStore.create(path, "gsm8k", REPEATS, rows, {"a": 1}, {"grader": "lenient"}, {})


def content(path: Path) -> dict[str, Any]:
    """Everything a verdict could be made of."""
    with EvalStore.open(path) as store:
        return {
            "run": store.run().fingerprint,
            "questions": store.questions(),
            "samples": list(store.samples()),
            "grades": sorted(store.grades("lenient").items()),
            "attempts": sorted((a.question_id, a.repeat) for a in store.attempts()),
        }


#: Forks a writer for each line of its input and kills it after that many seconds; answers with what the writer acknowledged.
FORKER = textwrap.dedent(
    """
    import os, signal, sys, time
    from pathlib import Path
    from mxfp4_validate.records.evals import EvalStore
    from tests.test_store_survives import KEYS, create, entry
    path = Path(sys.argv[1])
    if not path.exists():
        create(path).close()
    for line in sys.stdin:
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            store = EvalStore.resume(path)
            have = store.states()
            left = [key for key in KEYS if key not in have]
            for at in range(0, len(left), 3):
                store.add([entry(*key) for key in left[at : at + 3]], "1")
                os.write(write, "".join(f"{q}:{r} " for q, r in left[at : at + 3]).encode())
            os.write(write, b"finished ")
            os._exit(0)
        os.close(write)
        time.sleep(float(line))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        said = b""
        while piece := os.read(read, 65536):
            said += piece
        os.close(read)
        words = said.decode().split()
        print(*[w for w in words if w != "finished"], "finished" if "finished" in words else "killed", flush=True)
    """
)


def test_c02_two_hundred_kills(tmp_path: Path) -> None:
    """SIGKILL at 200 random instants of writing: every acknowledged sample is there, once, and the end is the uninterrupted one's."""
    golden = tmp_path / "golden.sqlite"
    with create(golden) as store:
        store.add([entry(*key) for key in KEYS], "1")
    rng, env = random.Random(20), {**os.environ, "PYTHONPATH": str(ROOT)}
    kills, lost, round_ = 0, 0, 0
    while kills < 200:
        path, acknowledged, round_ = tmp_path / f"run{round_}.sqlite", set(), round_ + 1
        server = subprocess.Popen(
            [sys.executable, "-c", FORKER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=env
        )
        assert server.stdin is not None
        assert server.stdout is not None
        while True:
            server.stdin.write(f"{rng.random() * 0.03}\n")
            server.stdin.flush()
            said = server.stdout.readline().split()
            killed = said.pop() == "killed"
            acknowledged |= set(said)
            kills += killed
            with EvalStore.open(path) as store:
                there = {f"{q}:{r}" for q, r in store.states()}
                assert len(list(store.samples())) == len(there)
            lost += len(acknowledged - there)
            assert len(there) <= len(acknowledged) + 3, "more than the batch in flight was kept unasked"
            acknowledged = there  # what a killed batch had committed counts from now on
            if not killed:
                break
        server.stdin.close()
        server.wait(10)
        server.stdout.close()
        assert content(path) == content(golden), f"round {round_} ended otherwise"
    assert lost == 0


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, dict[str, Any], Path]:
    """A small finished store with small pages: its bytes, its content, and a path to put damaged copies at."""
    path = tmp_path_factory.mktemp("small") / "run.sqlite"
    connect = durable.connect

    def small_pages(path: Path) -> sqlite3.Connection:
        db = connect(path)
        db.execute("PRAGMA page_size=512")
        return db

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evals, "connect", small_pages)
        with create(path, questions=2) as store:
            store.add([entry(f"q{i}", r) for i in range(2) for r in range(2)], "1")
            store.finish(0)
    return path.read_bytes(), content(path), path.with_name("damaged.sqlite")


def test_c04_cut_at_every_byte(small: tuple[bytes, dict[str, Any], Path]) -> None:
    """A truncated file is refused, or all of its content is there."""
    data, whole, path = small
    refused = 0
    for length in range(len(data)):
        path.write_bytes(data[:length])
        try:
            assert content(path) == whole, f"cut at byte {length} of {len(data)}: another content was read without a word"
        except (UsageError, InvalidRun):
            refused += 1
    assert refused > 0.9 * len(data)


def test_c05_every_byte_flipped(small: tuple[bytes, dict[str, Any], Path]) -> None:
    """A flipped bit is refused by name, or touched nothing that counts. Samples may turn to missing ones, never to others."""
    data, whole, path = small
    rng, refused = random.Random(5), set()
    for place in range(len(data)):
        broken = bytearray(data)
        broken[place] ^= 1 << rng.randrange(8)
        path.write_bytes(broken)
        try:
            found = content(path)
        except (UsageError, InvalidRun):
            refused.add(place)
            continue
        for name in ("run", "questions"):
            assert found[name] == whole[name], f"byte {place}: {name} changed"
        assert all(sample in whole["samples"] for sample in found["samples"]), f"byte {place}: a sample changed"
        assert all(grade in whole["grades"] for grade in found["grades"]), f"byte {place}: a grade changed"
    stored = [data.find(pack(sample.content)) for sample in whole["samples"]]
    assert min(stored) > 0, "the stored texts are somewhere in the file"
    for start, sample in zip(stored, whole["samples"], strict=True):
        assert refused.issuperset(range(start, start + len(pack(sample.content)))), "a flipped bit in a stored text was not refused"


class Failing:
    """A connection whose call number `at` fails the way a full or broken disk does."""

    def __init__(self, db: sqlite3.Connection, at: int, text: str) -> None:
        self._db, self._at, self._text, self.calls = db, at, text, 0

    def _count(self) -> None:
        self.calls += 1
        if self.calls == self._at:
            raise sqlite3.OperationalError(self._text)

    def execute(self, *args: Any) -> Any:
        self._count()
        return self._db.execute(*args)

    def executemany(self, *args: Any) -> Any:
        self._count()
        return self._db.executemany(*args)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._db, name)


@pytest.mark.parametrize("text", ["database or disk is full", "disk I/O error"])
def test_c06_c07_a_disk_that_fails_at_call_i(tmp_path: Path, text: str) -> None:
    """Whatever call fails: the batch is all there or not at all, and the same batch can be written afterwards."""
    batch = [entry("q0", 0), entry("q1", 0)]
    for at in range(1, 40):
        path = tmp_path / f"{at}.sqlite"
        create(path).close()
        db = durable.connect(path)
        failing = Failing(db, at, text)
        store = EvalStore(path, failing)  # type: ignore[arg-type]
        try:
            store.add(batch, "1")
        except sqlite3.OperationalError:
            db.close()
            with EvalStore.open(path) as again:
                assert again.states() in ({}, {("q0", 0): "answered", ("q1", 0): "answered"}), f"half a batch after call {at}"
            with EvalStore.resume(path) as again:
                if not again.states():
                    again.add(batch, "1")
                assert len(again.attempts()) == 2
        else:
            db.close()
            assert at > failing.calls, "the failing call was swallowed"
            return
    pytest.fail("a batch takes more calls than were tried")


def test_a_model_s_answer_is_never_replaced(tmp_path: Path) -> None:
    with create(tmp_path / "run.sqlite") as store:
        store.add([entry("q0", 0)], "1")
        with pytest.raises(InvalidRun, match="a second answer is refused"):
            store.add([entry("q1", 0), entry("q0", 0)], "1")
        assert store.states() == {("q0", 0): "answered"}, "the other half of the refused batch was kept"


def test_a_missing_sample_is_replaced_and_its_attempts_stay(tmp_path: Path) -> None:
    with create(tmp_path / "run.sqlite") as store:
        first = AttemptRow("q0", 0, "2026", "timeout", 0, 9.0, "late", "b", ())
        store.add([(Sample("q0", 0, "timeout"), [first], {})], "1")
        store.add([entry("q0", 0)], "1")
        assert store.states() == {("q0", 0): "answered"}
        assert [row.outcome for row in store.attempts()] == ["timeout", "ok"]


def test_create_never_takes_an_existing_file(tmp_path: Path) -> None:
    path = tmp_path / "run.sqlite"
    path.write_text("something of the user's")
    with pytest.raises(UsageError, match="cannot create"):
        create(path)
    assert path.read_text() == "something of the user's"
    assert [p.name for p in tmp_path.iterdir()] == ["run.sqlite"]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 130)])
def test_c01_c18_interrupted_runs_are_valid_and_go_on(tmp_path: Path, number: int, code: int) -> None:
    """SIGINT and SIGTERM at random instants of a whole `eval`: exit 130, every kept sample valid, the resumed end complete."""
    import json

    from tests.fault_server import Act, FaultServer, answer

    questions = tmp_path / "q.jsonl"
    questions.write_text("\n".join(json.dumps({"question": f"What is {i} plus one?", "answer": f"#### {i + 1}"}) for i in range(60)))
    rng = random.Random(number)
    with FaultServer(lambda n, r: Act([answer().pieces[0]], delay=0.02)) as server:
        command = [sys.executable, "-m", "mxfp4_validate", "eval", "gsm8k", "--base-url", server.url, "--questions", str(questions)]
        command += ["--out", str(tmp_path / "run"), "--concurrency", "1", "--canaries", "0"]
        codes = []
        for _ in range(40):
            process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            asked = len(server.requests)
            while len(server.requests) == asked and process.poll() is None:
                time.sleep(0.005)
            time.sleep(rng.random() * 0.3)
            process.send_signal(number)
            process.communicate(timeout=10)
            with EvalStore.open(tmp_path / "run") as store:
                kept = [sample for sample in store.samples() if sample.state == "answered"]
                ended = store.run().exit_status
            if len(kept) == 60 and ended == 0:  # finished; a signal may still hit the interpreter on its way out
                break
            codes.append(process.returncode)
        assert len(codes) > 3, "too few interruptions to show anything"
        assert set(codes) == {code}, codes
        assert len(kept) == 60
