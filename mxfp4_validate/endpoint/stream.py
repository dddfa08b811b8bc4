"""Server-sent events to a `Reply`; a stream that does not end properly is not an answer."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from mxfp4_validate.endpoint.attempt import InvalidResponse, Reply
from mxfp4_validate.endpoint.response import build_reply, loads, text_of


class StreamCut(Exception):
    """The stream ended without a finish_reason."""


async def read_stream(chunks: AsyncIterator[bytes], max_tokens: int, max_bytes: int) -> Reply:
    """Join the deltas of one choice until `[DONE]`. `StreamCut` if it stops before a finish_reason."""
    content: list[str] = []
    reasoning: list[str] = []
    state: dict[str, Any] = {}
    size = 0
    begun: list[bytes] = []  # pieces of a line that has not ended: joined once, however long it grows
    async for chunk in chunks:
        size += len(chunk)
        if size > max_bytes:
            raise InvalidResponse(f"the stream is larger than {max_bytes} bytes")
        if b"\n" not in chunk:
            begun.append(chunk)
            continue
        *lines, rest = b"".join((*begun, chunk)).split(b"\n")
        begun = [rest]
        for line in lines:
            if _event(line.strip(), content, reasoning, state):
                return _finished(content, reasoning, state, max_tokens)
    if state.get("finish") is None:
        raise StreamCut("the stream ended without [DONE] and without a finish_reason")
    return _finished(content, reasoning, state, max_tokens)


def _event(line: bytes, content: list[str], reasoning: list[str], state: dict[str, Any]) -> bool:
    """Take in one line; True at `[DONE]`."""
    if not line.startswith(b"data:"):
        return False
    payload = line[5:].strip()
    if payload == b"[DONE]":
        return True
    data = loads(payload)
    if not isinstance(data, dict) or "error" in data:
        raise InvalidResponse(f"an event is no completion chunk: {payload[:300].decode('utf-8', 'replace')!r}")
    state["model"] = data.get("model", state.get("model"))
    state["usage"] = data.get("usage") or state.get("usage")
    choices = data.get("choices") or []
    if not isinstance(choices, list):
        raise InvalidResponse(f"a chunk's choices are a {type(choices).__name__}, not a list")
    for choice in choices:
        delta = (choice.get("delta") or {}) if isinstance(choice, dict) else None
        if not isinstance(delta, dict):
            raise InvalidResponse(f"a chunk's choice is no object with a delta: {payload[:300].decode('utf-8', 'replace')!r}")
        if choice.get("index", 0) != 0:
            raise InvalidResponse(f"a chunk has choice index {choice.get('index')!r}; one choice was asked for")
        content.append(text_of(delta, "content"))
        reasoning.append(text_of(delta, "reasoning_content") or text_of(delta, "reasoning"))
        state["finish"] = choice.get("finish_reason") or state.get("finish")
    return False


def _finished(content: list[str], reasoning: list[str], state: dict[str, Any], max_tokens: int) -> Reply:
    if state.get("finish") is None:
        raise StreamCut("the stream said [DONE] without a finish_reason")
    return build_reply("".join(content), "".join(reasoning), state["finish"], state.get("usage"), state.get("model"), max_tokens)
