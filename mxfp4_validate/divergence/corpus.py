"""The fixed corpus: sequences of token ids and the position from which each is scored. No tokenizer takes part, so none can differ."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from mxfp4_validate.errors import UsageError

FORMAT = "mxfp4-validate divergence corpus 1"
#: Token ids are sent as JSON and stored as 32 bits.
MOST_ID = 2**31 - 1


@dataclass(frozen=True)
class TokenSequence:
    """Token ids, of which those from `start` on are scored. `start` is at least 1: nothing stands before the first token."""

    tokens: tuple[int, ...]
    start: int

    @property
    def scored(self) -> int:
        """Positions that are scored."""
        return len(self.tokens) - self.start

    @property
    def targets(self) -> tuple[int, ...]:
        """The tokens whose log-probabilities are asked for."""
        return self.tokens[self.start :]

    @cached_property
    def sha256(self) -> str:
        return hashlib.sha256(_canonical([self.start, list(self.tokens)])).hexdigest()


@dataclass(frozen=True)
class Corpus:
    """Sequences in a fixed order. Build it with `build`, which refuses what cannot be scored.

    Attributes:
        made_by: what the tokens come from, e.g. the identity of the server that sampled them; for readers and part of the hash.
    """

    sequences: tuple[TokenSequence, ...]
    made_by: str = ""

    @property
    def scored(self) -> int:
        """Scored positions over all sequences."""
        return sum(sequence.scored for sequence in self.sequences)

    def canonical(self) -> bytes:
        """The only JSON form of it: sorted keys, no spaces, ASCII."""
        rows = [[sequence.start, list(sequence.tokens)] for sequence in self.sequences]
        return _canonical({"format": FORMAT, "made_by": self.made_by, "sequences": rows})

    @cached_property
    def sha256(self) -> str:
        return hashlib.sha256(self.canonical()).hexdigest()


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode()


def build(rows: Iterable[tuple[Sequence[int], int]], made_by: str = "") -> Corpus:
    """A corpus from (token ids, start). `UsageError` names the sequence that is empty, holds no token id, or is there twice."""
    sequences: list[TokenSequence] = []
    seen: dict[tuple[int, ...], int] = {}
    for place, (tokens, start) in enumerate(rows):
        sequence = _checked(place, tokens, start)
        if sequence.tokens in seen:
            raise UsageError(f"corpus sequence {place} holds the same tokens as sequence {seen[sequence.tokens]}; leave one out")
        seen[sequence.tokens] = place
        sequences.append(sequence)
    if not sequences:
        raise UsageError("the corpus holds no sequence; there is nothing to score")
    return Corpus(tuple(sequences), made_by)


def _checked(place: int, tokens: Sequence[int], start: int) -> TokenSequence:
    if not tokens:
        raise UsageError(f"corpus sequence {place} is empty; leave it out")
    for position, token in enumerate(tokens):
        if isinstance(token, bool) or not isinstance(token, int) or not 0 <= token <= MOST_ID:
            raise UsageError(f"corpus sequence {place} holds {token!r} at position {position}, a token id is an integer in 0..{MOST_ID}")
    if isinstance(start, bool) or not isinstance(start, int) or not 1 <= start < len(tokens):
        raise UsageError(
            f"corpus sequence {place} starts scoring at {start!r}, it must be in 1..{len(tokens) - 1} for its {len(tokens)} tokens"
        )
    return TokenSequence(tuple(tokens), start)


def save(corpus: Corpus, path: Path) -> None:
    """Write the canonical form; never over another file."""
    try:
        with path.open("xb") as file:
            file.write(corpus.canonical())
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise UsageError(f"cannot write the corpus {path}: {error}") from error


def load(path: Path, sha256: str | None = None) -> Corpus:
    """A saved corpus; with `sha256` only that one."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UsageError(f"cannot read the corpus {path}: {error}") from error
    corpus = parse(data, str(path))
    if sha256 is not None and corpus.sha256 != sha256:
        raise UsageError(f"the corpus {path} has sha256 {corpus.sha256}, {sha256} was asked for")
    return corpus


def parse(data: bytes, where: str) -> Corpus:
    """A corpus from its JSON. Any layout of the JSON is read; the hash is that of the canonical form."""
    try:
        document = json.loads(data)
        if document["format"] != FORMAT:
            raise UsageError(f"{where} has format {document['format']!r}, this version reads {FORMAT!r}")
        rows = [(tokens, start) for start, tokens in document["sequences"]]
        made_by = document.get("made_by", "")
        if not all(isinstance(tokens, list) for tokens, _ in rows) or not isinstance(made_by, str):
            raise TypeError("a sequence is no list, or made_by no text")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UsageError(f"{where} is not a divergence corpus of mxfp4-validate: {type(error).__name__}: {error}") from error
    return build(rows, made_by)
