"""`run PLAN.toml` from launched processes to the verdict: every outcome, every order of legs, killed and resumed, with nothing left behind."""

from __future__ import annotations

import json
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from mxfp4_validate import cli, published
from mxfp4_validate.endpoint.attempt import Attempt, Reply
from mxfp4_validate.endpoint.launch import free_port
from mxfp4_validate.errors import MxfpError
from mxfp4_validate.evalspec import Sampling
from mxfp4_validate.plans import estimate
from mxfp4_validate.plans import files as specs
from mxfp4_validate.plans.canary import judged
from mxfp4_validate.serving.comparison import anchor_band, published_lines
from mxfp4_validate.serving.lock import FolderLock
from mxfp4_validate.verdicts import Leg, Outcome, Plan, combine, compare
from tests import plan_rig as rig

pytestmark = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="processes are looked up in /proc")
PLANS = Path(__file__).resolve().parent.parent / "evals" / "plans"


@pytest.fixture(autouse=True)
def nothing_is_left(tmp_path: Path) -> object:
    """Whatever a test did: no process that names its folder, no port that a server of it was on."""
    yield
    assert not rig.left(tmp_path)
    for out in tmp_path.glob("**/journal"):
        assert not any(map(rig.listening, rig.ports(out.parent)))


def test_the_tiny_server_passes_against_itself(tmp_path: Path) -> None:
    """Two real processes through canary, divergence and eval; the report has every stage."""
    ended = rig.run(PLANS / "aa-tiny.toml", tmp_path / "out")
    assert ended.code == 0, ended.err[-3000:]
    assert [(s["stage"], s["outcome"]) for s in ended.said["stages"]] == [("canary", "PASS"), ("divergence", "GO ON"), ("arith", "PASS")]
    assert "GO ON" in ended.stage("divergence")["measured"]
    assert "+0.00 pp" in ended.stage("arith")["measured"]
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "passes nothing by itself" in page
    assert 'id="divergence-0"' in page, "the record itself is in the report"
    assert "mxfp4-validate run aa-tiny.toml" in page
    assert "no token-level comparison was given" not in page
    again = rig.run(PLANS / "aa-tiny.toml", tmp_path / "out")
    assert (again.code, again.said["sentence"]) == (0, ended.said["sentence"])
    assert "started as process" not in again.err, "a finished run was asked again"


def test_a_fault_in_the_tiny_server_fails_before_the_eval(tmp_path: Path) -> None:
    ended = rig.run(PLANS / "control-tiny.toml", tmp_path / "out")
    assert (ended.code, ended.said["outcome"]) == (1, "FAIL"), ended.err[-3000:]
    assert ended.stage("divergence")["outcome"] == "FAIL"
    assert [s["stage"] for s in ended.said["stages"]] == ["canary", "divergence"]
    assert not (tmp_path / "out" / "evals").exists(), "a dearer stage was begun after a failure"


def test_corrupted_answers_fail_at_the_eval_alone(tmp_path: Path) -> None:
    """The proxy of the control, in front of the cheap engine: canary and divergence see nothing, as they must not."""
    plan = rig.write_plan(tmp_path, order="side-by-side", count=40)
    proxy = [sys.executable, "-m", "mxfp4_validate.endpoint.corrupt", "--port", "{port}", "--share", "0.5", "--"]
    engine = json.loads(rig.engine(tmp_path))
    text = plan.read_text()
    before, _, after = text.partition("[candidate]\n")
    after = after.replace(
        f"command = {json.dumps(engine)}", f"command = {json.dumps([*proxy, *engine]).replace('{port}', 'INNER_PORT')}", 1
    )
    plan.write_text(f"{before}[candidate]\n{after.replace('INNER_PORT', '{port}', 1)}")
    ended = rig.run(plan, tmp_path / "out")
    assert (ended.code, ended.said["outcome"]) == (1, "FAIL"), ended.err[-3000:]
    assert [(s["stage"], s["outcome"]) for s in ended.said["stages"]] == [("canary", "PASS"), ("divergence", "GO ON"), ("gsm8k", "FAIL")]


def test_a_fault_is_seen_by_the_eval_where_it_is_the_only_stage(tmp_path: Path) -> None:
    anchor = 'anchor = "80:100"\nboot_sd = 1.5\n'
    plan = rig.write_plan(tmp_path, candidate=["--wrong", "0.6"], stages=["gsm8k"], order="side-by-side", changes=anchor)
    ended = rig.run(plan, tmp_path / "out")
    assert (ended.code, ended.said["outcome"]) == (1, "FAIL"), ended.err[-3000:]
    assert "REGRESSION" in ended.said["sentence"]
    assert re.search(r"anchor 80:100, \[80.00, 100.00\] %: baseline \d+.\d+ % meets it, candidate \d+.\d+ % misses it", ended.err)
    assert "boot noise not measured" not in ended.err
    assert len(rig.samples(tmp_path / "out")["candidate"]) == 48, "it was asked beyond the look that failed it"


def test_another_backend_than_asked_is_invalid(tmp_path: Path) -> None:
    plan = rig.write_plan(tmp_path, candidate=["--backend", "triton"], backends=("marlin", "flashinfer_mxfp4"), aa=False)
    ended = rig.run(plan, tmp_path / "out")
    assert (ended.code, ended.said["outcome"]) == (4, "INVALID"), ended.err[-3000:]
    assert "asked for MoE backend 'flashinfer_mxfp4' and reports 'triton'" in ended.said["stages"][-1]["reasons"][0]
    assert not (tmp_path / "out" / "evals").exists()


def test_a_baseline_that_misses_its_band_is_invalid_before_the_candidate_is_asked(tmp_path: Path) -> None:
    plan = rig.write_plan(tmp_path, baseline=["--wrong", "0.5"], stages=["gsm8k"], changes='anchor = "90:100"\n')
    ended = rig.run(plan, tmp_path / "out")
    assert (ended.code, ended.said["outcome"]) == (4, "INVALID"), ended.err[-3000:]
    assert "baseline not as expected" in ended.stage("gsm8k")["reasons"][0]
    assert "[90.00, 100.00]" in ended.stage("gsm8k")["reasons"][0]
    assert not (tmp_path / "out" / "evals" / "gsm8k" / "candidate").exists()


def test_a_truncated_baseline_is_invalid(tmp_path: Path) -> None:
    """More than 2 % of its answers were cut; whether both legs were does not matter."""
    cut = ["--truncated", "0.15"]
    plan = rig.write_plan(tmp_path, baseline=cut, candidate=cut, stages=["gsm8k"], order="side-by-side")
    ended = rig.run(plan, tmp_path / "out")
    assert (ended.code, ended.said["outcome"]) == (4, "INVALID"), ended.err[-3000:]
    page = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    assert "hit the cap" in page
    assert "raise max" in page


KERNEL = '[kernel]\nbackend = "emulate:sm90-cutlass"\nargs = ["-k", "scale-codes", "-q", "-n", "0"{}]\n'


def test_the_kernel_suite_comes_first_and_is_in_the_report(tmp_path: Path) -> None:
    plan = rig.write_plan(tmp_path, stages=["kernel", "gsm8k"], order="side-by-side", changes=KERNEL.format(""))
    ended = rig.run(plan, tmp_path / "out")
    assert ended.code == 0, ended.err[-3000:]
    assert [(s["stage"], s["outcome"]) for s in ended.said["stages"]] == [("kernel", "PASS"), ("gsm8k", "PASS")]
    assert ended.err.index("kernel suite:") < ended.err.index("started as process"), "the server had the GPU before the suite"
    page = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    assert "emulate:sm90-cutlass" in page
    assert "only what keywords" in page, "a part of the suite passes for the whole"


def test_a_wrong_bit_ends_the_run_before_a_launch(tmp_path: Path) -> None:
    fault = KERNEL.format(', "--fault", "scale-cast-by-value"')
    plan = rig.write_plan(tmp_path, stages=["kernel", "gsm8k"], order="side-by-side", changes=fault)
    ended = rig.run(plan, tmp_path / "out")
    assert (ended.code, ended.said["outcome"]) == (1, "FAIL"), ended.err[-3000:]
    assert "started as process" not in ended.err
    again = rig.run(plan, tmp_path / "out")
    assert again.code == 1
    assert "kernel suite:" not in again.err, "a suite that is on record was run again"


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--rubbish", "bangs"], "60 times '!' in a row"),
        (["--rubbish", "loop"], "repeat at least 12 times"),
        (["--rubbish", "empty"], "an answer without content"),
    ],
)
def test_rubbish_after_the_launch_fails_at_the_canary(flags: list[str], says: str, tmp_path: Path) -> None:
    plan = rig.write_plan(tmp_path, candidate=flags)
    ended = rig.run(plan, tmp_path / "out")
    assert (ended.code, ended.said["outcome"]) == (1, "FAIL"), ended.err[-3000:]
    assert says in ended.stage("canary")["reasons"][0]
    assert "baseline: started" not in ended.err, "the baseline was launched for a candidate that is rubbish"
    again = rig.run(plan, tmp_path / "out")
    assert again.code == 1, "another boot washed the failure away"
    assert "started as process" not in again.err


def test_a_baseline_of_rubbish_is_invalid(tmp_path: Path) -> None:
    ended = rig.run(rig.write_plan(tmp_path, baseline=["--rubbish", "bangs"]), tmp_path / "out")
    assert (ended.code, ended.said["outcome"]) == (4, "INVALID"), ended.err[-3000:]


def test_thinking_that_was_asked_for_must_show(tmp_path: Path) -> None:
    plan = rig.write_plan(tmp_path, baseline=["--thinks"], stages=["canary", "gsm8k"], changes="thinking = true\n")
    ended = rig.run(plan, tmp_path / "out")
    assert ended.code == 1, ended.err[-3000:]
    assert "none of 12 answers holds reasoning" in ended.stage("canary")["reasons"][0]


def test_a_server_that_dies_in_the_middle_leaves_a_run_that_goes_on(tmp_path: Path) -> None:
    """Exit 5 with the log's last lines and without waiting for it to come back; then the same folder to the end."""
    plan = rig.write_plan(tmp_path, candidate=["--dies-after", "30", "--delay", "0.01"], stages=["gsm8k"], order="sequence")
    started = time.monotonic()
    ended = rig.run(plan, tmp_path / "out")
    assert ended.code == 5, ended.err[-3000:]
    assert "exited with status 7" in ended.said["error"]
    assert "| the engine meets a fatal error" in ended.said["error"]
    assert time.monotonic() - started < 60
    kept = len(rig.samples(tmp_path / "out")["candidate"])
    assert 0 < kept < 48
    for _ in range(4):  # each boot of it answers 29 more
        ended = rig.run(plan, tmp_path / "out")
        if ended.code != 5:
            break
    assert ended.code == 0, ended.err[-3000:]
    assert len(rig.samples(tmp_path / "out")["candidate"]) >= 48


def test_two_runs_never_share_a_folder(tmp_path: Path) -> None:
    plan = rig.write_plan(tmp_path, stages=["gsm8k"])
    with FolderLock(tmp_path / "out"):
        ended = rig.run(plan, tmp_path / "out")
    assert ended.code == 2
    assert "another process" in ended.said["error"]
    assert "started as process" not in ended.err


def test_a_server_that_does_not_start_is_told_and_can_be_mended(tmp_path: Path) -> None:
    plan = rig.write_plan(tmp_path, stages=["gsm8k"], candidate=["--no-such-flag"])
    ended = rig.run(plan, tmp_path / "out")
    assert ended.code == 5, ended.err[-3000:]
    assert "exited with status 2" in ended.said["error"]
    assert "unrecognized arguments: --no-such-flag" in ended.said["error"], "the log's last lines are not told"
    plan.write_text(plan.read_text().replace(', "--no-such-flag"', ""))
    mended = rig.run(plan, tmp_path / "out")
    assert mended.code == 2, "the command is part of the plan"
    assert rig.run(plan, tmp_path / "new").code == 0


def test_killed_at_ten_random_instants_it_comes_to_the_same_result(tmp_path: Path) -> None:
    """By SIGKILL and SIGTERM in turn; interleaved, with two looks, a floor on another boot and a candidate that is somewhat worse."""
    plan = rig.write_plan(tmp_path, candidate=["--wrong", "0.12", "--delay", "0.005"], baseline=["--delay", "0.005"], count=16)
    whole = rig.run(plan, tmp_path / "whole")
    assert whole.code in (0, 1, 3), whole.err[-3000:]
    rng, killed = random.Random(11), 0
    end = time.monotonic() + 100
    while killed < 10 and time.monotonic() < end:
        process = rig.start(plan, tmp_path / "cut")
        try:
            process.communicate(timeout=rng.uniform(0.8, 3.5))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGTERM if killed % 2 else signal.SIGKILL)
            process.communicate(timeout=20)
            killed += 1
            assert not rig.left(tmp_path), "servers outlive their killed parent"
            continue
        shutil.rmtree(tmp_path / "cut")  # it came to its end before it was killed: once more from the start
    assert killed == 10
    ended = rig.run(plan, tmp_path / "cut")
    assert ended.code == whole.code, ended.err[-3000:]
    assert ended.said["outcome"] == whole.said["outcome"]
    assert rig.samples(tmp_path / "cut") == rig.samples(tmp_path / "whole")
    assert [s["outcome"] for s in ended.said["stages"]] == [s["outcome"] for s in whole.said["stages"]]
    assert ended.stage("gsm8k")["measured"] == whole.stage("gsm8k")["measured"]


@pytest.mark.parametrize(("how", "code"), [(signal.SIGTERM, 130), (signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_nothing_outlives_a_parent_that_is_ended(how: signal.Signals, code: int, tmp_path: Path) -> None:
    """In the middle of the eval, both servers being up; what was answered is kept."""
    plan = rig.write_plan(tmp_path, baseline=["--delay", "0.4"], candidate=["--delay", "0.4"], stages=["gsm8k"], order="side-by-side")
    out = tmp_path / "out"
    process = rig.start(plan, out)
    end = time.monotonic() + 30
    while time.monotonic() < end and not _kept(out):
        time.sleep(0.1)
    assert _kept(out), "no sample was kept in time"
    running = rig.ports(out)
    assert len(running) == 2
    assert all(map(rig.listening, running))
    process.send_signal(how)
    process.communicate(timeout=30)
    assert process.returncode == code
    assert not rig.left(tmp_path)
    assert not any(map(rig.listening, running))
    before = _kept(out)
    assert rig.run(plan, out).code == 0
    assert before <= len(rig.samples(out)["baseline"])


def _kept(out: Path) -> int:
    try:
        return len(rig.samples(out)["baseline"])
    except MxfpError:
        return 0


def test_orders_of_legs_share_boots_differently(tmp_path: Path) -> None:
    """Undecided at the first look: interleaved gives each leg two boots and more for one eval, in sequence one each, with the same answers."""
    flags = {"baseline": ["--wrong", "0.1"], "candidate": ["--wrong", "0.15"], "stages": ["gsm8k"], "changes": ""}
    boots, found = {}, {}
    for order in ("interleaved", "fresh", "sequence", "side-by-side"):
        folder = tmp_path / order
        folder.mkdir()
        plan = rig.write_plan(folder, order=order.replace("fresh", "interleaved"), **flags)  # type: ignore[arg-type]
        text = plan.read_text().replace("margin = 20", "margin = 6")
        plan.write_text(text.replace("aa = true", "aa = true\nfresh_boots = true") if order == "fresh" else text)
        ended = rig.run(plan, folder / "out")
        assert ended.code in (1, 3), ended.err[-3000:]
        boots[order] = ended.err.count("started as process")
        most = estimate.total(specs.load(plan)).launches
        assert boots[order] == most - (order == "fresh"), "the plan said otherwise"
        found[order] = rig.samples(folder / "out")
    assert boots == {"interleaved": 3, "fresh": 4, "sequence": 2, "side-by-side": 2}
    assert len(found["interleaved"]["candidate"]) == 96
    assert all(answers == found["interleaved"] for answers in found.values())


def test_shards_joined_are_the_whole_run(tmp_path: Path) -> None:
    """Two machines into one folder; the verdict is that of one, and a missing shard is named."""
    plan = rig.write_plan(tmp_path, candidate=["--wrong", "0.12"], order="side-by-side")
    out = tmp_path / "out"
    first = rig.run(plan, out, "--shard", "1/2")
    assert (first.code, first.said["shard"]) == (0, [1, 2]), first.err[-3000:]
    early = rig.run(plan, out, "--join")
    assert early.code == 5
    assert "lacks shard 2 of 2" in early.said["error"]
    assert rig.run(plan, out, "--shard", "2/2").code == 0
    joined = rig.run(plan, out, "--join")
    alone = rig.run(plan, tmp_path / "alone")
    assert (joined.code, joined.said["outcome"]) == (alone.code, alone.said["outcome"]), joined.err[-3000:]
    assert joined.stage("gsm8k")["measured"] == alone.stage("gsm8k")["measured"]
    assert joined.stage("divergence")["outcome"] == "GO ON"
    (whole,) = out.glob("joined-*")
    assert len(rig.samples(whole)["candidate"]) == 96


def test_shards_stop_where_they_are_told_to_look(tmp_path: Path) -> None:
    plan = rig.write_plan(tmp_path, stages=["gsm8k"], order="side-by-side")
    for i in ("1/2", "2/2"):
        assert rig.run(plan, tmp_path / "out", "--shard", i, "--until", "2").code == 0
    joined = rig.run(plan, tmp_path / "out", "--join")
    assert joined.code == 0, joined.err[-3000:]
    (whole,) = (tmp_path / "out").glob("joined-*")
    assert len(rig.samples(whole)["candidate"]) == 48


def test_endpoints_that_are_up_need_no_launch(tmp_path: Path) -> None:
    """Two addresses for a leg; the same boot for both legs is refused unless the plan says A/A."""
    ports = [free_port() for _ in range(3)]
    argv = [sys.executable, "-S", str(rig.HERE / "plan_engine.py"), "--folder", str(tmp_path)]
    servers = [subprocess.Popen([*argv, "--port", str(port)]) for port in ports]
    try:
        end = time.monotonic() + 10
        while not all(map(rig.listening, ports)) and time.monotonic() < end:
            time.sleep(0.05)
        urls = [f"http://127.0.0.1:{port}/v1" for port in ports]
        plan = rig.write_plan(tmp_path, stages=["canary", "gsm8k"], aa=False, backends=("marlin", "marlin"))
        given = ["--baseline-url", urls[0], "--candidate-url", urls[1], "--candidate-url", urls[2]]
        ended = rig.run(plan, tmp_path / "out", *given)
        assert ended.code == 0, ended.err[-3000:]
        assert "started as process" not in ended.err
        same = rig.run(plan, tmp_path / "same", "--baseline-url", urls[0], "--candidate-url", urls[0])
        assert same.code == 2
        assert "same boot of the same server" in same.said["error"]
    finally:
        for server in servers:
            server.kill()
            server.wait()


def test_servers_of_two_versions_are_not_compared(tmp_path: Path) -> None:
    plan = rig.write_plan(tmp_path, candidate=["--version", "9.8"], aa=False)
    ended = rig.run(plan, tmp_path / "out")
    assert (ended.code, ended.said["outcome"]) == (4, "INVALID"), ended.err[-3000:]
    assert "version is '9.9', of the candidate '9.8'" in ended.said["stages"][-1]["reasons"][0]
    text = plan.read_text().replace("aa = false", 'aa = false\nexpect = ["version"]')
    plan.write_text(text)
    assert rig.run(plan, tmp_path / "expected").code == 0


def test_another_plan_and_a_damaged_journal_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = rig.write_plan(tmp_path, stages=["gsm8k"], order="side-by-side")
    out = tmp_path / "out"
    assert rig.run(plan, out).code == 0
    plan.write_text(plan.read_text().replace("margin = 20", "margin = 9"))
    assert cli.main(["run", str(plan), "--out", str(out)]) == 2
    assert "evals.gsm8k.margin: the run has 20, the plan 9" in capsys.readouterr().err
    fact = out / "journal" / "plan.json"
    fact.write_text(fact.read_text().replace("tried", "other"))
    assert cli.main(["run", str(plan), "--out", str(out)]) == 4
    assert "is damaged" in capsys.readouterr().err


def test_published_scores_anchor_a_run_and_are_shown() -> None:
    """The band is the hull of the rows that may serve; a part of the questions has no published score."""
    found = published.anchor("openai/gpt-oss-20b", "gpqa_diamond", "high")
    assert anchor_band("openai/gpt-oss-20b@high", "gpqa_diamond", 198) == (found.low, found.high)
    with pytest.raises(MxfpError, match="are of 198 questions, the run asks 20"):
        anchor_band("openai/gpt-oss-20b@high", "gpqa_diamond", 20)
    assert anchor_band("", "gpqa_diamond", 20) is None
    lines = published_lines(None, "openai/gpt-oss-20b", "aime25")
    assert any("not an anchor" in line for line in lines), "the model card is shown, and said to anchor nothing"
    assert published_lines("openai/gpt-oss-20b@high", "/models/mine", "aime25") == lines


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('order = "interleaved"', 'order = "mixed"', "unknown order"),
        ('"divergence", "gsm8k"]', '"gsm8k", "divergence"]', "the cheap ones come first"),
        ('"divergence", "gsm8k"]', '"divergence"]', "pass nothing by themselves"),
        ("load_deadline = 20", 'load_deadline = "long"', "it must be a number"),
        ('"divergence", "gsm8k"]', '"divergence", "arith"]', "[evals.gsm8k] is no stage"),
        ("load_deadline = 20", "load_deadlin = 20", "did you mean load_deadline"),
        ("{port}", "{prot}", "unknown template"),
        ("looks = [2, 4]", "looks = [4, 2]", "must increase"),
        ("margin = 20", "margin = 200", "between 0 and 100"),
        ("concurrency = 16", "concurrency = 0", "at least 1"),
        ("looks = [2, 4]", "temperature = 3.0", "between 0 and 2"),
        ("looks = [2, 4]", 'anchor = "openai/gpt-oss-20b@max"', "may anchor a run"),
        ("looks = [2, 4]", 'anchor = "high"', "must be LOW:HIGH"),
        ('name = "tried"', 'name = "other"', "it must be the file's"),
        ("[baseline]", '[baseline]\nbase_url = ["http://127.0.0.1:1/v1"]', "exactly one"),
        ("generations = 12", "generations = 0", "at least 1"),
    ],
)
def test_what_is_wrong_with_a_plan_is_said_in_one_line(
    old: str, new: str, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = rig.write_plan(tmp_path)
    assert old in plan.read_text()
    plan.write_text(plan.read_text().replace(old, new, 1))
    assert cli.main(["run", str(plan), "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert says in "\n".join(said)
    assert said[-1].startswith("mxfp4-validate: error:") or "\n" not in said[-1]
    assert not (tmp_path / "out" / "logs").exists(), "something was launched"


def test_keys_of_a_plan_are_stored_nowhere(tmp_path: Path) -> None:
    """From the environment of a leg and from a flag: not in the journal, a report, a log or on the terminal."""
    plan = rig.write_plan(tmp_path, stages=["gsm8k"], order="side-by-side", candidate=["--api-key", "flagged-77-Secret"])
    plan.write_text(plan.read_text().replace("[candidate]", '[candidate]\nenv = { HF_TOKEN = "hf_a1B2a1B2a1B2a1B2a1B2" }', 1))
    out = tmp_path / "out"
    ended = rig.run(plan, out)
    assert ended.code == 0, ended.err[-3000:]
    written = (
        b"".join(path.read_bytes() for path in out.rglob("*") if path.is_file()) + ended.err.encode() + json.dumps(ended.said).encode()
    )
    assert b"flagged-77-Secret" not in written
    assert b"hf_a1B2" not in written


def test_a_canary_tells_rubbish_from_failing_requests() -> None:
    fine = Attempt("ok", Reply("Four.", "", "stop", 3, 2, None, "stub"))
    cut = Attempt("ok", Reply("", "I think and", "length", 3, 2, None, "stub"))
    nan = Attempt("server_error", status=400, error="HTTP 400: nan", flags=("nan-output",))
    lost = Attempt("transport_error", error="reset")
    found = judged([fine, cut, nan, lost], Sampling())
    assert (found["asked"], found["failed"], found["reasoned"]) == (4, 2, 1)
    assert found["wrong"] == ["generation 2: NaN in the output: HTTP 400: nan"]
    assert not judged([fine, cut], Sampling(thinking=True))["wrong"], "one of two that thought is enough"
    assert "none of 2 answers holds reasoning" in judged([fine, fine], Sampling(effort="high"))["wrong"][0]
    assert not judged([fine, fine], Sampling(effort="none"))["wrong"]


def test_a_failure_must_survive_the_correction_for_all_planned_evals() -> None:
    """With p = .03 one eval alone has failed; of three planned, two of which did not run, nothing has yet."""
    right = np.ones((40, 2), bool)

    def leg(name: str, correct: NDArray[np.bool_]) -> Leg:
        text, ids = np.full((40, 2), "", "<U1"), tuple(f"q{i}" for i in range(40))
        return Leg(name, "gsm8k", ids, 2, np.full((40, 2), "answered"), correct, text, np.full((40, 2), np.nan), {}, {})

    worse = right.copy()
    worse[:10] = False
    verdict = replace(compare(leg("b", right), leg("c", worse), Plan(0.02, (2,))), fail_p=0.03)
    assert verdict.outcome is Outcome.FAIL
    assert combine([verdict]).outcome is Outcome.FAIL
    assert combine([verdict], 3).outcome is Outcome.INCONCLUSIVE
    assert combine([replace(verdict, fail_p=0.01)], 3).outcome is Outcome.FAIL


def test_a_plan_over_its_budget_needs_a_yes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = rig.write_plan(tmp_path, stages=["gsm8k"], order="side-by-side", changes="tokens_per_answer = 50\n[budget]\ntokens = 100\n")
    assert cli.main(["run", str(plan), "--out", str(tmp_path / "out")]) == 2
    assert "its budget is 100" in capsys.readouterr().err
    assert rig.run(plan, tmp_path / "out", "--yes").code == 0


@pytest.mark.parametrize("name", specs.names())
def test_our_plans_say_what_they_cost_and_can_detect(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    plan = specs.load(Path(f"{name}.toml"))
    assert cli.main(["plan", f"{name}.toml", "--json"]) == 0
    found = capsys.readouterr()
    said = json.loads(found.out)
    assert [row["name"] for row in said["stages"]] == list(plan.stages)
    assert all(row["shows"] for row in said["stages"])
    assert said["total"]["requests"] == sum(row["requests"] for row in said["stages"])
    assert "TOO FEW" not in found.err, "a plan of ours cannot pass an identical candidate"


def test_the_example_in_the_documentation_is_a_plan() -> None:
    page = (PLANS.parent.parent / "docs" / "plans.md").read_text(encoding="utf-8")
    (example,) = [block.partition("```")[0] for block in page.split("```toml\n")[1:]]
    plan = specs.parse(example, Path("my-plan.toml"))
    assert plan.eval_spec("aime25").looks == (10, 20, 30, 40)
    assert all(f"`{name}`" in page for name in specs.names()), "a plan of ours is not in the table"


def test_our_plans_are_known_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", "aa-tony.toml"]) == 2
    assert "aa-tiny.toml" in capsys.readouterr().err
