"""From one row of logits to one token: greedy, or drawn with a generator of the request's own, and the log-probabilities to report."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
#: What a NaN counts as while a token is chosen: a broken kernel must not take the server down; the reported number stays NaN.
NAN_LOGIT = -1e30


@dataclass(frozen=True)
class Sampling:
    """How a request wants its tokens.

    Attributes:
        temperature: 0 is greedy; top_p in (0, 1], min_p in [0, 1], top_k at least 1 or -1 for all; repetition_penalty > 0.
        max_tokens: how many at most; stop: texts that end the answer and are cut from it; stop_ids: tokens that do.
        seed: of the request's generator; ignore_eos: go on after the model's own end tokens.
    """

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    min_p: float = 0.0
    top_k: int = -1
    repetition_penalty: float = 1.0
    seed: int = 0
    stop: tuple[str, ...] = ()
    stop_ids: frozenset[int] = field(default_factory=frozenset)
    ignore_eos: bool = False


class Sampler:
    """Draws one request's tokens: one uniform number a token, so that the n-th draw is the same whoever shares the batch."""

    def __init__(self, sampling: Sampling, prompt: list[int]) -> None:
        self._sampling = sampling
        self._uniform = np.random.Generator(np.random.PCG64(sampling.seed & (2**64 - 1)))
        self._seen = set(prompt)

    def draw(self, logits: NDArray[np.float32]) -> int:
        """The next token from logits [vocab] float32. Penalty, temperature, then top-k, top-p and min-p on the same distribution."""
        scores = np.nan_to_num(logits.astype(np.float64), nan=NAN_LOGIT, posinf=-NAN_LOGIT, neginf=NAN_LOGIT)
        scores = self._penalised(scores)
        token = int(scores.argmax()) if self._sampling.temperature == 0 else self._drawn(scores / self._sampling.temperature)
        self._seen.add(token)
        return token

    def _penalised(self, scores: Floats) -> Floats:
        penalty = self._sampling.repetition_penalty
        if penalty != 1.0:
            seen = np.fromiter(self._seen, dtype=np.int64)
            scores[seen] = np.where(scores[seen] > 0, scores[seen] / penalty, scores[seen] * penalty)
        return scores

    def _drawn(self, scores: Floats) -> int:
        wanted = self._sampling
        order = np.argsort(-scores, kind="stable")
        weights = np.exp(scores[order] - scores[order[0]])
        probabilities = weights / weights.sum()
        keep = (np.cumsum(probabilities) - probabilities < wanted.top_p) & (probabilities >= wanted.min_p * probabilities[0])
        if wanted.top_k > 0:
            keep[wanted.top_k :] = False
        keep[0] = True
        mass = np.cumsum(np.where(keep, probabilities, 0.0))
        place = int(np.searchsorted(mass, self._uniform.random() * mass[-1], side="right"))
        return int(order[min(place, int(keep.nonzero()[0][-1]))])


def log_softmax(logits: NDArray[np.float32]) -> Floats:
    """logits [..., vocab] float32 -> log-probabilities float64: the model's own, before penalty, temperature and cuts. NaN stays NaN."""
    scores = logits.astype(np.float64)
    scores = scores - scores.max(-1, keepdims=True)
    shifted: Floats = scores - np.log(np.exp(scores).sum(-1, keepdims=True))
    return shifted


@dataclass(frozen=True)
class Scored:
    """One position: the token that stands there, its log-probability, and the likeliest (log-probability, token) pairs, best first."""

    token: int
    logprob: float | None
    top: tuple[tuple[float, int], ...] = ()


def score(row: Floats, token: int, top: int) -> Scored:
    """`row` [vocab] float64 log-probabilities -> the position's record with `top` alternatives."""
    best = np.argsort(-row, kind="stable")[:top]
    return Scored(token, float(row[token]), tuple((float(row[i]), int(i)) for i in best))
