"""A model server that costs nothing, to be launched by plans: `python -S plan_engine.py --port N`. Standard library only.

It knows the sums of `plan_rig` and a toy language model of 50 tokens. What is wrong with it is said by flags.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import random
import threading
import time
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

VOCABULARY = 50


def share(*parts: object) -> float:
    """A number in [0, 1) that the parts alone decide."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "big") / 2**64


def logprobs(tokens: list[int], position: int, noise: float) -> list[float]:
    """The toy model's log-probabilities of the token at `position`; noise moves them as broken sums would."""
    rng = random.Random(f"{tokens[max(0, position - 2) : position]}")
    logits = [rng.gauss(0, 2) for _ in range(VOCABULARY)]
    if noise:
        other = random.Random(f"{tokens[:position]} noise")
        logits = [value + noise * other.gauss(0, 1) for value in logits]
    top = max(logits)
    whole = top + math.log(sum(math.exp(value - top) for value in logits))
    return [value - whole for value in logits]


class Engine(ThreadingHTTPServer):
    """The server with its settings and the number of chats it has answered."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, settings: argparse.Namespace) -> None:
        super().__init__(("127.0.0.1", settings.port), Handler)
        self.settings, self.chats, self.lock, self.boot = settings, 0, threading.Lock(), uuid.uuid4().hex


class Handler(BaseHTTPRequestHandler):
    """What plans ask of a server."""

    server: Engine
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        s = self.server.settings
        self._send({
            "/health": {},
            "/v1/models": {"object": "list", "data": [{"id": "stub", "object": "model", "max_model_len": 100_000}]},
            "/get_server_info": {"model_path": "stub", "version": s.version, "moe_runner_backend": s.backend, "boot_id": self.server.boot},
        }.get(self.path, {}))  # fmt: skip

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        answers = {"/v1/chat/completions": self._chat, "/tokenize": self._tokenize, "/generate": self._generate}
        time.sleep(self.server.settings.delay)
        self._send(answers[self.path](body))

    def _chat(self, body: dict[str, Any]) -> dict[str, Any]:
        s, text = self.server.settings, body["messages"][-1]["content"]
        with self.server.lock:
            self.server.chats += 1
            if self.server.chats == s.dies_after:
                print("the engine meets a fatal error", flush=True)
                os._exit(7)
        number = int(text.rpartition("[")[2].partition("]")[0]) if "[" in text else 0
        draw = share(text, body["seed"])
        right = number + 1 if share(text, "hard") > 0.1 and draw >= s.wrong else number + 2
        content, finish = f"One more makes \\boxed{{{right}}}.", "stop"
        if share(text, body["seed"], "cut") < s.truncated:
            content, finish = "One more and one more and", "length"
        content = {"bangs": "!" * 60, "loop": "so it is " * 40, "empty": ""}.get(s.rubbish, content) if draw < s.rubbish_share else content
        reasoning = {"reasoning_content": "I count."} if s.thinks or s.rubbish == "empty" else {}
        usage = {"prompt_tokens": 9, "completion_tokens": 9, "total_tokens": 18}
        message = {"role": "assistant", "content": content, **reasoning}
        return {"id": "x", "model": "stub", "choices": [{"index": 0, "message": message, "finish_reason": finish}], "usage": usage}

    def _tokenize(self, body: dict[str, Any]) -> dict[str, Any]:
        return {"tokens": [ord(c) % VOCABULARY for c in body["messages"][-1]["content"]][-12:]}

    def _generate(self, body: dict[str, Any]) -> dict[str, Any]:
        tokens, sampling, noise = body["input_ids"], body["sampling_params"], self.server.settings.noise
        if sampling["max_new_tokens"] > 1:
            rng, made = random.Random(f"{sampling.get('sampling_seed')}"), list(tokens)
            for _ in range(sampling["max_new_tokens"]):
                row = logprobs(made, len(made), noise)
                made += rng.choices(range(VOCABULARY), [math.exp(value) for value in row])
            rows = [[0.0, token, None] for token in made[len(tokens) :]]
            return {"text": "x", "meta_info": {"output_token_logprobs": rows, "finish_reason": {"type": "length"}}}
        start, top = body["logprob_start_len"], body["top_logprobs_num"]
        chosen: list[Any] = [[None, tokens[start], f"<{tokens[start]}>"]]
        tops: list[Any] = [None]
        for position in range(start + 1, len(tokens)):
            row = logprobs(tokens, position, noise)
            chosen.append([row[tokens[position]], tokens[position], f"<{tokens[position]}>"])
            best = sorted(range(VOCABULARY), key=lambda token: -row[token])[:top]
            tops.append([[row[token], token, f"<{token}>"] for token in best])
        meta = {"prompt_tokens": len(tokens), "finish_reason": {"type": "length", "length": 1}}
        return {"text": "x", "meta_info": meta | {"input_token_logprobs": chosen, "input_top_logprobs": tops}}

    def _send(self, document: dict[str, Any]) -> None:
        data = json.dumps(document).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--backend", default="marlin")
    parser.add_argument("--version", default="9.9")
    parser.add_argument("--folder", default="", help="only so that a process can be told by its command line")
    parser.add_argument("--wrong", type=float, default=0.0, help="share of answers made wrong")
    parser.add_argument("--truncated", type=float, default=0.0, help="share of answers cut")
    parser.add_argument("--noise", type=float, default=0.0, help="of the log-probabilities")
    parser.add_argument("--rubbish", default="", choices=("", "bangs", "loop", "empty"))
    parser.add_argument("--rubbish-share", type=float, default=0.3)
    parser.add_argument("--api-key", default="")
    parser.add_argument("--thinks", action="store_true")
    parser.add_argument("--dies-after", type=int, default=0, help="chats")
    parser.add_argument("--delay", type=float, default=0.0)
    print("the engine starts", flush=True)
    Engine(parser.parse_args()).serve_forever()


if __name__ == "__main__":
    main()
