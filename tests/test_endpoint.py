"""The endpoint's parts by themselves: limiter, breaker, pauses, deadlines, seeds, bodies; several servers and streams through the whole."""

from __future__ import annotations

import asyncio
import json
import random
from pathlib import Path

import pytest

from mxfp4_validate import cli
from mxfp4_validate.endpoint.flow import Breaker, Limiter, RetryPolicy, Speed
from mxfp4_validate.endpoint.identity import build_identity, changes
from mxfp4_validate.endpoint.request import build_body, seed_for
from mxfp4_validate.evalspec import Sampling
from mxfp4_validate.records.evals import EvalStore
from tests.fault_server import Act, FaultServer, Request, answer, http


def test_limiter_never_lets_more_in_and_comes_back_after_throttling() -> None:
    async def main() -> tuple[int, int, int]:
        limiter, running, most = Limiter(8), 0, 0

        async def one() -> None:
            nonlocal running, most
            async with limiter:
                running += 1
                most = max(most, running)
                await asyncio.sleep(0.001)
                running -= 1

        await asyncio.gather(*(one() for _ in range(100)))
        first, most = most, 0
        limiter.throttle()
        limiter.throttle()
        await asyncio.gather(*(one() for _ in range(50)))
        halved = most
        for _ in range(1000):
            limiter.success()
        return first, halved, limiter.limit

    assert asyncio.run(main()) == (8, 2, 8)


def test_limiter_passes_the_turn_of_a_cancelled_waiter_on() -> None:
    """Cancelled at any instant, a waiter must not take a place with it."""

    async def main() -> bool:
        limiter = Limiter(1)
        rng = random.Random(1)

        async def one() -> None:
            async with limiter:
                await asyncio.sleep(rng.random() * 0.002)

        tasks = [asyncio.create_task(one()) for _ in range(200)]
        for task in rng.sample(tasks, 120):
            await asyncio.sleep(rng.random() * 0.0005)
            task.cancel()
        await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 5)
        await asyncio.wait_for(one(), 1)
        return True

    assert asyncio.run(main())


def test_breaker_opens_once_at_its_threshold_and_a_success_resets_it() -> None:
    async def main() -> None:
        breaker = Breaker(3)
        assert [breaker.failure() for _ in range(2)] == [False, False]
        breaker.success()
        assert [breaker.failure() for _ in range(4)] == [False, False, True, False]
        assert not breaker.closed.is_set()
        breaker.close()
        assert breaker.closed.is_set()
        assert breaker.failures == 0

    asyncio.run(main())


def test_pauses_double_up_to_the_most_and_a_server_s_wish_wins() -> None:
    policy, rng = RetryPolicy(first=1.0, most=10.0), random.Random(0)
    pauses = [policy.pause(n, None, rng) for n in range(1, 8)]
    for pause, base in zip(pauses, (1, 2, 4, 8, 10, 10, 10), strict=True):
        assert base <= pause <= 1.25 * base
    assert 30 <= policy.pause(1, 30.0, rng) <= 37.5


def test_deadlines_follow_the_slowest_answers_seen() -> None:
    speed = Speed(None, floor=1.0)
    assert speed.deadline(1000) == 2 * 1000 / 5
    for seconds in (10, 10, 10, 10, 10, 10, 10, 40):
        speed.saw(400, seconds)
    assert speed.deadline(1000) == 2 * 1000 / 10
    speed.saw(4, 400)  # too few tokens to measure a speed
    assert speed.deadline(1000) == 200
    assert Speed(7.0).deadline(10**6) == 7.0


def test_seeds_are_stable_distinct_and_31_bits() -> None:
    seeds = {seed_for(0, f"q{i}", r) for i in range(200) for r in range(16)}
    assert len(seeds) == 3200
    assert max(seeds) < 2**31
    assert seed_for(1, "q1", 0) != seed_for(0, "q1", 0)


def test_extra_keys_cannot_replace_a_parameter_of_ours() -> None:
    assert build_body("m", [], Sampling(), 1, extra={"top_k": 5})["top_k"] == 5
    with pytest.raises(ValueError, match="temperature"):
        build_body("m", [], Sampling(), 1, extra={"temperature": 2})


def test_identity_keeps_what_is_listed_and_no_secret() -> None:
    info = {
        "model_path": "m", "sglang_version": "0.5", "moe_runner_backend": "auto", "api_key": "sk-secret", "admin_api_key": "x", "enable_secret": "y",
        "last_gen_throughput": 3.5, "internal_states": [{"moe_runner_backend": "flashinfer_mxfp4"}], "hostname": "private-name",
    }  # fmt: skip
    found = build_identity({"data": [{"id": "m", "max_model_len": 4096}]}, info, None, "http://h")
    assert found.values["moe_backend"] == "flashinfer_mxfp4", "the effective backend stands in the inner state"
    assert found.context_length == 4096
    assert not {"api_key", "admin_api_key", "enable_secret", "hostname", "last_gen_throughput"} & found.values.keys()
    other = build_identity({"data": [{"id": "m"}]}, info | {"internal_states": [{"moe_runner_backend": "marlin"}]}, None, "http://h")
    assert changes(found, other) == ["moe_backend changed from 'flashinfer_mxfp4' to 'marlin'"]
    assert found.boot != other.boot


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    path = tmp_path / "q.jsonl"
    path.write_text("\n".join(json.dumps({"question": f"What is {i} plus one?", "answer": f"#### {i + 1}"}) for i in range(40)))
    return path


def test_several_servers_share_the_load(questions: Path, tmp_path: Path) -> None:
    """Two servers of one kind: each is asked, the slow one less; a third of another backend is refused before anything is asked."""
    slow = FaultServer(lambda n, r: Act([answer().pieces[0]], delay=0.05))
    with slow, FaultServer(lambda n, r: answer()) as fast:
        command = ["eval", "gsm8k", "--questions", str(questions), "--out", str(tmp_path / "a"), "--concurrency", "4", "--canaries", "0"]
        assert cli.main([*command, "--base-url", slow.url, "--base-url", fast.url]) == 0
        assert len(slow.requests) + len(fast.requests) == 40
        assert 2 <= len(slow.requests) < len(fast.requests)
        slow.set_info(moe_runner_backend="other")
        command[5] = str(tmp_path / "b")
        assert cli.main([*command, "--base-url", slow.url, "--base-url", fast.url]) == 4
        assert len(slow.requests) + len(fast.requests) == 40


def test_streamed_answers_are_the_same_answers(questions: Path, tmp_path: Path) -> None:
    def chunks(_: int, request: Request) -> Act:
        assert request.json["stream"] is True
        deltas = [{"reasoning_content": "hm "}, {"content": r"so \box"}, {"content": "ed{5}"}]
        events = [{"model": "stub", "choices": [{"index": 0, "delta": delta, "finish_reason": None}]} for delta in deltas]
        events.append({"model": "stub", "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
        events.append({"model": "stub", "choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 9}})
        body = "".join(f"data: {json.dumps(event)}\n\n" for event in events) + "data: [DONE]\n\n"
        return Act([http(200, body.encode(), {"Content-Type": "text/event-stream"})])

    with FaultServer(chunks) as server:
        command = ["eval", "gsm8k", "--questions", str(questions), "--out", str(tmp_path / "a"), "--canaries", "0", "--stream"]
        assert cli.main([*command, "--base-url", server.url]) == 0
    with EvalStore.open(tmp_path / "a") as store:
        samples = list(store.samples())
    assert {(s.state, s.content, s.reasoning, s.completion_tokens) for s in samples} == {("answered", r"so \boxed{5}", "hm ", 9)}


def test_2048_requests_at_once(questions: Path, tmp_path: Path) -> None:
    """The ceiling of --concurrency is reached, not only accepted."""
    with FaultServer(lambda n, r: Act([answer().pieces[0]], delay=1.5)) as server:
        command = ["eval", "gsm8k", "--questions", str(questions), "--repeats", "52", "--out", str(tmp_path / "a"), "--canaries", "0"]
        assert cli.main([*command, "--base-url", server.url, "--concurrency", "2048"]) == 0
        assert server.most_in_flight > 1500
