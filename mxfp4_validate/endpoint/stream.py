"""Server-sent events to a `Reply`; a stream that does not end properly is not an answer."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from mxfp4_validate.endpoint.attempt import InvalidResponse, Reply
from mxfp4_validate.endpoint.response import build_reply, loads


class StreamCut(Exception):
    """The stream ended without a finish_reason."""


async def read_stream(chunks: AsyncIterator[bytes], max_tokens: int, max_bytes: int) -> Reply:
    """Join the deltas of one choice until `[DONE]`. `StreamCut` if it stops before a finish_reason."""
    content: list[str] = []
    reasoning: list[str] = []
    state: dict[str, Any] = {}
    size, pending = 0, b""
    async for chunk in chunks:
        size += len(chunk)
        if size > max_bytes:
            raise InvalidResponse(f"the stream is larger than {max_bytes} bytes")
        *lines, pending = (pending + chunk).split(b"\n")
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
    for choice in data.get("choices") or []:
        if choice.get("index", 0) != 0:
            raise InvalidResponse(f"a chunk has choice index {choice.get('index')!r}; one choice was asked for")
        delta = choice.get("delta") or {}
        content.append(delta.get("content") or "")
        reasoning.append(delta.get("reasoning_content") or delta.get("reasoning") or "")
        state["finish"] = choice.get("finish_reason") or state.get("finish")
    return False


def _finished(content: list[str], reasoning: list[str], state: dict[str, Any], max_tokens: int) -> Reply:
    if state.get("finish") is None:
        raise StreamCut("the stream said [DONE] without a finish_reason")
    return build_reply("".join(content), "".join(reasoning), state["finish"], state.get("usage"), state.get("model"), max_tokens)
