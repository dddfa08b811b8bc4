"""From attempts to durable rows: grading, compression and the commit happen in one thread, a batch at a time."""

from __future__ import annotations

import asyncio
import hashlib
import sqlite3
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from mxfp4_validate import states
from mxfp4_validate.endpoint.attempt import Attempt
from mxfp4_validate.endpoint.state import state_of
from mxfp4_validate.errors import InvalidRun
from mxfp4_validate.grading.base import Grade
from mxfp4_validate.records.durable import plain
from mxfp4_validate.records.evals import AttemptRow, EvalStore
from mxfp4_validate.records.sample import Sample
from mxfp4_validate.records.store import now

#: (text, gold) to grades by mode; the first mode decides the state.
Grader = Callable[[str, str], Mapping[str, Grade]]
#: Answers shorter than this may well be the same for two questions.
_LONG = 80
#: Characters that may wait for the disk before workers wait, too: 20 answers of 400,000 tokens.
MOST_WAITING = 32 << 20


@dataclass(frozen=True)
class Done:
    """A sample that will not be asked again in this session, and all its attempts."""

    question_id: str
    repeat: int
    gold: str
    attempt: Attempt
    rows: tuple[AttemptRow, ...]

    def __len__(self) -> int:
        """Characters of text it holds."""
        reply = self.attempt.reply
        return len(reply.content) + len(reply.reasoning) if reply else 0


class Writer:
    """Takes `Done`s; a sample is acknowledged once its batch is committed. The first error of the store ends it."""

    def __init__(self, store: EvalStore, grader: Grader, grader_name: str, longest: float = 0.2) -> None:
        self._store, self._grader, self._grader_name, self._longest = store, grader, grader_name, longest
        self._queue: asyncio.Queue[Done | None] = asyncio.Queue()
        self._room = asyncio.Event()
        self._room.set()
        self._waiting_bytes = 0
        self._notes: list[Callable[[], None]] = []
        self._seen: dict[bytes, str] = {}
        self.pending = 0
        self.written: Counter[str] = Counter()
        self.right = 0
        self.error = ""

    async def put(self, done: Done) -> None:
        """Hand over a sample; waits if the disk is behind."""
        while not self._room.is_set() and not self.error:
            await self._room.wait()
        self.salvage(done)

    def salvage(self, done: Done) -> None:
        """Hand over a sample without waiting, as a run that is being stopped must."""
        if not self.error:
            self.pending += 1
            self._count(len(done))
            self._queue.put_nowait(done)

    def _count(self, size: int) -> None:
        self._waiting_bytes += size
        if self._waiting_bytes > MOST_WAITING:
            self._room.clear()
        else:
            self._room.set()

    def event(self, kind: str, text: str) -> None:
        self._notes.append(lambda: self._store.add_event(kind, plain(text)))

    def boot(self, boot: str, address: str, identity: Mapping[str, str]) -> None:
        self._notes.append(lambda: self._store.add_boot(boot, address, identity))

    def close(self) -> None:
        """No more samples; `run` returns after the last batch."""
        self._queue.put_nowait(None)

    async def run(self) -> None:
        """Write batches until closed."""
        last = False
        while not last:
            batch = [await self._queue.get()]
            await asyncio.sleep(self._longest if batch[0] is not None else 0)
            while not self._queue.empty():
                batch.append(self._queue.get_nowait())
            last = None in batch
            done = [item for item in batch if item is not None]
            if not self.error:
                try:
                    await asyncio.to_thread(self._write, done)
                except (sqlite3.Error, OSError, InvalidRun) as error:  # never go on after a failed commit
                    self.error = f"the record cannot be written: {error}; free the disk or mend the folder, then run the same command again"
            self.pending -= len(done)
            self._count(-sum(map(len, done)))
            if self.error:
                self._room.set()
                return

    def _write(self, batch: list[Done]) -> None:
        notes, self._notes = self._notes, []
        for note in notes:
            note()
        rows = [self._row(done) for done in batch]
        if rows:
            self._store.add(rows, self._grader_name)
        for sample, _, grades in rows:
            self.written[sample.state] += 1
            self.right += sample.state == states.ANSWERED and next(iter(grades.values())).correct

    def _row(self, done: Done) -> tuple[Sample, tuple[AttemptRow, ...], Mapping[str, Grade]]:
        attempt, reply = done.attempt, done.attempt.reply
        scored = attempt.ok and reply is not None
        grades = self._grader(reply.content, done.gold) if reply is not None and scored else {}
        state = state_of(attempt, next(iter(grades.values()), None))
        flags = attempt.flags
        if reply is not None and scored and len(reply.content) >= _LONG:
            key = hashlib.sha256(reply.content.encode("utf-8", "surrogatepass")).digest()[:12]
            if self._seen.setdefault(key, done.question_id) != done.question_id:
                flags += ("same-text-as-another-question",)
                self._store.add_event(
                    "duplicate-text", f"{done.question_id} and {self._seen[key]} got the very same answer; was a reply misdelivered?"
                )
        sample = Sample(
            done.question_id,
            done.repeat,
            state,
            content=reply.content if reply else "",
            reasoning=reply.reasoning if reply else "",
            finish_reason=plain(reply.finish_reason) if reply else "",
            prompt_tokens=reply.prompt_tokens if reply else None,
            completion_tokens=reply.completion_tokens if reply else None,
            reasoning_tokens=reply.reasoning_tokens if reply else None,
            seconds=attempt.seconds,
            boot=attempt.boot,
            model=plain(reply.model) if reply else "",
            attempts=len(done.rows),
            flags=flags,
            error=plain(attempt.error),
            at=now(),
        )
        rows = tuple(row.cleaned() for row in done.rows)
        return sample, rows, grades if state in states.MODEL_STATES else {}
