"""Ask every planned sample until it has an outcome, keep what came back at once, and stop when asking more would be worthless."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from mxfp4_validate import states
from mxfp4_validate.endpoint.attempt import Attempt
from mxfp4_validate.endpoint.client import Client
from mxfp4_validate.endpoint.flow import Breaker, Limiter, RetryPolicy, Speed
from mxfp4_validate.endpoint.identity import UNREACHABLE, Identity, changes, read_identity
from mxfp4_validate.endpoint.request import build_body, seed_for
from mxfp4_validate.endpoint.writer import Done, Writer
from mxfp4_validate.evalspec import Sampling
from mxfp4_validate.records.evals import AttemptRow
from mxfp4_validate.records.store import now


@dataclass(frozen=True)
class Task:
    """One planned sample: its question, which repeat it is, and what is sent."""

    question_id: str
    repeat: int
    messages: tuple[Mapping[str, str], ...]
    gold: str


@dataclass(frozen=True)
class Options:
    """How to ask. `outage` and `poll` in seconds; `identify` reads a server's identity."""

    model: str
    sampling: Sampling
    concurrency: int = 64
    stream: bool = False
    deadline: float | None = None
    outage: float = 120.0
    poll: float = 30.0
    health_every: float = 1.0
    breaker: int = 16
    retry: RetryPolicy = field(default_factory=RetryPolicy)
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class Ending:
    """Why the run stopped: `done`, `interrupted`, `gave-up` (resumable) or `invalid` (worthless)."""

    kind: str = "done"
    reason: str = ""


class Collector:
    """One run's requests. `collect` returns how it ended; everything else is in the store by then."""

    def __init__(self, clients: Sequence[Client], identities: Sequence[Identity], options: Options, writer: Writer) -> None:
        self._clients, self._identities, self._options, self._writer = list(clients), list(identities), options, writer
        self._load = [0] * len(self._clients)
        self._limiter = Limiter(options.concurrency)
        self._breaker = Breaker(options.breaker)
        self._speed = Speed(options.deadline)
        self._rng = random.Random(0)  # jitter only
        self._ending = Ending()
        self._outages_in_a_row = 0
        self._restarts = 0
        self._throttled_since: float | None = None
        self._last_error = ""
        self._running: set[asyncio.Task[None]] = set()
        self.on_done: Callable[[str, int | None], None] = lambda state, tokens: None

    async def collect(self, tasks: Sequence[Task]) -> Ending:
        """Ask all tasks; returns once every outcome is durable."""
        watch = asyncio.create_task(self._watch_identity())
        writing = asyncio.create_task(self._writer.run())
        queue = iter(tasks)
        workers = [asyncio.create_task(self._work(queue)) for _ in range(min(self._options.concurrency, len(tasks)))]
        self._running = set(workers)
        writing.add_done_callback(self._writer_ended)
        try:
            await asyncio.gather(*workers, return_exceptions=False)
        except asyncio.CancelledError:
            if self._ending.kind == "done":
                self.stop("interrupted", "cancelled")
        finally:
            watch.cancel()
            await asyncio.gather(*self._running, watch, return_exceptions=True)
            self._writer.close()
            await writing
        if self._writer.error and self._ending.kind == "done":
            self._ending = Ending("gave-up", self._writer.error)
        return self._ending

    def _writer_ended(self, _: asyncio.Task[None]) -> None:
        if self._writer.error:
            self.stop("gave-up", self._writer.error)

    def stop(self, kind: str, reason: str) -> None:
        """Ask nothing more; the first reason stays. What is in flight is dropped and will be asked again on resume."""
        if self._ending.kind == "done":
            self._ending = Ending(kind, reason)
        self._breaker.give_up(reason)
        for task in self._running:
            task.cancel()

    async def _work(self, queue: Any) -> None:
        for task in queue:
            if self._ending.kind != "done":
                return
            await self._sample(task)

    async def _sample(self, task: Task) -> None:
        """One sample, through all its attempts; what was learnt is kept even if the run is stopped in between."""
        rows: list[AttemptRow] = []
        last = [Attempt(states.NOT_RUN)]
        try:
            await self._attempts(task, rows, last)
            if rows:
                await self._writer.put(_done(task, last[0], rows))
        except asyncio.CancelledError:
            if rows:
                self._writer.salvage(_done(task, last[0], rows))
            raise
        if rows:
            self.on_done(last[0].outcome, last[0].reply.completion_tokens if last[0].reply else None)
        if last[0].fatal:
            self.stop("gave-up", last[0].fatal)

    async def _attempts(self, task: Task, rows: list[AttemptRow], last: list[Attempt]) -> None:
        """Ask until there is an outcome, the budget is spent or the run stops; adds to `rows`, the latest attempt is `last[0]`."""
        counted, invalid, waited, rerolled = 0, 0, 0.0, False
        policy = self._options.retry
        while True:
            await self._breaker.closed.wait()
            if self._breaker.gave_up:
                return
            attempt = await self._ask(task, len(rows))
            last[0] = replace(attempt, flags=attempt.flags + ("rerolled",) * rerolled)
            rows.append(_row(task, attempt))
            if attempt.ok or attempt.fatal or attempt.retry == "no":
                return
            counted += attempt.status != 429
            invalid += attempt.outcome == states.INVALID_RESPONSE
            pause = policy.pause(len(rows), attempt.retry_after, self._rng)
            if counted >= policy.attempts or invalid > policy.invalid or waited + pause > policy.budget:
                return
            waited += pause
            rerolled |= attempt.retry == "reroll"
            await asyncio.sleep(pause)

    async def _ask(self, task: Task, number: int) -> Attempt:
        options = self._options
        async with self._limiter:
            at = min(range(len(self._clients)), key=self._load.__getitem__)
            body = build_body(
                options.model,
                task.messages,
                options.sampling,
                seed_for(options.sampling.seed, task.question_id, task.repeat),
                stream=options.stream,
                extra=options.extra,
            )
            self._load[at] += 1
            boot = self._identities[at].boot
            try:
                name = f"{task.question_id}.{task.repeat}.{number}"
                attempt = await self._clients[at].complete(body, self._speed.deadline(options.sampling.max_tokens), name)
            finally:
                self._load[at] -= 1
        self._judge(attempt)
        return replace(attempt, boot=boot)

    def _judge(self, attempt: Attempt) -> None:
        """Take the attempt into the run's own state: limiter, breaker, speed, and what makes the run worthless."""
        if attempt.reply is not None:
            self._speed.saw(attempt.reply.completion_tokens, attempt.seconds)
            if attempt.reply.model and attempt.reply.model != self._options.model:
                self._invalid("wrong-model", f"the server answered as {attempt.reply.model!r}, {self._options.model!r} was asked for")
        if attempt.ok:
            self._limiter.success()
            self._breaker.success()
            self._outages_in_a_row = 0
            self._throttled_since = None
            return
        self._last_error = attempt.error
        if "nan-output" in attempt.flags:
            self._writer.event("nan-output", attempt.error)
        if attempt.status == 429:
            self._limiter.throttle()
            self._throttled_since = self._throttled_since or time.monotonic()
            if time.monotonic() - self._throttled_since > self._options.retry.budget:
                self.stop("gave-up", f"nothing but HTTP 429 for {self._options.retry.budget:g} s; ask with a lower --concurrency, or later")
        elif "invalid-request" in attempt.flags:
            if self._speed_unseen():
                self.stop(
                    "gave-up", f"the first request is refused, so all would be: {attempt.error}; compare max_tokens with the context length"
                )
        elif self._breaker.failure():
            keep = asyncio.create_task(self._outage())
            self._running.add(keep)

    def _speed_unseen(self) -> bool:
        return self._writer.written[states.ANSWERED] + self._writer.pending == 0

    def _invalid(self, kind: str, text: str) -> None:
        self._writer.event(kind, text)
        self.stop("invalid", text)

    async def _outage(self) -> None:
        """The breaker is open: poll health until the server is back, or give up."""
        self._outages_in_a_row += 1
        self._writer.event("outage", f"{self._breaker.failures} failures in a row, the last: {self._last_error}")
        if self._outages_in_a_row > 3:
            self.stop("gave-up", f"the server answers nothing but errors: {self._last_error}")
            return
        waited = 0.0
        while waited < self._options.outage:
            await asyncio.sleep(self._options.health_every)
            waited += self._options.health_every
            if all(await asyncio.gather(*(client.healthy() for client in self._clients))):
                self._restarts += 1
                await self._look_at_identity(after_outage=True)
                self._breaker.close()
                return
        self.stop("gave-up", f"no healthy server for {self._options.outage:g} s; the last error: {self._last_error}")

    async def _watch_identity(self) -> None:
        while True:
            await asyncio.sleep(self._options.poll)
            await self._look_at_identity()

    async def _look_at_identity(self, after_outage: bool = False) -> None:
        for at, client in enumerate(self._clients):
            try:
                found = await read_identity(client, self._options.model)
            except UNREACHABLE:
                continue
            changed = changes(self._identities[at], found)
            if changed:
                self._invalid("identity-changed", f"{client.address.root}: " + "; ".join(changed))
            if found.boot != self._identities[at].boot:
                self._writer.event("restart", f"{client.address.root}: boot {self._identities[at].boot} became {found.boot}")
            elif after_outage:  # a server that tells nothing of its boots, back after an outage: count it as another one
                found = replace(found, boot=f"{found.boot.partition('~')[0]}~{self._restarts}")
            else:
                continue
            self._identities[at] = found
            self._writer.boot(found.boot, client.address.root, found.values)


def _done(task: Task, attempt: Attempt, rows: Sequence[AttemptRow]) -> Done:
    return Done(task.question_id, task.repeat, task.gold, attempt, tuple(rows))


def _row(task: Task, attempt: Attempt) -> AttemptRow:
    return AttemptRow(
        task.question_id, task.repeat, now(), attempt.outcome, attempt.status, attempt.seconds, attempt.error, attempt.boot, attempt.flags
    )


def counts_of(found: Mapping[tuple[str, int], str], planned: int) -> Counter[str]:
    """Samples by state, `not_run` filled up to what was planned."""
    counted = Counter(found.values())
    counted[states.NOT_RUN] += planned - sum(counted.values())
    return counted
