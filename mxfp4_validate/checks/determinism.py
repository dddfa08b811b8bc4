"""Determinism: identical calls return identical bits, and so do all tactics of one order; what a backend does not repeat stays explained."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor

from mxfp4_validate.backends.base import DEFAULT_TACTIC, Available, Tactic
from mxfp4_validate.cases import Activation, MoeCase
from mxfp4_validate.checks.calls import call
from mxfp4_validate.checks.context import Context
from mxfp4_validate.comparison.bits import describe_first, differs, where
from mxfp4_validate.comparison.explained import least_equal, require_explained
from mxfp4_validate.errors import CheckFailed
from mxfp4_validate.formats.moe_weights import MoeInputs
from mxfp4_validate.reference.rounding import RoundingModel
from mxfp4_validate.reference.twin import Twin, twin_moe

#: Identical calls of the default tactic, and of every tactic group where the version is known to be bad: a race that hits one call in
#: 1,000 is missed by 3,000 with probability 5 %.
REPEATS = {"cuda": 3000, "cpu": 5}
#: Calls of each other group on versions without a known defect, whose slow tiles would take four minutes; `MXFP4_THOROUGH=1` gives all of them all.
REPEATS_CLEAN = {"cuda": 300, "cpu": 5}


def _bits(t: Tensor) -> Tensor:
    return t.view(torch.int16)


def _repeat(ctx: Context, prepared: Any, inputs: MoeInputs, activation: Activation, tactic: Tactic, repeats: int) -> Tensor:
    """How often each row [M] int32 differed from the first call's; bits are compared, so a NaN equals itself."""
    first = ctx.backend.run(prepared, inputs, activation, tactic=tactic).clone()
    out = torch.empty_like(first)
    rows = torch.zeros(first.shape[0], dtype=torch.int32, device=first.device)
    calls = torch.zeros((), dtype=torch.int32, device=first.device)
    for _ in range(repeats):
        out.fill_(torch.nan)
        ctx.backend.run(prepared, inputs, activation, tactic=tactic, out=out)
        wrong = (_bits(out) != _bits(first)).any(1)
        rows += wrong
        calls += wrong.any()
    if int(calls):
        raise _differing(int(calls), repeats, rows, tactic)
    return rows


def _differing(calls: int, repeats: int, rows: Tensor, tactic: Tactic) -> CheckFailed:
    hit = rows.nonzero().flatten()
    return CheckFailed(
        f"{calls} of {repeats} identical calls differ from the first (tactic {tactic.name}): {hit.numel()} rows, first {hit[:16].tolist()}; "
        "a race, if the layout is right: compare the versions in the header with the known-bad list",
        {"tactic": tactic.name, "differing_calls": calls, "repeats": repeats, "rows": hit[:64].tolist()},
    )


def _explained_repeats(
    ctx: Context, prepared: Any, inputs: MoeInputs, activation: Activation, tactic: Tactic, twin: Twin, repeats: int
) -> dict[str, object]:
    """Calls of a backend that does not repeat bits: each lies in the twin's intervals; how many differ from the first is recorded.

    Raises `CheckFailed` with the rows that any call had outside.
    """
    first = call(ctx, prepared, inputs, activation, tactic=tactic).clone()
    require_explained(first, twin, f"the first of {repeats} identical calls", share=least_equal(ctx.backend.rounding(tactic)))
    out = torch.empty_like(first)
    outside, moved = (torch.zeros(first.shape[0], dtype=torch.int32, device=first.device) for _ in range(2))
    calls, wrong = (torch.zeros((), dtype=torch.int32, device=first.device) for _ in range(2))
    for _ in range(repeats):
        out.fill_(torch.nan)
        ctx.backend.run(prepared, inputs, activation, tactic=tactic, out=out)
        differing = (_bits(out) != _bits(first)).any(1)
        rows = (~((out >= twin.lower) & (out <= twin.upper) | (out == twin.value))).any(1)
        moved += differing
        calls += differing.any()
        outside += rows
        wrong += rows.any()
    if int(wrong):
        hit = outside.nonzero().flatten()
        raise CheckFailed(
            f"{int(wrong)} of {repeats} identical calls leave the twin's intervals (tactic {tactic.name}): {hit.numel()} rows, first "
            f"{hit[:16].tolist()}; this backend may repeat other bits, but not values that no order of its sums explains: a race",
            {"tactic": tactic.name, "unexplained_calls": int(wrong), "repeats": repeats, "rows": hit[:64].tolist()},
        )
    return {"differing_calls": int(calls), "differing_rows": int((moved > 0).sum()), "unexplained_calls": 0}


def repeat(ctx: Context, case: MoeCase) -> dict[str, object]:
    """Thousands of identical calls with the default tactic and with one tactic of every group."""
    weights, prepared = ctx.layer(case.shape, case.seed)
    inputs, full, calls = ctx.inputs(case), REPEATS[ctx.device.type], 0
    available = ctx.backend.availability()
    suspect = isinstance(available, Available) and "known_bad" in available.facts
    thorough = suspect or os.environ.get("MXFP4_THOROUGH", "") == "1"
    found: dict[str, object] = {}
    groups: dict[str, Tactic] = {}
    for tactic in ctx.backend.tactics(prepared, case.num_tokens):
        groups.setdefault(tactic.group, tactic)
    for tactic in groups.values():
        repeats = full if thorough or tactic is DEFAULT_TACTIC else REPEATS_CLEAN[ctx.device.type]
        model = ctx.backend.rounding(tactic)
        if model.repeatable:
            _repeat(ctx, prepared, inputs, case.shape.activation, tactic, repeats)
        else:
            twin = twin_moe(weights, inputs, case.shape.activation, model)
            found |= _explained_repeats(ctx, prepared, inputs, case.shape.activation, tactic, twin, repeats)
        calls += repeats
    facts = {"repeats": full, "full_strength": thorough, "tactic_groups": len(groups), "calls": calls, "groups": sorted(groups)}
    return facts | found


def tactics(ctx: Context, case: MoeCase) -> dict[str, object]:
    """Every tactic against the twin of its own summation order, and bit-equal to every other tactic of the same order."""
    weights, prepared = ctx.layer(case.shape, case.seed)
    inputs, activation = ctx.inputs(case), case.shape.activation
    by_model: dict[RoundingModel, tuple[Twin, Tensor, Tactic]] = {}
    found = ctx.backend.tactics(prepared, case.num_tokens)
    metrics: dict[str, object] = {}
    for tactic in found:
        model = ctx.backend.rounding(tactic)
        out = call(ctx, prepared, inputs, activation, tactic=tactic)
        if model not in by_model:
            expected = twin_moe(weights, inputs, activation, model)
            by_model[model] = (expected, out, tactic)
        expected, first, first_tactic = by_model[model]
        metrics = require_explained(out, expected, f"tactic {tactic.name}", share=least_equal(model))
        wrong = differs(out, first)
        if model.repeatable and bool(wrong.any()):
            raise CheckFailed(
                f"tactics {tactic.name} and {first_tactic.name} differ in {int(wrong.sum())} values\n{describe_first(out, first, wrong)}\n{where(wrong)}",
                {"tactic": tactic.name},
            )
    return {"tactics": len(found), "orders": len(by_model), "bit_equal": metrics.get("bit_equal")}


def tuned(ctx: Context, case: MoeCase) -> dict[str, object]:
    """What the autotuner picks is explained by its own order's twin and repeats the forced call's bits."""
    weights, prepared = ctx.layer(case.shape, case.seed)
    inputs, activation = ctx.inputs(case), case.shape.activation
    tune = getattr(ctx.backend, "tune", None)
    picked: Tactic = tune(prepared, inputs, activation) if tune else DEFAULT_TACTIC
    forced = call(ctx, prepared, inputs, activation, tactic=picked)
    free = call(ctx, prepared, inputs, activation, tactic=Tactic("tuned", "tuned") if tune else DEFAULT_TACTIC)
    model = ctx.backend.rounding(picked)
    wrong = differs(free, forced)
    if model.repeatable and bool(wrong.any()):
        raise CheckFailed(
            f"the tuned call differs from tactic {picked.name} in {int(wrong.sum())} values\n{describe_first(free, forced, wrong)}"
        )
    expected = twin_moe(weights, inputs, activation, model)
    return require_explained(free, expected, f"tuned call, tactic {picked.name}", share=least_equal(model)) | {"tactic": picked.name}
