"""What one server said of one sequence, as arrays; a server that says something impossible is refused by name, NaN is evidence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from mxfp4_validate.divergence import limits
from mxfp4_validate.divergence.corpus import MOST_ID
from mxfp4_validate.endpoint.logprob_bodies import Positions
from mxfp4_validate.errors import CheckFailed, InvalidRun

Floats = NDArray[np.float64]
Ids = NDArray[np.int32]


class BadServer(InvalidRun):
    """An answer that no distribution over tokens can give; `fault` is its name, one of `FAULTS`."""

    def __init__(self, fault: str, message: str) -> None:
        assert fault in FAULTS, fault
        super().__init__(f"{fault}: {message}")
        self.fault = fault


#: name -> what to do about it.
FAULTS: dict[str, str] = {
    "other-protocol": "the address must belong to a server of the protocol that was chosen",
    "named-by-text": "two tokens may share a text, so ids are needed; ask by another protocol",
    "too-few-logprobs": "the server must answer every position that was asked",
    "other-tokens": "the server scored other tokens than were sent; does it add or cut tokens?",
    "short-top": "raise the server's limit on logprobs, or ask for fewer",
    "unsorted-top": "the most likely tokens must come first",
    "duplicate-top": "a token may stand in the list once",
    "bad-token-id": "a token id is an integer from 0 on",
    "positive-logprob": "the log-probabilities are not normalised; turn off what changes them after the softmax",
    "top-mass": "the log-probabilities are not normalised, or went through a 16-bit format",
    "chosen-apart": "the token's own log-probability and the list's come from different distributions",
    "other-texts": "the servers have different tokenizers",
}


class NotFinite(CheckFailed):
    """NaN, an infinity or a null where a log-probability must be: evidence that the server computed rubbish."""


@dataclass(frozen=True, eq=False)
class Scores:
    """n scored positions with k alternatives each, checked.

    Attributes:
        chosen: log-probability of the corpus's token [n], at most 0.
        top_ids, top: the most likely tokens and their log-probabilities [n, k], the most likely first.
        texts: the tokens as the server prints them, () if it does not.
    """

    chosen: Floats
    top_ids: Ids
    top: Floats
    texts: tuple[str, ...] = field(default=())

    def __len__(self) -> int:
        return int(self.chosen.size)


def check(said: Positions, tokens: Sequence[int], start: int, top: int) -> Scores:
    """`Scores` of positions start.. of `tokens`, whose targets they are asked to be; `BadServer` or `NotFinite` name the position.

    Log-probabilities above 0 by no more than `POSITIVE_DUST` become 0.
    """
    wanted = list(tokens[start:])
    _check_counts(said, wanted, top)
    for place, (token, want) in enumerate(zip(said.tokens, wanted, strict=True)):
        if token is not None and token != want:
            raise BadServer("other-tokens", f"token {token} at position {start + place}, {want} was sent; {FAULTS['other-tokens']}")
    for place, row in enumerate(said.top):
        wrong = next((i for i, _ in row if isinstance(i, bool) or not isinstance(i, int) or not 0 <= i <= MOST_ID), None)
        if wrong is not None:
            raise BadServer("bad-token-id", f"{wrong!r} at position {start + place}; {FAULTS['bad-token-id']}")
    chosen = _array([said.chosen], start)[0]
    ids = np.array([[i for i, _ in row[:top]] for row in said.top], np.int32).reshape(len(wanted), top)
    listed = _array([[value for _, value in row[:top]] for row in said.top], start, by_row=True).reshape(len(wanted), top)
    _check_lists(ids, listed, start)
    _check_chosen(np.array(wanted, np.int32), chosen, ids, listed, start)
    texts = tuple(text for text in said.texts if text is not None)
    return Scores(np.minimum(chosen, 0), ids, np.minimum(listed, 0), texts if len(texts) == len(wanted) else ())


def _check_counts(said: Positions, wanted: Sequence[int], top: int) -> None:
    counts = {"log-probabilities": len(said.chosen), "tokens": len(said.tokens), "lists of alternatives": len(said.top)}
    for what, count in counts.items():
        if count != len(wanted):
            raise BadServer("too-few-logprobs", f"{count} {what} for {len(wanted)} positions; {FAULTS['too-few-logprobs']}")
    for place, row in enumerate(said.top):
        if len(row) < top:
            raise BadServer("short-top", f"{len(row)} alternatives at scored position {place}, {top} were asked for; {FAULTS['short-top']}")


def _array(rows: Sequence[Sequence[float | None]], start: int, by_row: bool = False) -> Floats:
    """Rows of numbers; `NotFinite` names the first that is none. The position is the row's place, or the column's."""
    values = np.array([[np.nan if value is None else value for value in row] for row in rows], np.float64)
    bad = np.argwhere(~np.isfinite(values))
    if bad.size:
        row, column = (int(i) for i in bad[0])
        said, position = rows[row][column], start + (row if by_row else column)
        raise NotFinite(
            f"log-probability {said!r} at position {position}: the server computed no number there (JSON encoders write NaN as null)",
            {"not_finite": len(bad), "position": position},
        )
    return values


def _check_lists(ids: Ids, top: Floats, start: int) -> None:
    high = np.argwhere(top > limits.POSITIVE_DUST.value)
    if high.size:
        row, column = high[0]
        raise BadServer("positive-logprob", f"{top[row, column]:g} at position {start + row}; {FAULTS['positive-logprob']}")
    rising = np.argwhere(np.diff(top, axis=1) > 0)
    if rising.size:
        row, column = rising[0]
        pair = f"{top[row, column]:g} before {top[row, column + 1]:g}"
        raise BadServer("unsorted-top", f"{pair} at position {start + row}; {FAULTS['unsorted-top']}")
    ordered = np.sort(ids, axis=1)
    twice = np.argwhere(np.diff(ordered, axis=1) == 0)
    if twice.size:
        row, column = twice[0]
        raise BadServer("duplicate-top", f"token {ordered[row, column]} at position {start + row}; {FAULTS['duplicate-top']}")
    mass = np.exp(top).sum(1)
    heavy = np.flatnonzero(mass > 1 + limits.MASS_DUST.value)
    if heavy.size:
        raise BadServer("top-mass", f"probabilities add up to {mass[heavy[0]]:.6f} at position {start + heavy[0]}; {FAULTS['top-mass']}")


def _check_chosen(targets: Ids, chosen: Floats, ids: Ids, top: Floats, start: int) -> None:
    high = np.flatnonzero(chosen > limits.POSITIVE_DUST.value)
    if high.size:
        raise BadServer("positive-logprob", f"{chosen[high[0]]:g} at position {start + high[0]}; {FAULTS['positive-logprob']}")
    if not ids.shape[1]:
        return
    same = ids == targets[:, None]
    listed = same.any(1)
    expected = np.where(listed, top[np.arange(len(targets)), same.argmax(1)], top[:, -1])
    apart = np.where(listed, np.abs(chosen - expected), chosen - expected)  # a token outside the list is no likelier than its last
    wrong = np.flatnonzero(apart > limits.CHOSEN_APART.value)
    if wrong.size:
        at = wrong[0]
        relation = "against" if listed[at] else "outside the list, whose last is"
        text = f"token {targets[at]} has {chosen[at]:g} {relation} {expected[at]:g} at position {start + at}"
        raise BadServer("chosen-apart", f"{text}; {FAULTS['chosen-apart']}")


def same_texts(a: Scores, b: Scores, what: str) -> None:
    """`BadServer` if both servers print the tokens and print one of them differently."""
    for place, (ours, theirs) in enumerate(zip(a.texts, b.texts, strict=False)):
        if ours != theirs:
            raise BadServer("other-texts", f"{what}, scored position {place}: {ours!r} and {theirs!r}; {FAULTS['other-texts']}")
