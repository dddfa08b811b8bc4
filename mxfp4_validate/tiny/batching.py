"""Continuous batching in a thread of its own: whoever waits joins at the next step, whoever is done leaves, nobody is padded."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mxfp4_validate.tiny.model import Chunk, TinyModel
from mxfp4_validate.tiny.sampling import Sampler, Sampling, Scored, log_softmax, score
from mxfp4_validate.tiny.text import Text, TextState

LOG = logging.getLogger("mxfp4_validate.tiny")


@dataclass(frozen=True)
class Want:
    """Log-probabilities to report: of the prompt from position `start` on (None: not), of the answer, and `top` alternatives each."""

    start: int | None = None
    output: bool = False
    top: int = 0


@dataclass(frozen=True)
class Progress:
    """What a request has so far. `finish` is None while it runs, then "stop", "length", "abort" or "error".

    Attributes:
        text: the answer as far as it is certain, stop texts cut off; tokens: its tokens, the one that ended it included.
        matched: what ended it, a token id or a stop text; error: what went wrong, for "error".
        prompt: the prompt's positions that were asked for, position 0 with logprob None; output: the answer's.
    """

    text: str
    tokens: tuple[int, ...]
    finish: str | None = None
    matched: int | str | None = None
    prompt: tuple[Scored, ...] = ()
    output: tuple[Scored, ...] = ()
    error: str = ""


@dataclass(eq=False)
class Job:
    """A request in the engine. `report` is called in the engine's thread: at every token if `stream`, and once at the end."""

    prompt: list[int]
    sampling: Sampling
    report: Callable[[Progress], None]
    want: Want = field(default_factory=Want)
    stream: bool = False
    skip_special: bool = True
    cancelled: bool = False

    def cancel(self) -> None:
        """Leave at the next step, without another report."""
        self.cancelled = True


@dataclass(eq=False)
class _Running:
    job: Job
    slot: int
    sampler: Sampler
    text: TextState
    tokens: list[int] = field(default_factory=list)
    prompt: list[Scored] = field(default_factory=list)
    output: list[Scored] = field(default_factory=list)

    def chunk(self) -> Chunk:
        if not self.tokens:
            return Chunk(self.slot, 0, self.job.prompt)
        return Chunk(self.slot, len(self.job.prompt) + len(self.tokens) - 1, self.tokens[-1:])

    def rows(self) -> range:
        """Rows of its chunk whose logits are needed."""
        last = len(self.chunk().tokens)
        start = self.job.want.start
        first = last - 1 if self.tokens or start is None else min(last - 1, start)
        return range(first, last)


class Engine:
    """Runs jobs. `submit` may be called from any thread; a step that raises fails the jobs in it and no others."""

    def __init__(self, model: TinyModel, text: Text, *, max_running: int, context_length: int, max_batch_tokens: int) -> None:
        self._model, self._text = model, text
        self._cache = model.new_cache(max_running, context_length)
        self._budget = max_batch_tokens
        self._free = list(range(max_running))[::-1]
        self._waiting: deque[Job] = deque()
        self._running: list[_Running] = []
        self._wake = threading.Condition()
        self._stopping = False
        self._thread = threading.Thread(target=self._loop, name="tiny-engine", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def submit(self, job: Job) -> None:
        """Queue a job; its prompt must not be empty and must fit the context, which whoever made it has checked."""
        with self._wake:
            self._waiting.append(job)
            self._wake.notify()

    def counts(self) -> tuple[int, int]:
        """Jobs running and waiting."""
        with self._wake:
            return len(self._running), len(self._waiting)

    def stop(self) -> None:
        """End the thread; what still runs is reported as aborted."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        self._thread.join()

    def _loop(self) -> None:
        while True:
            with self._wake:
                while not (self._stopping or self._waiting or self._running):
                    self._wake.wait()
                if self._stopping:
                    break
                self._admit()
            try:
                self._step()
            except Exception as error:
                LOG.exception("a step failed")
                self._end_all("error", f"{type(error).__name__}: {error}")
        self._end_all("abort", "the server is shutting down")

    def _admit(self) -> None:
        """Take waiting jobs in order while there are slots and prompt tokens left in this step; a prompt over the budget goes alone."""
        budget = self._budget
        while self._free and self._waiting:
            job = self._waiting[0]
            if not job.cancelled and len(job.prompt) > budget and budget < self._budget:
                break
            self._waiting.popleft()
            if not job.cancelled:
                budget -= len(job.prompt)
                state = TextState(self._text, job.sampling.stop, job.skip_special)
                self._running.append(_Running(job, self._free.pop(), Sampler(job.sampling, job.prompt), state))

    def _step(self) -> None:
        for sequence in [s for s in self._running if s.job.cancelled]:
            self._leave(sequence)
        if not self._running:
            return
        chunks = [s.chunk() for s in self._running]
        rows: list[int] = []
        first = 0
        for sequence, chunk in zip(self._running, chunks, strict=True):
            rows += [first + row for row in sequence.rows()]
            first += len(chunk.tokens)
        logits = self._model.forward(self._cache, chunks, rows).numpy()
        at = 0
        for sequence in list(self._running):
            count = len(sequence.rows())
            self._advance(sequence, logits[at : at + count])
            at += count

    def _advance(self, sequence: _Running, logits: Any) -> None:
        """Record the prompt's scores, choose a token from the last row, report."""
        job, want = sequence.job, sequence.job.want
        if not sequence.tokens and want.start is not None:
            sequence.prompt = _prompt_scores(job.prompt, want, log_softmax(logits[:-1]))
        if job.sampling.max_tokens == 0:
            self._finish(sequence, "length")
            return
        token = sequence.sampler.draw(logits[-1])
        sequence.tokens.append(token)
        if want.output:
            sequence.output.append(score(log_softmax(logits[-1]), token, want.top))
        ends = token in job.sampling.stop_ids or (not job.sampling.ignore_eos and token in self._text.end_ids)
        if not ends:
            sequence.text.add(token)
        if ends or sequence.text.stopped is not None:
            self._finish(sequence, "stop", token if ends else sequence.text.stopped)
        elif len(sequence.tokens) == job.sampling.max_tokens:
            self._finish(sequence, "length")
        elif job.stream:
            job.report(self._progress(sequence))

    def _progress(self, sequence: _Running, **end: Any) -> Progress:
        text = sequence.text.whole() if end else sequence.text.certain()
        return Progress(text, tuple(sequence.tokens), prompt=tuple(sequence.prompt), output=tuple(sequence.output), **end)

    def _finish(self, sequence: _Running, reason: str, matched: int | str | None = None) -> None:
        self._leave(sequence)
        sequence.job.report(self._progress(sequence, finish=reason, matched=matched))

    def _leave(self, sequence: _Running) -> None:
        with self._wake:
            self._running.remove(sequence)
        self._free.append(sequence.slot)

    def _end_all(self, reason: str, why: str) -> None:
        for sequence in list(self._running):
            self._leave(sequence)
            sequence.job.report(self._progress(sequence, finish=reason, error=why))
        with self._wake:
            waiting = [*self._waiting] if self._stopping else []
            self._waiting = deque() if self._stopping else self._waiting
        for job in waiting:
            job.report(Progress("", (), finish=reason, error=why))


def _prompt_scores(prompt: Sequence[int], want: Want, rows: np.ndarray[Any, np.dtype[np.float64]]) -> list[Scored]:
    """Positions `start` and on; the first has no score: nothing before it was asked for, or nothing stands before it."""
    start = want.start or 0
    if start >= len(prompt):
        return []
    scored = (score(row, token, want.top) for row, token in zip(rows, prompt[start + 1 :], strict=True))
    return [Scored(prompt[start], None), *scored]
