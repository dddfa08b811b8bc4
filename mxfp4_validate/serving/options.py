"""Command-line options of the serving verbs, and how a value is settled: command line, then environment, then the eval's own."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from mxfp4_validate.errors import UsageError
from mxfp4_validate.evalspec import EvalSpec, Sampling

#: Sampling options and the environment names that may set them.
SAMPLING = tuple(field.name for field in fields(Sampling))


def add_eval_options(parser: argparse.ArgumentParser) -> None:
    """Everything `eval` takes."""
    parser.add_argument("eval", help="gsm8k, gpqa_diamond, aime25, arith")
    parser.add_argument(
        "--base-url",
        action="append",
        default=[],
        metavar="URL",
        help="server, ending in /v1; repeat it to share the load ($OPENAI_BASE_URL)",
    )
    parser.add_argument("--model", help="model name to ask for (the only one served)")
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="folder of the run; an unfinished run there is resumed (mxfp4-runs/EVAL-TIME)"
    )
    parser.add_argument("--questions", type=Path, metavar="FILE", help="local .jsonl, .csv or .parquet")
    parser.add_argument("--revision", default="", help="commit of the Hub dataset")
    parser.add_argument("--limit", type=int, help="ask only so many questions (smoke test, its own question set)")
    parser.add_argument("--repeats", type=int, help="samples a question; other than the eval's own it is a plan with one look")
    parser.add_argument("--profile", default="default", help="default, sgl-eval, run_eval, gpt-oss")
    parser.add_argument("--shard", default="1/1", metavar="I/N", help="ask only every N-th question, from the I-th; join with merge")
    parser.add_argument("--concurrency", type=int, default=64, help="requests in flight, up to 2048 (%(default)s)")
    for name, kind in (
        ("temperature", float),
        ("top_p", float),
        ("min_p", float),
        ("repetition_penalty", float),
        ("max_tokens", int),
        ("seed", int),
    ):
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, default=None)
    parser.add_argument("--thinking", choices=("on", "off"), default=None, help="sent in chat_template_kwargs")
    parser.add_argument("--effort", default=None, help="sent as reasoning_effort")
    parser.add_argument("--margin", type=float, help="largest loss in percentage points still called no loss; fixed here, before the run")
    parser.add_argument("--expect-backend", metavar="NAME", help="MoE backend the server must say it runs, or nothing is asked")
    parser.add_argument("--stream", action="store_true", help="stream answers: a hanging server shows sooner, the client works harder")
    parser.add_argument("--deadline", type=float, metavar="S", help="seconds a request may take (from max_tokens and the speed seen)")
    parser.add_argument("--idle", type=float, default=120.0, metavar="S", help="seconds without a byte within an answer (%(default)s)")
    parser.add_argument("--connect-timeout", type=float, default=10.0, metavar="S", help="(%(default)s)")
    parser.add_argument(
        "--retry-budget", type=float, default=600.0, metavar="S", help="seconds of waiting a sample may spend on retries (%(default)s)"
    )
    parser.add_argument(
        "--outage", type=float, default=120.0, metavar="S", help="how long to wait for a server that went away (%(default)s)"
    )
    parser.add_argument("--poll", type=float, default=30.0, metavar="S", help="how often the server's identity is read (%(default)s)")
    parser.add_argument("--canaries", type=int, default=4, help="generations looked at before the eval (%(default)s); 0 for none")
    parser.add_argument(
        "--show-accuracy", action="store_true", help="show it while running: biased, short answers finish first and are right more often"
    )
    parser.add_argument("--ca-file", type=Path, help="certificates of a private authority")
    parser.add_argument("--allow-link-local", action="store_true", help="accept a link-local address")


def settle(args: argparse.Namespace, spec: EvalSpec, env: Mapping[str, str] | None = None) -> tuple[EvalSpec, dict[str, Any]]:
    """The eval with the sampling that will be sent, and each setting with its origin: `cli`, `env` (MXFP4_NAME), or `eval`."""
    env = os.environ if env is None else env
    values: dict[str, Any] = {}
    origins: dict[str, Any] = {}
    for name in SAMPLING:
        given, origin = getattr(args, name, None), "cli"
        if given is None and f"MXFP4_{name.upper()}" in env:
            given, origin = env[f"MXFP4_{name.upper()}"], f"env MXFP4_{name.upper()}"
        if given is None:
            origins[name] = {"value": getattr(spec.sampling, name), "origin": "eval"}
            continue
        values[name] = _typed(name, given)
        origins[name] = {"value": values[name], "origin": origin}
    if args.margin is not None:
        if not 0 < args.margin < 100:
            raise UsageError(f"--margin is {args.margin}, it must be percentage points between 0 and 100")
        spec = EvalSpec(**{f.name: getattr(spec, f.name) for f in fields(EvalSpec)} | {"margin": args.margin / 100})
    return spec.with_sampling(**values), {"sampling": origins}


def _typed(name: str, given: Any) -> Any:
    if name == "thinking":
        if str(given).lower() not in ("on", "off", "true", "false"):
            raise UsageError(f"thinking is {given!r}, it must be on or off")
        return str(given).lower() in ("on", "true")
    kind = str if name == "effort" else int if name in ("max_tokens", "seed") else float
    try:
        return kind(given)
    except ValueError as error:
        raise UsageError(f"{name} is {given!r}, it must be {'a whole number' if kind is int else 'a number'}") from error


def shard_of(text: str) -> tuple[int, int]:
    """`I/N` with 1 <= I <= N."""
    part, _, whole = text.partition("/")
    if not (part.isdigit() and whole.isdigit() and 1 <= int(part) <= int(whole)):
        raise UsageError(f"--shard is {text!r}, it must be I/N with 1 <= I <= N, as in 2/4")
    return int(part), int(whole)
