"""The masthead's facts. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mxfp4_validate.bench.record import BenchRun
from mxfp4_validate.records.store import Run
from mxfp4_validate.reporting.inputs import Inputs, moe_backend


def masthead(inputs: Inputs) -> tuple[tuple[str, str], ...]:
    """Candidate, baseline, model, GPU, date, run ids."""
    rows: list[tuple[str, str]] = []
    backends = sorted({r.backend for record in inputs.kernels for r in record.results})
    rows += [("kernel candidate", ", ".join(backends))] if backends else []
    for name in ("candidate", "baseline"):
        kinds = sorted({moe_backend(identity) or "unknown backend" for identity in _served(inputs, name)})
        rows += [(name, ", ".join(kinds))] if kinds else []
    model = sorted({i.get("model", "") for name in ("candidate", "baseline") for i in _served(inputs, name)} - {""})
    rows += [("model", ", ".join(model))] if model else []
    runs = _runs(inputs)
    gpus = sorted({str(g.get("name")) for _, _, p in runs for g in p.get("gpus", []) if isinstance(g, dict)})
    dates = sorted({created[:10] for _, created, _ in runs})
    rows += [("GPU", ", ".join(gpus) or "none on the recording machine")]
    rows += [("date", " to ".join(dict.fromkeys((dates[0], dates[-1]))))] if dates else []
    return (*rows, ("runs", ", ".join(run for run, _, _ in runs)))


def _served(inputs: Inputs, role: str) -> list[Mapping[str, str]]:
    """Identities of the servers that were candidate or baseline."""
    legs = [leg for pair in inputs.pairs if (leg := getattr(pair, role)) is not None]
    arms = [arm.row for record in inputs.divergences for arm in record.arms if arm.row.role == role]
    return [leg.leg.identity for leg in legs] + [arm.identity for arm in arms]


def _runs(inputs: Inputs) -> list[tuple[str, str, Mapping[str, Any]]]:
    """(id, created, provenance) of every run, each once."""
    kept: list[Run | BenchRun] = [*(record.run for record in inputs.kernels), *(record.run for record in inputs.benches)]
    found: list[tuple[str, str, Mapping[str, Any]]] = [(run.id, run.created, run.provenance) for run in kept]
    legs = [leg for pair in inputs.pairs for leg in (pair.baseline, pair.candidate) if leg is not None]
    found += [(leg.run.id, leg.run.created, leg.run.provenance) for leg in legs]
    return found + [(run, created, {}) for run, created in dict.fromkeys((r.run_id, r.created) for r in inputs.divergences)]
