"""A few generations before the eval: a server that is up and answers rubbish must not cost a night."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from dataclasses import replace

from mxfp4_validate.endpoint.attempt import Attempt
from mxfp4_validate.endpoint.client import Client
from mxfp4_validate.endpoint.request import build_body
from mxfp4_validate.evalspec import Sampling

PROMPTS = (
    "Write the numbers from one to thirty as words, separated by commas.",
    "Explain in three sentences why the sky is blue.",
    "List ten European capitals with their countries.",
    "What is 17 times 23? Show each step.",
)
#: Tokens of one canary: a collapse into one token shows within the first hundred.
TOKENS = 512
_RUN = re.compile(r"(\S)\1{39,}")


async def canary(clients: Sequence[Client], model: str, sampling: Sampling, count: int) -> list[str]:
    """What is wrong with `count` generations asked all at once; empty if nothing is. Failing requests are left to the run's own retries."""
    short = replace(sampling, max_tokens=min(TOKENS, sampling.max_tokens))
    asked = [clients[i % len(clients)].complete(build_body(model, _messages(i), short, seed=i), 300.0, f"canary.{i}") for i in range(count)]
    attempts = await asyncio.gather(*asked)
    return [f"canary {i}: {why}" for i, attempt in enumerate(attempts) for why in [_wrong(attempt)] if why]


def _messages(number: int) -> list[dict[str, str]]:
    return [{"role": "user", "content": PROMPTS[number % len(PROMPTS)]}]


def _wrong(attempt: Attempt) -> str:
    if "nan-output" in attempt.flags:
        return f"NaN in the output: {attempt.error}"
    if attempt.reply is None:
        return ""
    text = attempt.reply.reasoning + attempt.reply.content
    return garbled(text) if text.strip() else ("empty answer" if attempt.reply.finish_reason == "stop" else "nothing but blanks")


def garbled(text: str) -> str:
    """How `text` looks like numeric rubbish, or "": one character over and over, a short loop, or bytes that are no characters."""
    run = _RUN.search(text)
    if run and run[1] not in "-=_.*~#":  # rules and leaders are ordinary in answers
        return f"{len(run[0])} times {run[1]!r} in a row"
    if text.count("\ufffd") > max(3, len(text) // 50):
        return f"{text.count(chr(0xFFFD))} undecodable characters"
    words = text.split()
    for size in (1, 2, 3, 4, 8):
        last = words[-size:]
        if size * 12 <= len(words) and all(words[-size * (k + 1) : len(words) - size * k] == last for k in range(12)):
            return f"the last {size} words repeat at least 12 times"
    return ""
