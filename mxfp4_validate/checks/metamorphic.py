"""Relations between two calls that hold bit for bit; a backend whose sums follow from the batch is held to the twin where they do not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from mxfp4_validate.cases import Activation, MoeCase
from mxfp4_validate.checks.calls import call, require_again
from mxfp4_validate.checks.context import Context
from mxfp4_validate.comparison.bits import require_equal
from mxfp4_validate.comparison.explained import require_explained
from mxfp4_validate.errors import NotSupported
from mxfp4_validate.formats.moe_weights import MoeInputs, MoeWeights
from mxfp4_validate.probes.build import PROBES
from mxfp4_validate.reference.twin import Twin, twin_moe


def _setting(ctx: Context, case: MoeCase) -> tuple[MoeWeights, Any, MoeInputs, Tensor]:
    weights, prepared = ctx.layer(case.shape, case.seed)
    inputs = ctx.inputs(case)
    return weights, prepared, inputs, call(ctx, prepared, inputs, case.shape.activation)


def _run_again(ctx: Context, weights: MoeWeights, inputs: MoeInputs, activation: Activation, base: Tensor, what: str) -> dict[str, object]:
    """The layer of `weights` gives `base`, as `require_again` asks it."""
    out = call(ctx, ctx.backend.prepare(weights), inputs, activation)

    def expected() -> Twin:
        return twin_moe(weights, inputs, activation, ctx.backend.rounding())

    return require_again(ctx, out, base, expected, what)


def _rows_again(ctx: Context, case: MoeCase, out: Tensor, base: Tensor, rows: Tensor, what: str) -> dict[str, object]:
    """`out` is the tokens `rows` in another batch: the same bits, or, where the order of a sum follows from the batch, explained ones."""
    model = ctx.backend.rounding()
    if model.ordered:
        return require_equal(out, base[rows], what)
    weights = ctx.weights(case.shape, case.seed)
    expected = twin_moe(weights, ctx.inputs(case).rows(rows), case.shape.activation, model)
    same = float((out == base[rows]).double().mean())
    return require_explained(out, expected, what, share=0.0) | {"equal_to_batch": same}


def token_permutation(ctx: Context, case: MoeCase) -> dict[str, object]:
    """Tokens in another order give the same rows in that order, and a doubled token gives equal rows."""
    _, prepared, inputs, base = _setting(ctx, case)
    order = torch.randperm(case.num_tokens, generator=torch.Generator().manual_seed(case.seed)).to(ctx.device)
    order = torch.cat((order, order[:1]))
    out = call(ctx, prepared, inputs.rows(order), case.shape.activation)
    return _rows_again(ctx, case, out, base, order, "permuted tokens, the first one twice")


def single_row(ctx: Context, case: MoeCase) -> dict[str, object]:
    """A token alone gives the bits it gives in the batch."""
    _, prepared, inputs, base = _setting(ctx, case)
    rows = sorted({0, case.num_tokens // 2, case.num_tokens - 1})
    alone = [call(ctx, prepared, inputs.rows(slice(r, r + 1)), case.shape.activation) for r in rows]
    return _rows_again(ctx, case, torch.cat(alone), base, torch.tensor(rows, device=ctx.device), f"tokens {rows} alone against the batch")


def expert_permutation(ctx: Context, case: MoeCase) -> dict[str, object]:
    """Experts stored in another order, with ids renamed, give the same bits."""
    weights, _, inputs, base = _setting(ctx, case)
    order = torch.randperm(weights.num_experts, generator=torch.Generator().manual_seed(case.seed + 1)).to(ctx.device)
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order), device=ctx.device)
    renamed = replace(inputs, topk_ids=place[inputs.topk_ids.long()].int())
    return _run_again(ctx, weights.experts(order), renamed, case.shape.activation, base, "permuted experts")


def slot_permutation(ctx: Context, case: MoeCase) -> dict[str, object]:
    """On probe B2, whose sums are exact, slots in reverse order give the same bits; on D1 where a backend cannot take B2's constants."""
    for name in ("b2", "d1"):
        probe = PROBES[name](case, ctx.device)
        try:
            prepared = ctx.backend.prepare(probe.weights)
            base = call(ctx, prepared, probe.inputs, probe.activation)
            break
        except NotSupported:
            if name == "d1":
                raise
    flipped = replace(
        probe.inputs, topk_ids=probe.inputs.topk_ids.flip(1).contiguous(), topk_weights=probe.inputs.topk_weights.flip(1).contiguous()
    )
    return require_equal(call(ctx, prepared, flipped, probe.activation), base, "reversed slots") | {"probe": probe.name}


def scale_shift(ctx: Context, case: MoeCase) -> dict[str, object]:
    """fc1 scales doubled and x halved: the same bits. fc2 scales doubled without bias: exactly twice the output. Weights doubled: likewise."""
    weights, _, inputs, base = _setting(ctx, case)
    activation = case.shape.activation
    doubled = weights.with_(w13_scale=weights.w13_scale + 1)
    metrics = _run_again(ctx, doubled, replace(inputs, x=inputs.x / 2), activation, base, "fc1 scale bytes + 1 and x / 2")
    plain = weights.with_(w2_bias=None)
    once = call(ctx, ctx.backend.prepare(plain), inputs, activation)
    _run_again(ctx, plain.with_(w2_scale=plain.w2_scale + 1), inputs, activation, once * 2, "fc2 scale bytes + 1")
    heavy = replace(inputs, topk_weights=inputs.topk_weights * 2)
    _run_again(ctx, plain, heavy, activation, once * 2, "routing weights x 2")
    return metrics


def sign_flip(ctx: Context, case: MoeCase) -> dict[str, object]:
    """All fc2 signs flipped, no second bias: exactly the negative. All up signs flipped with beta 0 and no bias: likewise."""
    weights, _, inputs, _ = _setting(ctx, case)
    plain = weights.with_(w2_bias=None, w13_bias=None)
    once = call(ctx, ctx.backend.prepare(plain), inputs, case.shape.activation)
    metrics = _run_again(ctx, plain.with_(w2=plain.w2 ^ 0x88), inputs, case.shape.activation, -once, "fc2 signs flipped")
    if getattr(ctx.backend, "fixed_beta", None):
        return metrics | {"up_flipped": "not asked: this backend's beta is not 0, so its activation is not odd in up"}
    even = replace(case.shape.activation, beta=0.0)
    up_flipped = plain.w13.clone()
    up_flipped[:, plain.intermediate_size :] ^= 0x88
    base = call(ctx, ctx.backend.prepare(plain), inputs, even)
    _run_again(ctx, plain.with_(w13=up_flipped), inputs, even, -base, "up signs flipped, beta 0")
    return metrics
