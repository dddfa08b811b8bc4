"""Rows T22..T27 of the fault table: servers that change, mix up answers or talk rubbish, and more requests than they take."""

from __future__ import annotations

import itertools
import json
import os
import resource
import subprocess
import sys
import time

import pytest

from mxfp4_validate.errors import InvalidRun
from tests.fault_rig import by_number, cli, number_of, planned, run, write_questions
from tests.fault_server import Act, FaultServer, answer, completion, http


def good(i: int) -> Act:
    return answer(rf"One more than {i}: \boxed{{{i + 1}}}")


def changing(server_of, at: int, **info):
    """A plan that changes the server's info at one request, and gives the poll time to see it."""

    def plan(number, request):
        if number == at:
            server_of[0].set_info(**info)
        return Act(good(number_of(request.text)).pieces, delay=0.02)

    return plan


def test_t22_restart_with_the_same_settings(tmp_path):
    """Later samples carry the new boot, and the run goes on."""
    box: list[FaultServer] = []
    with FaultServer(changing(box, 30, boot_id="b")) as server:
        box.append(server)
        outcome = run(server.url, tmp_path, planned(100), poll=0.05)
    assert outcome.status == 0
    assert outcome.kinds().count("restart") == 1
    boots = [outcome.samples[f"q{i}"].boot for i in range(100)]
    assert len(set(boots)) == 2
    assert boots[0] == boots[20] != boots[99]


@pytest.mark.parametrize(
    ("name", "old", "new"), [("moe_runner_backend", "marlin", "triton"), ("version", "1.0", "2.0"), ("model_path", "stub", "other")]
)
def test_t23_another_server_takes_over(name, old, new, tmp_path):
    """Backend, version or weights change: the run is worthless, stops, and both values are named."""
    box: list[FaultServer] = []
    with FaultServer(changing(box, 10, boot_id="b", **{name: new})) as server:
        box.append(server)
        outcome = run(server.url, tmp_path, planned(150), poll=0.05)
    assert (outcome.status, outcome.kind) == (4, "invalid")
    assert f"from '{old}' to '{new}'" in outcome.reason
    assert "identity-changed" in outcome.kinds()
    assert len(server.requests) < 120


def test_t23_resumed_on_another_server(tmp_path):
    plan = planned(4)
    with FaultServer(by_number(lambda i: good(i) if i else Act(end="reset"))) as server:
        assert run(server.url, tmp_path, plan).status == 5
    info = {"model_path": "stub", "version": "1.0", "moe_runner_backend": "triton", "boot_id": "c"}
    with FaultServer(by_number(good), info=info) as server, pytest.raises(InvalidRun, match="from 'marlin' to 'triton'"):
        run(server.url, tmp_path, plan)
    assert server.requests == []


def test_t23_exit_status_of_the_command(tmp_path):
    """The command line ends with 4 where a run is worthless."""
    with FaultServer(lambda n, r: answer("x", model="other")) as server:
        args = ("--questions", write_questions(tmp_path / "q.jsonl", 4), "--out", tmp_path / "out", "--canaries", "0", "--max-tokens", "64")
        done = cli("eval", "gsm8k", "--base-url", server.url, *args)
    assert done.returncode == 4
    assert "'other'" in done.stdout


def test_t24_balancer_over_two_backends(tmp_path):
    """One address, two servers in turn behind it: the poll sees it."""
    with FaultServer(lambda n, r: Act(good(number_of(r.text)).pieces, delay=0.02)) as server:
        kinds = itertools.cycle(["marlin", "marlin", "triton"])
        server.changing = {"/get_server_info": lambda: {"model_path": "stub", "version": "1.0", "moe_runner_backend": next(kinds)}}
        outcome = run(server.url, tmp_path, planned(150), poll=0.05)
    assert (outcome.status, outcome.kind) == (4, "invalid")
    assert "from 'marlin' to 'triton'" in outcome.reason
    assert len(server.requests) < 140


def test_t24_two_addresses_with_two_backends(tmp_path):
    info = {"model_path": "stub", "version": "1.0", "moe_runner_backend": "triton"}
    with FaultServer(by_number(good)) as one, FaultServer(by_number(good), info=info) as two:
        with pytest.raises(InvalidRun, match="'marlin' to 'triton'"):
            run([one.url, two.url], tmp_path)
        assert one.requests == two.requests == []


def test_t24_two_equal_addresses_share_the_load(tmp_path):
    def plan(_number, request):
        return Act(good(number_of(request.text)).pieces, delay=0.05)

    with FaultServer(plan) as one, FaultServer(plan) as two:
        outcome = run([one.url, two.url], tmp_path, planned(40), concurrency=8)
    assert outcome.status == 0
    assert min(len(one.requests), len(two.requests)) >= 10
    assert len(one.requests) + len(two.requests) == 40


def test_t25_answers_on_the_wrong_connection(tmp_path):
    """A server that echoes request ids and swaps two answers: the swap is noticed, the ids being ours, and both are asked again."""
    ids: dict[int, str] = {}

    def plan(number, request):
        i, mine = number_of(request.text), request.headers["x-request-id"]
        swapped = ids.setdefault(i, mine) == mine and i < 2
        deadline = time.monotonic() + 5
        other = 1 - i if swapped else i
        if swapped and other not in ids:  # the first of the two: echo what the second will send, once it is here
            return Act([], delay=0.01, end="close") if time.monotonic() > deadline else Act([http(200, completion("x"))], delay=0.2)
        name = ids[other] if swapped else mine
        return Act([http(200, completion(rf"\boxed{{{other + 1}}}"), {"X-Request-Id": name})], delay=0.05 if swapped else 0)

    with FaultServer(plan) as server:
        outcome = run(server.url, tmp_path, planned(2), concurrency=2)
    assert [row.outcome for row in outcome.attempts if row.question_id == "q1"] == ["invalid_response", "ok"]
    assert any("misdelivered" in row.error for row in outcome.attempts)
    assert outcome.samples["q1"].content == r"\boxed{2}"
    assert "rerolled" in outcome.samples["q1"].flags
    assert len({request.headers["x-request-id"] for request in server.requests}) == len(server.requests) == 3


def test_t25_an_id_of_the_servers_own_is_no_fault(tmp_path):
    with FaultServer(lambda n, r: Act([http(200, completion("so 1"), {"X-Request-Id": f"server-{n}"})])) as server:
        assert run(server.url, tmp_path).status == 0
    assert len(server.requests) == 4


def test_t25_the_very_same_long_answer_twice(tmp_path):
    """Two questions that get one long text are flagged by name; short ones may well agree."""
    long = "Let me think about figs and trees at length. " * 4 + r"\boxed{1}"
    with FaultServer(by_number(lambda i: answer(long if i in (1, 2) else r"\boxed{1}"))) as server:
        outcome = run(server.url, tmp_path, planned(5))
    assert outcome.status == 0
    flagged = {name for name, sample in outcome.samples.items() if "same-text-as-another-question" in sample.flags}
    assert len(flagged) == 1
    assert flagged < {"q1", "q2"}
    (text,) = [text for kind, text in outcome.events if kind == "duplicate-text"]
    assert "q1" in text
    assert "q2" in text


FEW_FILES = r"""
import resource, sys
from pathlib import Path
resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
from tests.fault_rig import planned, run
outcome = run(sys.argv[1], Path(sys.argv[2]), planned(400), concurrency=512)
print(outcome.status, len(outcome.samples), sum(sample.attempts for sample in outcome.samples.values()))
print([line for line in outcome.said if "open files" in line])
"""


def test_t26_few_open_files(tmp_path):
    """512 at a time with 256 files allowed: fewer at a time, said so, and every sample asked exactly once."""
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] >= 256
    with FaultServer(lambda n, r: Act(good(number_of(r.text)).pieces, delay=0.05)) as server:
        command = [sys.executable, "-c", FEW_FILES, server.url, str(tmp_path)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env={**os.environ})
    assert done.returncode == 0, done.stderr
    first, said = done.stdout.splitlines()
    assert first == "0 400 400"
    assert "--concurrency lowered to 128" in said
    assert 64 <= server.most_in_flight <= 128


def test_t26_waiting_for_a_turn_is_no_timeout(tmp_path):
    """Ten answers of 0.1 s, one at a time, under a deadline of 0.8 s: the wait before a request is sent does not count."""
    with FaultServer(lambda n, r: Act(good(number_of(r.text)).pieces, delay=0.1)) as server:
        outcome = run(server.url, tmp_path, planned(10), concurrency=1, deadline=0.8)
    assert outcome.status == 0
    assert server.most_in_flight == 1
    assert all(sample.seconds < 0.8 for sample in outcome.samples.values())


@pytest.mark.parametrize("text", ["!" * 300, "the of " * 100, "\ufffd" * 60, ""])
def test_t27_garbage_from_a_healthy_server(text, tmp_path):
    """The canaries see it, and no question is asked."""
    with FaultServer(lambda n, r: answer(text)) as server, pytest.raises(InvalidRun, match="the eval was not started"):
        run(server.url, tmp_path, canaries=4)
    assert len(server.requests) == 4
    assert not any("figs" in request.text for request in server.requests)


def test_t27_ordinary_text_passes(tmp_path):
    with FaultServer(lambda n, r: good(number_of(r.text)) if "figs" in r.text else answer("One, two, three -------- and so on.")) as server:
        assert run(server.url, tmp_path, canaries=4).status == 0
    assert len(server.requests) == 8
    assert json.loads(server.requests[0].body)["max_tokens"] <= 512
