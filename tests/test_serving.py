"""The serving verbs end to end against a scripted server: eval, resume, compare, shards, regrade, export, import, plan."""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from mxfp4_validate import cli
from mxfp4_validate.grading.base import Grade
from mxfp4_validate.records.evals import EvalStore
from mxfp4_validate.serving.legs import read_leg
from tests.fault_server import Act, FaultServer, Request, answer, status

QUESTIONS = 12


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    """A GSM8K-shaped file of our own."""
    path = tmp_path / "sums.jsonl"
    rows = [{"question": f"What is {i} plus {i}?", "answer": f"Twice {i}.\n#### {2 * i}"} for i in range(1, QUESTIONS + 1)]
    path.write_text("\n".join(map(json.dumps, rows)) + "\n")
    return path


def number(request: Request) -> int:
    """Which question it is; 0 for a canary."""
    found = re.search(r"What is (\d+) plus", request.text)
    return int(found[1]) if found else 0


def right(_: int, request: Request) -> Act:
    i = number(request)
    return answer(rf"That makes \boxed{{{2 * i}}}.") if i else answer("Plain words, one after another.")


def wrong_on(*bad: int) -> Callable[[int, Request], Act]:
    return lambda n, request: answer(r"\boxed{-1}") if number(request) in bad else right(n, request)


class Runner:
    """`mxfp4-validate` in this process."""

    def __init__(self, questions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.questions, self.root, self.capsys = questions, tmp_path, capsys

    def __call__(self, *argv: object) -> SimpleNamespace:
        code = cli.main([str(arg) for arg in argv])
        out, err = self.capsys.readouterr()
        return SimpleNamespace(code=code, out=out, err=err)

    def eval(self, server: FaultServer, out: str, *more: object) -> SimpleNamespace:
        fast = ("--outage", "1", "--retry-budget", "1", "--poll", "0.1", "--canaries", "1")
        return self("eval", "gsm8k", "--base-url", server.url, "--questions", self.questions, "--out", self.root / out, *fast, *more)


@pytest.fixture
def run(questions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Runner:
    return Runner(questions, tmp_path, capsys)


def test_eval_asks_everything_once_and_scores_it(run: Runner, tmp_path: Path) -> None:
    """12 questions x 3: 36 requests and a canary, each with all sampling parameters and a seed of its own; 11 of 12 right."""
    with FaultServer(wrong_on(5)) as server:
        done = run.eval(server, "a", "--repeats", 3, "--temperature", 0.7, "--effort", "high", "--thinking", "on")
    assert done.code == 0, done.err
    assert "91.67 %" in done.out
    bodies = [request.json for request in server.requests[1:]]
    assert len(bodies) == 36
    assert len({body["seed"] for body in bodies}) == 36
    for name, value in {"temperature": 0.7, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0, "max_tokens": 16384, "n": 1}.items():
        assert all(body[name] == value for body in bodies), name
    assert all(body["reasoning_effort"] == "high" and body["chat_template_kwargs"]["thinking"] is True for body in bodies)
    with EvalStore.open(tmp_path / "a") as store:
        assert store.run().settings["sampling"]["temperature"] == {"value": 0.7, "origin": "cli"}
        assert store.run().settings["sampling"]["top_p"]["origin"] == "eval"


def test_environment_sets_sampling_and_the_command_line_wins(run: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MXFP4_TEMPERATURE", "0.3")
    monkeypatch.setenv("MXFP4_MAX_TOKENS", "100")
    with FaultServer(right) as server:
        assert run.eval(server, "a", "--max-tokens", 200).code == 0
    with EvalStore.open(tmp_path / "a") as store:
        sampling = store.run().settings["sampling"]
    assert sampling["temperature"] == {"value": 0.3, "origin": "env MXFP4_TEMPERATURE"}
    assert sampling["max_tokens"] == {"value": 200, "origin": "cli"}


def test_a_resumed_run_is_the_uninterrupted_one(run: Runner, tmp_path: Path) -> None:
    """A server that fails on half of the questions leaves a run without a score; the same command on a good one completes it."""

    def half(n: int, request: Request) -> Act:
        return status(400, "not today") if number(request) > 6 else right(n, request)

    with FaultServer(half) as server:
        first = run.eval(server, "a", "--concurrency", 1)
        assert first.code == 5, first.out
        assert "no score: 6 samples are missing" in first.out
        assert "%" not in first.out
        server.plan = right
        again = run.eval(server, "a")
        assert again.code == 0, again.err
        assert run.eval(server, "b").code == 0
        asked = len(server.requests)
        assert "nothing left to ask" in run.eval(server, "a").err
        assert len(server.requests) == asked
    a, b = read_leg(tmp_path / "a"), read_leg(tmp_path / "b")
    assert (a.states == b.states).all()
    assert (a.correct == b.correct).all()


def test_compare_passes_itself_fails_a_loss_and_says_what_differs(run: Runner) -> None:
    with FaultServer(right) as server:
        assert run.eval(server, "base", "--margin", 30, "--repeats", 4).code == 0
        server.set_info(boot_id="b", moe_runner_backend="flashinfer_mxfp4")
        assert run.eval(server, "same", "--margin", 30, "--repeats", 4).code == 0
        server.set_info(boot_id="c")
        server.plan = wrong_on(1, 2, 3, 4, 5)
        assert run.eval(server, "worse", "--margin", 30, "--repeats", 4).code == 0
    passed = run("compare", run.root / "base", run.root / "same")
    assert passed.code == 0, passed.out
    assert passed.out.startswith("PASS gsm8k")
    assert "on trial: moe_backend: baseline 'marlin', candidate 'flashinfer_mxfp4'" in passed.out
    failed = run("compare", run.root / "base", run.root / "worse", "--json")
    assert failed.code == 1
    assert json.loads(failed.out)["outcome"] == "FAIL"
    assert len(json.loads(failed.out)["verdict"]["flipped"]) == 5


def test_several_evals_fail_together_only_if_holm_agrees(run: Runner) -> None:
    """Two pairs, one of them a clear loss: the whole is a FAIL, and an odd number of runs is an error."""
    with FaultServer(right) as server:
        assert run.eval(server, "base", "--margin", 30, "--repeats", 4).code == 0
        server.set_info(boot_id="b")
        assert run.eval(server, "same", "--margin", 30, "--repeats", 4).code == 0
        server.set_info(boot_id="c")
        server.plan = wrong_on(1, 2, 3, 4, 5)
        assert run.eval(server, "worse", "--margin", 30, "--repeats", 4).code == 0
    both = run("compare", run.root / "base", run.root / "same", run.root / "base", run.root / "worse")
    assert both.code == 1, both.out
    assert "all together: FAIL" in both.out
    assert run("compare", run.root / "base").code == 2


@pytest.mark.parametrize("asked", [True, False])
def test_running_accuracy_is_shown_only_if_asked(run: Runner, monkeypatch: pytest.MonkeyPatch, asked: bool) -> None:
    from mxfp4_validate.serving import run as module
    from mxfp4_validate.serving.progress import Progress

    monkeypatch.setattr(module, "Progress", lambda *args: Progress(*args, every=0.0))
    with FaultServer(wrong_on(2)) as server:
        done = run.eval(server, "a", *["--show-accuracy"] * asked)
    assert ("right so far" in done.err) == asked
    assert "tok/s" in done.err


def test_compare_refuses_other_settings_and_names_both_values(run: Runner) -> None:
    with FaultServer(right) as server:
        assert run.eval(server, "base").code == 0
        server.set_info(boot_id="b")
        assert run.eval(server, "other", "--temperature", 0.5).code == 0
    refused = run("compare", run.root / "base", run.root / "other")
    assert refused.code == 4
    assert "temperature differs: baseline '0.0', candidate '0.5'" in refused.out


def test_shards_merge_into_the_whole_run(run: Runner, tmp_path: Path) -> None:
    with FaultServer(wrong_on(3)) as server:
        assert run.eval(server, "whole", "--repeats", 2).code == 0
        for i in (1, 2, 3):
            assert run.eval(server, f"s{i}", "--repeats", 2, "--shard", f"{i}/3").code == 0
    merged = run("merge", *(tmp_path / f"s{i}" for i in (1, 2, 3)), "--out", tmp_path / "merged")
    assert merged.code == 0, merged.err
    a, b = read_leg(tmp_path / "whole"), read_leg(tmp_path / "merged")
    assert (a.states == b.states).all()
    assert (a.correct == b.correct).all()
    assert run("merge", tmp_path / "s1", tmp_path / "s1", "--out", tmp_path / "twice").code == 4
    assert run("merge", tmp_path / "s1", tmp_path / "s2", "--out", tmp_path / "part").code == 5


def test_regrade_mends_what_another_grader_said(run: Runner, tmp_path: Path) -> None:
    """A grade of an older version is listed with both sayings and replaced; a grade edited by hand is refused as damage."""
    with FaultServer(right) as server:
        assert run.eval(server, "a").code == 0
    assert run("regrade", tmp_path / "a").out == "0 grades changed\n"
    with EvalStore.resume(tmp_path / "a" / "run.sqlite") as store:
        question = store.questions()[0][0]
        store.regrade([(question, 0, "answered", {"lenient": Grade(False, "7", "older")})], "0", store.run().fingerprint)
    assert read_leg(tmp_path / "a").correct.sum() == QUESTIONS - 1
    dry = run("regrade", tmp_path / "a", "--dry-run")
    assert "1 grades changed (not written)" in dry.out
    assert "'older'" in dry.out
    assert run("regrade", tmp_path / "a", "--json").code == 0
    assert read_leg(tmp_path / "a").correct.sum() == QUESTIONS
    with sqlite3.connect(tmp_path / "a" / "run.sqlite") as db:
        db.execute("UPDATE grade SET correct=0 WHERE mode='lenient' AND question_id=?", (question,))
    db.close()
    assert run("compare", tmp_path / "a", tmp_path / "a", "--aa").code == 4


def test_export_writes_a_line_a_sample(run: Runner, tmp_path: Path) -> None:
    nasty = "a\u2028b \ud800 \x00 ₂" + r"\boxed{2}"
    with FaultServer(lambda n, request: answer(nasty) if number(request) == 1 else right(n, request)) as server:
        assert run.eval(server, "a").code == 0
    assert run("export", tmp_path / "a", "--jsonl", tmp_path / "a.jsonl").code == 0
    lines = (tmp_path / "a.jsonl").read_bytes().decode("ascii").split("\n")
    rows = [json.loads(line) for line in lines[1:] if line]
    assert len(rows) == QUESTIONS
    assert nasty in [row["content"] for row in rows]
    assert json.loads(lines[0])["run"]["suite"] == "gsm8k"


def test_import_of_a_sgl_eval_folder(run: Runner, tmp_path: Path) -> None:
    """A failed request, which that tool scores 0, is missing here; the rest keeps its grade."""
    folder = tmp_path / "sgl_eval_gsm8k_20260101-000000"
    folder.mkdir()
    gen = {"temperature": 0.0, "top_p": 0.95, "max_tokens": 500, "min_p": 0.0, "repetition_penalty": 1.0, "seed": None}
    (folder / "metrics.json").write_text(
        json.dumps({"name": "gsm8k", "aggregate": {"score": 0.5}, "gen": gen, "model": "m", "n_repeats": 1})
    )
    texts = [(r"\boxed{2}", "stop"), ("", "error"), (r"\boxed{9}", "stop"), (r"so \boxed{8", "length")]
    rows = [
        {
            "problem": f"What is {i} plus {i}?",
            "expected_answer": str(2 * i),
            "generation": text,
            "finish_reason": reason,
            "num_generated_tokens": 9,
        }
        for i, (text, reason) in enumerate(texts, 1)
    ]
    (folder / "output-rs0.jsonl").write_text("\n".join(map(json.dumps, rows)) + '\n{"problem": "cut of')
    done = run("import", "sgl-eval", folder, "--out", tmp_path / "in")
    assert done.code == 0, done.err
    leg = read_leg(tmp_path / "in")
    assert sorted(leg.states.flatten()) == ["answered", "answered", "server_error", "truncated"]
    assert leg.correct.sum() == 1


def test_plan_says_costs_and_what_can_be_seen(run: Runner) -> None:
    done = run("plan", "aime25", "--detect", "3pp", "--speed", "2600")
    assert done.code == 0
    assert "30 questions x 32 = 960 requests" in done.out
    assert re.search(r"margin 3\.00 pp needs \d+ repeats", done.out)


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["eval", "aime52"], "did you mean aime25"),
        (["eval", "gsm8k", "--base-url", "ftp://x"], "not an http or https URL"),
        (["eval", "gsm8k", "--concurrency", "5000"], "between 1 and 2048"),
        (["eval", "gsm8k", "--shard", "3/2"], "I/N"),
        (["eval", "gsm8k", "--repeats", "-1"], "at least 1"),
        (["eval", "gsm8k", "--temperature", "9"], "between 0 and 2"),
        (["compare", "nowhere", "nothing"], "no eval run at"),
        (["plan", "gsm8k", "--detect", "much"], "percentage points"),
    ],
)
def test_bad_input_names_the_argument_and_the_way_out(run: Runner, argv: list[str], says: str) -> None:
    if argv[0] == "eval":
        argv = [*argv, "--questions", str(run.questions)]
        argv += [] if "--base-url" in argv else ["--base-url", "http://127.0.0.1:9/v1"]
    done = run(*argv)
    assert done.code == 2
    assert says in done.err
