"""How far two servers' distributions lie apart at the same positions: KL that cannot be too large, chosen-token ratio, argmax flips."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mxfp4_validate.divergence import limits
from mxfp4_validate.divergence.scores import Floats, Ids, Scores

Flags = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Compared:
    """Baseline B against another arm C at n positions of one sequence.

    Attributes:
        kl: KL(B || C) in nats [n], the least that both answers allow; see `least_kl`.
        log_ratio: log p_B - log p_C of the corpus's token [n]; its mean estimates the whole KL without bias if B sampled the corpus at T = 1.
        flip: whether the most likely token is another one [n].
        change: p_C - p_B of the corpus's token [n].
        bounded: B's probability on tokens of its list that C does not name [n]: the part of `kl` that is a bound.
    """

    kl: Floats
    log_ratio: Floats
    flip: Flags
    change: Floats
    bounded: Floats


@dataclass(frozen=True, eq=False)
class Arm:
    """One arm against the baseline, a value a sequence [S]: mean KL, flipped positions, scored positions, and two sums over its positions.

    `drift` sums log-ratio - KL, `scatter` half the log-ratio's square, both with each position cut at `DRIFT_CLIP`. They are None where only
    the KL is known; a drift then decides nothing.
    """

    kl: Floats
    flips: Floats
    positions: Floats
    drift: Floats | None = None
    scatter: Floats | None = None

    def __post_init__(self) -> None:
        shapes = [value.shape for value in (self.kl, self.flips, self.positions, self.drift, self.scatter) if value is not None]
        if len(set(shapes)) != 1 or self.kl.ndim != 1:
            raise ValueError(f"shapes {', '.join(map(str, shapes))}: an arm holds one value a sequence")


def compare(baseline: Scores, other: Scores, targets: Sequence[int]) -> Compared:
    """The two arms' scores of the same `targets`."""
    ids = np.asarray(targets, np.int32)
    if not len(baseline) == len(other) == ids.size:
        raise ValueError(f"{len(baseline)} and {len(other)} scored positions for {ids.size} targets, there must be as many of each")
    kl, bounded = least_kl(_named(baseline, ids), _named(other, ids))
    change = np.exp(other.chosen) - np.exp(baseline.chosen)
    return Compared(kl, baseline.chosen - other.chosen, _flips(baseline, other), change, bounded)


def arm(rows: Sequence[Compared]) -> Arm:
    """The sequence means the rule works on."""
    clip = limits.DRIFT_CLIP.value
    return Arm(
        np.array([row.kl.mean() for row in rows]),
        np.array([float(row.flip.sum()) for row in rows]),
        np.array([float(row.kl.size) for row in rows]),
        np.array([float((row.log_ratio - row.kl).clip(-clip, clip).sum()) for row in rows]),
        np.array([float((row.log_ratio.clip(-clip, clip) ** 2).sum()) / 2 for row in rows]),
    )


def compare_all(baseline: Sequence[Scores], other: Sequence[Scores], targets: Iterable[Sequence[int]]) -> list[Compared]:
    """Every sequence of an arm against the baseline's; `targets` are the corpus's tokens of each."""
    return [compare(mine, theirs, tokens) for mine, theirs, tokens in zip(baseline, other, targets, strict=True)]


@dataclass(frozen=True, eq=False)
class Named:
    """Tokens whose probability one arm tells [n, k + 1]: its list, then the corpus's token unless it is in the list.

    Attributes:
        ids: -1 where there is none; p: their probabilities, 0 there; cap: no other token is more likely than this [n].
    """

    ids: Ids
    p: Floats
    cap: Floats


def _named(scores: Scores, targets: Ids) -> Named:
    listed = (scores.top_ids == targets[:, None]).any(1)
    ids = np.concatenate([scores.top_ids, np.where(listed, -1, targets)[:, None]], 1).astype(np.int32)
    p = np.concatenate([np.exp(scores.top), np.where(listed, 0.0, np.exp(scores.chosen))[:, None]], 1)
    cap = np.exp(scores.top[:, -1]) if scores.top.shape[1] else np.ones(targets.size)
    return Named(ids, p, cap)


def least_kl(b: Named, c: Named) -> tuple[Floats, Floats]:
    """The least KL(B || C) [n] over all distributions that agree with B's and with C's named tokens, other tokens of C's list lumped.

    Three kinds of outcome, q being C's probabilities, all p's of the first two known from B:
    named by both: q known. Named by B alone: q unknown, at most `c.cap`. All else in one bucket: q unknown, at least what C
    gives to tokens B does not name. The unknown q's share what C has left so that the KL is least: in proportion to p, cut at
    the cap (Lagrange; the sum is convex). Lumping outcomes cannot raise a KL, so the whole vocabulary's is no smaller, but for
    twice `REST_FLOOR`: what is left beside the named tokens is a difference of rounded numbers and counts as that much at least.
    Second value: B's probability on tokens of the second kind.
    """
    floor = limits.REST_FLOOR.value
    pairs = (b.ids[:, :, None] == c.ids[:, None, :]) & (b.ids[:, :, None] >= 0)
    both, mine = pairs.any(2), b.ids >= 0
    q_both = np.where(both, np.take_along_axis(c.p, pairs.argmax(2), 1), 0.0)
    alone = mine & ~both
    q_theirs = np.where((c.ids >= 0) & ~pairs.any(1), c.p, 0.0).sum(1)
    p_rest = np.maximum(1 - b.p.sum(1), floor)
    left = np.maximum(1 - q_both.sum(1), floor)
    p_alone = np.where(alone, b.p, 0.0)
    q_alone = _share(p_alone, p_rest, c.cap, left)
    crowded = left - q_alone.sum(1) < q_theirs  # C's own tokens need more of it
    if crowded.any():
        room = np.maximum(left - q_theirs, floor)
        q_alone[crowded] = _share(p_alone[crowded], np.zeros(int(crowded.sum())), c.cap[crowded], room[crowded])
    q_rest = np.maximum(np.maximum(left - q_alone.sum(1), q_theirs), floor)
    terms = _term(np.where(mine, b.p, 0.0), np.where(both, q_both, q_alone)).sum(1) + _term(p_rest, q_rest)
    return terms, p_alone.sum(1)


def _share(p: Floats, p_rest: Floats, cap: Floats, total: Floats) -> Floats:
    """q [n, k] = min(cap, rate * p), the rate such that sum(q) + rate * p_rest = total, or all q at the cap where that is less."""
    capped = np.zeros(p.shape, bool)
    while True:
        free = np.where(capped, 0.0, p).sum(1) + p_rest
        rate = np.maximum(total - capped.sum(1) * cap, 0.0) / np.maximum(free, 1e-300)
        over = (p > 0) & ~capped & (rate[:, None] * p > cap[:, None])
        if not over.any():
            return np.where(capped, cap[:, None], rate[:, None] * p)
        capped |= over


def _term(p: Floats, q: Floats) -> Floats:
    """p log(p / q) - p + q: sums to the KL when both sum to 1, and is never negative, so rounding cannot make a KL negative."""
    safe_p, safe_q = np.maximum(p, 1e-300), np.maximum(q, 1e-300)
    gap = np.log(safe_q) - np.log(safe_p)
    return np.where(p > 0, safe_p * (np.expm1(np.minimum(gap, 700.0)) - gap), q)


def _flips(b: Scores, c: Scores) -> Flags:
    """No most likely token of one arm is a most likely token of the other; with equal log-probabilities there are several."""
    first_b, first_c = b.top == b.top[:, :1], c.top == c.top[:, :1]
    same = (b.top_ids[:, :, None] == c.top_ids[:, None, :]) & first_b[:, :, None] & first_c[:, None, :]
    flips: Flags = ~same.any((1, 2))
    return flips


def columns(rows: Sequence[Compared]) -> dict[str, float]:
    """What llama.cpp's `perplexity --kl-divergence` prints, over all positions, under its names; `p` columns and shares in percent.

    Its KL is over the whole vocabulary, ours the least that 20 tokens allow: ours is the smaller one.
    """
    kl = np.concatenate([row.kl for row in rows])
    change = np.concatenate([row.change for row in rows]) * 100
    flips = np.concatenate([row.flip for row in rows])
    out = {"mean_kld": float(kl.mean()), "median_kld": float(np.median(kl)), "max_kld": float(kl.max())}
    for level in (90, 95, 99, 99.9):
        out[f"kld_{level:g}%"] = float(np.percentile(kl, level))
    out["mean_log_ratio"] = float(np.concatenate([row.log_ratio for row in rows]).mean())
    out["same_top_p_%"] = float((1 - flips.mean()) * 100)
    out["mean_delta_p_%"] = float(change.mean())
    out["rms_delta_p_%"] = float(np.sqrt((change**2).mean()))
    out["bounded_mass_%"] = float(np.concatenate([row.bounded for row in rows]).mean() * 100)
    out["positions"] = float(kl.size)
    return out
