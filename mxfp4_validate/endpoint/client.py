"""One POST to one server, with every way it can end told apart. Raw aiohttp: measured at a tenth of the openai package's CPU a request."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import aiohttp

from mxfp4_validate import states
from mxfp4_validate.endpoint.address import Address, Secret
from mxfp4_validate.endpoint.attempt import STATUS, Attempt, InvalidResponse, Reply, of_status
from mxfp4_validate.endpoint.body import IdleTimeout, chunks_of, decoded, join, retry_after
from mxfp4_validate.endpoint.response import loads, parse_completion
from mxfp4_validate.endpoint.stream import StreamCut, read_stream
from mxfp4_validate.errors import UsageError

#: Request ids are UUIDs derived from question, repeat and attempt: llama-cpp-python's server answers HTTP 400 to anything else.
_REQUESTS = uuid.UUID("5f0c3f5e-6d0e-4f57-9a0b-2f3f8c1d7a10")


@dataclass(frozen=True)
class Limits:
    """Bounds of one request. There is no fixed total: `deadline` comes with every call, from the token cap and the measured speed.

    Attributes:
        connect: seconds to connect, TLS included; idle: seconds without a byte once the answer has begun.
        max_bytes: largest body after decompression; error_bytes: how much of an error's body is read.
    """

    connect: float = 10.0
    idle: float = 120.0
    max_bytes: int = 256 << 20
    error_bytes: int = 64 << 10


class Client:
    """Sends requests to one address. An async context manager."""

    def __init__(
        self, address: Address, key: Secret, *, concurrency: int = 64, limits: Limits | None = None, ca_file: Path | None = None
    ) -> None:
        self.address = address
        self.limits = limits or Limits()
        self._key = key
        self._concurrency = concurrency
        self._tls = _tls(ca_file)
        self._session: aiohttp.ClientSession | None = None
        self._asked: set[str] = set()  # ids of the requests in flight

    async def __aenter__(self) -> Self:
        connector = aiohttp.TCPConnector(limit=0, ssl=self._tls, keepalive_timeout=30)  # the collector's limiter is the only queue
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=self.limits.connect, sock_read=None)
        headers = {"Authorization": f"Bearer {self._key.reveal()}", "Accept-Encoding": "identity", "User-Agent": "mxfp4-validate"}
        self._session = aiohttp.ClientSession(
            connector=connector, timeout=timeout, headers=headers, auto_decompress=False, trust_env=not self.address.loopback
        )
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._session is not None:
            await self._session.close()

    async def complete(self, body: Mapping[str, Any], deadline: float, request_id: str) -> Attempt:
        """POST one chat completion; never raises for anything a server or network can do. `deadline` in seconds."""
        started = time.monotonic()
        seen: dict[str, bool] = {}
        name = str(uuid.uuid5(_REQUESTS, request_id))  # some servers refuse one that is no UUID
        self._asked.add(name)
        try:
            async with asyncio.timeout(deadline):
                attempt = await self._post(body, name, seen)
        except TimeoutError as error:
            attempt = _timed_out(error, seen, deadline, self.limits)
        except InvalidResponse as error:
            attempt = Attempt(states.INVALID_RESPONSE, status=200, error=self._key.redact(str(error)), retry="reroll")
        except StreamCut as error:
            attempt = Attempt(states.TRANSPORT_ERROR, status=200, error=str(error), retry="reroll")
        except (aiohttp.ClientError, OSError, ValueError) as error:
            attempt = _transport(self._key.redact(f"{type(error).__name__}: {error}"), error, seen)
        finally:
            self._asked.discard(name)
        return replace(attempt, seconds=time.monotonic() - started)

    async def _post(self, body: Mapping[str, Any], request_id: str, seen: dict[str, bool]) -> Attempt:
        assert self._session is not None, "use the client as an async context manager"
        data = json.dumps(body, ensure_ascii=True, allow_nan=False).encode()
        headers = {"Content-Type": "application/json", "X-Request-Id": request_id}
        url = f"{self.address.api}/chat/completions"
        async with self._session.post(url, data=data, headers=headers, allow_redirects=False) as response:
            seen["headers"] = True
            if response.status != 200:
                text = (await self._error_body(response)).decode("utf-8", "replace")
                text = self._key.redact(text)
                if response.status in (413, 414, 431):
                    text = f"the request's body has {len(data)} bytes; {text}"
                return of_status(response.status, text, retry_after(response.headers.get("Retry-After")))
            echo = response.headers.get("X-Request-Id", request_id)
            if echo != request_id and echo in self._asked:  # a server may count in ids of its own; one of ours is another's answer
                raise InvalidResponse(f"misdelivered: the answer carries the id of another request of ours, {echo}")
            chunks = decoded(chunks_of(response, self.limits.idle), response.headers.get("Content-Encoding", ""), self.limits.max_bytes)
            if "text/event-stream" in response.headers.get("Content-Type", ""):
                reply = await read_stream(chunks, int(body["max_tokens"]), self.limits.max_bytes)
            else:
                reply = parse_completion(await join(chunks, self.limits.max_bytes), int(body["max_tokens"]))
            return _of_reply(reply)

    async def _error_body(self, response: aiohttp.ClientResponse) -> bytes:
        try:
            async with asyncio.timeout(self.limits.idle):
                return await response.content.read(self.limits.error_bytes)
        except (TimeoutError, aiohttp.ClientError, OSError):
            return b"(its body could not be read)"

    async def get_json(self, path: str, timeout: float = 10.0) -> Any:
        """GET a small JSON document below the server's root; None if there is none. Transport errors are raised."""
        assert self._session is not None, "use the client as an async context manager"
        async with asyncio.timeout(timeout), self._session.get(f"{self.address.root}{path}", allow_redirects=False) as response:
            if response.status in (401, 403):
                raise UsageError(f"{self.address.root}{path}: {STATUS[response.status][2]}")
            if response.status != 200:
                return None
            try:
                return loads(await join(chunks_of(response, timeout), 16 << 20))
            except InvalidResponse:
                return None

    async def healthy(self, timeout: float = 5.0) -> bool:
        """Whether `/health` answers 200, or, where a server has none, `/v1/models` does."""
        assert self._session is not None, "use the client as an async context manager"
        for path in ("/health", "/v1/models"):
            try:
                async with asyncio.timeout(timeout), self._session.get(f"{self.address.root}{path}", allow_redirects=False) as response:
                    if response.status != 404:
                        return response.status == 200
            except (TimeoutError, aiohttp.ClientError, OSError):
                return False
        return False


def _of_reply(reply: Reply) -> Attempt:
    if reply.finish_reason == "abort":
        return Attempt(states.ABORTED, reply, 200, "the server aborted the request (finish_reason abort)", "reroll", flags=reply.flags)
    return Attempt("ok", reply, 200, flags=reply.flags)


def _timed_out(error: TimeoutError, seen: Mapping[str, bool], deadline: float, limits: Limits) -> Attempt:
    if isinstance(error, aiohttp.ConnectionTimeoutError):
        return Attempt(states.TRANSPORT_ERROR, error=f"no connection within {limits.connect:g} s", retry="free", flags=("no-connection",))
    if isinstance(error, IdleTimeout):
        return Attempt(states.TIMEOUT, error=f"no byte for {limits.idle:g} s in the middle of an answer")
    where = "the answer had begun" if seen.get("headers") else "nothing had come back"
    return Attempt(states.TIMEOUT, error=f"no answer within {deadline:.0f} s ({where})")


def _transport(text: str, error: Exception, seen: Mapping[str, bool]) -> Attempt:
    if seen.get("headers"):  # the server had answered; asking again draws another answer
        return Attempt(states.TRANSPORT_ERROR, status=200, error=text, retry="reroll")
    if isinstance(error, aiohttp.ClientSSLError):  # includes certificate errors: trying again changes nothing
        return Attempt(
            states.TRANSPORT_ERROR, error=text, fatal=f"TLS to the server failed: {text}; --ca-file FILE for a private authority"
        )
    flags = ("no-connection",) if isinstance(error, aiohttp.ClientConnectorError) else ()
    if isinstance(error, aiohttp.ClientConnectorError) and isinstance(error.os_error, socket.gaierror):
        return Attempt(states.TRANSPORT_ERROR, error=text, fatal=f"the host's name cannot be resolved: {text}", flags=flags)
    return Attempt(states.TRANSPORT_ERROR, error=text, retry="free", flags=flags)


def _tls(ca_file: Path | None) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=str(ca_file) if ca_file else None)
    except (OSError, ssl.SSLError) as error:
        raise UsageError(f"--ca-file {ca_file}: {error}") from error
