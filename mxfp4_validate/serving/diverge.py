"""`corpus` and `diverge`: token by token, how far a candidate's distributions lie from the baseline's, against the baseline's from its own."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from mxfp4_validate import evalspec
from mxfp4_validate.divergence import calibrate
from mxfp4_validate.divergence import corpus as corpora
from mxfp4_validate.divergence import limits as table
from mxfp4_validate.divergence.analyse import Result, analyse, plain
from mxfp4_validate.divergence.collect import Asking, begin_arm, cost, score_arm
from mxfp4_validate.divergence.corpus import Corpus
from mxfp4_validate.divergence.record import DivergenceStore
from mxfp4_validate.divergence.rule import FAIL, UNDECIDED
from mxfp4_validate.divergence.signed import Ratio
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
    tell(args, said, [f"{args.output}: {len(made.sequences)} sequences, {made.scored} positions to score, sha256 {made.sha256}"])
    return 0


async def _make(args: argparse.Namespace) -> Corpus:
    spec = evalspec.load(args.eval)
    questions = load(spec, args.questions).questions
    gate = asyncio.Semaphore(args.concurrency)
    async with client_of(args.server) as client:
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


@dataclass(frozen=True)
class Regime:
    """One number of tokens per forward: positions a request and requests in flight, on a server that caches prefixes."""

    name: str
    width: int
    concurrency: int


#: Which kernels run depends on the tokens of a forward: decoding's, small batches', prefill's, and a full batch of prefill.
REGIMES = (Regime("m8", 8, 1), Regime("m64", 64, 1), Regime("m512", 512, 1), Regime("m4096", 512, 8))


def diverge_verb(args: argparse.Namespace) -> int:
    """Score the corpus on baseline, baseline again and candidate, or go on with that; then decide. GO ON 0, FAIL 1, UNDECIDED 3."""
    corpus = corpora.load(args.corpus)
    if not args.regimes:
        path = args.out / "divergence.sqlite"
        found = _diverge(args, corpus, path, args.width, args.concurrency)
        code = EXIT_CODES.get(found.decision.outcome, 0)
        tell(args, {"verb": "diverge", "exit_status": code, "record": str(path), **_plain(found)}, lines(found))
        return code
    if args.calibration is not None:
        raise UsageError("--calibration belongs to one width; with --regimes leave it out, or run the widths one by one")
    if not Asking(args.protocol).resolved().windows:
        raise UsageError(f"--protocol {args.protocol} asks for a whole sequence at once, so there are no regimes; leave --regimes out")
    rows: dict[str, Result] = {}
    for regime in REGIMES:
        path = args.out / regime.name / "divergence.sqlite"
        rows[regime.name] = _diverge(args, corpus, path, regime.width, regime.concurrency)
        print(f"{regime.name}: {rows[regime.name].decision.outcome}", file=sys.stderr, flush=True)
    outcomes = [found.decision.outcome for found in rows.values()]
    code = next((EXIT_CODES[worst] for worst in (FAIL, UNDECIDED) if worst in outcomes), 0)
    said = {name: {"record": str(args.out / name / "divergence.sqlite"), **_plain(found)} for name, found in rows.items()}
    tell(args, {"verb": "diverge", "exit_status": code, "regimes": said}, _table(rows))
    return code


def _diverge(args: argparse.Namespace, corpus: Corpus, path: Path, width: int, concurrency: int) -> Result:
    """One record: every arm scored as far as it is not yet, and the decision on the candidate."""
    arms = sound_arms_of(args.baseline, args.floor or [args.baseline], args.declared)
    _keep_calibration(args.calibration, path, corpus, width)
    with opened(path, corpus, width, args.protocol) as store:
        announce(corpus, width, args.protocol)
        asyncio.run(score_arms(args, store, [*arms, ("candidate", "candidate", args.candidate)], concurrency))
        return analyse(store, "candidate", calibrate.limits_of(store))


def sound_arms_of(baseline: str, floors: Sequence[str], declared: Sequence[str]) -> list[tuple[str, str, str]]:
    """(name, role, address) of the baseline, its A/A runs and the declared backends."""
    again = [(f"floor{i}", "floor", url) for i, url in enumerate(floors, 1)]
    return [("baseline", "baseline", baseline), *again, *((f"declared{i}", "declared", url) for i, url in enumerate(declared, 1))]


def opened(path: Path, corpus: Corpus, width: int, protocol: str) -> DivergenceStore:
    """The record at `path` to go on with, or a new one. Half a record of one width and half of another would be of neither."""
    if not path.exists():
        return DivergenceStore.create(path, corpus, int(table.TOP.value), width, {"protocol": protocol})
    store = DivergenceStore.resume(path, corpus)
    was = (store.width, store.settings.get("protocol", protocol))
    if was != (width, protocol):
        store.close()
        raise UsageError(f"{path} was begun with --width {was[0]} --protocol {was[1]}; go on with these, or name another --out")
    return store


def announce(corpus: Corpus, width: int, protocol: str) -> None:
    """What one arm costs, before it is paid."""
    price = cost(corpus, width, Asking(protocol).resolved())
    print(
        f"{price.scored} positions an arm in {price.requests} requests, {price.sent} tokens of prefill without a prefix cache; "
        f"{100 * price.aime_share:.2f} % of the tokens of an AIME25 run",
        file=sys.stderr,
    )


async def score_arms(args: argparse.Namespace, store: DivergenceStore, arms: Sequence[tuple[str, str, str]], concurrency: int) -> None:
    """Arm after arm; each in another order, so that its batches are others."""
    for order, (name, role, url) in enumerate(arms):
        async with client_of(url) as client:
            identity = await begin_arm(client, store, name, role, args.model)
            await score_arm(client, store, name, identity, Asking(args.protocol, concurrency, order, args.deadline))


def _keep_calibration(given: Path | None, record: Path, corpus: Corpus, width: int) -> None:
    """A copy beside the record, for `report` and for going on. `UsageError` if it is of another corpus or width, before a server is asked."""
    if given is None:
        return
    calibrate.load(given, None, corpus.sha256, width)
    kept = record.with_name(calibrate.BESIDE)
    if kept.exists() and kept.read_bytes() != given.read_bytes():
        raise UsageError(f"{record} is judged by {kept}, --calibration {given} is another; name another --out")
    record.parent.mkdir(parents=True, exist_ok=True)
    kept.write_bytes(given.read_bytes())


def client_of(url: str) -> ScoringClient:
    return ScoringClient(parse_address(url), Secret(os.environ.get("OPENAI_API_KEY") or "EMPTY"))


def lines(found: Result) -> list[str]:
    """The decision for a terminal: outcome, reasons, ratios, llama.cpp's columns of candidate and floor."""
    d = found.decision
    kind = "declared backends, A/A repeats its own bits" if d.declared else "A/A"
    floor = f"assumed {d.floor:.2e} nat, A/A repeats its own bits" if d.assumed else f"{d.floor:.2e} nat"
    out = [d.outcome + (": no divergence beyond the baseline's own; this passes nothing by itself" if d.outcome not in EXIT_CODES else "")]
    out += [f"  because {reason}" for reason in d.reasons]
    out += [
        f"floor ({kind}): mean KL {floor}",
        f"mean KL over the floor: {_ratio(d.kl)}; argmax flips: {_ratio(d.flips)}; worst sequence {d.tail:.3g}",
    ]
    out += [f"typical KL over the floor: {_ratio(d.typical)}"] if d.typical else []
    if d.drift:
        out.append(f"drift to one side: {d.drift.estimate:+.2e} nat a position, t {d.drift.t:+.1f}; one of {d.drift.shows:.1e} would show")
    out += [f"to decide: about {d.more} scored positions"] if d.more else []
    out.append(f"an intermittent fault in {100 * d.seen_share:.1f} % of sequences would have been met with 95 % chance")
    if found.columns:
        out.append(f"{'':<18} {'candidate':>12} {'declared' if d.declared else 'A/A':>12}")
        out += [f"{name:<18} {value:>12.4g} {found.floor_columns.get(name, float('nan')):>12.4g}" for name, value in found.columns.items()]
    return out


def _table(rows: Mapping[str, Result]) -> list[str]:
    """A row a regime, and why where one does not go on."""
    head = f"{'regime':<8} {'outcome':<10} {'mean KL':>10} {'over the floor':>24} {'typical':>8} {'flips %':>8} {'worst':>7}"
    out = [head]
    for name, found in rows.items():
        d = found.decision
        flips = 100 - found.columns.get("same_top_p_%", 100.0)
        usual = f"{d.typical.estimate:.3g}" if d.typical else "-"
        kl = found.columns.get("mean_kld", float("nan"))
        out.append(f"{name:<8} {d.outcome:<10} {kl:>10.2e} {_ratio(d.kl):>24} {usual:>8} {flips:>8.2f} {d.tail:>7.3g}")
        out += [f"         because {reason}" for reason in d.reasons]
    return out


def _ratio(ratio: Ratio | None) -> str:
    return "unknown, too few sequences" if ratio is None else f"{ratio.estimate:.3g} [{ratio.lower:.3g}, {ratio.upper:.3g}]"


def _plain(found: Result) -> dict[str, Any]:
    numbers = plain(asdict(replace(found.decision, reasons=())))
    rest = {
        "columns": found.columns,
        "floor_columns": found.floor_columns,
        "worst": list(found.worst),
        "not_finite": list(found.not_finite),
        "limits": {name: getattr(found.limits, name) for name in ("ratio", "tail_factor", "flip_ratio", "typical", "drift")},
    }
    return {**numbers, "reasons": list(found.decision.reasons), **rest}


def tell(args: argparse.Namespace, said: dict[str, Any], text: list[str]) -> None:
    if args.json:
        print(json.dumps(said, allow_nan=False))
    print(shown("\n".join(text), 1 << 16), file=sys.stderr if args.json else sys.stdout)
