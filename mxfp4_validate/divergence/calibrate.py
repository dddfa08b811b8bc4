"""The limits of one server from at least three runs against itself, kept with its identity and refused for any other."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from mxfp4_validate.divergence import limits as table
from mxfp4_validate.divergence.limits import Limits
from mxfp4_validate.divergence.record import DivergenceStore
from mxfp4_validate.divergence.rule import Floor, build_floor, resamples
from mxfp4_validate.divergence.scores import Floats
from mxfp4_validate.divergence.signed import drift, logs
from mxfp4_validate.divergence.statistic import Arm
from mxfp4_validate.errors import InvalidRun, UsageError

FORMAT = "mxfp4-validate divergence calibration 2"
#: Name of the copy that stands beside a record which was judged by it.
BESIDE = "calibration.json"
#: What differs between two boots of one configuration without meaning anything.
VOLATILE = ("random_seed", "max_total_num_tokens")


@dataclass(frozen=True)
class Calibration:
    """Limits with what they were taken from.

    Attributes:
        identity: the server's settings; corpus: the corpus's sha256; width: positions a request, which sets the tokens per forward.
        ratios, tails, flips, typicals: leave-one-out ratios as observed, one a run, those of legitimate other backends behind them.
        drifts: sizes of the drift over the floor's scatter, as far as they are certain.
        declared: whether A/A was silent, so that the other backends were held against each other.
    """

    identity: Mapping[str, str]
    corpus: str
    width: int
    ratio: float
    tail_factor: float
    flip_ratio: float
    typical: float
    drift: float
    quantile: float
    ratios: tuple[float, ...]
    tails: tuple[float, ...]
    flips: tuple[float, ...]
    typicals: tuple[float, ...]
    drifts: tuple[float, ...]
    declared: bool

    def limits(self, base: Limits | None = None) -> Limits:
        mine = {name: getattr(self, name) for name in ("ratio", "tail_factor", "flip_ratio", "typical", "drift")}
        return replace(base or Limits(), **mine)


def calibrate(runs: Sequence[Arm], identity: Mapping[str, str], corpus: str, width: int, legitimate: Sequence[Arm] = ()) -> Calibration:
    """Limits that every A/A run would have kept against the others, and every `legitimate` backend against all.

    Each limit is the larger of its default and the `CALIBRATION_QUANTILE` of its leave-one-out ratios, pooled over runs and over
    resampled sequences. A/A can show that a default is too small for a server; that a smaller one would do it cannot show, because
    another sound backend lies above A/A. A server that repeats its own bits has no noise: then at least three `legitimate` backends
    are held against each other.
    """
    least = int(table.LEAST_RUNS.value)
    if len(runs) < least:
        raise UsageError(f"{len(runs)} A/A runs, a calibration needs {least}; score the baseline again, after another boot if it can be")
    n = runs[0].kl.size
    if n < table.LEAST_SEQUENCES.value:
        raise UsageError(f"the A/A runs hold {n} sequences, a calibration needs {int(table.LEAST_SEQUENCES.value)}; use a larger corpus")
    if any(not np.array_equal(run.positions, runs[0].positions) for run in (*runs, *legitimate)):
        raise UsageError("the runs scored different positions; calibrate with runs of one corpus")
    sides, declared = _sides(runs, legitimate)
    draws, one = resamples(n, Limits().draws, Limits().seed), np.ones((1, n))
    found = [_ratios(run, floor, draws) for run, floor in sides]
    ratios, tails, flips, typicals = (
        tuple(float(v[0]) for v in values) for values in zip(*(_ratios(run, floor, one) for run, floor in sides), strict=True)
    )
    drifts = tuple(_drift(run, floor) for run, floor in sides)
    ratio, tail, flip, usual = (_raised(values) for values in zip(*found, strict=True))
    defaults = Limits()
    return Calibration(
        dict(identity), corpus, width, max(ratio, defaults.ratio), max(tail, defaults.tail_factor), max(flip, defaults.flip_ratio),
        max(usual, defaults.typical), max(*drifts, defaults.drift), table.CALIBRATION_QUANTILE.value, ratios, tails, flips, typicals, drifts, declared,
    )  # fmt: skip


def _raised(values: Sequence[Floats]) -> float:
    """The quantile of resampled ratios; `UsageError` where the floor of a resample is nothing, so that a ratio to it says nothing."""
    limit = float(np.quantile(np.concatenate(values), table.CALIBRATION_QUANTILE.value))
    if not np.isfinite(limit):
        raise UsageError("the A/A runs differ in so few sequences that resamples miss all of them; calibrate with a larger corpus")
    return limit


def _sides(runs: Sequence[Arm], legitimate: Sequence[Arm]) -> tuple[list[tuple[Arm, Floor]], bool]:
    """Each run with the floor of all others, then each legitimate backend with the floor of all runs; see `calibrate` for silent ones."""
    floors = [(run, build_floor([other for other in runs if other is not run])) for run in runs]
    if not any(floor.assumed for _, floor in floors):
        return floors + [(run, build_floor(runs)) for run in legitimate], False
    least = int(table.LEAST_RUNS.value)
    held = [(run, build_floor(runs, [other for other in legitimate if other is not run])) for run in legitimate]
    if len(held) < least or any(floor.assumed for _, floor in held):
        raise UsageError(
            "the A/A runs repeat each other's bits, there is no noise to calibrate with; run them with sums in another order (batch, TP size), "
            f"or declare {least} other accepted backends, of which there are {len(held)}"
        )
    return held, True


def _ratios(run: Arm, floor: Floor, draws: Floats) -> tuple[Floats, Floats, Floats, Floats]:
    """Ratios of mean KL, largest sequence mean, flips and typical KL [draws] of one run to a floor, on resampled sequences."""
    drawn = draws > 0
    with np.errstate(divide="ignore", invalid="ignore"):
        tail = np.where(drawn, run.kl, 0).max(1) / np.where(drawn, floor.peaks, 0).max(1)
        mean = draws @ run.kl / (draws @ floor.kl)
    usual = np.exp(draws @ (logs(run.kl) - floor.logs) / draws.sum(1))
    return mean, tail, draws @ run.flips / np.maximum(draws @ floor.flips, 1e-300), usual


def _drift(run: Arm, floor: Floor) -> float:
    """How far the drift of a sound run certainly goes, over the floor's scatter."""
    return 0.0 if run.drift is None else drift(run.drift, run.positions, Limits().level).least / floor.scatter


def save(calibration: Calibration, path: Path) -> None:
    """Write it with its own checksum; never over another file."""
    body = {"format": FORMAT, **vars(calibration)}
    text = json.dumps(body | {"sha256": _seal(body)}, indent=1, sort_keys=True, allow_nan=False)
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text + "\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise UsageError(f"cannot write the calibration {path}: {error}") from error


def load(path: Path, identity: Mapping[str, str] | None, corpus: str, width: int) -> Calibration:
    """A saved calibration; `UsageError` names what differs if it belongs to another server, corpus or number of positions a request.

    `identity` None: before a server was asked, corpus and width alone.
    """
    calibration = _read(path)
    named = set() if identity is None else {*identity, *calibration.identity} - set(VOLATILE)
    mine = identity or {}
    differs = [
        f"{name} is {mine.get(name, 'unknown')!r}, was {calibration.identity.get(name, 'unknown')!r}"
        for name in sorted(named)
        if mine.get(name) != calibration.identity.get(name)
    ]
    if calibration.corpus != corpus:
        differs.append(f"the corpus is {corpus[:12]}, was {calibration.corpus[:12]}")
    if calibration.width != width:
        differs.append(f"positions a request are {width}, were {calibration.width}")
    if differs:
        raise UsageError(f"the calibration {path} belongs to something else: {'; '.join(differs)}; calibrate this server")
    return calibration


def limits_of(store: DivergenceStore, named: Path | None = None) -> Limits | None:
    """The limits that a record is judged by: those of the calibration `named`, else of the one beside it, None for the rule's own."""
    beside = store.path.with_name(BESIDE)
    path = named or (beside if beside.exists() else None)
    return load(path, store.arms()["baseline"].identity, store.corpus.sha256, store.width).limits() if path else None


def _read(path: Path) -> Calibration:
    try:
        body: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        seal = body.pop("sha256")
        if body.pop("format") != FORMAT:
            raise ValueError(f"its format is not {FORMAT!r}")
        values: Any = {name: tuple(value) if isinstance(value, list) else value for name, value in body.items()}
        calibration = Calibration(**values)
    except OSError as error:
        raise UsageError(f"cannot read the calibration {path}: {error}") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UsageError(f"{path} is not a divergence calibration of mxfp4-validate: {error}") from error
    if seal != _seal({"format": FORMAT, **body}):
        raise InvalidRun(f"{path}: its checksum does not match, the file was damaged or edited; calibrate again")
    return calibration


def _seal(body: Mapping[str, Any]) -> str:
    return sha256(json.dumps(body, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()).hexdigest()
