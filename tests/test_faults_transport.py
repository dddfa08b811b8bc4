"""Rows T3..T18 of the fault table: what servers and networks do to single requests; every test reads the record back."""

from __future__ import annotations

import asyncio
import email.utils
import json
import random
import time

import pytest

from mxfp4_validate.endpoint.flow import Limiter, RetryPolicy, Speed
from tests.fault_rig import KEY, RETRY, by_number, number_of, planned, run
from tests.fault_server import Act, FaultServer, answer, completion, http, status

BAD = "This model's maximum context length is 4096 tokens. However, you requested 64 in the completion and 5000 in the prompt."


def good(i: int) -> Act:
    """The right answer to question i."""
    return answer(rf"One more than {i}: \boxed{{{i + 1}}}")


def once(first: Act, seen: set[int] | None = None):
    """The first request of question 0 gets `first`, everything else the right answer."""
    seen = set() if seen is None else seen

    def plan(_number, request):
        i = number_of(request.text)
        if i == 0 and i not in seen:
            seen.add(i)
            return first
        return good(i)

    return plan


def event(delta: dict, finish: str | None = None) -> bytes:
    return b"data: " + json.dumps({"model": "stub", "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}).encode() + b"\n\n"


def sse(*events: bytes, **kwargs) -> Act:
    head = b"HTTP/1.1 200 X\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"
    return Act([head, *events], end=kwargs.pop("end", "close"), **kwargs)


def all_right(outcome, count: int = 4) -> None:
    assert outcome.status == 0
    assert outcome.states == {f"q{i}": "answered" for i in range(count)}
    assert outcome.right == {f"q{i}" for i in range(count)}


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_t03_429_with_retry_after(form, tmp_path):
    """Honoured in both forms, outside the limit on attempts, and asked less at a time afterwards."""
    left = {"n": 5}
    after = "0.15" if form == "seconds" else email.utils.format_datetime(email.utils.localtime())

    def plan(_number, request):
        if left["n"]:
            left["n"] -= 1
            return status(429, "slow down", Retry_After=after)
        return good(number_of(request.text))

    retry = RetryPolicy(first=1, most=1, budget=9, attempts=2)  # fewer attempts than there are refusals
    with FaultServer(plan) as server:
        started = time.monotonic()
        outcome = run(server.url, tmp_path, planned(1), retry=retry)
    all_right(outcome, 1)
    assert len(server.requests) == 6
    assert outcome.samples["q0"].attempts == 6
    assert [row.status for row in outcome.attempts] == [429] * 5 + [200]
    if form == "seconds":
        assert time.monotonic() - started >= 5 * 0.15
    else:  # a date that has passed means at once, not the policy's own pauses
        assert time.monotonic() - started < 4


def test_t03_429_halves_what_is_in_flight():
    async def scene():
        limiter, peak, running = Limiter(8), [], 0

        async def one():
            nonlocal running
            async with limiter:
                running += 1
                peak.append(running)
                await asyncio.sleep(0)
                running -= 1

        limiter.throttle()
        limiter.throttle()
        await asyncio.gather(*(one() for _ in range(20)))
        for _ in range(4 * 8 * 8):
            limiter.success()
        return max(peak), limiter.limit

    assert asyncio.run(scene()) == (2, 8)


def test_t04_429_for_ever(tmp_path):
    """Pauses double up to the longest, and the budget of a sample ends it."""
    pauses = [RetryPolicy(first=1, most=60).pause(n, None, random.Random(0)) for n in range(1, 10)]
    assert all(2 ** min(n, 6) * (1 if n < 6 else 60 / 64) <= p <= 1.25 * min(60, 2**n) for n, p in enumerate(pauses))
    with FaultServer(lambda n, r: status(429, "busy")) as server:
        outcome = run(server.url, tmp_path, planned(2), retry=RetryPolicy(first=0.02, most=0.1, budget=0.4))
    assert outcome.status == 5
    assert outcome.states == {"q0": "server_error", "q1": "server_error"}
    assert 2 * 4 <= len(server.requests) <= 2 * 12
    assert "HTTP 429: busy" in outcome.samples["q0"].error


@pytest.mark.parametrize("code", [500, 502, 503, 504])
def test_t05_5xx_once(code, tmp_path):
    with FaultServer(once(status(code, "wobble"))) as server:
        outcome = run(server.url, tmp_path)
    all_right(outcome)
    assert len(server.requests) == 5
    first, second = (row for row in outcome.attempts if row.question_id == "q0")
    assert (first.outcome, first.status, first.error) == ("server_error", code, f"HTTP {code}: wobble")
    assert second.outcome == "ok"
    assert "rerolled" in outcome.samples["q0"].flags


def test_t06_500_for_one_prompt(tmp_path):
    """The others go on, the run is incomplete, and the sample is named."""
    with FaultServer(by_number(lambda i: status(500, "boom") if i == 2 else good(i))) as server:
        outcome = run(server.url, tmp_path, planned(6))
    assert outcome.status == 5
    assert outcome.states == {f"q{i}": "server_error" if i == 2 else "answered" for i in range(6)}
    assert outcome.samples["q2"].attempts == RETRY.attempts
    assert len(server.requests) == 5 + RETRY.attempts
    assert any("q2" in line and "HTTP 500: boom" in line for line in outcome.said)


def test_t07_400_context_length(tmp_path):
    """Refused at the first request: not asked again, and nothing else is asked."""
    body = json.dumps({"object": "error", "message": BAD, "code": 400})
    with FaultServer(lambda n, r: status(400, body)) as server:
        outcome = run(server.url, tmp_path, planned(40), concurrency=1)
    assert (outcome.status, outcome.kind) == (5, "gave-up")
    assert len(server.requests) == 1
    assert outcome.states == {"q0": "server_error"}
    assert "invalid-request" in outcome.samples["q0"].flags
    assert "4096" in outcome.reason
    assert "max_tokens" in outcome.reason


def test_t07_400_for_one_prompt_only(tmp_path):
    with FaultServer(by_number(lambda i: status(400, BAD) if i == 3 else good(i))) as server:
        outcome = run(server.url, tmp_path, planned(6), concurrency=1)
    assert outcome.status == 5
    assert outcome.states == {f"q{i}": "server_error" if i == 3 else "answered" for i in range(6)}
    assert len(server.requests) == 6


def test_t08_400_nan_in_output(tmp_path):
    """Not a client's mistake: evidence against the candidate, kept as an event that no verdict passes over."""
    body = json.dumps({"message": "Out of range float values are not JSON compliant: nan"})
    with FaultServer(by_number(lambda i: status(400, body) if i == 1 else good(i))) as server:
        outcome = run(server.url, tmp_path)
    assert outcome.status != 0
    assert outcome.states["q1"] == "server_error"
    assert outcome.samples["q1"].flags == ("nan-output",)
    assert outcome.kinds().count("nan-output") == 1
    assert len(server.requests) == 4


@pytest.mark.parametrize("code", [401, 403])
def test_t09_refused_key(code, tmp_path):
    with FaultServer(lambda n, r: status(code, f"bad key {r.headers['authorization']}")) as server:
        outcome = run(server.url, tmp_path, planned(30), concurrency=1)
    assert (outcome.status, outcome.kind, len(server.requests)) == (5, "gave-up", 1)
    assert f"HTTP {code}" in outcome.reason
    assert server.requests[0].headers["authorization"] == f"Bearer {KEY}"
    texts = [outcome.reason, *outcome.said, *(t for _, t in outcome.events), *(s.error for s in outcome.samples.values())]
    assert not any(KEY in text for text in texts)
    assert KEY.encode() not in outcome.path.read_bytes()


def test_t10_404(tmp_path):
    with FaultServer(lambda n, r: status(404, "{}")) as server:
        outcome = run(server.url, tmp_path, planned(30), concurrency=1)
    assert (outcome.status, len(server.requests)) == (5, 1)
    assert "must --base-url end in /v1" in outcome.reason


@pytest.mark.parametrize("code", [413, 414, 431])
def test_t11_too_large(code, tmp_path):
    with FaultServer(lambda n, r: status(code, "too large")) as server:
        outcome = run(server.url, tmp_path, planned(30), concurrency=1)
    assert (outcome.status, outcome.kind, len(server.requests)) == (5, "gave-up", 1)
    assert f"{len(server.requests[0].body)} bytes" in outcome.reason


@pytest.mark.parametrize("code", [301, 307])
def test_t12_redirect(code, tmp_path):
    """To another host: not followed, so neither prompts nor the key go there."""
    with FaultServer(lambda n, r: good(0)) as other:
        target = f"{other.url}/chat/completions"
        with FaultServer(lambda n, r: status(code, "", Location=target)) as server:
            outcome = run(server.url, tmp_path, planned(30), concurrency=1)
        assert other.requests == other.others == []
    assert (outcome.status, len(server.requests)) == (5, 1)
    assert f"redirects (HTTP {code})" in outcome.reason


def test_t13_reset_before_headers(tmp_path):
    with FaultServer(once(Act(end="reset"))) as server:
        outcome = run(server.url, tmp_path)
    all_right(outcome)
    assert len(server.requests) == 5
    assert [row.outcome for row in outcome.attempts if row.question_id == "q0"] == ["transport_error", "ok"]
    assert "rerolled" not in outcome.samples["q0"].flags


def test_t14_reset_in_the_body(tmp_path):
    """The server had answered, so the second answer is another draw, and says so."""
    body = completion(r"\boxed{1}")
    with FaultServer(once(Act([http(200, body, length=len(body) + 40)], end="close"))) as server:
        outcome = run(server.url, tmp_path)
    all_right(outcome)
    assert [row.outcome for row in outcome.attempts if row.question_id == "q0"] == ["transport_error", "ok"]
    assert outcome.samples["q0"].flags == ("rerolled",)
    assert outcome.samples["q1"].flags == ()


@pytest.mark.parametrize("done", [False, True])
def test_t15_half_a_stream(done, tmp_path):
    """A stream without a finish_reason holds a text that looks right; it is never an answer."""
    events = [event({"content": r"\boxed{1}"})] + [b"data: [DONE]\n\n"] * done
    with FaultServer(lambda n, r: sse(*events)) as server:
        outcome = run(server.url, tmp_path, planned(1), stream=True)
    assert outcome.status == 5
    assert outcome.states == {"q0": "transport_error"}
    assert (outcome.samples["q0"].content, outcome.graded) == ("", set())
    assert "finish_reason" in outcome.samples["q0"].error
    assert len(server.requests) == RETRY.attempts


def test_t15_whole_stream(tmp_path):
    """The counterpart: deltas cut anywhere, joined to one answer with usage."""
    usage = b'data: {"model": "stub", "choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 7}}\r\n\r\n'
    whole = (
        event({"reasoning_content": "hm"}) + event({"content": r"\box"}) + event({"content": "ed{1}"}, "stop") + usage + b"data: [DONE]\n\n"
    )
    pieces = [whole[at : at + 17] for at in range(0, len(whole), 17)]
    with FaultServer(lambda n, r: sse(*pieces)) as server:
        outcome = run(server.url, tmp_path, planned(1), stream=True)
    all_right(outcome, 1)
    sample = outcome.samples["q0"]
    assert (sample.content, sample.reasoning, sample.prompt_tokens, sample.completion_tokens) == (r"\boxed{1}", "hm", 3, 7)
    assert server.requests[0].json["stream"] is True


def test_t16_slow_loris(tmp_path):
    """A pause within the answer ends it long before the deadline, and it is not asked again."""
    head = http(200, b"", length=500)
    with FaultServer(lambda n, r: Act([head, b"{", b'"'], pause=0.1, end="hang")) as server:
        outcome = run(server.url, tmp_path, planned(2), deadline=60)
    assert outcome.status == 5
    assert outcome.states == {"q0": "timeout", "q1": "timeout"}
    assert outcome.samples["q0"].seconds < 10
    assert "no byte for 0.5 s" in outcome.samples["q0"].error
    assert len(server.requests) == 2


def test_t16_drip_meets_the_deadline(tmp_path):
    """Bytes that keep coming do not stretch the deadline."""
    head = http(200, b"", length=5000)
    with FaultServer(lambda n, r: Act([head, *[b" "] * 200], pause=0.05, end="hang")) as server:
        outcome = run(server.url, tmp_path, planned(1), deadline=0.6)
    assert outcome.states == {"q0": "timeout"}
    assert "the answer had begun" in outcome.samples["q0"].error
    assert len(server.requests) == 1


def test_t17_never_answers(tmp_path):
    """The deadline frees the place for the next question, and a hung server gets no second request for the same sample."""
    with FaultServer(by_number(lambda i: Act(end="hang") if i == 0 else good(i))) as server:
        outcome = run(server.url, tmp_path, planned(4), concurrency=1, deadline=0.4)
    assert outcome.status == 5
    assert outcome.states == {"q0": "timeout", "q1": "answered", "q2": "answered", "q3": "answered"}
    assert "nothing had come back" in outcome.samples["q0"].error
    assert len(server.requests) == 4


def test_t17_deadline_from_the_speed_seen():
    speed = Speed(None, floor=1, slack=2, assumed=5)
    assert speed.deadline(1000) == 2 * 1000 / 5
    for _ in range(8):
        speed.saw(100, 1.0)
    speed.saw(None, 1.0)
    speed.saw(3, 100.0)  # latency, not speed
    assert speed.deadline(1000) == 2 * 1000 / 100
    speed.saw(100, 2.0)
    assert speed.deadline(1000) == 2 * 1000 / 50


def test_t18_keep_alive_closed(tmp_path):
    """Every third answer is the last on its connection: no sample is lost to it."""

    def plan(number, request):
        act = good(number_of(request.text))
        return Act(act.pieces, end="close") if number % 3 == 2 else act

    with FaultServer(plan) as server:
        outcome = run(server.url, tmp_path, planned(24), concurrency=2)
    all_right(outcome, 24)
    assert all(sample.attempts <= 2 and "rerolled" not in sample.flags for sample in outcome.samples.values())
    assert 24 <= len(server.requests) <= 32
