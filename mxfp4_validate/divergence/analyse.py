"""A divergence record to what the rule decides on: every arm against the baseline, sequence by sequence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import isfinite
from typing import Any

from mxfp4_validate.divergence.limits import Limits
from mxfp4_validate.divergence.record import DivergenceStore, ScoreRow
from mxfp4_validate.divergence.rule import Decision, Floor, build_floor, decide, nothing_but_nan
from mxfp4_validate.divergence.scores import same_texts
from mxfp4_validate.divergence.statistic import Arm, Compared, arm, columns, compare
from mxfp4_validate.endpoint.identity import CRITICAL
from mxfp4_validate.errors import IncompleteRun, InvalidRun, UsageError


@dataclass(frozen=True, eq=False)
class Result:
    """One candidate arm.

    Attributes:
        decision: FAIL, UNDECIDED or GO ON; columns: llama.cpp's numbers of the candidate, floor_columns: those of the floor's arms together,
            which are the declared backends where the decision says so, else the A/A runs.
        worst: places of the sequences with the largest mean KL, the largest first; not_finite: places that ended in no number.
        limits: what it was judged by; floor: what it was held against, None if no sequence gave numbers.
        places, arm: the sequences that gave numbers, and the candidate's statistics of each.
    """

    decision: Decision
    columns: dict[str, float]
    floor_columns: dict[str, float]
    worst: tuple[int, ...]
    not_finite: tuple[int, ...]
    limits: Limits = field(default_factory=Limits)
    places: tuple[int, ...] = ()
    arm: Arm | None = None
    floor: Floor | None = None


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
    others = arms_of(store, "declared")
    if not baseline or more or not floors:
        raise UsageError(f"{store.path} needs one baseline arm and at least one floor arm, it has {_roles(store)}")
    if candidate not in arms_of(store, "candidate"):
        raise UsageError(f"{store.path} has no candidate arm {candidate!r}, it has {_roles(store)}")
    _check_arms(store, baseline, floors, others, candidate)
    rows = store.scores(candidate)
    places = [place for place, row in rows.items() if row.scores is not None]
    not_finite = tuple(place for place, row in rows.items() if row.scores is None)
    if not places:
        return Result(nothing_but_nan(len(not_finite)), {}, {}, (), not_finite, limits or Limits())
    mine = store.scores(baseline)
    found = against(store, mine, candidate, places)
    runs, declared = ([against(store, mine, name, places) for name in names] for names in (floors, others))
    me, arms = arm(found), ([arm(run) for run in runs], [arm(run) for run in declared])
    decision, floor = decide(me, arms[0], limits, len(not_finite), arms[1]), build_floor(*arms)
    worst = tuple(places[i] for i in me.kl.argsort()[::-1][:10])
    beside = columns([row for run in (declared if decision.declared else runs) for row in run])
    return Result(decision, columns(found), beside, worst, not_finite, limits or Limits(), tuple(places), me, floor)


def plain(value: Any) -> Any:
    """JSON's: tuples as lists; NaN and infinity as null, for a floor whose few flips a resample may miss altogether has no upper bound."""
    if isinstance(value, dict):
        return {name: plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    return None if isinstance(value, float) and not isfinite(value) else value


def _check_arms(store: DivergenceStore, baseline: str, floors: Sequence[str], others: Sequence[str], candidate: str = "") -> None:
    arms = store.arms()
    for name in (baseline, *floors, *others, *([candidate] if candidate else [])):
        left = store.missing(name)
        if left:
            raise IncompleteRun(f"arm {name!r} lacks {len(left)} sequences, the first is {left[0]}; run the same command again")
    for name in (baseline, *floors, *others):
        bad = [row for row in store.scores(name).values() if row.scores is None]
        if bad:
            raise InvalidRun(f"the baseline's arm {name!r} answered no number for sequence {bad[0].place}: {bad[0].error}")
    for names, keys, why in (
        (floors, CRITICAL, "is not the baseline's configuration: {} differ; a floor is the same server twice"),
        (others, ("model", "model_path"), "serves another model: {} differ; a declared backend computes the baseline's model"),
    ):
        for name in names:
            differs = [key for key in keys if arms[name].identity.get(key) != arms[baseline].identity.get(key)]
            if differs:
                raise InvalidRun(f"{'floor' if names is floors else 'declared'} arm {name!r} {why.format(', '.join(differs))}")


def sound_arms(store: DivergenceStore) -> tuple[list[Arm], list[Arm]]:
    """The A/A runs and the declared backends of a record against its baseline, checked as `analyse` does: what a calibration needs."""
    (baseline, *more), floors, others = arms_of(store, "baseline") or [""], arms_of(store, "floor"), arms_of(store, "declared")
    if not baseline or more or not floors:
        raise UsageError(f"{store.path} needs one baseline arm and at least one floor arm, it has {_roles(store)}")
    _check_arms(store, baseline, floors, others)
    mine, places = store.scores(baseline), range(len(store.corpus.sequences))
    aa, declared = ([arm(against(store, mine, name, places)) for name in names] for names in (floors, others))
    return aa, declared


def _roles(store: DivergenceStore) -> str:
    return ", ".join(f"{name} ({row.role})" for name, row in store.arms().items()) or "no arm"
