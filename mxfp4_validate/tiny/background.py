"""A tiny server in a thread of this process, for tests and for measuring what evals see."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from mxfp4_validate.tiny.server import Server, Settings, running


@contextmanager
def in_thread(settings: Settings | Server, patience: float = 120.0) -> Iterator[str]:
    """The root address, `http://127.0.0.1:PORT`, of a server that has generated its first token. Raises what stopped it from coming up."""
    server, loop = settings if isinstance(settings, Server) else Server(settings), asyncio.new_event_loop()
    ready, stop = threading.Event(), asyncio.Event()
    found: list[str | BaseException] = []

    async def serve() -> None:
        try:
            async with running(server, "127.0.0.1", 0) as port:
                found.append(f"http://127.0.0.1:{port}")
                ready.set()
                await stop.wait()
        except Exception as error:
            found.append(error)
            ready.set()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    try:
        if not ready.wait(patience):
            raise TimeoutError(f"the tiny server did not come up in {patience:.0f} s")
        if isinstance(found[0], BaseException):
            raise found[0]
        yield found[0]
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
        loop.close()
