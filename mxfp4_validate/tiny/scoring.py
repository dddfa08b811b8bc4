"""Tiny models scored in this process: the divergence leg without a server, and the corpus a model makes of itself."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from mxfp4_validate.divergence.corpus import Corpus, TokenSequence, build
from mxfp4_validate.divergence.limits import TOP
from mxfp4_validate.divergence.scores import NotFinite, Scores
from mxfp4_validate.divergence.yardstick import Yardstick
from mxfp4_validate.questions import arith
from mxfp4_validate.tiny.model import Chunk, TinyModel, load
from mxfp4_validate.tiny.text import Text
from mxfp4_validate.tiny.weights import open_checkpoint

#: Sequences computed together.
BATCH = 16
#: Who is the baseline on the embedded model, and which other backend is accepted: its A/A repeats its own bits and is no floor.
BASELINE, DECLARED = "emulate:marlin", "emulate:triton-kernels"


def score(model: TinyModel, corpus: Corpus, top: int = int(TOP.value), batch: int = BATCH) -> list[Scores]:
    """Every sequence's scored positions: log-probabilities of the model's whole vocabulary, of which `top` are kept.

    `batch` sequences make one forward, so it chooses the M that the experts see. Raises `NotFinite` for a logit that is no number.
    """
    return [found for some in _batches(corpus.sequences, batch) for found in _score(model, some, top)]


def _batches(sequences: Sequence[TokenSequence], size: int) -> Iterator[Sequence[TokenSequence]]:
    for first in range(0, len(sequences), size):
        yield sequences[first : first + size]


def _score(model: TinyModel, sequences: Sequence[TokenSequence], top: int) -> list[Scores]:
    cache = model.new_cache(len(sequences), max(len(s.tokens) for s in sequences))
    chunks = [Chunk(slot, 0, s.tokens) for slot, s in enumerate(sequences)]
    # Logits at position i are of token i + 1, so the last token's own row is not needed.
    rows: list[int] = []
    first = 0
    for s in sequences:
        rows += range(first + s.start - 1, first + len(s.tokens) - 1)
        first += len(s.tokens)
    logs = torch.log_softmax(model.forward(cache, chunks, rows).double(), -1)
    if not bool(logs.isfinite().all()):
        raise NotFinite(f"a logit of row {int((~logs.isfinite()).any(-1).nonzero()[0])} is no number")
    found, at = [], 0
    for s in sequences:
        found.append(kept(logs[at : at + s.scored], s.targets, top))
        at += s.scored
    return found


def kept(logs: torch.Tensor, targets: Sequence[int], top: int = int(TOP.value)) -> Scores:
    """What a server would tell of log-probabilities [n, vocabulary] float64: the targets' and the `top` largest of each position."""
    best = logs.topk(top, -1)
    chosen = logs.gather(1, torch.tensor(targets, device=logs.device).unsqueeze(1)).squeeze(1)
    rows, ids, chosen = best.values.cpu(), best.indices.cpu(), chosen.cpu()
    return Scores(np.minimum(chosen.numpy(), 0), ids.int().numpy(), np.minimum(rows.numpy(), 0))


def yardstick(folder: Path, sequences: int, seed: int = 0, baseline: str = BASELINE, declared: Sequence[str] = (DECLARED,)) -> Yardstick:
    """A corpus of the baseline's own words, scored by it, by it again with torch's sums around the experts, and by the declared backends."""
    model = load(folder, baseline)
    corpus = own_corpus(model, folder, sequences, seed)
    again = load(folder, baseline, exact=False)
    return Yardstick(corpus, score(model, corpus), [score(again, corpus)], [score(load(folder, name), corpus) for name in declared])


def own_corpus(model: TinyModel, folder: Path, count: int, seed: int = 0, most: int = 48, temperature: float = 1.0) -> Corpus:
    """The model's own answers, sampled at `temperature`, to problems nobody trained on nor asks; questions are scored as well."""
    text, rng = Text(folder, open_checkpoint(folder).config), random.Random(seed)
    generator = torch.Generator().manual_seed(seed)
    rows: dict[tuple[int, ...], int] = {}
    while len(rows) < count:
        prompts = [text.chat([{"role": "user", "content": arith.draw(rng, kept=True).question}], {}) for _ in range(BATCH)]
        rows |= dict.fromkeys(_sampled(model, prompts, most, temperature, generator, text.end_ids), 1)
    return build(list(rows.items())[:count], f"tiny model of {folder.name}, seed {seed}, temperature {temperature}")


def _sampled(
    model: TinyModel, prompts: Sequence[Sequence[int]], most: int, temperature: float, generator: torch.Generator, stop: frozenset[int]
) -> list[tuple[int, ...]]:
    cache = model.new_cache(len(prompts), max(map(len, prompts)) + most)
    texts = [list(prompt) for prompt in prompts]
    live = list(range(len(prompts)))
    chunks = [Chunk(slot, 0, texts[slot]) for slot in live]
    for _ in range(most):
        ends = np.cumsum([len(chunk.tokens) for chunk in chunks]) - 1
        logits = model.forward(cache, chunks, ends.tolist()).double() / temperature
        drawn = torch.multinomial(logits.softmax(-1), 1, generator=generator)[:, 0].tolist()
        for slot, token in zip(live, drawn, strict=True):
            texts[slot].append(token)
        live = [slot for slot, token in zip(live, drawn, strict=True) if token not in stop]
        if not live:
            break
        chunks = [Chunk(slot, len(texts[slot]) - 1, texts[slot][-1:]) for slot in live]
    return [tuple(text) for text in texts]
