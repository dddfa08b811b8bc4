"""A server launched for one leg: started, waited for, proved to run what was asked, and ended without a trace but its log."""

from __future__ import annotations

import asyncio
import errno
import os
import random
import socket
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

import aiohttp

from mxfp4_validate.endpoint.address import Address, Secret, parse_address
from mxfp4_validate.endpoint.client import Client
from mxfp4_validate.endpoint.effective import check_backend
from mxfp4_validate.endpoint.identity import UNREACHABLE, Identity, read_identity
from mxfp4_validate.endpoint.process import Process
from mxfp4_validate.endpoint.redaction import Redactor
from mxfp4_validate.errors import IncompleteRun, UsageError
from mxfp4_validate.reporting.clean import clean
from mxfp4_validate.serverspec import Launch

#: Seconds between two questions whether it is healthy: short at first, so that one that ends at once is seen at once.
PROBE_S = (0.05, 1.0)
PROBE_TIMEOUT_S = 30.0


class Server:
    """One launched server, a context manager: `with Server(launch, log) as server: server.wait()`.

    `say` gets the progress lines. Nothing echoed here holds a key or a steering character.
    """

    def __init__(
        self, launch: Launch, log: Path, *, key: Secret | None = None, say: Callable[[str], None] = print, every: float = 10.0,
        grace: float = 30.0,
    ) -> None:  # fmt: skip
        self.launch = launch
        self.address: Address = parse_address(f"http://{launch.host}:{launch.port}/v1")
        self._key = key or Secret(os.environ.get("OPENAI_API_KEY", "EMPTY"))
        self._say, self._every, self._grace = say, every, grace
        self._redact = Redactor({**os.environ, **launch.env}, launch.argv, self._key)
        self._log = log
        self._process: Process | None = None
        self._tried: dict[str, str] = {}

    def __enter__(self) -> Server:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    @property
    def log(self) -> Path:
        return self._log if self._process is None else self._process.log

    @property
    def pid(self) -> int:
        return 0 if self._process is None else self._process.pid

    def start(self) -> None:
        """Start it; `UsageError` if its port is taken, because another server would then answer in its place."""
        if self._process is not None:
            raise UsageError(f"server {self.launch.name} was started already; one Server is one boot")
        require_free(self.launch.host, self.launch.port, self.launch.name)
        self._process = Process(self.launch.argv, self.launch.env, self._log)
        self._echo(f"started as process {self.pid}, log {self.log}: {' '.join(self.launch.argv)}")

    def poll(self) -> str:
        """ "" while it runs; else how it ended, with the log's last lines. Never raises for what the server did."""
        if self._process is None:
            return f"server {self.launch.name} was not started"
        ended = self._process.poll()
        return f"server {self.launch.name} {ended}{self._tail()}" if ended else ""

    def wait(self) -> Identity:
        """`ready` for a caller without an event loop."""
        return asyncio.run(self.ready())

    async def ready(self) -> Identity:
        """Wait until it is healthy and prove its backend. `IncompleteRun` if it ends or never is, `InvalidRun` if it runs something else."""
        started = time.monotonic()
        said, pause = started, PROBE_S[0]
        headers = {"Authorization": f"Bearer {self._key.reveal()}"}
        async with aiohttp.ClientSession(headers=headers, timeout=aiohttp.ClientTimeout(total=PROBE_TIMEOUT_S)) as session:
            while not await self._healthy(session):
                if ended := self.poll():
                    raise IncompleteRun(f"{ended}\nit ran for {time.monotonic() - started:.0f} s and was never healthy: {self._attempts()}")
                now = time.monotonic()
                if now - started > self.launch.deadline:
                    raise IncompleteRun(
                        f"server {self.launch.name} was not healthy within {self.launch.deadline:g} s, though it runs: {self._attempts()}; "
                        f"raise its load_deadline if it was still loading{self._tail()}"
                    )
                if now - said >= self._every:
                    said = now
                    last = self._last_line()
                    self._echo(f"loading for {now - started:.0f} of {self.launch.deadline:g} s, {self._attempts()}; log: {last}")
                await asyncio.sleep(pause)
                pause = min(pause * 1.5, PROBE_S[1])
        self._echo(f"healthy after {time.monotonic() - started:.0f} s")
        return await self._identity()

    async def _healthy(self, session: aiohttp.ClientSession) -> bool:
        """Both its health path and the list of models answer 200: the first alone may speak for a router in front."""
        for path in (self.launch.health, "/v1/models"):
            try:
                async with session.get(self.address.root + path, allow_redirects=False) as response:
                    self._tried[path] = f"HTTP {response.status}"
            except UNREACHABLE as error:
                cause = getattr(error, "os_error", error)
                refused = getattr(cause, "errno", None) == errno.ECONNREFUSED
                self._tried[path] = "connection refused" if refused else f"{type(error).__name__} {error}".strip()
            if self._tried[path] != "HTTP 200":
                return False
        return True

    async def _identity(self) -> Identity:
        try:
            async with Client(self.address, self._key, concurrency=1) as client:
                identity = await read_identity(client, None)
        except UNREACHABLE as error:
            ended = self.poll() or f"server {self.launch.name} was healthy and stopped answering{self._tail()}"
            raise IncompleteRun(f"{ended}\n({type(error).__name__} while its identity was asked)") from error
        with self.log.open("r", encoding="utf-8", errors="replace") as lines:
            backend = check_backend(self.launch, identity, lines, self.log)
        self._echo(f"runs MoE backend {backend or identity.values.get('moe_backend', 'unknown')}")
        return identity

    def stop(self) -> None:
        """End it and everything it started; the log stays, without the keys. `IncompleteRun` if something would not go."""
        if self._process is None:
            return
        left = self._process.stop(self._grace)
        self._redact.scrub(self.log)
        if left:
            raise IncompleteRun(
                f"{left} processes of server {self.launch.name} survive SIGKILL, stuck in a driver? The GPU may not be free"
            )

    def _attempts(self) -> str:
        return self._redact(", ".join(f"{path}: {result}" for path, result in self._tried.items()))

    def _last_line(self) -> str:
        assert self._process is not None
        return next(iter(self._process.tail(1)), "(empty)")[:200]

    def _tail(self) -> str:
        assert self._process is not None
        lines = [self._redact(line)[:500] for line in self._process.tail()]
        shown = "".join(f"\n  | {clean(line)}" for line in lines) or " is empty"
        return f"\nlog {self.log}{':' if lines else ''}{shown}"

    def _echo(self, text: str) -> None:
        self._say(clean(self._redact(f"{self.launch.name}: {text}")))


def require_free(host: str, port: int, name: str) -> None:
    """`UsageError` if something listens there, or if we may not."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port in TIME_WAIT is free to a server
        try:
            probe.bind((host, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise UsageError(
                    f"port {port} of server {name} is in use on {host}: another server would answer in its place; end that one, or choose another port"
                ) from error
            raise UsageError(f"port {port} of server {name} cannot be used on {host}: {error.strerror}; choose another port") from error


#: Ports given to servers. sglang opens more at port + 10000, so one near 60999 would put those past 65535; and from 32768 up Linux takes ports for
#: outgoing connections, so that one found free may be taken by the time the server has loaded (seen once in CI).
PORTS = range(20000, 32768)


def free_port(host: str = "127.0.0.1") -> int:
    """A port of `PORTS` that nothing listens on at this moment. Raises `UsageError` if a hundred drawn ones are all taken."""
    for port in random.SystemRandom().sample(PORTS, 100):
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            try:
                probe.bind((host, port))
            except OSError:
                continue
            return port
    raise UsageError(f"no free port on {host} among 100 of {PORTS.start} to {PORTS.stop - 1}; end other servers, or name a port")
