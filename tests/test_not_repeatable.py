"""A backend that does not repeat its bits: what its sums may do is explained, what they may not is still found."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from mxfp4_validate.backends.emulate import Emulated
from mxfp4_validate.cases import SHAPES, Activation, MoeCase, Parallel, Routing
from mxfp4_validate.checks import determinism, metamorphic, poison
from mxfp4_validate.checks.context import Context
from mxfp4_validate.errors import CheckFailed
from mxfp4_validate.formats.moe_weights import MoeInputs, MoeWeights
from mxfp4_validate.reference.rounding import MARLIN, RoundingModel
from mxfp4_validate.reference.twin import twin_moe

CASE = MoeCase(SHAPES["dsv4-tiny"], 17)
RELATIONS: dict[str, tuple[Callable[[Context, MoeCase], dict[str, object]], MoeCase]] = {
    "expert-permutation": (metamorphic.expert_permutation, CASE),
    "scale-shift": (metamorphic.scale_shift, CASE),
    "sign-flip": (metamorphic.sign_flip, CASE),
    "pads": (poison.pads, CASE),
    "unused-experts": (poison.unused_experts, MoeCase(SHAPES["dsv4-mini"], 3, Routing.EMPTY)),
    "zero-weight": (poison.zero_weight, MoeCase(CASE.shape, 17, Routing.ZERO_WEIGHT)),
    "repeat": (determinism.repeat, CASE),
    "tactics": (determinism.tactics, CASE),
    "tuned": (determinism.tuned, CASE),
}


@dataclass
class Restless(Emulated):
    """Marlin's twin with one element of each call moved to the end of its interval, `past` bf16 numbers further if asked."""

    past: int = 0
    calls: int = 0

    def compute(self, weights: MoeWeights, inputs: MoeInputs, activation: Activation, parallel: Parallel, model: RoundingModel) -> Tensor:
        out = super().compute(weights, inputs, activation, parallel, model)
        upper = twin_moe(weights, inputs, activation, model).upper
        free = (upper > out).nonzero()
        at = tuple(free[(7 * self.calls) % len(free)].tolist())
        self.calls += 1
        end = upper[at].clone()
        for _ in range(self.past):
            end = torch.nextafter(end, torch.tensor(torch.inf, dtype=torch.bfloat16))
        out[at] = end
        return out


def restless(past: int = 0, **changes: Any) -> Context:
    return Context(Restless("restless", replace(MARLIN, **changes), None, past=past))


@pytest.mark.parametrize("name", RELATIONS)
def test_what_an_order_explains_passes(name: str) -> None:
    check, case = RELATIONS[name]
    assert check(restless(), case)


@pytest.mark.parametrize("name", RELATIONS)
def test_what_no_order_explains_fails(name: str) -> None:
    check, case = RELATIONS[name]
    with pytest.raises(CheckFailed, match=r"unexplained|leave the twin's intervals"):
        check(restless(past=2), case)


@pytest.mark.parametrize("name", [name for name in RELATIONS if name != "tactics"])
def test_a_backend_that_should_repeat_is_held_to_its_bits(name: str) -> None:
    check, case = RELATIONS[name]
    with pytest.raises(CheckFailed, match="differ"):
        check(restless(repeatable=True), case)


def test_how_many_calls_differed_is_recorded() -> None:
    found = determinism.repeat(restless(), CASE)
    assert found["differing_calls"] == found["calls"]
    assert found["unexplained_calls"] == 0


def test_a_call_that_breaks_once_is_found() -> None:
    """The race of the known-bad list: most calls are right, one has a row of another expert."""
    ctx = restless()
    backend = ctx.backend
    right = backend.run
    hit = {"left": 4}

    def run(prepared: Any, inputs: MoeInputs, activation: Activation, **rest: Any) -> Tensor:
        out = right(prepared, inputs, activation, **rest)
        hit["left"] -= 1
        if hit["left"] == 0:
            out[3] = out[4]
        return out

    backend.run = run  # type: ignore[method-assign]
    with pytest.raises(CheckFailed, match=r"1 of 5 identical calls leave .* 1 rows, first \[3\]"):
        determinism.repeat(ctx, CASE)
