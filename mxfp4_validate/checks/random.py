"""Random data: outputs equal the ordered twin's bit for bit, up to bits the kernel's declared freedom explains one by one."""

from __future__ import annotations

import torch

from mxfp4_validate.cases import MoeCase, Routing
from mxfp4_validate.checks.calls import call
from mxfp4_validate.checks.context import Context
from mxfp4_validate.comparison.explained import least_equal, require_close_to_exact, require_explained, tile_errors
from mxfp4_validate.errors import CheckFailed
from mxfp4_validate.formats import e2m1
from mxfp4_validate.reference.exact import exact_moe, exact_stages
from mxfp4_validate.reference.twin import twin_moe

#: float64 over every weight is slow; up to this many tokens the twin itself is held against it.
EXACT_TOKENS = 129


def twin(ctx: Context, case: MoeCase) -> dict[str, object]:
    """Bit comparison with the ordered twin, and for small batches both against float64."""
    weights, prepared = ctx.layer(case.shape, case.seed)
    inputs, activation, model = ctx.inputs(case), case.shape.activation, ctx.backend.rounding()
    out = call(ctx, prepared, inputs, activation)
    expected = twin_moe(weights, inputs, activation, model)
    metrics = require_explained(out, expected, f"{case.case_id} against the twin of {model.name}", share=least_equal(model))
    metrics |= tile_errors(out, expected.value)
    if case.num_tokens <= EXACT_TOKENS:
        exact = exact_moe(weights, inputs, activation, model.e8m0)
        metrics |= require_close_to_exact(out, exact, f"{case.case_id} against float64", model)
    return metrics


def coverage(ctx: Context, case: MoeCase) -> dict[str, object]:
    """The data visits what a fault could hide in: all codes, several scales, the clamp on every side, the routing asked for."""
    weights = ctx.weights(case.shape, case.seed)
    inputs, activation = ctx.inputs(case), case.shape.activation
    some = inputs.rows(slice(0, 16))
    stages = exact_stages(weights, some, activation)
    used = (some.topk_ids >= 0) & (some.topk_ids < weights.num_experts)
    gate, up = stages.gate[used], stages.up[used]
    limit = activation.limit or torch.inf
    counts = torch.bincount(e2m1.unpack(weights.w13[0]).flatten(), minlength=16)
    ids = inputs.topk_ids[(inputs.topk_ids >= 0) & (inputs.topk_ids < weights.num_experts)]
    found: dict[str, object] = {
        "codes": int((counts > 0).sum()),
        "scale_values": int(weights.w13_scale.unique().numel()),
        "gate_over_limit": float((gate > limit).double().mean()),
        "up_over_limit": float((up > limit).double().mean()),
        "up_under_limit": float((up < -limit).double().mean()),
        "unsaturated": float(((activation.alpha * gate).abs() < 4).double().mean()),
        "preactivation_rms": float(gate.pow(2).mean().sqrt()),
        "experts_used": int(ids.unique().numel()),
        "experts": weights.num_experts,
    }
    missing = [name for name in ("gate_over_limit", "up_over_limit", "up_under_limit") if not 0.002 < float(str(found[name])) < 0.05]
    missing += ["codes"] * (found["codes"] != 16) + ["scale_values"] * (int(str(found["scale_values"])) < 3)
    missing += ["unsaturated"] * (float(str(found["unsaturated"])) < 0.5)
    if case.routing is Routing.EMPTY and ids.unique().numel() > weights.num_experts // 2:
        missing.append("experts_used")
    if case.routing is Routing.ZERO_WEIGHT and not bool((inputs.topk_weights == 0).any()):
        missing.append("zero weights")
    if missing:
        raise CheckFailed(f"the data of {case.case_id} does not cover {', '.join(missing)}: {found}", found)
    return found
