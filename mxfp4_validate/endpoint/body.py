"""The body of a response: read in pieces with a patience of their own, unfolded within bounds, and what Retry-After says."""

from __future__ import annotations

import asyncio
import email.utils
import time
import zlib
from collections.abc import AsyncIterator

import aiohttp

from mxfp4_validate.endpoint.attempt import InvalidResponse


class IdleTimeout(TimeoutError):
    """Nothing came for too long after the answer had begun."""


async def chunks_of(response: aiohttp.ClientResponse, idle: float) -> AsyncIterator[bytes]:
    """The body piece by piece; `IdleTimeout` after `idle` seconds without one."""
    while True:
        try:
            async with asyncio.timeout(idle):
                chunk = await response.content.readany()
        except TimeoutError as error:
            raise IdleTimeout from error
        if not chunk:
            return
        yield chunk


async def decoded(chunks: AsyncIterator[bytes], encoding: str, max_bytes: int) -> AsyncIterator[bytes]:
    """Undo gzip or deflate, though we ask for neither, a bounded piece at a time: a bomb is refused before it unfolds."""
    if not encoding or encoding.lower() == "identity":
        async for chunk in chunks:
            yield chunk
        return
    if encoding.lower() not in ("gzip", "deflate"):
        raise InvalidResponse(f"the body has Content-Encoding {encoding[:40]!r}, identity was asked for")
    inflate, size = zlib.decompressobj(wbits=47), 0
    async for chunk in chunks:
        while chunk:
            try:
                piece = inflate.decompress(chunk, 1 << 20)
            except zlib.error as error:
                raise InvalidResponse(f"the body is not {encoding}: {error}") from error
            size += len(piece)
            if size > max_bytes:
                raise InvalidResponse(f"the body unfolds to more than {max_bytes} bytes")
            yield piece
            chunk = inflate.unconsumed_tail
    yield inflate.flush()  # what was taken in and not yet given out: less than one more piece
    if not inflate.eof:
        raise InvalidResponse(f"the {encoding} body ends in the middle")


async def join(chunks: AsyncIterator[bytes], max_bytes: int) -> bytes:
    """The whole body; `InvalidResponse` for one of more than `max_bytes`."""
    parts, size = [], 0
    async for chunk in chunks:
        size += len(chunk)
        if size > max_bytes:
            raise InvalidResponse(f"the body is larger than {max_bytes} bytes")
        parts.append(chunk)
    return b"".join(parts)


def retry_after(value: str | None) -> float | None:
    """Seconds from a Retry-After header, either form; None if there is none to understand."""
    if not value:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (TypeError, ValueError):
        return None
