"""The HTTP side of `mxfp4-validate serve tiny`: routes, errors, what the server says of itself, start and stop."""

from __future__ import annotations

import asyncio
import logging
import signal
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from aiohttp import web

from mxfp4_validate import __version__
from mxfp4_validate.errors import UsageError
from mxfp4_validate.tiny.batching import Engine
from mxfp4_validate.tiny.bodies import BadRequest, Limits
from mxfp4_validate.tiny.endpoints import Endpoints, Failed
from mxfp4_validate.tiny.model import load
from mxfp4_validate.tiny.text import Text
from mxfp4_validate.tiny.weights import open_checkpoint

PACKAGED = Path(__file__).resolve().parent / "checkpoint"
LOG = logging.getLogger("mxfp4_validate.tiny")
#: Largest request body: 512 prompts of 512 token ids are 2 MiB of JSON.
MOST_BYTES = 16 << 20
#: A cache for longer contexts is not what this server is for; the checkpoint's own limit may be 131,072.
MOST_CONTEXT = 1024

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True)
class Settings:
    """What is served. `exact` as in `dense`; `context_length` None is the checkpoint's own, at most `MOST_CONTEXT`."""

    model: Path
    backend: str = "emulate:sm90-cutlass"
    fault: str | None = None
    served_name: str = "tiny-gpt-oss"
    exact: bool = True
    context_length: int | None = None
    max_running: int = 32
    max_batch_tokens: int = 4096


class Server:
    """A loaded model with its engine. Loading raises `UsageError`; `stop` ends the engine's thread."""

    def __init__(self, settings: Settings) -> None:
        checkpoint = open_checkpoint(settings.model)
        model = load(settings.model, settings.backend, settings.fault, settings.exact)
        context = min(model.context_length, settings.context_length or MOST_CONTEXT)
        if settings.context_length is not None and settings.context_length > model.context_length:
            raise UsageError(f"--context-length {settings.context_length} is more than the checkpoint's {model.context_length}")
        text = Text(settings.model, checkpoint.config)
        self.name = settings.served_name
        self.engine = Engine(
            model, text, max_running=settings.max_running, context_length=context, max_batch_tokens=settings.max_batch_tokens
        )
        self.endpoints = Endpoints(self.engine, text, Limits(context, model.vocab_size), self.name)
        # Nothing here may tell a faulty server from a healthy one: the fault's name goes to the log alone.
        self.info: dict[str, Any] = {
            # Our own checkpoint by its place in the package: the record of a demo is passed on, and where it is installed is nobody's business.
            "model_path": "mxfp4_validate/tiny/checkpoint" if settings.model == PACKAGED else str(settings.model),
            "served_model_name": self.name,
            "version": __version__,
            "moe_runner_backend": model.backend.name,
            "attention_backend": "exact" if settings.exact else "native",
            "dtype": "bfloat16",
            "quantization": "mxfp4",
            "tp_size": 1,
            "context_length": context,
            "max_running_requests": settings.max_running,
            "chunked_prefill_size": settings.max_batch_tokens,
            "boot_id": uuid.uuid4().hex,
            "start_time": time.time(),
        }

    def stop(self) -> None:
        self.engine.stop()

    async def models(self, _: web.Request) -> web.StreamResponse:
        entry = {"id": self.name, "object": "model", "created": int(self.info["start_time"]), "owned_by": "mxfp4-validate"}
        return web.json_response({"object": "list", "data": [entry | {"max_model_len": self.info["context_length"]}]})

    async def server_info(self, _: web.Request) -> web.StreamResponse:
        running, waiting = self.engine.counts()
        return web.json_response(self.info | {"internal_states": [{"running": running, "waiting": waiting}]})

    async def health(self, _: web.Request) -> web.StreamResponse:
        return web.Response(status=200 if self.engine.alive else 503)

    async def health_generate(self, _: web.Request) -> web.StreamResponse:
        await self.endpoints.one_token()
        return web.Response(status=200)

    def app(self) -> web.Application:
        app = web.Application(middlewares=[_errors], client_max_size=MOST_BYTES)
        app.router.add_get("/v1/models", self.models)
        app.router.add_get("/get_server_info", self.server_info)
        app.router.add_get("/server_info", self.server_info)
        app.router.add_get("/health", self.health)
        app.router.add_get("/health_generate", self.health_generate)
        app.router.add_post("/v1/chat/completions", self.endpoints.chat)
        app.router.add_post("/v1/completions", self.endpoints.complete)
        app.router.add_post("/generate", self.endpoints.generate)
        app.router.add_post("/tokenize", self.endpoints.tokenize)
        return app


@web.middleware
async def _errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Errors as OpenAI's error objects, and the caller's X-Request-Id back on every answer that is not a stream."""
    try:
        response = await handler(request)
    except BadRequest as error:
        response = _error(error.status, str(error), "invalid_request_error", error.field)
    except Failed as error:
        response = _error(error.status, str(error), "server_error", None)
    except web.HTTPException as error:
        response = _error(error.status, f"{request.method} {request.path}: {error.reason}", "invalid_request_error", None)
    except Exception as error:
        LOG.exception("%s %s failed", request.method, request.path)
        response = _error(500, f"{type(error).__name__}: {error}", "server_error", None)
    asked = request.headers.get("X-Request-Id")
    if asked and not response.prepared:
        response.headers["X-Request-Id"] = asked
    return response


def _error(status: int, message: str, kind: str, field: str | None) -> web.StreamResponse:
    error = {"message": message, "type": kind, "param": field, "code": status}
    return web.json_response({"error": error, "object": "error"}, status=status)


@asynccontextmanager
async def running(server: Server, host: str, port: int) -> AsyncIterator[int]:
    """Answer on host:port (0: any free one) until the context ends; yields the port once a token has been generated."""
    await server.endpoints.one_token()  # a backend that cannot compute this model fails here and not in the first request
    runner = web.AppRunner(server.app(), handler_cancellation=True, access_log=None, shutdown_timeout=5.0)
    await runner.setup()
    try:
        site = web.TCPSite(runner, host, port)
        await site.start()
        yield int(runner.addresses[0][1])
    finally:
        await asyncio.to_thread(server.stop)  # first, so that open requests get their answer: 503
        await runner.cleanup()


async def _serve(server: Server, host: str, port: int) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    try:
        async with running(server, host, port) as chosen:
            print(f"listening on http://{host}:{chosen}", flush=True)
            await stop.wait()
    except Failed as error:
        raise UsageError(f"the model cannot generate a token: {error}") from error
    except OSError as error:
        raise UsageError(f"--host {host} --port {port}: {error}") from error


def serve(settings: Settings, host: str, port: int, threads: int = 1) -> int:
    """Serve until SIGTERM or SIGINT; 0. Raises `UsageError` for what cannot be served, before anything listens.

    One thread by default: products this small gain nothing from two, and two threads waiting for each other on two shared cores cost
    half of the speed at best and nine tenths at worst.
    """
    torch.set_num_threads(threads)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    server = Server(settings)
    LOG.info("model %s, experts by %s, fault %s", server.name, server.info["moe_runner_backend"], settings.fault or "none")
    try:
        asyncio.run(_serve(server, host, port))
    finally:
        server.stop()
    return 0
