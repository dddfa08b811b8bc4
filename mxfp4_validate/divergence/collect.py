"""One arm: every sequence of the corpus asked of one server, in windows, and kept as soon as it is whole."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from mxfp4_validate.divergence import limits
from mxfp4_validate.divergence.corpus import Corpus, TokenSequence
from mxfp4_validate.divergence.record import ArmRow, DivergenceStore, ScoreRow
from mxfp4_validate.divergence.scores import FAULTS, BadServer, NotFinite, check
from mxfp4_validate.endpoint.flow import Limiter, RetryPolicy
from mxfp4_validate.endpoint.identity import UNREACHABLE, Identity, changes, read_identity
from mxfp4_validate.endpoint.logprob_bodies import PROTOCOLS, Positions, Protocol, joined
from mxfp4_validate.endpoint.logprobs import Scoring, ScoringClient, read_info
from mxfp4_validate.errors import IncompleteRun, InvalidRun, UnknownName, UsageError

#: Tokens of one AIME25 run of a reasoning model, 30 questions 16 times: what a divergence run is cheap beside.
AIME25_TOKENS = 14_800_000


@dataclass(frozen=True)
class Asking:
    """How one arm is asked.

    Attributes:
        order: seed of the order in which sequences are asked; the A/A run takes another one, so that batches differ.
        deadline: seconds a request may take; on_done: called with the place of each sequence that is kept.
    """

    protocol: str
    concurrency: int = 8
    order: int = 0
    deadline: float = 600.0
    retry: RetryPolicy = field(default_factory=RetryPolicy)
    on_done: Callable[[int], None] = lambda place: None

    def resolved(self) -> Protocol:
        if self.protocol not in PROTOCOLS:
            raise UnknownName("protocol", self.protocol, PROTOCOLS)
        return PROTOCOLS[self.protocol]


@dataclass(frozen=True)
class Cost:
    """What scoring a corpus once takes: scored positions, tokens sent (all prefill), requests, and the positions' share of an AIME25 run."""

    scored: int
    sent: int
    requests: int
    aime_share: float


def windows(sequence: TokenSequence, width: int, protocol: Protocol) -> Iterator[tuple[int, int]]:
    """(first, end) of each request's positions, `width` at most; one request where the protocol cannot limit them.

    The tokens of a request end with its window. With a prefix cache the server's forward then has about as many tokens as the
    window, which is how a run chooses between the kernels for few and for many tokens.
    """
    if not 1 <= width <= limits.WINDOW.value:
        raise UsageError(f"width {width}: a request may ask 1 to {limits.WINDOW.value:g} positions")
    step = width if protocol.windows else sequence.scored
    for first in range(sequence.start, len(sequence.tokens), step):
        yield first, min(first + step, len(sequence.tokens))


def cost(corpus: Corpus, width: int, protocol: Protocol) -> Cost:
    """Of one arm; without a prefix cache `sent` is what is computed, with one little more than the corpus itself."""
    ends = [end for sequence in corpus.sequences for _, end in windows(sequence, width, protocol)]
    return Cost(corpus.scored, sum(ends), len(ends), corpus.scored / AIME25_TOKENS)


async def begin_arm(client: ScoringClient, store: DivergenceStore, name: str, role: str, model: str | None = None) -> Identity:
    """Ask who the server is, refuse one that speculates, and begin the arm or go on with it."""
    try:
        await read_info(client)
        identity = await read_identity(client, model)
    except UNREACHABLE as error:
        raise IncompleteRun(f"{client.address.root} does not answer: {error}; start the server and run the same command again") from error
    store.add_arm(ArmRow(name, role, identity.boot, client.address.root, identity.values))
    return identity


async def score_arm(client: ScoringClient, store: DivergenceStore, name: str, identity: Identity, asking: Asking) -> None:
    """Score what the arm lacks. What was kept stays kept, whatever is raised:

    `BadServer` for an answer that cannot be true, `IncompleteRun` when the server does not answer, `InvalidRun` when it became another one.
    """
    places = store.missing(name)
    random.Random(asking.order).shuffle(places)
    limiter, rng = Limiter(asking.concurrency), random.Random(0)  # jitter only

    async def one(place: int) -> None:
        async with limiter:
            row = await _sequence(client, store, f"{name}.{place}", place, identity.values["model"], asking, rng)
        store.add(name, row)
        asking.on_done(place)

    tasks = [asyncio.create_task(one(place)) for place in places]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    await _same_server(client, identity)


async def _sequence(
    client: ScoringClient, store: DivergenceStore, request_id: str, place: int, model: str, asking: Asking, rng: random.Random
) -> ScoreRow:
    """All windows of one sequence, one after the other, so that each finds the prefix of the one before in the cache."""
    sequence, protocol, started = store.corpus.sequences[place], asking.resolved(), time.monotonic()
    parts: list[Positions] = []
    sent, error = 0, ""
    for first, end in windows(sequence, store.width, protocol):
        scoring = await _ask(client, protocol, model, sequence.tokens[:end], first, store.top, f"{request_id}.{first}", asking, rng)
        sent += end
        if scoring.said is None:
            error = scoring.error
            break
        parts.append(scoring.said)
    try:
        scores = None if error else check(joined(parts), sequence.tokens, sequence.start, store.top)
    except NotFinite as found:
        scores, error = None, str(found)
    except BadServer as found:
        raise BadServer(found.fault, f"sequence {place}: {str(found).removeprefix(found.fault + ': ')}") from found
    return ScoreRow(place, scores, error, sent, time.monotonic() - started)


async def _ask(
    client: ScoringClient, protocol: Protocol, model: str, tokens: tuple[int, ...], first: int, top: int, request_id: str,
    asking: Asking, rng: random.Random,
) -> Scoring:  # fmt: skip
    """Ask until there is an answer, NaN included, or the retries are spent. Asking again is no re-roll: nothing is sampled."""
    waited, number = 0.0, 0
    while True:
        scoring = await client.score(protocol, model, tokens, first, top, asking.deadline, f"{request_id}.{number}")
        number += 1
        if scoring.ok or scoring.nan:
            return scoring
        if scoring.fault:
            raise BadServer(scoring.fault, f"{scoring.error.removeprefix(scoring.fault + ': ')}; {FAULTS[scoring.fault]}")
        pause = asking.retry.pause(number, scoring.retry_after, rng)
        waited += pause
        if scoring.fatal or scoring.retry == "no" or number >= asking.retry.attempts or waited > asking.retry.budget:
            why = scoring.fatal or scoring.error
            raise IncompleteRun(f"request {request_id}, attempt {number}: {why}; mend that, then run the same command again")
        await asyncio.sleep(pause)


async def _same_server(client: ScoringClient, identity: Identity) -> None:
    try:
        after = await read_identity(client, identity.values["model"])
    except UNREACHABLE as error:
        raise IncompleteRun(f"{client.address.root} does not answer any more: {error}; run the same command again") from error
    if after.boot != identity.boot:
        what = "; ".join(changes(identity, after)) or "it was started again"
        raise InvalidRun(f"{client.address.root} became another server while it was asked: {what}; begin a new arm")
