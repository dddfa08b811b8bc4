"""A divergence record to what the rule decides on: every arm against the baseline, sequence by sequence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mxfp4_validate.divergence.limits import Limits
from mxfp4_validate.divergence.record import DivergenceStore, ScoreRow
from mxfp4_validate.divergence.rule import Decision, decide, nothing_but_nan
from mxfp4_validate.divergence.scores import same_texts
from mxfp4_validate.divergence.statistic import Arm, Compared, arm, columns, compare
from mxfp4_validate.endpoint.identity import CRITICAL
from mxfp4_validate.errors import IncompleteRun, InvalidRun, UsageError


@dataclass(frozen=True, eq=False)
class Result:
    """One candidate arm.

    Attributes:
        decision: FAIL, UNDECIDED or GO ON; columns: llama.cpp's numbers of the candidate, floor_columns: those of the A/A runs together.
        worst: places of the sequences with the largest mean KL, the largest first; not_finite: places that ended in no number.
    """

    decision: Decision
    columns: dict[str, float]
    floor_columns: dict[str, float]
    worst: tuple[int, ...]
    not_finite: tuple[int, ...]


def arms_of(store: DivergenceStore, role: str) -> list[str]:
    """Names of the arms of that role."""
    return [name for name, row in store.arms().items() if row.role == role]


def against(store: DivergenceStore, baseline: dict[int, ScoreRow], name: str, places: Sequence[int]) -> list[Compared]:
    """An arm against the baseline at these places."""
    rows, out = store.scores(name), []
    for place in places:
        mine, theirs = baseline[place].scores, rows[place].scores
        if mine is None or theirs is None:
            raise ValueError(f"sequence {place} of arm {name!r} or of the baseline holds no numbers")
        same_texts(mine, theirs, f"sequence {place}, baseline and {name!r}")
        out.append(compare(mine, theirs, store.corpus.sequences[place].targets))
    return out


def analyse(store: DivergenceStore, candidate: str, limits: Limits | None = None) -> Result:
    """The decision on one candidate arm.

    `IncompleteRun` if an arm lacks a sequence, `InvalidRun` if the baseline itself answered NaN, `UsageError` without a floor.
    """
    (baseline, *more), floors = arms_of(store, "baseline") or [""], arms_of(store, "floor")
    if not baseline or more or not floors:
        raise UsageError(f"{store.path} needs one baseline arm and at least one floor arm, it has {_roles(store)}")
    if candidate not in arms_of(store, "candidate"):
        raise UsageError(f"{store.path} has no candidate arm {candidate!r}, it has {_roles(store)}")
    _check_arms(store, baseline, floors, candidate)
    rows = store.scores(candidate)
    places = [place for place, row in rows.items() if row.scores is not None]
    not_finite = tuple(place for place, row in rows.items() if row.scores is None)
    if not places:
        return Result(nothing_but_nan(len(not_finite)), {}, {}, (), not_finite)
    mine = store.scores(baseline)
    found = against(store, mine, candidate, places)
    runs = [against(store, mine, name, places) for name in floors]
    me: Arm = arm(found)
    decision = decide(me, [arm(run) for run in runs], limits, len(not_finite))
    worst = tuple(places[i] for i in me.kl.argsort()[::-1][:10])
    return Result(decision, columns(found), columns([row for run in runs for row in run]), worst, not_finite)


def _check_arms(store: DivergenceStore, baseline: str, floors: Sequence[str], candidate: str) -> None:
    for name in (baseline, *floors, candidate):
        left = store.missing(name)
        if left:
            raise IncompleteRun(f"arm {name!r} lacks {len(left)} sequences, the first is {left[0]}; run the same command again")
    for name in (baseline, *floors):
        bad = [row for row in store.scores(name).values() if row.scores is None]
        if bad:
            raise InvalidRun(f"the baseline's arm {name!r} answered no number for sequence {bad[0].place}: {bad[0].error}")
    arms = store.arms()
    for name in floors:
        differs = [key for key in CRITICAL if arms[name].identity.get(key) != arms[baseline].identity.get(key)]
        if differs:
            raise InvalidRun(
                f"floor arm {name!r} is not the baseline's configuration: {', '.join(differs)} differ; a floor is the same server twice"
            )


def _roles(store: DivergenceStore) -> str:
    return ", ".join(f"{name} ({row.role})" for name, row in store.arms().items()) or "no arm"
