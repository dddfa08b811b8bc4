"""`corpus` and `diverge`: token by token, how far a candidate's distributions lie from the baseline's, against the baseline's from its own."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
from dataclasses import asdict, replace
from math import isnan
from typing import Any

from mxfp4_validate import evalspec
from mxfp4_validate.divergence import calibrate
from mxfp4_validate.divergence import corpus as corpora
from mxfp4_validate.divergence import limits as table
from mxfp4_validate.divergence.analyse import Result, analyse
from mxfp4_validate.divergence.collect import Asking, begin_arm, cost, score_arm
from mxfp4_validate.divergence.corpus import Corpus
from mxfp4_validate.divergence.limits import Limits
from mxfp4_validate.divergence.record import DivergenceStore
from mxfp4_validate.divergence.rule import FAIL, UNDECIDED, Ratio
from mxfp4_validate.endpoint.address import Secret, parse_address
from mxfp4_validate.endpoint.identity import read_identity
from mxfp4_validate.endpoint.logprobs import ScoringClient
from mxfp4_validate.endpoint.sampled import prompt_ids, sample
from mxfp4_validate.errors import UsageError
from mxfp4_validate.prompts.profiles import profile
from mxfp4_validate.prompts.render import render
from mxfp4_validate.questions import load
from mxfp4_validate.serving.names import shown

#: GO ON is no PASS: it lets the dearer stages begin.
EXIT_CODES = {FAIL: 1, UNDECIDED: 3}


def corpus_verb(args: argparse.Namespace) -> int:
    """Make a corpus of the baseline's own answers and store it with its hash."""
    if args.output.exists():
        raise UsageError(f"-o {args.output} exists; a corpus is never overwritten, name a new file")
    made = asyncio.run(_make(args))
    corpora.save(made, args.output)
    said = {
        "verb": "corpus",
        "exit_status": 0,
        "file": str(args.output),
        "sha256": made.sha256,
        "sequences": len(made.sequences),
        "scored": made.scored,
    }
    _tell(args, said, [f"{args.output}: {len(made.sequences)} sequences, {made.scored} positions to score, sha256 {made.sha256}"])
    return 0


async def _make(args: argparse.Namespace) -> Corpus:
    spec = evalspec.load(args.eval)
    questions = load(spec, args.questions).questions
    gate = asyncio.Semaphore(args.concurrency)
    async with _client(args.server) as client:
        model = (await read_identity(client, args.model)).values["model"]

        async def one(place: int) -> tuple[list[int], int]:
            messages = render(questions[place % len(questions)], profile("default"), spec).messages
            async with gate:
                prompt = await prompt_ids(client, model, messages, args.deadline, f"tokenize.{place}")
                seed = args.seed + place
                answer = await sample(client, prompt, args.max_tokens, args.temperature, seed, args.deadline, f"sample.{place}")
            return prompt + answer, 1 if args.score_prompts else len(prompt)

        rows = await asyncio.gather(*(one(place) for place in range(args.sequences)))
    unique = {tuple(tokens): start for tokens, start in rows if len(tokens) > start}
    return corpora.build(unique.items(), f"{model}: {spec.name}, temperature {args.temperature}, seed {args.seed}")


def diverge_verb(args: argparse.Namespace) -> int:
    """Score the corpus on baseline, baseline again and candidate, or go on with that; then decide. GO ON 0, FAIL 1, UNDECIDED 3."""
    corpus = corpora.load(args.corpus)
    path = args.out / "divergence.sqlite"
    width, top = args.width, int(table.TOP.value)
    store = (
        DivergenceStore.resume(path, corpus)
        if path.exists()
        else DivergenceStore.create(path, corpus, top, width, {"protocol": args.protocol})
    )
    with store:
        price = cost(corpus, store.width, Asking(args.protocol).resolved())
        print(
            f"{price.scored} positions an arm in {price.requests} requests, {price.sent} tokens of prefill without a prefix cache; "
            f"{100 * price.aime_share:.2f} % of the tokens of an AIME25 run",
            file=sys.stderr,
        )
        asyncio.run(_score(args, store))
        found = analyse(store, "candidate", _limits(args, store, corpus))
    code = EXIT_CODES.get(found.decision.outcome, 0)
    _tell(args, {"verb": "diverge", "exit_status": code, "record": str(path), **_plain(found)}, lines(found))
    return code


async def _score(args: argparse.Namespace, store: DivergenceStore) -> None:
    """Arm after arm; each floor in another order, so that its batches are others."""
    arms = [
        ("baseline", "baseline", args.baseline),
        *((f"floor{i}", "floor", url) for i, url in enumerate(args.floor or [args.baseline], 1)),
    ]
    for order, (name, role, url) in enumerate([*arms, ("candidate", "candidate", args.candidate)]):
        async with _client(url) as client:
            identity = await begin_arm(client, store, name, role, args.model)
            await score_arm(client, store, name, identity, Asking(args.protocol, args.concurrency, order, args.deadline))


def _limits(args: argparse.Namespace, store: DivergenceStore, corpus: Corpus) -> Limits | None:
    if args.calibration is None:
        return None
    return calibrate.load(args.calibration, store.arms()["baseline"].identity, corpus.sha256, store.width).limits()


def _client(url: str) -> ScoringClient:
    return ScoringClient(parse_address(url), Secret(os.environ.get("OPENAI_API_KEY") or "EMPTY"))


def lines(found: Result) -> list[str]:
    """The decision for a terminal: outcome, reasons, ratios, llama.cpp's columns of candidate and floor."""
    d = found.decision
    floor = f"assumed {d.floor:.2e} nat, A/A repeats its own bits" if d.assumed else f"{d.floor:.2e} nat"
    out = [d.outcome + (": no divergence beyond the baseline's own; this passes nothing by itself" if d.outcome not in EXIT_CODES else "")]
    out += [f"  because {reason}" for reason in d.reasons]
    out += [
        f"floor (A/A): mean KL {floor}",
        f"mean KL over the floor: {_ratio(d.kl)}; argmax flips: {_ratio(d.flips)}; worst sequence {d.tail:.3g}",
    ]
    out += [f"to decide: about {d.more} scored positions"] if d.more else []
    out.append(f"an intermittent fault in {100 * d.seen_share:.1f} % of sequences would have been met with 95 % chance")
    if found.columns:
        out.append(f"{'':<18} {'candidate':>12} {'A/A':>12}")
        out += [f"{name:<18} {value:>12.4g} {found.floor_columns.get(name, float('nan')):>12.4g}" for name, value in found.columns.items()]
    return out


def _ratio(ratio: Ratio | None) -> str:
    return "unknown, too few sequences" if ratio is None else f"{ratio.estimate:.3g} [{ratio.lower:.3g}, {ratio.upper:.3g}]"


def _plain(found: Result) -> dict[str, Any]:
    """JSON without NaN."""
    decision = asdict(replace(found.decision, reasons=()))
    numbers = {name: None if isinstance(value, float) and isnan(value) else value for name, value in decision.items()}
    rest = {
        "columns": found.columns,
        "floor_columns": found.floor_columns,
        "worst": list(found.worst),
        "not_finite": list(found.not_finite),
    }
    return {**numbers, "reasons": list(found.decision.reasons), **rest}


def _tell(args: argparse.Namespace, said: dict[str, Any], text: list[str]) -> None:
    if args.json:
        print(json.dumps(said, allow_nan=False))
    print(shown("\n".join(text), 1 << 16), file=sys.stderr if args.json else sys.stdout)
