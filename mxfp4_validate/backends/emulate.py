"""Twins as backends: the whole path from canonical bytes through a layout and back to outputs, on a CPU.

They let the suites run where no GPU is, and they are what deliberate faults are injected into: every stage of `Emulated` is a method of its
own. The bytes really pass through the backend's layout, so a fault in a packer reaches the outputs as it would on a GPU.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from mxfp4_validate.backends.base import DEFAULT_TACTIC, Available, Tactic, Unavailable
from mxfp4_validate.cases import SINGLE, Activation, Parallel
from mxfp4_validate.formats.moe_weights import MoeInputs, MoeWeights
from mxfp4_validate.layouts.base import Layout
from mxfp4_validate.layouts.prepare import Sm90Weights, prepare_sm90, unprepare_sm90
from mxfp4_validate.layouts.sm90_a import SM90_A
from mxfp4_validate.layouts.sm90_b import SM90_B
from mxfp4_validate.reference.rounding import MARLIN, SM90_CUTLASS, RoundingModel
from mxfp4_validate.reference.twin import twin_moe


@dataclass
class Emulated:
    """A backend whose kernel is the twin of `model`. `layout` None means that it takes canonical bytes as they are (Marlin)."""

    name: str
    model: RoundingModel
    layout: Layout | None
    device: str = "cpu"

    def availability(self) -> Available | Unavailable:
        facts = {"emulates": self.model.name, "torch": torch.__version__}
        return Available(facts if self.layout is None else facts | {"layout": self.layout.name})

    def rounding(self, tactic: Tactic = DEFAULT_TACTIC) -> RoundingModel:
        if isinstance(tactic.value, tuple):
            return replace(self.model, k_tiles=tactic.value)
        return self.model

    def tactics(self, prepared: Any, num_tokens: int) -> list[Tactic]:
        """The default and, where the layout allows other K tiles, one tactic of each."""
        wide = self.layout is SM90_B
        return [DEFAULT_TACTIC] + [Tactic(f"k_tile={k}", (k, k), group=f"k{k}") for k in (256, 512) if wide]

    def prepare(self, weights: MoeWeights) -> Any:
        return self.pack(self.load(weights))

    def load(self, weights: MoeWeights) -> MoeWeights:
        """The loader: canonical bytes as they will be packed."""
        return weights

    def pack(self, weights: MoeWeights) -> Any:
        """Row order, padding and layout."""
        return weights if self.layout is None else prepare_sm90(weights, self.layout)

    def read(self, prepared: Any) -> MoeWeights:
        """The kernel's view of the packed bytes."""
        if isinstance(prepared, Sm90Weights):
            assert self.layout is not None
            return unprepare_sm90(prepared, self.layout)
        assert isinstance(prepared, MoeWeights)
        return prepared

    def run(
        self,
        prepared: Any,
        inputs: MoeInputs,
        activation: Activation,
        *,
        parallel: Parallel = SINGLE,
        tactic: Tactic = DEFAULT_TACTIC,
        out: Tensor | None = None,
    ) -> Tensor:
        result = self.compute(self.read(prepared), inputs, activation, parallel, self.rounding(tactic))
        return result if out is None else out.copy_(result)

    def compute(
        self, weights: MoeWeights, inputs: MoeInputs, activation: Activation, parallel: Parallel, model: RoundingModel
    ) -> Tensor:
        """The kernel's arithmetic; the second bias is added on TP rank 0 alone, ids are global."""
        return twin_moe(
            weights, inputs, activation, model, first_expert=parallel.ep_rank * weights.num_experts, add_w2_bias=parallel.tp_rank == 0
        ).value


def emulate_sm90() -> Emulated:
    """FlashInfer's SM90 kernel with layout A."""
    return Emulated("emulate:sm90-cutlass", SM90_CUTLASS, SM90_A)


def emulate_sm90_b() -> Emulated:
    """FlashInfer's SM90 kernel with layout B."""
    return Emulated("emulate:sm90-cutlass-b", SM90_CUTLASS, SM90_B)


def emulate_marlin() -> Emulated:
    """sglang's Marlin MoE with a clamp: canonical bytes, Marlin's rounding points."""
    return Emulated("emulate:marlin", MARLIN, None)
