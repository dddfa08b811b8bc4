"""Properties of the way from bytes to a state, on thousands of invented replies: nothing crashes, nothing missing is scored."""

from __future__ import annotations

import json

from hypothesis import given, settings
from hypothesis import strategies as st

from mxfp4_validate import states
from mxfp4_validate.endpoint.attempt import Attempt, InvalidResponse, Reply, of_status
from mxfp4_validate.endpoint.client import _of_reply
from mxfp4_validate.endpoint.response import parse_completion
from mxfp4_validate.endpoint.state import state_of
from mxfp4_validate.endpoint.stream import StreamCut, read_stream
from mxfp4_validate.grading import grade
from mxfp4_validate.records.sample import Sample, pack, unpack

CHEAP = settings(derandomize=True, max_examples=1000, deadline=None, database=None)
TEXT = st.one_of(
    st.none(), st.text(st.characters(exclude_categories=()), max_size=6), st.sampled_from([r"\boxed{1}", "", " ", "1", "\ud800", "a\x00"])
)
SCALAR = st.one_of(st.none(), st.booleans(), st.integers(-2, 2**70), st.floats(allow_nan=False, allow_infinity=False), TEXT)
FLAT = st.lists(SCALAR, max_size=2) | st.dictionaries(st.sampled_from(["index", "message", "delta"]), SCALAR, max_size=1)
JSON = SCALAR | FLAT | FLAT.map(lambda inner: [inner])


def mostly(good, every: int = 6):
    """Usually one of `good`, now and then anything."""
    return st.integers(0, every).flatmap(lambda n: JSON if n == 0 else good)


FINISH = st.sampled_from(["stop", "length", "abort", "content_filter", "eos", "", None])
USAGE = st.fixed_dictionaries({}, optional={"completion_tokens": mostly(st.integers(1, 99)), "prompt_tokens": mostly(st.just(7))})
MESSAGE = st.fixed_dictionaries({"role": st.just("assistant")}, optional={"content": mostly(TEXT), "reasoning_content": mostly(TEXT)})
CHOICE = st.fixed_dictionaries({"message": mostly(MESSAGE, 20), "finish_reason": mostly(FINISH)}, optional={"index": mostly(st.just(0))})
BODY = st.fixed_dictionaries(
    {"choices": mostly(st.lists(mostly(CHOICE, 20), min_size=1, max_size=1), 20)}, optional={"usage": mostly(USAGE), "model": SCALAR}
)


def outcome(reply: Reply) -> str:
    """The state as the writer finds it, and a row that the store takes."""
    attempt = _of_reply(reply)
    state = state_of(attempt, grade("gsm8k", reply.content, "1"))
    sample = Sample("q", 0, state, reply.content, reply.reasoning, completion_tokens=reply.completion_tokens)
    assert unpack(pack(reply.content)) == reply.content
    assert Sample.from_row(sample.row()) == sample
    assert reply.completion_tokens is None or 0 < reply.completion_tokens < 2**63
    if reply.finish_reason == "abort":
        assert state == states.ABORTED
    elif reply.finish_reason == "length":
        assert state == states.TRUNCATED
    else:
        assert state == (states.EMPTY if not reply.content.strip() else state)
        assert state in (states.ANSWERED, states.NO_ANSWER, states.EMPTY)
    return state


@CHEAP
@given(st.one_of(BODY, JSON))
def test_a_parsed_reply_ends_in_a_state_of_the_model(body):
    """Only answered, no_answer, truncated and empty come from a reply that could be read; `abort` alone is missing. (P3..P7, P12)"""
    try:
        reply = parse_completion(json.dumps(body).encode(), 64)
    except InvalidResponse as error:
        str(error).encode("utf-8", "backslashreplace")
        return
    message = body["choices"][0]["message"]
    assert (reply.content, len(body["choices"])) == (message.get("content") or "", 1)
    outcome(reply)


@CHEAP
@given(st.one_of(st.binary(max_size=60), BODY.flatmap(lambda b: st.integers(0, 400).map(lambda n: json.dumps(b).encode()[:n]))))
def test_any_bytes_are_a_reply_or_refused(body):
    """Cut JSON and noise: `InvalidResponse` or a reply, and nothing else. (P1, P12)"""
    try:
        outcome(parse_completion(body, 64))
    except InvalidResponse as error:
        said = str(error)
    else:
        return
    assert said


def test_a_whole_body_is_read():
    """The strategies above do reach all four states."""
    rows = [(r"\boxed{1}", "stop", "answered"), ("hm", "stop", "no_answer"), ("x", "length", "truncated"), ("", "stop", "empty")]
    for content, finish, state in rows:
        body = {"choices": [{"message": {"content": content}, "finish_reason": finish}]}
        assert outcome(parse_completion(json.dumps(body).encode(), 64)) == state


DELTA = st.fixed_dictionaries({}, optional={"content": mostly(TEXT), "reasoning_content": mostly(TEXT)})
CHUNK = st.fixed_dictionaries(
    {
        "choices": mostly(
            st.lists(
                mostly(st.fixed_dictionaries({"delta": mostly(DELTA, 20)}, optional={"finish_reason": mostly(FINISH)}), 20), max_size=1
            ),
            20,
        )
    },
    optional={"usage": mostly(USAGE), "model": SCALAR},
)
LINE = st.one_of(
    mostly(CHUNK, 20).map(lambda c: b"data: " + json.dumps(c).encode()),
    st.binary(max_size=20),
    st.sampled_from([b"data: [DONE]", b"", b": ping", b"data:", b"event: x"]),
)


@CHEAP
@given(st.lists(LINE, max_size=5), st.integers(1, 50))
def test_any_stream_is_a_reply_or_refused(lines, size):
    """Whatever the events hold and wherever the network cuts them. (T15)"""
    whole = b"\n".join(lines) + b"\n"

    async def read() -> Reply | None:
        async def chunks():
            for at in range(0, len(whole), size):
                yield whole[at : at + size]

        try:
            return await read_stream(chunks(), 64, 1 << 20)
        except (InvalidResponse, StreamCut):
            return None

    coroutine = read()  # nothing in it ever waits, so no loop is needed
    try:
        coroutine.send(None)
    except StopIteration as end:
        if end.value is not None:
            assert b"finish_reason" in whole
            outcome(end.value)
    else:
        raise AssertionError("it waited")


@CHEAP
@given(
    st.integers(100, 599).filter(lambda n: n != 200),
    st.text(st.characters(exclude_categories=()), max_size=30),
    st.none() | st.floats(0, 9),
)
def test_no_status_but_200_is_scored(status, body, after):
    attempt = of_status(status, body, after)
    state = state_of(attempt, grade("gsm8k", body, "1"))
    assert state in states.MISSING_STATES
    assert attempt.reply is None
    assert len(attempt.error) < 600
    assert (status == 429) <= (attempt.retry == "free")


def test_an_attempt_without_a_reply_is_missing():
    for state in states.MISSING_STATES:
        assert state_of(Attempt(state), grade("gsm8k", r"\boxed{1}", "1")) == state
