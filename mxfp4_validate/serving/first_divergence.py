"""`first-divergence`: greedy answers of baseline, baseline again and candidate, and whether the candidate leaves the baseline earlier."""

from __future__ import annotations

import argparse
import asyncio
from dataclasses import asdict
from statistics import median

from mxfp4_validate.divergence import corpus as corpora
from mxfp4_validate.divergence import limits as table
from mxfp4_validate.divergence.corpus import TokenSequence
from mxfp4_validate.divergence.first_divergence import Greedy, events_needed, log_rank, pairs
from mxfp4_validate.divergence.rule import FAIL, GO_ON, UNDECIDED
from mxfp4_validate.endpoint.identity import read_identity
from mxfp4_validate.endpoint.logprobs import read_info
from mxfp4_validate.endpoint.sampled import sample
from mxfp4_validate.errors import UsageError
from mxfp4_validate.serving.diverge import EXIT_CODES, client_of, tell

#: The ratio of hazards that a run should be able to show before it lets anything go on.
HAZARD = 2.0


def first_divergence_verb(args: argparse.Namespace) -> int:
    """Answer the corpus's prompts greedily three times and compare. FAIL 1, UNDECIDED 3 with too few first differences, else 0."""
    corpus = corpora.load(args.corpus)
    prompts = [prompt(sequence, args.prompt_tokens) for sequence in corpus.sequences]
    baseline, again, candidate = (
        asyncio.run(_answers(args, url, prompts)) for url in (args.baseline, args.floor or args.baseline, args.candidate)
    )
    times, events = pairs(baseline, candidate)
    floor_times, floor_events = pairs(baseline, again)
    found = log_rank(times, events, floor_times, floor_events)
    needed = events_needed(HAZARD, 1 - table.LEVEL.value)
    outcome = FAIL if found.p < 1 - table.LEVEL.value else GO_ON if found.events >= needed or not any(events) else UNDECIDED
    code = EXIT_CODES.get(outcome, 0)
    seen = {
        "candidate": {"pairs": len(times), "differ": sum(events), "median_common": median(times)},
        "floor": {"pairs": len(floor_times), "differ": sum(floor_events), "median_common": median(floor_times)},
    }
    text = [f"{outcome}{'' if outcome in EXIT_CODES else ': this passes nothing by itself'}"]
    for name, row in seen.items():
        text.append(
            f"{name:<10} {row['differ']} of {row['pairs']} answers leave the baseline's; tokens in common, median {row['median_common']:g}"
        )
    text.append(f"log-rank z {found.z:+.2f}, one-sided p {found.p:.2g}, hazard ratio {found.hazard_ratio:.2f} (close to 1 only)")
    text.append(f"{found.events} first differences; a hazard ratio of {HAZARD:g} shows with {needed}")
    said = {"verb": "first-divergence", "exit_status": code, "outcome": outcome, "needed": needed, **asdict(found), **seen}
    tell(args, said, text)
    return code


def prompt(sequence: TokenSequence, first: int | None) -> tuple[int, ...]:
    """The tokens that are answered: those before the scored ones, or the `first` ones."""
    length = sequence.start if first is None else first
    if not 1 <= length < len(sequence.tokens):
        raise UsageError(f"--prompt-tokens {length}: a sequence of the corpus has {len(sequence.tokens)} tokens")
    if first is None and length == 1:
        raise UsageError("the corpus scores its prompts, so it does not say where they end; give --prompt-tokens N")
    return sequence.tokens[:length]


async def _answers(args: argparse.Namespace, url: str, prompts: list[tuple[int, ...]]) -> list[Greedy]:
    gate = asyncio.Semaphore(args.concurrency)
    async with client_of(url) as client:
        await read_info(client)  # refuses a server that speculates
        model = (await read_identity(client, args.model)).values["model"]

        async def one(place: int) -> Greedy:
            async with gate:
                found = await sample(client, prompts[place], args.max_tokens, 0.0, 0, args.deadline, f"{model}.greedy.{place}")
            return Greedy(tuple(found), len(found) < args.max_tokens)

        return list(await asyncio.gather(*(one(place) for place in range(len(prompts)))))
