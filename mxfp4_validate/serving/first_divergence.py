"""`first-divergence`: greedy answers of baseline, baseline again and candidate, and whether the candidate leaves the baseline earlier."""

from __future__ import annotations

import argparse
import asyncio
from dataclasses import asdict, dataclass
from statistics import median

from mxfp4_validate.divergence import corpus as corpora
from mxfp4_validate.divergence import limits as table
from mxfp4_validate.divergence.corpus import TokenSequence
from mxfp4_validate.divergence.first_divergence import Greedy, LogRank, events_needed, log_rank, pairs
from mxfp4_validate.divergence.rule import FAIL, GO_ON, UNDECIDED
from mxfp4_validate.endpoint.identity import read_identity
from mxfp4_validate.endpoint.logprobs import read_info
from mxfp4_validate.endpoint.sampled import sample
from mxfp4_validate.errors import UsageError
from mxfp4_validate.serving.diverge import EXIT_CODES, client_of, tell

#: The ratio of hazards that a run should be able to show before it lets anything go on.
HAZARD = 2.0
#: Beside a baseline that hardly ever leaves itself every sound backend leaves early, so that is no evidence.
SILENT = (
    "A/A hardly ever leaves itself, so it does not show where a sound server would; "
    "declare an accepted backend whose answers are not all the baseline's"
)


@dataclass(frozen=True)
class Left:
    """Where one arm's answers leave the baseline's: tokens in common, and whether a difference follows them."""

    times: list[int]
    events: list[bool]

    @property
    def differ(self) -> int:
        return sum(self.events)

    def plain(self) -> dict[str, float]:
        return {"pairs": len(self.times), "differ": self.differ, "median_common": median(self.times)}


def first_divergence_verb(args: argparse.Namespace) -> int:
    """Answer the corpus's prompts greedily three times and compare. FAIL 1, UNDECIDED 3 with too few differences or a silent floor, else 0."""
    corpus = corpora.load(args.corpus)
    prompts = [prompt(sequence, args.prompt_tokens) for sequence in corpus.sequences]
    urls = [args.baseline, args.floor or args.baseline, args.candidate, *([args.declared] if args.declared else [])]
    baseline, *others = [asyncio.run(_answers(args, url, prompts)) for url in urls]
    again, candidate, *declared = (Left(*pairs(baseline, answers)) for answers in others)
    # What A/A that hardly differs cannot tell, an accepted backend can, unless it repeats the baseline's bits too.
    quiet = again.differ < table.LEAST_FLIPS.value
    instead = bool(quiet and declared and declared[0].differ)
    floor = declared[0] if instead else again
    found, needed = log_rank(candidate.times, candidate.events, floor.times, floor.events), events_needed(HAZARD, 1 - table.LEVEL.value)
    reasons = [SILENT] if quiet and not instead and candidate.differ else []
    outcome = FAIL if found.p < 1 - table.LEVEL.value else GO_ON if found.events >= needed or not candidate.differ else UNDECIDED
    outcome = UNDECIDED if reasons else outcome
    code = EXIT_CODES.get(outcome, 0)
    seen = {"candidate": candidate.plain(), "floor": floor.plain()}
    said = {"verb": "first-divergence", "exit_status": code, "outcome": outcome, "reasons": reasons, "declared": instead, "needed": needed}
    tell(
        args,
        {**said, **asdict(found), **seen},
        _text(outcome, reasons, candidate, floor, "declared" if instead else "floor", found, needed),
    )
    return code


def _text(outcome: str, reasons: list[str], candidate: Left, floor: Left, name: str, found: LogRank, needed: int) -> list[str]:
    text = [
        f"{outcome}{'' if outcome in EXIT_CODES else ': this passes nothing by itself'}",
        *(f"  because {reason}" for reason in reasons),
    ]
    for who, left in (("candidate", candidate), (name, floor)):
        common = f"tokens in common, median {median(left.times):g}"
        text.append(f"{who:<10} {left.differ} of {len(left.times)} answers leave the baseline's; {common}")
    text.append(f"log-rank z {found.z:+.2f}, one-sided p {found.p:.2g}, hazard ratio {found.hazard_ratio:.2f} (close to 1 only)")
    return [*text, f"{found.events} first differences; a hazard ratio of {HAZARD:g} shows with {needed}"]


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
