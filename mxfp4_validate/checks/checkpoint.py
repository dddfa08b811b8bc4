"""Probes on a checkpoint's own bytes: one GEMM is the real one, the other the probe's, so that exact results are known in advance.

A certificate holds element by element, so real weights need no regime: where it holds, every kernel must return these bits, and where it
does not, nothing is asked here and the twin decides.
"""

from __future__ import annotations

from mxfp4_validate.cases import MoeCase
from mxfp4_validate.checks.calls import call
from mxfp4_validate.checks.context import Context
from mxfp4_validate.comparison.bits import require_equal
from mxfp4_validate.errors import CheckFailed
from mxfp4_validate.formats.moe_weights import MoeInputs, MoeWeights
from mxfp4_validate.probes.build import Probe, b1, b2
from mxfp4_validate.reference.certificate import certified_moe


def probe_b1(ctx: Context, case: MoeCase) -> dict[str, object]:
    """The layer's w13, scales and first bias under B1's integers, bilinear activation and one-hot fc2."""
    real = ctx.weights(case.shape, case.seed)
    probe = b1(case, ctx.device)
    weights = probe.weights.with_(w13=real.w13, w13_scale=real.w13_scale, w13_bias=real.w13_bias)
    return _certified(ctx, probe, weights, probe.inputs)


def probe_b2(ctx: Context, case: MoeCase) -> dict[str, object]:
    """The layer's w2, scales and second bias behind B2's sparse fc1, one expert a token: real biases do not add up exactly over slots."""
    real = ctx.weights(case.shape, case.seed)
    probe = b2(case, ctx.device)
    weights = probe.weights.with_(w2=real.w2, w2_scale=real.w2_scale, w2_bias=real.w2_bias)
    inputs = probe.inputs
    one = MoeInputs(inputs.x, inputs.topk_ids[:, :1].contiguous(), inputs.topk_weights[:, :1].contiguous())
    return _certified(ctx, probe, weights, one)


def _certified(ctx: Context, probe: Probe, weights: MoeWeights, inputs: MoeInputs) -> dict[str, object]:
    """Equality wherever the certificate holds; `CheckFailed` if it holds nowhere, since nothing would have been tested."""
    certified = certified_moe(weights, inputs, probe.activation, ctx.backend.rounding())
    holds = certified.holds
    if not bool(holds.any()):
        raise CheckFailed(f"probe {probe.name}: no output of the checkpoint's weights has a certificate, so the probe says nothing of them")
    out = call(ctx, ctx.backend.prepare(weights), inputs, probe.activation)
    metrics = require_equal(out.where(holds, certified.value), certified.value, f"probe {probe.name} on the checkpoint's weights")
    return metrics | {"certified": int(holds.sum()), "certified_share": float(holds.double().mean())}
