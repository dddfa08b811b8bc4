"""One request for log-probabilities of given tokens, and what forbids asking: a server that decodes speculatively."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import aiohttp

from mxfp4_validate.endpoint.attempt import Attempt, InvalidResponse, of_status
from mxfp4_validate.endpoint.body import chunks_of, decoded, join, retry_after
from mxfp4_validate.endpoint.client import Client
from mxfp4_validate.endpoint.logprob_bodies import PROTOCOLS, Positions, Protocol, Unreadable
from mxfp4_validate.endpoint.response import loads
from mxfp4_validate.errors import UsageError
from mxfp4_validate.states import INVALID_RESPONSE

#: Where servers say that they decode speculatively.
_SPECULATIVE = ("speculative_algorithm", "speculative_config", "speculative_draft_model_path", "speculative_model", "speculative_method")


@dataclass(frozen=True)
class Scoring(Attempt):
    """One request for log-probabilities.

    Attributes:
        said: None unless `outcome` is ok; fault: the name of what makes the answer unusable, one of `divergence.scores.FAULTS`, or "".
        document: the answer's JSON on its way to `said`.
    """

    said: Positions | None = None
    fault: str = ""
    document: Any = None

    @property
    def nan(self) -> bool:
        """Whether the server failed because its own answer held NaN, which its JSON encoder refuses."""
        return "nan-output" in self.flags


class ScoringClient(Client):
    """The transport of `Client` for log-probabilities instead of chats."""

    async def score(
        self, protocol: Protocol, model: str, tokens: Sequence[int], first: int, top: int, deadline: float, request_id: str
    ) -> Scoring:
        """Score positions first.. of `tokens`, of which the first is at least 1. Never raises for what a server or a network can do."""
        if not 1 <= first < len(tokens):
            raise ValueError(f"first position {first} of {len(tokens)} tokens; it must be in 1..{len(tokens) - 1}")
        asked = {"path": protocol.path, "json": protocol.body(model, tokens, first, top)}
        attempt = await self.complete(asked, deadline, request_id)
        if not isinstance(attempt, Scoring):  # whatever went wrong
            return Scoring(**vars(attempt))
        try:
            return replace(attempt, said=protocol.read(attempt.document, tokens, first, top), document=None)
        except InvalidResponse as error:
            fault = error.fault if isinstance(error, Unreadable) else ""
            retry = "no" if fault else "free"  # nothing is sampled, so asking again is no re-roll
            return replace(attempt, outcome=INVALID_RESPONSE, error=self._key.redact(str(error)), retry=retry, fault=fault, document=None)

    async def _post(self, body: Mapping[str, Any], request_id: str, seen: dict[str, bool]) -> Attempt:
        assert self._session is not None, "use the client as an async context manager"
        data = json.dumps(body["json"], allow_nan=False).encode()
        headers = {"Content-Type": "application/json", "X-Request-Id": request_id}
        url = self.address.root + body["path"]
        async with self._session.post(url, data=data, headers=headers, allow_redirects=False) as response:
            seen["headers"] = True
            if response.status != 200:
                return await self._refused(response, body["path"])
            chunks = decoded(chunks_of(response, self.limits.idle), response.headers.get("Content-Encoding", ""), self.limits.max_bytes)
            return Scoring("ok", status=200, document=_json(await join(chunks, self.limits.max_bytes)))

    async def _refused(self, response: aiohttp.ClientResponse, path: str) -> Attempt:
        """Asking again costs nothing but time: nothing is sampled."""
        text = self._key.redact((await self._error_body(response)).decode("utf-8", "replace"))
        attempt = of_status(response.status, text, retry_after(response.headers.get("Retry-After")))
        if response.status in (404, 405):
            why = f"no {path} there (HTTP {response.status}); ask by another protocol, one of {', '.join(PROTOCOLS)}"
            return replace(attempt, fatal=why)
        return replace(attempt, retry="free" if attempt.retry == "reroll" else attempt.retry)


def _json(body: bytes) -> Any:
    """The document; NaN and infinities written bare, as some servers do, are kept, because they are what this is looking for."""
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return loads(body)  # says what is wrong


def refuse_speculation(info: Any) -> None:
    """`UsageError` if a server's info, in whatever depth, says that it decodes speculatively."""
    pending = [info]
    while pending:
        value = pending.pop()
        if isinstance(value, Mapping):
            for name in _SPECULATIVE:
                if str(value.get(name) or "none").lower() not in ("none", "null", "false"):
                    raise UsageError(
                        f"the server decodes speculatively ({name} = {value[name]!r}): such servers have returned wrong log-probabilities "
                        "or none; start it without speculation for this run"
                    )
            pending.extend(value.values())
        elif isinstance(value, list):
            pending.extend(value)


async def read_info(client: Client) -> Any:
    """What the server tells of itself, {} if nothing; refused if it says that it speculates."""
    info = await client.get_json("/get_server_info") or await client.get_json("/server_info") or {}
    refuse_speculation(info)
    return info
