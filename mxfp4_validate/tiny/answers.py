"""Finished jobs to the bodies clients expect: OpenAI's chat and text completions, SGLang's /generate."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from mxfp4_validate.tiny.batching import Job, Progress
from mxfp4_validate.tiny.sampling import Scored
from mxfp4_validate.tiny.text import Text


def finite(value: float | None) -> float | None:
    """A log-probability as JSON can hold it: NaN and infinities become null, as SGLang's encoder makes them."""
    return value if value is not None and math.isfinite(value) else None


def usage(jobs: Sequence[Job], done: Sequence[Progress]) -> dict[str, int]:
    """Counts over all prompts of a request; the token that ended an answer is one of its tokens."""
    prompt, completion = sum(len(job.prompt) for job in jobs), sum(len(p.tokens) for p in done)
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def chat_logprobs(scored: Sequence[Scored], text: Text) -> dict[str, Any]:
    """OpenAI's `choices[].logprobs` of a chat."""

    def entry(token: int, logprob: float | None) -> dict[str, Any]:
        string = text.decode([token], skip_special=False)
        return {"token": string, "logprob": finite(logprob), "bytes": list(string.encode())}

    return {"content": [entry(s.token, s.logprob) | {"top_logprobs": [entry(token, logprob) for logprob, token in s.top]} for s in scored]}


def completion_logprobs(scored: Sequence[Scored], text: Text, as_ids: bool) -> dict[str, Any]:
    """OpenAI's `choices[].logprobs` of a text completion. `as_ids` names tokens `token_id:N`, because different tokens may share a text."""

    def name(token: int) -> str:
        return f"token_id:{token}" if as_ids else text.decode([token], skip_special=False)

    offsets, place = [], 0
    for s in scored:
        offsets.append(place)
        place += len(text.decode([s.token], skip_special=False))
    return {
        "tokens": [name(s.token) for s in scored],
        "token_logprobs": [finite(s.logprob) for s in scored],
        "top_logprobs": [None if s.logprob is None else {name(token): finite(logprob) for logprob, token in s.top} for s in scored],
        "text_offset": offsets,
    }


def generated(job: Job, done: Progress, text: Text, name: str, seconds: float, texts: bool) -> dict[str, Any]:
    """SGLang's answer to one prompt of /generate."""
    reason = {"type": "length", "length": len(done.tokens)} if done.finish == "length" else {"type": "stop", "matched": done.matched}
    meta: dict[str, Any] = {
        "id": name,
        "finish_reason": reason,
        "prompt_tokens": len(job.prompt),
        "completion_tokens": len(done.tokens),
        "cached_tokens": 0,
        "e2e_latency": seconds,
    }
    if job.want.output:
        meta["input_token_logprobs"] = [_triple(s.logprob, s.token, text, texts) for s in done.prompt]
        meta["output_token_logprobs"] = [_triple(s.logprob, s.token, text, texts) for s in done.output]
        meta["output_token_logprobs_length"] = len(done.output)
    if job.want.output and job.want.top:
        meta["input_top_logprobs"] = [_tops(s, text, texts) for s in done.prompt]
        meta["output_top_logprobs"] = [_tops(s, text, texts) for s in done.output]
    return {"text": done.text, "output_ids": list(done.tokens), "meta_info": meta}


def _triple(logprob: float | None, token: int, text: Text, texts: bool) -> list[Any]:
    return [finite(logprob), token, text.decode([token], skip_special=False) if texts else None]


def _tops(scored: Scored, text: Text, texts: bool) -> list[list[Any]] | None:
    """None at a position that has no log-probability."""
    return None if scored.logprob is None else [_triple(logprob, token, text, texts) for logprob, token in scored.top]
