"""A toy language model with the three ways to ask for log-probabilities behind a real port, and made-up scores for the statistics."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from aiohttp import web
from numpy.typing import NDArray

from mxfp4_validate.divergence.scores import Scores

VOCABULARY = 50
Floats = NDArray[np.float64]


def log_softmax(logits: Floats) -> Floats:
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def scores_of(logprobs: Floats, targets: Sequence[int], top: int) -> Scores:
    """What a server with these whole distributions [n, V] would say."""
    order = np.argsort(-logprobs, axis=1, kind="stable")[:, :top].astype(np.int32)
    chosen = logprobs[np.arange(len(logprobs)), np.asarray(targets, int)]
    return Scores(chosen, order, np.take_along_axis(logprobs, order, 1))


def toy_logprobs(tokens: Sequence[int], noise: float = 0.0, seed: int = 0) -> Floats:
    """Distributions [n, V] of the toy model for every position; row i is of token i given those before, row 0 is meaningless.

    The noise depends on the position's token and on the seed, as another order of sums would.
    """
    return log_softmax(np.array([_logits(tokens, position, noise, seed) for position in range(len(tokens))]))


def _logits(tokens: Sequence[int], position: int, noise: float, seed: int) -> Floats:
    last, before = (tokens[position - 1], tokens[position - 2]) if position > 1 else (tokens[0], 0)
    logits = np.random.default_rng([last, before]).normal(0, 2, VOCABULARY)
    return logits + noise * np.random.default_rng([seed, position, last]).normal(0, 1, VOCABULARY)


def greedy(tokens: Sequence[int], most: int, noise: float = 0.0, seed: int = 0) -> list[int]:
    """What the toy model answers at temperature 0; token 0 ends it."""
    out = list(tokens)
    while len(out) < len(tokens) + most and (len(out) == len(tokens) or out[-1] != 0):
        out.append(int(_logits(out, len(out), noise, seed).argmax()))
    return out[len(tokens) :]


class LogprobServer:
    """Serves the toy model. `change(path, document)` may return another answer: a document, bytes, or (status, text)."""

    def __init__(
        self, noise: float = 0.0, seed: int = 0, change: Callable[[str, Any], Any] | None = None, info: dict[str, Any] | None = None
    ) -> None:
        self.noise, self.seed = noise, seed
        self.change = change or (lambda path, document: document)
        self.info = {"model_path": "toy", "version": "1", "moe_runner_backend": "marlin", "boot_id": "a"} if info is None else info
        self.bodies: list[dict[str, Any]] = []
        self.in_flight = self.most_in_flight = 0
        self._ready = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._main, daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def __enter__(self) -> LogprobServer:
        self._thread.start()
        assert self._ready.wait(10), "the server did not start"
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join(10)

    def _main(self) -> None:
        self._loop.run_until_complete(self._serve())
        self._loop.close()

    async def _serve(self) -> None:
        self._stopping = asyncio.Event()
        app = web.Application(client_max_size=64 << 20)
        app.router.add_post("/generate", self._post)
        app.router.add_post("/v1/completions", self._post)
        app.router.add_get("/v1/models", self._get)
        app.router.add_get("/get_server_info", self._get)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self.port = runner.addresses[0][1]
        self._ready.set()
        await self._stopping.wait()
        await runner.cleanup()

    async def _get(self, request: web.Request) -> web.Response:
        models = {"data": [{"id": "toy", "max_model_len": 100_000}]}
        return web.json_response(models if request.path == "/v1/models" else self.info)

    async def _post(self, request: web.Request) -> web.Response:
        body = await request.json()
        self.bodies.append(body)
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        await asyncio.sleep(0.002)
        answer = self.change(request.path, self._answer(request.path, body))
        self.in_flight -= 1
        if isinstance(answer, tuple):
            return web.Response(status=answer[0], text=answer[1])
        return web.Response(body=answer if isinstance(answer, bytes) else json.dumps(answer).encode(), content_type="application/json")

    def _answer(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        tokens = body["input_ids"] if path == "/generate" else body["prompt"]
        if body.get("logprob_start_len") == -1:  # nothing is to be scored: an answer is asked for
            answer = greedy(tokens, body["sampling_params"]["max_new_tokens"], self.noise, self.seed)
            return {"text": "x", "meta_info": {"output_token_logprobs": [[-1.0, token, None] for token in answer]}}
        rows = toy_logprobs(tokens, self.noise, self.seed)
        if path == "/generate":
            return sglang(tokens, rows, body["logprob_start_len"], body["top_logprobs_num"])
        return vllm(tokens, rows, body["prompt_logprobs"]) if "prompt_logprobs" in body else openai(tokens, rows, body["logprobs"])


def _best(row: Floats, top: int) -> list[int]:
    return [int(i) for i in np.argsort(-row, kind="stable")[:top]]


def sglang(tokens: Sequence[int], rows: Floats, start: int, top: int) -> dict[str, Any]:
    chosen: list[Any] = [[None, tokens[start], f"<{tokens[start]}>"]]
    tops: list[Any] = [None]
    for position in range(start + 1, len(tokens)):
        row = rows[position]
        chosen.append([float(row[tokens[position]]), tokens[position], f"<{tokens[position]}>"])
        tops.append([[float(row[i]), i, f"<{i}>"] for i in _best(row, top)])
    meta = {"prompt_tokens": len(tokens), "finish_reason": {"type": "length", "length": 1}}
    return {"text": "x", "meta_info": meta | {"input_token_logprobs": chosen, "input_top_logprobs": tops}}


def vllm(tokens: Sequence[int], rows: Floats, top: int) -> dict[str, Any]:
    """The corpus's own token first, as vLLM does, then the best; it is there once."""
    out: list[Any] = [None]
    for position in range(1, len(tokens)):
        row, rank = rows[position], np.argsort(np.argsort(-rows[position], kind="stable")) + 1
        out.append({
            str(i): {"logprob": float(row[i]), "rank": int(rank[i]), "decoded_token": f"<{i}>"}
            for i in dict.fromkeys([tokens[position], *_best(row, top)])
        })  # fmt: skip
    return {"choices": [{"index": 0, "text": "x", "prompt_logprobs": out}], "usage": {"prompt_tokens": len(tokens)}}


def openai(tokens: Sequence[int], rows: Floats, top: int) -> dict[str, Any]:
    """With the generated token behind the prompt's."""
    names = [f"token_id:{i}" for i in [*tokens, 0]]
    values: list[Any] = [None, *(float(rows[p][tokens[p]]) for p in range(1, len(tokens))), -1.0]
    tops: list[Any] = [None]
    for position in range(1, len(tokens)):
        tops.append({f"token_id:{i}": float(rows[position][i]) for i in dict.fromkeys([tokens[position], *_best(rows[position], top)])})
    choice = {"index": 0, "text": "x", "logprobs": {"tokens": names, "token_logprobs": values, "top_logprobs": [*tops, {}]}}
    return {"choices": [choice], "usage": {"prompt_tokens": len(tokens)}}
