"""What the tests of the bench share: an invented record of a GPU run, and backends that misbehave."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from mxfp4_validate.backends.base import DEFAULT_TACTIC, Tactic
from mxfp4_validate.backends.emulate import Emulated
from mxfp4_validate.bench.record import BenchStore
from mxfp4_validate.bench.spec import Plan, Row, parse_shape
from mxfp4_validate.errors import NotSupported
from mxfp4_validate.formats.moe_weights import MoeInputs, MoeWeights
from mxfp4_validate.reference.rounding import MARLIN

PROVENANCE: dict[str, Any] = {"versions": {"torch": "2.11.0"}, "gpus": [{"name": "NVIDIA H200"}], "python": "3.12", "commit": "0123"}
#: Invented medians by column and tokens: the tuned candidate overtakes the baseline between 256 and 1024.
TIMES = {
    "marlin": {4: 0.4, 64: 0.8, 256: 1.2, 1024: 2.0, 8192: 12.0},
    "sm90-cutlass": {4: 0.6, 64: 1.2, 256: 1.9, 1024: 3.8, 8192: 24.0},
    "sm90-cutlass tuned": {4: 0.5, 64: 0.9, 256: 1.3, 1024: 1.5, 8192: 9.0},
}


def row(label: str, tokens: int, ms: float | None, **more: Any) -> Row:
    """A row of an invented column, its quartiles a per cent around the median."""
    backend, _, tuned = label.partition(" ")
    base: dict[str, Any] = {"outcome": "measured", "mode": "graph" if tokens <= 512 else "ahead", "experts_hit": min(256, 6 * tokens)}
    if ms is not None:
        base |= {"median_ms": ms, "q1_ms": ms * 0.99, "q3_ms": ms * 1.01, "eager_ms": ms + 0.2, "samples_ms": (ms,)}
    return Row(**{"shape": "dsv4-flash", "bias": False, "tokens": tokens, "backend": backend, "tuned": bool(tuned), **base, **more})


def make_bench(path: Path, status: int | None = 0, extra: tuple[Row, ...] = (), gpu: str = "NVIDIA H200") -> Path:
    """A bench record in `path`; `status` None is one that was cut short, `extra` rows stand with those of the last M."""
    tokens = tuple(TIMES["marlin"])
    plan = Plan(("sm90-cutlass", "marlin"), "cuda", (parse_shape("dsv4-flash"),), tokens)
    with BenchStore.create(path, plan.settings(), PROVENANCE) as store:
        store.note("device", {"name": gpu, "clock": "CUDA events"})
        store.note("sm90-cutlass", {"available": True, "layout": "sm90-a"})
        store.note("marlin", {"available": True})
        for place, m in enumerate(tokens):
            rows = [row(label, m, line[m]) for label, line in TIMES.items()]
            store.add(place, "", rows + [r for r in extra if r.tokens == m])
        if status is not None:
            store.finish(status)
    return path


class Quick(Emulated):
    """A twin with a pure call and a tuner; `device` tells the registry where it runs."""

    device = "cpu"

    def __init__(self) -> None:
        super().__init__("quick", MARLIN, None)

    def timed(self, prepared: Any, inputs: MoeInputs, activation: Any, *, tactic: Tactic = DEFAULT_TACTIC) -> Callable[[], Tensor]:
        answer = self.run(prepared, inputs, activation)
        return lambda: answer

    def tune(self, prepared: Any, inputs: MoeInputs, activation: Any) -> Tactic:
        return Tactic("found", group="tuned")


class Liar(Quick):
    """Its timed call computes something else."""

    def timed(self, prepared: Any, inputs: MoeInputs, activation: Any, *, tactic: Tactic = DEFAULT_TACTIC) -> Callable[[], Tensor]:
        answer = super().timed(prepared, inputs, activation)() * 1.1
        return lambda: answer


class Biasless(Quick):
    """Takes no biases."""

    def prepare(self, weights: MoeWeights) -> Any:
        if weights.w13_bias is not None:
            raise NotSupported("its interface takes no biases")
        return super().prepare(weights)


class OneActivation(Quick):
    """Has GPT-OSS's activation alone, and cannot make another model's weights fit."""

    def require(self, activation: Any) -> None:
        if activation.beta != 1.0:
            raise NotSupported("always adds 1 to up")

    def prepare(self, weights: MoeWeights) -> Any:
        if weights.w13_bias is None:
            raise MemoryError("prepared for nothing")
        return super().prepare(weights)


class Dies(Quick):
    """Ends its process from two tokens on."""

    def timed(self, prepared: Any, inputs: MoeInputs, activation: Any, *, tactic: Tactic = DEFAULT_TACTIC) -> Callable[[], Tensor]:
        if inputs.x.shape[0] > 1:
            os._exit(7)
        return super().timed(prepared, inputs, activation)


class Slow(Quick):
    """Has no pure call: whoever times it waits for its twin."""

    timed = None  # type: ignore[assignment]
    tune = None  # type: ignore[assignment]
