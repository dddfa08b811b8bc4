"""A few generations before the eval: a server that is up and answers rubbish must not cost a night."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

from mxfp4_validate.endpoint.attempt import Attempt
from mxfp4_validate.endpoint.client import Client
from mxfp4_validate.endpoint.request import build_body
from mxfp4_validate.evalspec import Sampling

#: One prompt as a server takes it.
Messages = Sequence[Mapping[str, str]]
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
    attempts = await generate(clients, model, short, plain_prompts(count))
    return [f"canary {i}: {why}" for i, attempt in enumerate(attempts) for why in [wrong(attempt)] if why]


async def generate(
    clients: Sequence[Client], model: str, sampling: Sampling, prompts: Sequence[Messages], concurrency: int = 2048, deadline: float = 300.0
) -> list[Attempt]:
    """One generation for each prompt, `concurrency` in flight, shared among the clients; `deadline` in seconds for each."""
    gate = asyncio.Semaphore(concurrency)

    async def one(place: int, messages: Messages) -> Attempt:
        async with gate:
            return await clients[place % len(clients)].complete(
                build_body(model, messages, sampling, seed=place), deadline, f"canary.{place}"
            )

    return list(await asyncio.gather(*(one(place, messages) for place, messages in enumerate(prompts))))


def plain_prompts(count: int) -> list[Messages]:
    """Our own four, in turn."""
    return [_messages(PROMPTS[number % len(PROMPTS)]) for number in range(count)]


def _messages(text: str) -> Messages:
    return [{"role": "user", "content": text}]


def wrong(attempt: Attempt) -> str:
    """How this generation is numeric rubbish, "" if it is not or there is none."""
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
