"""The numbers this project started from, and a record beside them as the table of `docs/bench.md`. Pure."""

from __future__ import annotations

from math import log

from mxfp4_validate.bench.crossover import advice, columns, pairs
from mxfp4_validate.bench.floor import Peak, peak_of
from mxfp4_validate.bench.record import BenchRun
from mxfp4_validate.bench.spec import Row

#: Kernel ms by tokens, measured eagerly on an H100 with flashinfer-python 0.6.11.post1 and sglang 0.5.12.post1, medians of 30 after 5.
SEED = {
    "sm90-cutlass": {4: 0.62, 16: 0.62, 64: 1.45, 256: 1.87, 1024: 3.84, 2048: 7.17, 4096: 12.4, 8192: 23.1},
    "sm90-cutlass tuned": {4: 0.38, 16: 0.97, 64: 1.22, 256: 1.61, 1024: 1.92, 2048: 2.63, 4096: 4.83, 8192: 9.96},
    "marlin": {4: 0.43, 16: 0.62, 64: 1.03, 256: 1.53, 1024: 2.06, 2048: 3.21, 4096: 6.55, 8192: 11.9},
}
SEED_SHAPE = ("dsv4-flash", False)
SEED_GPU = "NVIDIA H100 80GB HBM3"
#: A difference from the seed that wants a reason.
DIFFERS = 0.15


def markdown(run: BenchRun | None = None) -> str:
    """The table of `docs/bench.md`: each of the seed's numbers, ours and the ratio, a difference with its reason; below it what follows."""
    rows = () if run is None else run.of(SEED_SHAPE)
    found = columns(rows)
    lines = [] if run is None else [_about(run), ""]
    lines += [
        "| M | column | seed, H100, eager | ours | eager | ours / seed | times the floor | over 15 %: why |",
        "|--:|---|--:|--:|--:|--:|--:|---|",
    ]
    for tokens in sorted({m for line in SEED.values() for m in line}):
        for label, line in SEED.items():
            lines.append(_line(run, tokens, label, line[tokens], found.get(label, {}).get(tokens)))
    told = [f"- {pair.first} and {pair.second}: {pair.verdict}" for pair in pairs(rows)] + [f"- {a.sentence}" for a in advice(rows)]
    return "\n".join([*lines, *([""] if told else []), *told])


def _about(run: BenchRun) -> str:
    s, found = run.settings, run.provenance.get("versions", {})
    versions = ", ".join(f"{name} {found[name]}" for name in ("torch", "flashinfer-python", "sglang", "sglang-kernel") if name in found)
    return f"Record {run.id}, {run.device}, {versions}; median ms of {s['repeats']} calls after {s['warmup']}."


def _line(run: BenchRun | None, tokens: int, label: str, seed: float, row: Row | None) -> str:
    if run is None or row is None or row.median_ms is None:
        return f"| {tokens} | {label} | {seed:g} | not measured | | | | |"
    floor, ratio = run.floor(row), row.median_ms / seed
    eager = row.median_ms if row.eager_ms is None else row.eager_ms
    over = "" if floor is None else f"{row.median_ms / floor.ms:.1f} ({floor.bound})"
    why = reason(run, row, seed) if abs(ratio - 1) > DIFFERS else ""
    ours = f"{row.median_ms:.3g} ({row.mode})"
    return f"| {tokens} | {label} | {seed:g} | {ours} | {eager:.3g} | {ratio:.2f} | {over} | {why} |"


def reason(run: BenchRun, row: Row, seed: float) -> str:
    """What this record itself says about a difference: host time, another GPU's bandwidth, or that it is open."""
    assert row.median_ms is not None
    parts, rest = [], row.median_ms / seed
    if row.eager_ms is not None and _far(row.eager_ms / seed) < _far(rest):
        parts.append(f"ours is without the host's time; eagerly {row.eager_ms:.3g}")
        rest = row.eager_ms / seed
    here, there, floor = peak_of(run.device), peak_of(SEED_GPU), run.floor(row)
    if abs(rest - 1) > DIFFERS and here and there and floor and here != there:
        share = _share(here, there, floor.bound)
        if abs(rest / share - 1) <= DIFFERS:
            parts.append(f"the floor here is {floor.bound}, of which this GPU has {1 / share:.2f} times as much")
            rest /= share
    if abs(rest - 1) > DIFFERS:
        parts.append(f"**open** (x{rest:.2f} left)")
    return "; ".join(parts)


def _far(ratio: float) -> float:
    return abs(log(ratio))


def _share(here: Peak, there: Peak, bound: str) -> float:
    """Time here over time there for work at that bound."""
    return there.bandwidth / here.bandwidth if bound == "memory" else there.flops / here.flops
