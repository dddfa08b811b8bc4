"""What the storage tests share: invented evals, a store of a few samples, and processes that cost a fork and not an interpreter."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mxfp4_validate.grading.base import Grade
from mxfp4_validate.records.evals import AttemptRow, EvalStore
from mxfp4_validate.records.sample import Sample
from tests.fault_server import Act, FaultServer, Request, answer

ROOT = Path(__file__).resolve().parent.parent

# What the three files on storage, identity and security share: an invented eval, and processes that cost a fork and not an interpreter.


def write_questions(path: Path, count: int = 12) -> Path:
    """Sums that nobody published; the answer to the i-th is 2 i."""
    rows = [{"question": f"What is {i} plus {i}?", "answer": f"#### {2 * i}"} for i in range(1, count + 1)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def number_of(request: Request) -> int:
    """Which sum is asked; 0 for a canary."""
    found = re.search(r"What is (\d+) plus", request.text)
    return int(found[1]) if found else 0


def right(_: int, request: Request) -> Act:
    """The right answer to a sum, words to a canary."""
    i = number_of(request)
    return answer(rf"That makes \boxed{{{2 * i}}}.") if i else answer("Plain words, one after another.")


def slowly(seconds: float) -> Callable[[int, Request], Act]:
    return lambda n, request: Act(right(n, request).pieces, delay=seconds)


def eval_args(server: FaultServer, questions: Path, out: Path, *more: object) -> list[str]:
    fast = ["--outage", "1", "--retry-budget", "1", "--poll", "30", "--canaries", "0", "--max-tokens", "64"]
    given = ["eval", "gsm8k", "--base-url", server.url, "--questions", questions, "--out", out]
    return [str(arg) for arg in (*given, *fast, *more)]


#: Forks a command line for every line of its input: says its pid, then its exit status.
_FORKER = textwrap.dedent(
    """
    import json, os, sys, traceback
    from mxfp4_validate import cli, provenance
    import mxfp4_validate.serving.verbs
    provenance.collect = lambda: {"of": "a test"}
    for line in sys.stdin:
        job = json.loads(line)
        pid = os.fork()
        if pid == 0:
            log = os.open(job["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            for fd in (1, 2):
                os.dup2(log, fd)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            code = 1
            try:
                code = cli.main(job["argv"])
            except SystemExit as error:
                code = error.code
            except BaseException:
                traceback.print_exc()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
        print(pid, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
    """
)


class Forker:
    """Runs command lines, one at a time, as processes of their own that can be signalled."""

    def __init__(self, log: Path, code: str = _FORKER, *args: object) -> None:
        env = {name: value for name, value in os.environ.items() if not name.startswith("OPENAI_")} | {"PYTHONPATH": str(ROOT)}
        self.log = log
        self._process = subprocess.Popen(
            [sys.executable, "-c", code, *map(str, args)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=env
        )

    def say(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def hear(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline()

    def start(self, argv: list[str]) -> int:
        """Begin; the pid."""
        self.say(json.dumps({"argv": argv, "log": str(self.log)}))
        return int(self.hear())

    def wait(self) -> int:
        """The exit status of what was begun; -N for a signal."""
        return int(self.hear())

    def run(self, argv: list[str]) -> int:
        self.start(argv)
        return self.wait()

    def text(self) -> str:
        return self.log.read_text(encoding="utf-8")

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(20)
        self._process.stdout.close()


def wait_for(what: Callable[[], bool], seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.002)


def final(path: Path) -> dict[str, Any]:
    """What scores and verdicts are made of; times and numbers of attempts left out. A sample in a missing state has no grade."""
    with EvalStore.open(path) as store:
        samples = {(s.question_id, s.repeat): (s.state, s.content, s.completion_tokens) for s in store.samples()}
        grades = {mode: store.grades(mode) for mode in store.modes()}
        run = store.run()
        return {
            "questions": store.questions(),
            "samples": samples,
            "grades": grades,
            "fingerprint": run.fingerprint,
            "looks": run.settings["looks"],
        }


# A store of a few samples, written by hand.

KEYS = [(f"q{i}", repeat) for repeat in range(4) for i in range(10)]


def entry(question: str, repeat: int) -> tuple[Sample, list[AttemptRow], dict[str, Grade]]:
    """A sample with an attempt and a grade, the same whenever it is made."""
    sample = Sample(question, repeat, "answered", content=f"{question} {repeat} " * 9, completion_tokens=40, boot="b", attempts=1)
    row = AttemptRow(question, repeat, "2026-01-01", "ok", 200, 0.5, "", "b", ())
    return sample, [row], {"lenient": Grade(repeat % 2 == 0, "1", "boxed")}


def create(path: Path, count: int = 10) -> EvalStore:
    rows = [(f"q{i}", "hash", '["1"]', "prompt") for i in range(count)]
    return EvalStore.create(path, "gsm8k", 4, rows, {"looks": [4]}, {"grader": "lenient"}, {})


def whole(path: Path) -> dict[str, Any]:
    """Everything in the file, in the order in which a reader gets it."""
    with EvalStore.open(path) as store:
        run = store.run()
        return {
            "run": run,
            "questions": store.questions(),
            "samples": list(store.samples()),
            "grades": store.grades("lenient"),
            "attempts": sorted(store.attempts(), key=lambda row: (row.question_id, row.repeat)),
            "boots": sorted(store.boots().items()),
            "events": sorted(store.events()),
        }
