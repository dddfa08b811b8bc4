"""The orders in which tools show the four options; each is a pure function of seed, place in the file and repeat."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from functools import lru_cache

from mxfp4_validate.errors import UsageError


def shown_order(rule: str, key: str, order: Sequence[str], repeat: int) -> tuple[int, ...]:
    """Which option stands where: four places in the source, where 0 is the right option.

    Args:
        rule: `file-42`, `file-0` or `repeat-0`, see `Profile.order`.
        key: id of the question; order: all ids in the order of the file.

    Raises:
        UsageError: the id is not in `order`, which these rules need whole.
    """
    places = _places(tuple(order))
    if key not in places:
        raise UsageError(
            f"option order {rule!r} needs the ids of the whole file in its order, and {key!r} is not among the {len(order)} given"
        )
    if rule == "file-42":
        return _shuffled(len(order))[places[key]]
    return _sampled(len(order), repeat if rule == "repeat-0" else 0)[places[key]]


@lru_cache(maxsize=8)
def _places(order: tuple[str, ...]) -> Mapping[str, int]:
    return {key: place for place, key in enumerate(order)}


@lru_cache(maxsize=8)
def _shuffled(count: int) -> list[tuple[int, ...]]:
    """One seed, and a shuffle in place for each row; the right option starts as the last of four."""
    source = random.Random(42)
    orders = []
    for _ in range(count):
        row = [1, 2, 3, 0]
        source.shuffle(row)
        orders.append(tuple(row))
    return orders


@lru_cache(maxsize=64)
def _sampled(count: int, repeat: int) -> list[tuple[int, ...]]:
    """One seed, and a sample for each row, all rows of one repeat before those of the next."""
    source = random.Random(0)
    orders = [tuple(source.sample(range(4), 4)) for _ in range(count * (repeat + 1))]
    return orders[count * repeat :]
