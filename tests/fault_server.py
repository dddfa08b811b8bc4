"""A scripted fault server on raw sockets: every request is answered by what a plan says for its number; nothing here is random.

    with FaultServer(plan) as server:      # plan: (number, request) -> Act
        server.url, server.requests

Requests to paths other than /v1/chat/completions are answered by `server.documents`, path -> (status, bytes), which tests may change.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import ssl
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Request:
    """What came in."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def text(self) -> str:
        """The last message's text."""
        return str(self.json["messages"][-1]["content"])


@dataclass
class Act:
    """What to do with one request: wait, send pieces with pauses between them, then keep, close or reset the connection."""

    pieces: list[bytes] = field(default_factory=list)
    delay: float = 0.0
    pause: float = 0.0
    end: str = "keep"  # keep | close | reset | hang


def http(status: int, body: bytes, headers: dict[str, str] | None = None, length: int | None = None) -> bytes:
    """A whole response; `length` may lie."""
    lines = {"Content-Type": "application/json", "Content-Length": str(len(body) if length is None else length)} | (headers or {})
    head = f"HTTP/1.1 {status} X\r\n" + "".join(f"{k}: {v}\r\n" for k, v in lines.items()) + "\r\n"
    return head.encode() + body


def completion(content: Any, finish: Any = "stop", model: str = "stub", usage: Any = None, **message: Any) -> bytes:
    """A chat completion's JSON."""
    usage = {"prompt_tokens": 10, "completion_tokens": 20, "total_tokens": 30} if usage is None else usage
    choice = {"index": 0, "message": {"role": "assistant", "content": content, **message}, "finish_reason": finish}
    return json.dumps({"id": "x", "object": "chat.completion", "model": model, "choices": [choice], "usage": usage}).encode()


def answer(content: Any = r"\boxed{1}", **kwargs: Any) -> Act:
    return Act([http(200, completion(content, **kwargs))])


def status(code: int, body: str = "", **headers: str) -> Act:
    return Act([http(code, body.encode(), {name.replace("_", "-"): value for name, value in headers.items()})])


def raw(body: bytes, **kwargs: Any) -> Act:
    """HTTP 200 with any body."""
    return Act([http(200, body, **kwargs)])


class FaultServer:
    """One server in a thread of its own."""

    def __init__(
        self, plan: Callable[[int, Request], Act], *, port: int = 0, tls: ssl.SSLContext | None = None, info: dict[str, Any] | None = None
    ):
        self.plan, self.port, self.tls = plan, port, tls
        self.requests: list[Request] = []
        self.others: list[Request] = []
        self.in_flight = self.most_in_flight = 0
        self.changing: dict[str, Callable[[], Any]] = {}  # documents that are another one at every request, by path
        info = {"model_path": "stub", "version": "1.0", "moe_runner_backend": "marlin", "boot_id": "a"} if info is None else info
        self.documents: dict[str, tuple[int, bytes]] = {
            "/health": (200, b""),
            "/v1/models": (200, json.dumps({"data": [{"id": "stub", "max_model_len": 1_000_000}]}).encode()),
            "/get_server_info": (200, json.dumps(info).encode()),
        }
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._main, daemon=True)

    def set_info(self, **values: Any) -> None:
        """Change the server info, as a restarted server would."""
        old = json.loads(self.documents["/get_server_info"][1])
        self.documents["/get_server_info"] = (200, json.dumps(old | values).encode())

    @property
    def url(self) -> str:
        return f"{'https' if self.tls else 'http'}://127.0.0.1:{self.port}/v1"

    def __enter__(self) -> FaultServer:
        self._thread.start()
        assert self._ready.wait(10), "the fault server did not start"
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Close the port and every connection at once, as a kill does."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stopping.set)
            self._thread.join(10)

    def _main(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._serve())
        finally:
            self._loop.close()

    async def _serve(self) -> None:
        self._stopping = asyncio.Event()
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        server = await asyncio.start_server(self._connected, "127.0.0.1", self.port, ssl=self.tls, backlog=4096, limit=64 << 20)
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._stopping.wait()
        server.close()
        for writer in list(self._writers):
            _reset(writer)
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._writers.add(writer)
        try:
            while await self._one(reader, writer):
                pass
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError, ssl.SSLError):
            pass
        finally:
            self._tasks.discard(task)
            self._writers.discard(writer)
            writer.close()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Answer one request; True if the connection stays open."""
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        first, *lines = head.split("\r\n")
        method, path, _ = first.split(" ", 2)
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines if line)}
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        request = Request(method, path, headers, body)
        if path != "/v1/chat/completions":
            self.others.append(request)
            code, document = self.documents.get(path, (404, b"{}"))
            if path in self.changing:
                document = json.dumps(self.changing[path]()).encode()
            writer.write(http(code, document))
            await writer.drain()
            return True
        with self._lock:
            number = len(self.requests)
            self.requests.append(request)
            self.in_flight += 1
            self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            act = self.plan(number, request)
            await asyncio.sleep(act.delay)
        finally:
            with self._lock:
                self.in_flight -= 1
        for at, piece in enumerate(act.pieces):
            if at:
                await asyncio.sleep(act.pause)
            writer.write(piece)
            await writer.drain()
        if act.end == "hang":
            await asyncio.sleep(3600)
        if act.end == "reset":
            _reset(writer)
        return act.end == "keep"


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close with RST instead of FIN."""
    sock = writer.get_extra_info("socket")
    if sock is not None:
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
