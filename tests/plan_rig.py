"""What the tests of plans share: plan files around `plan_engine.py`, the command line as a process, and what it left behind."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mxfp4_validate.endpoint import supervise
from mxfp4_validate.records.evals import EvalStore

HERE = Path(__file__).resolve().parent
CLI = [sys.executable, "-m", "mxfp4_validate"]
#: Canary and divergence as small as they can be and still decide.
SMALL = """
[canary]
eval = "gsm8k"
generations = 12
concurrency = 12
[divergence]
eval = "gsm8k"
questions = {questions}
sequences = 20
max_tokens = 8
concurrency = 4
"""
EVAL = """
[evals.gsm8k]
questions = {questions}
repeats = 4
looks = [2, 4]
margin = 20
concurrency = 16
outage = 5
retry_budget = 5
"""


def questions(folder: Path, count: int = 24) -> Path:
    path = folder / "questions.jsonl"
    rows = [{"question": f"Ada has {i} figs and finds one more; how many? [{i}]", "answer": f"#### {i + 1}"} for i in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def engine(folder: Path, *flags: str) -> str:
    """A leg's command line around the cheap engine, as TOML."""
    return json.dumps([sys.executable, "-S", str(HERE / "plan_engine.py"), "--port", "{port}", "--folder", str(folder), *flags])


def write_plan(
    folder: Path, *, baseline: Sequence[str] = (), candidate: Sequence[str] = (), stages: Sequence[str] = ("canary", "divergence", "gsm8k"),
    order: str = "interleaved", backends: tuple[str, str] = ("marlin", "marlin"), aa: bool = True, changes: str = "", count: int = 24,
    name: str = "tried",
) -> Path:  # fmt: skip
    """`baseline` and `candidate` are flags of the engine; `changes` lines of the eval's table."""
    file = json.dumps(str(questions(folder, count)))
    text = f'name = "{name}"\ntitle = "a test"\norder = "{order}"\naa = {str(aa).lower()}\nstages = {json.dumps(list(stages))}\n'
    for leg, flags, backend in (("baseline", baseline, backends[0]), ("candidate", candidate, backends[1])):
        text += f'[{leg}]\ncommand = {engine(folder, *flags)}\nbackend = "{backend}"\nload_deadline = 20\n'
    text += SMALL.format(questions=file) + (EVAL.format(questions=file) + changes if "gsm8k" in stages else "")
    path = folder / f"{name}.toml"
    path.write_text(text, encoding="utf-8")
    return path


@dataclass
class Ended:
    """A run of the command that came to its end."""

    code: int
    said: dict[str, Any]
    err: str

    def stage(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = next(stage for stage in self.said["stages"] if stage["stage"] == name)
        return found


def start(plan: Path, out: Path, *more: str) -> subprocess.Popen[str]:
    argv = [*CLI, "run", str(plan), "--out", str(out), "--json", "--grace", "2", *more]
    env = {name: value for name, value in os.environ.items() if not name.startswith("OPENAI_")}
    env["PYTHONPATH"] = str(HERE.parent)
    return subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)


def run(plan: Path, out: Path, *more: str) -> Ended:
    process = start(plan, out, *more)
    stdout, stderr = process.communicate(timeout=170)
    return Ended(process.returncode, json.loads(stdout) if stdout.strip() else {}, stderr)


def left(folder: Path) -> list[int]:
    """Processes whose command line names the folder, once those that are ending have ended."""
    end = time.monotonic() + 10
    while True:
        found = [pid for pid in supervise.parents() if pid != os.getpid() and str(folder) in _command(pid)]
        if not found or time.monotonic() > end:
            return found
        time.sleep(0.1)


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
    except OSError:
        return ""


def ports(out: Path) -> list[int]:
    """Ports that servers of this run were started on."""
    facts = [json.loads(json.loads(path.read_text())["body"])["value"] for path in (out / "journal").glob("boot-*.json")]
    return [int(re.search(r":(\d+)", fact["address"])[1]) for fact in facts]  # type: ignore[index]


def listening(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def samples(out: Path, name: str = "gsm8k") -> dict[str, Any]:
    """What the models answered in both legs, as a verdict takes it, by question and repeat."""
    found: dict[str, Any] = {}
    for leg in ("baseline", "candidate"):
        with EvalStore.open(out / "evals" / name / leg) as store:
            grades = store.grades("lenient")
            found[leg] = {
                f"{s.question_id}.{s.repeat}": (s.state, grades[s.question_id, s.repeat].correct)
                for s in store.samples()
                if (s.question_id, s.repeat) in grades
            }
    return found
