"""Several benchmarks at once: Holm for "any of them failed", intersection-union for "all of them passed"."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values (Holm 1979), in the order given: rejecting those at most alpha keeps any false rejection below alpha.

    Valid under any dependence between the benchmarks. Costs power: a loss of 2.5 standard errors on one of three
    benchmarks is found with .65 instead of .80.
    """
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted = [0.0] * len(p_values)
    highest = 0.0
    for rank, i in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = highest
    return adjusted


def intersection_union(passed: Iterable[bool]) -> bool:
    """All passed, of at least one (Berger 1982): each at its own alpha, no correction, and a false overall pass stays below alpha.

    The price is on the other side: three benchmarks that each pass an identical candidate with .9 all do so with .73.
    """
    results = list(passed)
    return bool(results) and all(results)
