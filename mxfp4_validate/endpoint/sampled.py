"""The baseline's own words as token ids: prompts by the server's chat template, answers sampled by it. What a divergence corpus is made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mxfp4_validate.endpoint.logprobs import Scoring, ScoringClient
from mxfp4_validate.errors import UsageError


async def prompt_ids(client: ScoringClient, model: str, messages: Sequence[Mapping[str, str]], deadline: float, name: str) -> list[int]:
    """The prompt as the server tokenises it, by POST /tokenize with messages. `UsageError` for a server that has no such thing."""
    body = {"model": model, "messages": [dict(m) for m in messages], "add_generation_prompt": True}
    document = _document(await _ask(client, "/tokenize", body, deadline, name), client, "/tokenize with messages")
    return _ids(document.get("tokens"), "tokens of /tokenize")


async def sample(
    client: ScoringClient, tokens: Sequence[int], most: int, temperature: float, seed: int, deadline: float, name: str
) -> list[int]:
    """Up to `most` tokens that the server samples after `tokens`, by SGLang's POST /generate."""
    sampling = {"temperature": temperature, "max_new_tokens": most, "sampling_seed": seed, "top_p": 1.0}
    body = {"input_ids": list(tokens), "sampling_params": sampling, "return_logprob": True, "logprob_start_len": -1, "stream": False}
    document = _document(await _ask(client, "/generate", body, deadline, name), client, "/generate")
    rows = (document.get("meta_info") or {}).get("output_token_logprobs")
    if not isinstance(rows, list):
        raise UsageError(
            f"{client.address.root}: /generate tells no output_token_logprobs; a corpus needs the token ids of what was sampled"
        )
    return _ids([row[1] if isinstance(row, list) and len(row) > 1 else None for row in rows], "output_token_logprobs")


async def _ask(client: ScoringClient, path: str, body: Mapping[str, Any], deadline: float, name: str) -> Scoring:
    attempt = await client.complete({"path": path, "json": body}, deadline, name)
    return attempt if isinstance(attempt, Scoring) else Scoring(**vars(attempt))


def _document(found: Scoring, client: ScoringClient, what: str) -> Mapping[str, Any]:
    if found.outcome != "ok" or not isinstance(found.document, Mapping):
        why = found.fatal or found.error or f"HTTP {found.status}"
        raise UsageError(f"{client.address.root}: no {what} ({why}); make the corpus on a server that has it, SGLang or `serve tiny`")
    return found.document


def _ids(values: Any, what: str) -> list[int]:
    if not isinstance(values, list) or not all(isinstance(v, int) and not isinstance(v, bool) and v >= 0 for v in values):
        raise UsageError(f"{what} are no token ids: {str(values)[:120]}")
    return list(values)
