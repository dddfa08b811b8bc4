"""Divergence records for `report`: where they lie, and each candidate arm with its decision or why there is none."""

from __future__ import annotations

import re
from pathlib import Path

from mxfp4_validate.divergence.analyse import Result, analyse, arms_of
from mxfp4_validate.divergence.calibrate import limits_of
from mxfp4_validate.divergence.collect import AIME25_TOKENS, Asking, cost
from mxfp4_validate.divergence.record import DivergenceStore
from mxfp4_validate.errors import IncompleteRun, InvalidRun, UsageError
from mxfp4_validate.records.evals import run_file
from mxfp4_validate.reporting.inputs import ArmScored, CorpusFacts, DivergenceRecord, SequenceRow, Source

FILE = "divergence.sqlite"


def expand(path: Path) -> list[Path]:
    """What to read for `path`: of a folder that `diverge` wrote, its record, or with --regimes one a folder in it; else `path` itself."""
    if not path.is_dir() or run_file(path).is_file():
        return [path]
    if (path / FILE).is_file():
        return [path / FILE]
    return sorted(path.glob(f"*/{FILE}"), key=lambda found: natural(found.parent.name)) or [path]


def natural(text: str) -> list[int | str]:
    """A key that sorts 8 before 64."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"([0-9]+)", text)]


def read_divergence(path: Path, source: Source, calibration: Path | None = None) -> list[DivergenceRecord]:
    """A record for each candidate arm, one without a decision if there is no candidate yet.

    It is judged by `calibration`, or else by the one that `diverge` kept beside it.
    """
    with DivergenceStore.open(path) as store:
        return [_one(store, source, name, calibration) for name in arms_of(store, "candidate") or [""]]


def _one(store: DivergenceStore, source: Source, name: str, calibration: Path | None) -> DivergenceRecord:
    about = (source, store.id, store.created, store.version, name, _corpus(store), _arms(store))
    try:
        _roles(store)
        found = analyse(store, name, limits_of(store, calibration))
    except (IncompleteRun, InvalidRun, UsageError) as error:
        return DivergenceRecord(*about, None, str(error), isinstance(error, IncompleteRun))
    return DivergenceRecord(*about, found, floor=found.floor, rows=_sequences(found))


def _roles(store: DivergenceStore) -> None:
    """Every role that a decision takes, or what is missing."""
    have = ", ".join(f"{name} ({row.role})" for name, row in store.arms().items()) or "none"
    lacking = [role for role in ("baseline", "floor", "candidate") if not arms_of(store, role)]
    if lacking:
        raise IncompleteRun(f"no {' and no '.join(lacking)} arm was begun, it has {have}; run the same command again")
    if len(arms_of(store, "baseline")) > 1:
        raise InvalidRun(f"it has more than one baseline: {have}")


def _corpus(store: DivergenceStore) -> CorpusFacts:
    corpus, protocol = store.corpus, str(store.settings.get("protocol", "unknown"))
    requests, share = None, corpus.scored / AIME25_TOKENS
    try:
        price = cost(corpus, store.width, Asking(protocol).resolved())
        requests, share = price.requests, price.aime_share
    except UsageError:
        pass
    return CorpusFacts(corpus.sha256, corpus.made_by, len(corpus.sequences), corpus.scored, store.width, protocol, requests, share)


def _arms(store: DivergenceStore) -> tuple[ArmScored, ...]:
    found = []
    for name, row in store.arms().items():
        scores = store.scores(name)
        bad = tuple(place for place, score in scores.items() if score.scores is None)
        found.append(ArmScored(row, len(scores), bad, sum(score.tokens for score in scores.values())))
    return tuple(found)


def _sequences(found: Result) -> tuple[SequenceRow, ...]:
    """Every sequence that the candidate gave numbers for."""
    if found.arm is None or found.floor is None:
        return ()
    rows = zip(found.places, found.arm.positions, found.arm.kl, found.arm.flips, found.floor.kl, strict=True)
    return tuple(SequenceRow(place, int(n), float(kl), int(flips), float(under)) for place, n, kl, flips, under in rows)
