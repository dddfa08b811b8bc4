"""TP and EP: each rank's partial is bit-checked, sums equal the single-rank mathematics, the bias counts once, foreign ids are ignored."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from mxfp4_validate.cases import MoeCase, Parallel
from mxfp4_validate.checks.calls import call
from mxfp4_validate.checks.context import Context
from mxfp4_validate.comparison.bits import require_equal
from mxfp4_validate.comparison.explained import least_equal, require_close_to_exact, require_explained
from mxfp4_validate.errors import CheckFailed
from mxfp4_validate.probes.build import PROBES
from mxfp4_validate.reference.certificate import certified_moe
from mxfp4_validate.reference.exact import exact_moe
from mxfp4_validate.reference.parallel import combine, shard_ep, shard_tp
from mxfp4_validate.reference.twin import twin_moe


@dataclass
class Ranks:
    """Differing bits of all ranks together. Every single one is explained rank by rank; their share is asked of the sum, because one
    activation on the edge of two bf16 numbers moves a tenth of a row of a narrow shard, and a rank has few rows."""

    least_equal: float
    size: int = 0
    different: int = 0
    elements: int = 0

    def add(self, metrics: dict[str, object]) -> None:
        self.size += 1
        self.different += int(str(metrics["different"]))
        self.elements += int(str(metrics["elements"]))

    def metrics(self, what: str) -> dict[str, object]:
        """The counts; `CheckFailed` if too few bits are the twins'."""
        found: dict[str, object] = {
            "ranks": self.size,
            "different": self.different,
            "unexplained": 0,
            "bit_equal": 1 - self.different / self.elements,
        }
        if self.different > max(1.0, (1 - self.least_equal) * self.elements):
            raise CheckFailed(
                f"{what}: {self.different} of {self.elements} values of all ranks differ from the twins, more than {1 - self.least_equal:.2%}",
                found,
            )
        return found


def _tp(ctx: Context, case: MoeCase, size: int) -> dict[str, object]:
    """Random data: every rank explained by its own twin; the sum close to float64. Biases stay on every rank: the kernel must drop bias2."""
    ctx.require(case.shape)
    weights = ctx.weights(case.shape, case.seed)
    inputs, activation, model = ctx.inputs(case), case.shape.activation, ctx.backend.rounding()
    partials, ranks = [], Ranks(least_equal(model))
    for rank in range(size):
        shard = shard_tp(weights, size, rank, bias_on_rank0=False)
        out = call(ctx, ctx.backend.prepare(shard), inputs, activation, parallel=Parallel(tp_size=size, tp_rank=rank))
        expected = twin_moe(shard, inputs, activation, model, add_w2_bias=rank == 0)
        ranks.add(require_explained(out, expected, f"TP rank {rank} of {size}", share=0.0))
        partials.append(out)
    exact = exact_moe(weights, inputs, activation, model.e8m0)
    return ranks.metrics(f"TP={size}") | require_close_to_exact(combine(partials), exact, f"sum over TP={size}", model)


def tp2(ctx: Context, case: MoeCase) -> dict[str, object]:
    return _tp(ctx, case, 2)


def tp4(ctx: Context, case: MoeCase) -> dict[str, object]:
    return _tp(ctx, case, 4)


def tp8(ctx: Context, case: MoeCase) -> dict[str, object]:
    return _tp(ctx, case, 8)


def tp_bias_once(ctx: Context, case: MoeCase) -> dict[str, object]:
    """Probe B2 split over two ranks: each rank's certified bits, with the second bias on rank 0 alone."""
    probe = PROBES["b2"](case, ctx.device)
    metrics: dict[str, object] = {}
    for rank in range(2):
        shard = shard_tp(probe.weights, 2, rank, bias_on_rank0=False)
        oracle = shard_tp(probe.weights, 2, rank, bias_on_rank0=True)
        certified = certified_moe(oracle, probe.inputs, probe.activation, ctx.backend.rounding())
        rows = certified.holds.all(1)
        if not rows.any():
            raise CheckFailed(f"probe b2, TP rank {rank} of 2: no row is certified, nothing was compared", {"certified_rows": 0.0})
        out = call(ctx, ctx.backend.prepare(shard), probe.inputs, probe.activation, parallel=Parallel(tp_size=2, tp_rank=rank))
        metrics = require_equal(out[rows], certified.value[rows], f"probe b2, TP rank {rank} of 2")
        metrics["certified_rows"] = float(rows.double().mean())
    return metrics


def _ep(ctx: Context, case: MoeCase, size: int) -> dict[str, object]:
    """Random data with global ids: foreign and -1 ids add nothing on any rank; ranks explained by their twins; the sum close to float64."""
    ctx.require(case.shape)
    weights = ctx.weights(case.shape, case.seed)
    inputs, activation, model = ctx.inputs(case), case.shape.activation, ctx.backend.rounding()
    local = weights.num_experts // size
    partials, ranks = [], Ranks(least_equal(model))
    for rank in range(size):
        shard = shard_ep(weights, size, rank)
        out = call(ctx, ctx.backend.prepare(shard), inputs, activation, parallel=Parallel(ep_size=size, ep_rank=rank))
        expected = twin_moe(shard, inputs, activation, model, first_expert=rank * local)
        ranks.add(require_explained(out, expected, f"EP rank {rank} of {size}", share=0.0))
        partials.append(out)
    exact = exact_moe(weights, inputs, activation, model.e8m0)
    skipped = int(((inputs.topk_ids < 0) | (inputs.topk_ids >= weights.num_experts)).sum())
    return (
        ranks.metrics(f"EP={size}")
        | {"ignored_ids": skipped}
        | require_close_to_exact(combine(partials), exact, f"sum over EP={size}", model)
    )


def ep2(ctx: Context, case: MoeCase) -> dict[str, object]:
    return _ep(ctx, case, 2)


def ep4(ctx: Context, case: MoeCase) -> dict[str, object]:
    return _ep(ctx, case, 4)


def no_local_expert(ctx: Context, case: MoeCase) -> dict[str, object]:
    """Tokens whose every id is -1 or foreign get zeros, not leftovers."""
    weights, prepared = ctx.layer(case.shape, case.seed)
    inputs = ctx.inputs(case)
    ids = inputs.topk_ids.clone()
    ids[::2] = -1
    ids[0, -1] = weights.num_experts
    out = call(ctx, prepared, replace(inputs, topk_ids=ids), case.shape.activation)
    return require_equal(out[::2], torch.zeros_like(out[::2]), "tokens without a local expert")
