"""What each POST does: a checked body becomes jobs, jobs become an answer, in one piece or as server-sent events."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

from aiohttp import web

from mxfp4_validate.tiny import answers, bodies
from mxfp4_validate.tiny.batching import Engine, Job, Progress, Want
from mxfp4_validate.tiny.bodies import BadRequest, Body, Limits
from mxfp4_validate.tiny.text import Text


class Failed(Exception):
    """The engine could not finish a job: "error" (500) or "abort" (503)."""

    def __init__(self, done: Progress) -> None:
        super().__init__(done.error)
        self.status = 503 if done.finish == "abort" else 500


@dataclass
class Endpoints:
    """The POST handlers of one served model."""

    engine: Engine
    text: Text
    limits: Limits
    model: str

    async def chat(self, request: web.Request) -> web.StreamResponse:
        """OpenAI's /v1/chat/completions."""
        body = await self._body(request)
        prompt = bodies.chat_prompt(body, self.text)
        cap = bodies.room(body, ("max_tokens", "max_completion_tokens"), prompt, "messages", self.limits, None, 1)
        top = body.integer("top_logprobs", 0, 0, self.limits.vocab_size) or 0
        want = Want(output=body.flag("logprobs"), top=top)
        job = Job(prompt, bodies.sampling(body, cap), _nobody, want, skip_special=body.flag("skip_special_tokens", True))
        head = self._head("chatcmpl", "chat.completion")
        if body.flag("stream"):
            return await self._stream_chat(request, job, head, body)
        (done,) = await self._run([job])
        choice = {"index": 0, "message": {"role": "assistant", "content": done.text}, "finish_reason": done.finish}
        choice["logprobs"] = answers.chat_logprobs(done.output, self.text) if want.output else None
        return web.json_response(head | {"choices": [choice], "usage": answers.usage([job], [done])})

    async def _stream_chat(self, request: web.Request, job: Job, head: dict[str, Any], body: Body) -> web.StreamResponse:
        head["object"] = "chat.completion.chunk"

        def chunk(delta: dict[str, Any], finish: str | None, scored: Sequence[Any]) -> dict[str, Any]:
            logprobs = answers.chat_logprobs(scored, self.text) if job.want.output else None
            return head | {"choices": [{"index": 0, "delta": delta, "finish_reason": finish, "logprobs": logprobs}]}

        return await self._events(
            request, job, head, body, lambda text, *rest: chunk({"content": text}, *rest), chunk({"role": "assistant"}, None, ())
        )

    async def complete(self, request: web.Request) -> web.StreamResponse:
        """OpenAI's /v1/completions, with echo and log-probabilities of the prompt."""
        body = await self._body(request)
        found, _ = bodies.prompts(body, "prompt", self.text)
        echo, top = body.flag("echo"), body.integer("logprobs", None, 0, self.limits.vocab_size)
        caps = [bodies.room(body, ("max_tokens",), p, "prompt", self.limits, 16, 0 if echo else 1) for p in found]
        want = Want(start=0 if echo and top is not None else None, output=top is not None, top=top or 0)
        skip = body.flag("skip_special_tokens", True)
        jobs = [Job(p, bodies.sampling(body, cap), _nobody, want, skip_special=skip) for p, cap in zip(found, caps, strict=True)]
        head = self._head("cmpl", "text_completion")
        if body.flag("stream"):
            if echo or top is not None or len(jobs) > 1:
                raise body.fail("stream", "true is supported for one prompt without echo and logprobs")
            return await self._events(
                request, jobs[0], head, body,
                lambda text, finish, _: head | {"choices": [{"index": 0, "text": text, "finish_reason": finish, "logprobs": None}]}, None,
            )  # fmt: skip
        done = await self._run(jobs)
        as_ids = body.flag("return_tokens_as_token_ids")
        choices = [self._choice(i, job, end, echo, as_ids) for i, (job, end) in enumerate(zip(jobs, done, strict=True))]
        return web.json_response(head | {"choices": choices, "usage": answers.usage(jobs, done)})

    def _choice(self, index: int, job: Job, done: Progress, echo: bool, as_ids: bool) -> dict[str, Any]:
        logprobs = answers.completion_logprobs([*done.prompt, *done.output], self.text, as_ids) if job.want.output else None
        text = (self.text.decode(job.prompt, skip_special=False) if echo else "") + done.text
        return {"index": index, "text": text, "finish_reason": done.finish, "logprobs": logprobs}

    async def generate(self, request: web.Request) -> web.StreamResponse:
        """SGLang's /generate, without streaming."""
        body, started = await self._body(request), time.monotonic()
        if body.flag("stream"):
            raise body.fail("stream", "true is not supported here; stream from /v1/chat/completions")
        if (body.get("text") is None) == (body.get("input_ids") is None):
            raise body.fail("input_ids", "or text must be given, and not both")
        field = "text" if body.get("text") is not None else "input_ids"
        found, several = bodies.prompts(body, field, self.text)
        params = Body(body.get("sampling_params") or {}, "sampling_params")
        want = self._wanted(body)
        if want.start is not None and any(want.start > len(p) for p in found):
            raise body.fail("logprob_start_len", f"{want.start} lies behind the prompt's last token")
        caps = [bodies.room(params, ("max_new_tokens",), p, field, self.limits, 128, 0) for p in found]
        skip = params.flag("skip_special_tokens", True)
        jobs = [Job(p, bodies.sampling(params, cap), _nobody, want, skip_special=skip) for p, cap in zip(found, caps, strict=True)]
        texts, rid = body.flag("return_text_in_logprobs"), uuid.uuid4().hex
        done, seconds = await self._run(jobs), time.monotonic() - started
        result = [answers.generated(j, d, self.text, f"{rid}-{i}", seconds, texts) for i, (j, d) in enumerate(zip(jobs, done, strict=True))]
        return web.json_response(result if several else result[0])

    def _wanted(self, body: Body) -> Want:
        """`logprob_start_len` -1, SGLang's default, means the answer alone."""
        start = body.integer("logprob_start_len", -1, -1)
        top = body.integer("top_logprobs_num", 0, 0, self.limits.vocab_size) or 0
        if not body.flag("return_logprob"):
            return Want()
        return Want(None if start == -1 else start, True, top)

    async def tokenize(self, request: web.Request) -> web.StreamResponse:
        """vLLM's /tokenize: of a `prompt`, or of `messages` by the chat template."""
        body = await self._body(request)
        tokens = (
            bodies.chat_prompt(body, self.text) if body.get("messages") is not None else bodies.prompts(body, "prompt", self.text)[0][0]
        )
        return web.json_response({"tokens": tokens, "count": len(tokens), "max_model_len": self.limits.context_length})

    async def one_token(self) -> None:
        """Generate a token, or raise `Failed`."""
        await self._run([Job([0], bodies.sampling(Body({"temperature": 0}), 1), _nobody)])

    async def _body(self, request: web.Request) -> Body:
        try:
            body = Body(json.loads(await request.read()))
        except (ValueError, RecursionError) as error:
            raise BadRequest("body", f"the body is not JSON ({error})") from error
        model = body.get("model")
        if model not in (None, "", "default", self.model):
            raise BadRequest("model", f"model {model!r} is not served here; this server has {self.model!r}", 404)
        return body

    def _head(self, prefix: str, kind: str) -> dict[str, Any]:
        return {"id": f"{prefix}-{uuid.uuid4().hex}", "object": kind, "created": int(time.time()), "model": self.model}

    async def _run(self, jobs: Sequence[Job]) -> list[Progress]:
        """Submit and await all; jobs are cancelled when the client has gone."""
        loop = asyncio.get_running_loop()
        futures: list[asyncio.Future[Progress]] = [loop.create_future() for _ in jobs]
        try:
            for job, future in zip(jobs, futures, strict=True):
                job.report = _reporting(partial(_settle, future))
                self.engine.submit(job)
            return [_good(await future) for future in futures]
        finally:
            for job in jobs:
                job.cancel()

    async def _progress(self, job: Job) -> AsyncIterator[Progress]:
        queue = asyncio.Queue[Progress]()
        job.report, job.stream = _reporting(queue.put_nowait), True
        self.engine.submit(job)
        try:
            while True:
                done = _good(await queue.get())
                yield done
                if done.finish is not None:
                    return
        finally:
            job.cancel()

    async def _events(self, request: web.Request, job: Job, head: dict[str, Any], body: Body, chunk: Any, first: Any) -> web.StreamResponse:
        """Server-sent events: `chunk(new text, finish, new scores)` for every piece, usage if asked for, `[DONE]`."""
        with_usage = Body(body.get("stream_options") or {}, "stream_options").flag("include_usage")
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache"})
        sent = scored = 0
        async for done in self._progress(job):
            if not response.prepared:
                await response.prepare(request)
                await _send(response, first)
            if done.finish is not None or len(done.text) > sent:
                await _send(response, chunk(done.text[sent:], done.finish, done.output[scored:]))
                sent, scored = len(done.text), len(done.output)
        if with_usage:
            await _send(response, head | {"choices": [], "usage": answers.usage([job], [done])})
        await response.write(b"data: [DONE]\n\n")
        await response.write_eof()
        return response


async def _send(response: web.StreamResponse, event: Any) -> None:
    if event is not None:
        await response.write(b"data: " + json.dumps(event).encode() + b"\n\n")


def _reporting(put: Callable[[Progress], None]) -> Callable[[Progress], None]:
    """A report for the engine's thread that runs `put` in this event loop; once the loop is closed nobody waits any more."""
    loop = asyncio.get_running_loop()

    def report(done: Progress) -> None:
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(put, done)

    return report


def _nobody(_: Progress) -> None:
    """A job's report before anyone waits for it."""


def _settle(future: asyncio.Future[Progress], done: Progress) -> None:
    if not future.done():
        future.set_result(done)


def _good(done: Progress) -> Progress:
    if done.finish in ("error", "abort"):
        raise Failed(done)
    return done
