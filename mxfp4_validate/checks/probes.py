"""Probe checks: the certified bits must come back, for every token count."""

from __future__ import annotations

import hashlib

import torch

from mxfp4_validate.cases import MoeCase
from mxfp4_validate.checks.calls import call
from mxfp4_validate.checks.context import Context
from mxfp4_validate.comparison.bits import require_equal
from mxfp4_validate.errors import CheckFailed
from mxfp4_validate.probes.build import PROBES, restate
from mxfp4_validate.reference.certificate import certified_moe


def _probe(ctx: Context, case: MoeCase, name: str) -> dict[str, object]:
    probe = PROBES[name](case, ctx.device)
    certified = certified_moe(probe.weights, probe.inputs, probe.activation, ctx.backend.rounding())
    if not bool(certified.holds.all()):
        raise CheckFailed(
            f"probe {name} is not exact: {int((~certified.holds).sum())} outputs lack a certificate; the probe is at fault, not the kernel"
        )
    out = call(ctx, ctx.backend.prepare(probe.weights), probe.inputs, probe.activation)
    metrics = require_equal(out, certified.value, f"probe {name}")
    return metrics | {"certified": certified.holds.numel(), "unrounded_share": float(certified.class_a.double().mean())}


def b1(ctx: Context, case: MoeCase) -> dict[str, object]:
    return _probe(ctx, case, "b1")


def b2(ctx: Context, case: MoeCase) -> dict[str, object]:
    return _probe(ctx, case, "b2")


def s1(ctx: Context, case: MoeCase) -> dict[str, object]:
    return _probe(ctx, case, "s1")


def s2(ctx: Context, case: MoeCase) -> dict[str, object]:
    return _probe(ctx, case, "s2")


def d1(ctx: Context, case: MoeCase) -> dict[str, object]:
    return _probe(ctx, case, "d1")


def a1(ctx: Context, case: MoeCase) -> dict[str, object]:
    """Class A, where nothing rounds: a backend with a beta of its own gets the same function with up's bias against it."""
    probe = PROBES["a1"](case, ctx.device)
    certified = certified_moe(probe.weights, probe.inputs, probe.activation, ctx.backend.rounding())
    if not bool((certified.holds & certified.class_a).all()):
        raise CheckFailed(f"probe a1 rounds somewhere: {int((~certified.class_a).sum())} outputs; the probe is at fault, not the kernel")
    beta = getattr(ctx.backend, "fixed_beta", None)
    if beta is not None and beta != probe.activation.beta:
        probe = restate(probe, beta)
        again = certified_moe(probe.weights, probe.inputs, probe.activation, ctx.backend.rounding())
        require_equal(again.value, certified.value, f"probe a1 restated with beta {beta:g}, by the reference")
    out = call(ctx, ctx.backend.prepare(probe.weights), probe.inputs, probe.activation)
    metrics = require_equal(out, certified.value, "probe a1")
    return metrics | {"beta": probe.activation.beta, "sha256": hashlib.sha256(out.cpu().view(torch.int16).numpy().tobytes()).hexdigest()}
