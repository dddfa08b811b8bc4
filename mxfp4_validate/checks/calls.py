"""Calling a backend so that nothing unwritten passes: outputs start as NaN between guard bands, and the guards are read afterwards."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mxfp4_validate.backends.base import DEFAULT_TACTIC, Tactic
from mxfp4_validate.cases import SINGLE, Activation, Parallel
from mxfp4_validate.checks.context import Context
from mxfp4_validate.comparison.bits import require_equal
from mxfp4_validate.comparison.explained import least_equal, require_explained
from mxfp4_validate.errors import CheckFailed
from mxfp4_validate.formats.moe_weights import MoeInputs
from mxfp4_validate.reference.twin import Twin

GUARD_ROWS = 8
#: A NaN with a payload that no kernel computes, so that an overwritten guard shows even if a NaN was written.
GUARD_BITS = 0x7FA5


def call(
    ctx: Context,
    prepared: Any,
    inputs: MoeInputs,
    activation: Activation,
    *,
    parallel: Parallel = SINGLE,
    tactic: Tactic = DEFAULT_TACTIC,
    hidden_size: int | None = None,
) -> Tensor:
    """One call into a NaN-filled buffer [M, H] with `GUARD_ROWS` guard rows before and after. Raises `CheckFailed` if a guard changed."""
    M, H = inputs.x.shape[0], hidden_size or inputs.x.shape[1]
    band = torch.full((M + 2 * GUARD_ROWS, H), GUARD_BITS, dtype=torch.int16, device=inputs.x.device)
    out = band[GUARD_ROWS:-GUARD_ROWS].view(torch.bfloat16)
    result = ctx.backend.run(prepared, inputs, activation, parallel=parallel, tactic=tactic, out=out)
    touched = torch.cat((band[:GUARD_ROWS], band[-GUARD_ROWS:])) != GUARD_BITS
    if bool(touched.any()):
        row, column = touched.nonzero()[0].tolist()
        raise CheckFailed(f"wrote outside its output: guard row {row}, column {column} (tactic {tactic.name})", {"tactic": tactic.name})
    return result


def require_again(ctx: Context, out: Tensor, base: Tensor, expected: Callable[[], Twin], what: str) -> dict[str, object]:
    """`out` repeats `base` bit for bit; a backend whose calls do not repeat bits is held to the twin `expected()` of the call that gave `out`."""
    model = ctx.backend.rounding()
    if model.repeatable:
        return require_equal(out, base, what)
    same = float((out == base).double().mean())
    return require_explained(out, expected(), what, share=least_equal(model)) | {"equal_to_first": same}
