"""A positive control: a proxy that corrupts a share of the answers of the server it starts. `python -m mxfp4_validate.endpoint.corrupt --help`.

Nothing it says of itself differs from the server's: only the answers can give it away.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import re
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import aiohttp
from aiohttp import web

from mxfp4_validate.endpoint.launch import free_port

_DIGIT = re.compile(r"\d")
#: Stands in the command for the port of the server behind the proxy.
INNER = "INNER_PORT"


def corrupted(document: Any, share: float, key: str) -> Any:
    """A chat completion with every digit of its content one higher (9 becomes 0), for a share of all `key`s; the same ones every time."""
    draw = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") / 2**64
    if draw >= share or not isinstance(document, dict):
        return document
    for choice in document.get("choices") or []:
        message = choice.get("message") or {}
        message["content"] = _DIGIT.sub(lambda digit: str((int(digit[0]) + 1) % 10), message.get("content") or "")
    return document


class Proxy:
    """Passes everything on to the server at `port`; chat completions go through `corrupted`."""

    def __init__(self, session: aiohttp.ClientSession, port: int, share: float) -> None:
        self._session, self._root, self._share = session, f"http://127.0.0.1:{port}", share

    async def handle(self, request: web.Request) -> web.Response:
        body = await request.read()
        headers = {"Content-Type": request.headers.get("Content-Type", "application/json")}
        try:
            async with self._session.request(request.method, self._root + request.path_qs, data=body or None, headers=headers) as answer:
                data = await answer.read()
                status, kind = answer.status, answer.content_type
        except aiohttp.ClientConnectionError:
            return web.json_response({"error": {"message": "the server behind the proxy is not up"}}, status=503)
        if request.path == "/v1/chat/completions" and status == 200 and kind == "application/json":
            data = json.dumps(corrupted(json.loads(data), self._share, key_of(body))).encode()
        return web.Response(body=data, status=status, content_type=kind)


def key_of(body: bytes) -> str:
    """What decides whether an answer is corrupted: its messages and its seed, whatever else a request says."""
    asked = json.loads(body)
    return json.dumps([asked.get("messages"), asked.get("seed")], sort_keys=True)


async def serve(port: int, share: float, command: Sequence[str]) -> int:
    """Start `command` with its port filled in and proxy it until it ends; its exit status."""
    inner = free_port()
    process = subprocess.Popen([part.replace(INNER, str(inner)) for part in command], stdin=subprocess.DEVNULL)
    session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None), connector=aiohttp.TCPConnector(limit=0))
    app = web.Application(client_max_size=64 << 20)
    app.router.add_route("*", "/{tail:.*}", Proxy(session, inner, share).handle)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", port).start()
        while process.poll() is None:
            await asyncio.sleep(0.2)
    finally:
        process.terminate()
        await session.close()
        await runner.cleanup()
    return process.returncode or 0


def main() -> int:
    parser = argparse.ArgumentParser("corrupt", description=__doc__)
    parser.add_argument("--port", type=int, required=True, help="where the proxy listens")
    parser.add_argument("--share", type=float, default=0.05, help="of the answers (%(default)s)")
    parser.add_argument("command", nargs="+", help="behind --: the server's command; INNER_PORT becomes its port")
    args = parser.parse_args()
    if not 0 <= args.share <= 1:
        parser.error(f"--share is {args.share}, it must be between 0 and 1")
    try:
        return asyncio.run(serve(args.port, args.share, args.command))
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
