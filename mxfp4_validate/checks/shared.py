"""The layer around the routed experts: the shared expert, and routed_scaling_factor applied once, in either of the two places engines use."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from mxfp4_validate.backends.combine import engine_layer
from mxfp4_validate.cases import MoeCase
from mxfp4_validate.checkpoints.synthetic import random_bytes
from mxfp4_validate.checks.calls import call
from mxfp4_validate.checks.context import Context
from mxfp4_validate.comparison.explained import least_equal, require_close_to_exact, require_explained
from mxfp4_validate.formats.moe_weights import MoeInputs
from mxfp4_validate.reference.exact import exact_moe
from mxfp4_validate.reference.layer import RoutedScale, combine_shared, shared_expert
from mxfp4_validate.reference.twin import Twin, twin_moe

#: DeepSeek-V4's, exact in bf16: premultiplied weights are rounded by the backend's own rules alone.
ROUTED_SCALING_FACTOR = 1.5


def _shared_weights(case: MoeCase, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """gate, up [I, H] and down [H, I] bfloat16 of a shared expert as wide as a routed one: multiples of 1/128 in [-1, 1), scaled by 1/sqrt(K)."""
    H, I = case.shape.hidden_size, case.shape.intermediate_size  # noqa: E741

    def draw(name: str, rows: int, columns: int) -> Tensor:
        levels: Tensor = random_bytes((rows, columns), case.weight_stream(f"shared/{name}"), device).double() / 128 - 1
        matrix: Tensor = levels * float(columns) ** -0.5
        return matrix.bfloat16()

    return draw("gate", I, H), draw("up", I, H), draw("down", H, I)


def routed_scale(ctx: Context, case: MoeCase) -> dict[str, object]:
    """shared + routed_scaling_factor * routed, each mode against its own oracle: the twin's bits added up as that mode rounds, and float64."""
    weights, prepared = ctx.layer(case.shape, case.seed)
    inputs, activation, model = ctx.inputs(case), case.shape.activation, ctx.backend.rounding()
    factor, matrices = ROUTED_SCALING_FACTOR, _shared_weights(case, ctx.device)
    shared = shared_expert(inputs.x, *matrices, activation, torch.bfloat16)
    exact = combine_shared(
        shared_expert(inputs.x, *matrices, activation), exact_moe(weights, inputs, activation, model.e8m0), factor, RoutedScale.POST
    )

    def scaled(by: float) -> MoeInputs:
        return replace(inputs, topk_weights=inputs.topk_weights * by)

    metrics: dict[str, object] = {}
    for mode in RoutedScale:
        layer = getattr(ctx.backend, "layer", engine_layer)
        out = layer(shared, lambda by: call(ctx, prepared, scaled(by), activation), factor, mode)
        twin = twin_moe(weights, scaled(factor if mode is RoutedScale.PREMULTIPLIED else 1.0), activation, model)
        ends = (combine_shared(shared, end, factor, mode, torch.bfloat16) for end in (twin.value, twin.lower, twin.upper))
        what = f"{case.case_id}, factor {factor} {mode}"
        found = require_explained(out, Twin(*ends), what, share=least_equal(model))
        found |= require_close_to_exact(out, exact, f"{what}, against float64", model)
        metrics |= {f"{mode}_{name}": found[name] for name in ("bit_equal", "unexplained", "exact_relative_l2")}
    return metrics
