"""A question and its sampling to the body of a request; every parameter is sent, so that a server cannot fill one in by itself."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from mxfp4_validate.evalspec import Sampling


def seed_for(base: int, question_id: str, repeat: int) -> int:
    """A seed of its own for every sample, the same in both legs: 31 bits of sha256 over base, question and repeat."""
    return int.from_bytes(hashlib.sha256(f"{base}|{question_id}|{repeat}".encode()).digest()[:4], "big") >> 1


def build_body(
    model: str,
    messages: Sequence[Mapping[str, str]],
    sampling: Sampling,
    seed: int,
    *,
    stream: bool = False,
    extra: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The JSON body of POST /v1/chat/completions. `extra` is added last and may not name a key that is already there."""
    body: dict[str, Any] = {
        "model": model,
        "messages": list(messages),
        "n": 1,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "min_p": sampling.min_p,
        "repetition_penalty": sampling.repetition_penalty,
        "max_tokens": sampling.max_tokens,
        "seed": seed,
        "stream": stream,
    }
    if stream:
        body["stream_options"] = {"include_usage": True}
    if sampling.effort is not None:
        body["reasoning_effort"] = sampling.effort
    if (
        sampling.thinking is not None
    ):  # DeepSeek's templates read `thinking`, Qwen's `enable_thinking`; templates ignore what they do not know
        body["chat_template_kwargs"] = {"thinking": sampling.thinking, "enable_thinking": sampling.thinking}
    for name, value in (extra or {}).items():
        if name in body:
            raise ValueError(f"extra body key {name!r} would replace a parameter of ours")
        body[name] = value
    return body
