"""What the fault tests share: a small invented eval, tiny limits, and a run against a fault server with its outcome laid open."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

from mxfp4_validate import evalspec
from mxfp4_validate.endpoint.address import Secret, parse_address
from mxfp4_validate.endpoint.client import Limits
from mxfp4_validate.endpoint.collect import Options
from mxfp4_validate.endpoint.flow import RetryPolicy
from mxfp4_validate.endpoint.writer import Writer
from mxfp4_validate.prompts.profiles import profile
from mxfp4_validate.questions.base import Question, QuestionSet
from mxfp4_validate.records.evals import AttemptRow, EvalStore
from mxfp4_validate.records.sample import Sample
from mxfp4_validate.serving.planned import Planned, plan_run
from mxfp4_validate.serving.run import Servers, run_eval

LIMITS = Limits(connect=1, idle=0.5)
RETRY = RetryPolicy(first=0.01, most=0.05, budget=2)
KEY = "sk-sentinel-4f1d9c"


def planned(count: int = 4, repeats: int = 1, max_tokens: int = 64) -> Planned:
    """A few sums; the gold answer of q0, q1, ... is 1, 2, ..."""
    rows = tuple(Question(f"q{i}", f"Ada has {i} figs and finds one more; how many? [{i}]", str(i + 1)) for i in range(count))
    spec = replace(evalspec.load("gsm8k"), questions=count, repeats=repeats, looks=(repeats,)).with_sampling(max_tokens=max_tokens)
    return plan_run(spec, profile("default"), QuestionSet("gsm8k", rows, "invented"), repeats, {})


def number_of(text: str) -> int:
    """Which question a prompt holds."""
    return int(text.rpartition("[")[2].partition("]")[0])


@dataclass
class Outcome:
    """A run read back from its file."""

    path: Path
    status: int
    kind: str
    reason: str
    said: list[str] = field(default_factory=list)
    samples: dict[str, Sample] = field(default_factory=dict)
    attempts: list[AttemptRow] = field(default_factory=list)
    events: list[tuple[str, str]] = field(default_factory=list)
    graded: set[str] = field(default_factory=set)
    right: set[str] = field(default_factory=set)

    @property
    def states(self) -> dict[str, str]:
        return {name: sample.state for name, sample in self.samples.items()}

    def kinds(self) -> list[str]:
        return [kind for kind, _ in self.events]


def run(
    urls: str | Sequence[str],
    out: Path,
    plan: Planned | None = None,
    *,
    limits: Limits = LIMITS,
    canaries: int = 0,
    key: str = KEY,
    ca_file: Path | None = None,
    **options: Any,
) -> Outcome:
    """`run_eval` with impatient settings, then the record."""
    plan = planned() if plan is None else plan
    said: list[str] = []
    urls = [urls] if isinstance(urls, str) else urls
    servers = Servers(tuple(parse_address(url) for url in urls), Secret(key), ca_file=ca_file, limits=limits, canaries=canaries)
    values: dict[str, Any] = {"poll": 30.0, "outage": 0.3, "health_every": 0.05, "retry": RETRY, "concurrency": 4} | options
    facts = mock.patch("mxfp4_validate.provenance.collect", return_value={"of": "a test"})  # a second of subprocesses
    quick = mock.patch("mxfp4_validate.serving.run.Writer", partial(Writer, longest=0.02))
    with facts, quick:
        done = run_eval(plan, servers, Options(model="", sampling=plan.spec.sampling, **values), out, said.append)
    return read(done.path, done.status, done.ending.kind, done.ending.reason, said)


def read(path: Path, status: int, kind: str = "", reason: str = "", said: Sequence[str] = ()) -> Outcome:
    """The record of a run; a sample in a missing state that has a grade fails here, whatever the test was about."""
    with EvalStore.open(path) as store:
        names = {(s.question_id, s.repeat): s.question_id if s.repeat == 0 else f"{s.question_id}.{s.repeat}" for s in store.samples()}
        grades = store.grades("lenient")
        outcome = Outcome(
            path,
            status,
            kind,
            reason,
            list(said),
            {names[s.question_id, s.repeat]: s for s in store.samples()},
            store.attempts(),
            [(kind, text) for _, kind, text in store.events()],
            {names[at] for at in grades},
            {names[at] for at, grade in grades.items() if grade.correct},
        )
    for name, state in outcome.states.items():
        assert (name in outcome.graded) == (state in ("answered", "no_answer", "truncated", "empty")), f"{name} is {state}"
    return outcome


def write_questions(path: Path, count: int) -> Path:
    """The same sums as a local file for the command line."""
    rows = [{"question": f"Ada has {i} figs and finds one more; how many? [{i}]", "answer": f"#### {i + 1}"} for i in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def command(*args: object) -> list[str]:
    return [sys.executable, "-m", "mxfp4_validate.cli", *map(str, args)]


def cli(*args: object, env: dict[str, str] | None = None, **kwargs: Any) -> subprocess.CompletedProcess[str]:
    """The command line in a process of its own."""
    code = "import sys; from mxfp4_validate.cli import main; sys.exit(main())"
    whole = {name: value for name, value in os.environ.items() if not name.startswith("OPENAI_")} | (env or {})
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, args)], env=whole, capture_output=True, text=True, timeout=60, check=False, **kwargs
    )


def unused_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@contextmanager
def blackhole(host: str = "127.0.0.1", port: int = 0) -> Iterator[int]:
    """A port where connecting hangs: nobody accepts, and the kernel's queue is full."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(0)
        at = int(listener.getsockname()[1])
        fillers = [socket.socket(family) for _ in range(4)]
        try:
            for filler in fillers:
                filler.setblocking(False)
                filler.connect_ex((host, at))
            yield at
        finally:
            for filler in fillers:
                filler.close()


def by_number(act: Callable[[int], Any]) -> Callable[[int, Any], Any]:
    """A plan by the question asked instead of the request's number."""
    return lambda _number, request: act(number_of(request.text))
