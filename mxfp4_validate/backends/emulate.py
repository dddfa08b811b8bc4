"""Twins as backends: the whole path from canonical bytes through a layout and back to outputs, on a CPU.

They let the suites run where no GPU is, and they are what deliberate faults are injected into: every stage of `Emulated` is a method of its
own. The bytes really pass through the backend's layout, so a fault in a packer reaches the outputs as it would on a GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from mxfp4_validate.backends.base import DEFAULT_TACTIC, Available, Tactic, Unavailable
from mxfp4_validate.cases import SINGLE, Activation, Parallel
from mxfp4_validate.errors import NotSupported
from mxfp4_validate.formats.moe_weights import MoeInputs, MoeWeights
from mxfp4_validate.layouts.base import Layout
from mxfp4_validate.layouts.prepare import Sm90Weights, prepare_sm90, unpack_sm90
from mxfp4_validate.layouts.sm90_a import SM90_A
from mxfp4_validate.layouts.sm90_b import SM90_B
from mxfp4_validate.reference.gemm import Sum, gemm
from mxfp4_validate.reference.interval import Interval, activate, round_bf16
from mxfp4_validate.reference.rounding import MARLIN, SM90_CUTLASS, TRITON_KERNELS, RoundingModel
from mxfp4_validate.reference.twin import sum_slots


@dataclass
class Emulated:
    """A backend whose kernel is the twin of `model`. `layout` None means that it takes canonical bytes as they are (Marlin)."""

    name: str
    model: RoundingModel
    layout: Layout | None
    device: str = "cpu"
    stages: Stages = field(default_factory=lambda: Stages())
    #: What the backend adds to up whatever is asked, if nothing can change it.
    fixed_beta: float | None = None

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

    def require(self, activation: Activation) -> None:
        """Any but another beta than the fixed one."""
        if self.fixed_beta not in (None, activation.beta):
            raise NotSupported(
                f"{self.model.name}'s activation always adds {self.fixed_beta:g} to up; the case needs beta {activation.beta:g}"
            )

    def prepare(self, weights: MoeWeights) -> Any:
        return self.pack(self.load(weights))

    def load(self, weights: MoeWeights) -> MoeWeights:
        """The loader: canonical bytes as they will be packed."""
        return weights

    def pack(self, weights: MoeWeights) -> Any:
        """Row order, padding and layout."""
        return weights if self.layout is None else prepare_sm90(weights, self.layout)

    def read(self, prepared: Any) -> MoeWeights:
        """The kernel's view of the packed bytes, pads included."""
        if isinstance(prepared, Sm90Weights):
            assert self.layout is not None
            return unpack_sm90(prepared, self.layout)
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
        self.require(activation)
        weights, hidden = self.read(prepared), inputs.x.shape[1]
        inputs = replace(inputs, x=torch.nn.functional.pad(inputs.x, (0, weights.hidden_size - hidden)))
        result = self.compute(weights, inputs, activation, parallel, self.rounding(tactic))[:, :hidden]
        return result.contiguous() if out is None else out.copy_(result)

    def compute(self, weights: MoeWeights, inputs: MoeInputs, activation: Activation, parallel: Parallel, model: RoundingModel) -> Tensor:
        """The kernel: the second bias is added on TP rank 0 alone, ids are global."""
        if parallel.tp_rank:
            weights = weights.with_(w2_bias=None)
        return emulated_kernel(weights, inputs, activation, model, parallel.ep_rank * weights.num_experts, self.stages)


def emulated_kernel(
    weights: MoeWeights, inputs: MoeInputs, activation: Activation, model: RoundingModel, first_expert: int, stages: Stages
) -> Tensor:
    """One value per element, no intervals: [M, Hp] bfloat16. Each stage can be replaced, which is how arithmetic faults are injected."""
    M, k = inputs.topk_ids.shape
    rows = torch.zeros(M, k, weights.hidden_size)
    local = inputs.topk_ids.long() - first_expert
    present = (local >= 0) & (local < weights.num_experts)
    for expert in local[present].unique().tolist():
        token, slot = (local == expert).nonzero(as_tuple=True)
        h = stages.gemm(inputs.x[token], weights.w13[expert], weights.w13_scale[expert], model, 0).value
        h = round_bf16(h) if model.h_bf16 else h
        if weights.w13_bias is not None:
            h = h + weights.w13_bias[expert].float()
            h = round_bf16(h) if model.bias1_bf16 else h
        y = stages.gemm(stages.activate(h, activation, model), weights.w2[expert], weights.w2_scale[expert], model, 1).value
        y = round_bf16(y) if model.y_bf16 else y
        if weights.w2_bias is not None:
            y = y + weights.w2_bias[expert].float()
            y = round_bf16(y) if model.bias2_bf16 else y
        rows[token, slot] = y
    return stages.finalise(rows, inputs.topk_weights, present, model)


def _activate(h: Tensor, activation: Activation, model: RoundingModel) -> Tensor:
    """[m, 2Ip] = [gate; up] -> [m, Ip] float32 holding bf16."""
    return activate(Interval(h), activation, model).value


def _finalise(rows: Tensor, topk_weights: Tensor, present: Tensor, model: RoundingModel) -> Tensor:
    """rows [M, k, Hp] float32, slots summed in order -> [M, Hp] bfloat16."""
    return sum_slots(rows, round_bf16(topk_weights) if model.weight_bf16 else topk_weights, present, model)


@dataclass(frozen=True)
class Stages:
    """The replaceable arithmetic of `emulated_kernel`."""

    gemm: Callable[..., Sum] = gemm
    activate: Callable[[Tensor, Activation, RoundingModel], Tensor] = _activate
    finalise: Callable[[Tensor, Tensor, Tensor, RoundingModel], Tensor] = _finalise


def emulate_sm90() -> Emulated:
    """FlashInfer's SM90 kernel with layout A."""
    return Emulated("emulate:sm90-cutlass", SM90_CUTLASS, SM90_A)


def emulate_sm90_b() -> Emulated:
    """FlashInfer's SM90 kernel with layout B."""
    return Emulated("emulate:sm90-cutlass-b", SM90_CUTLASS, SM90_B)


def emulate_marlin() -> Emulated:
    """sglang's Marlin MoE with a clamp: canonical bytes, Marlin's rounding points."""
    return Emulated("emulate:marlin", MARLIN, None)


def emulate_triton() -> Emulated:
    """triton_kernels as sglang calls it: canonical bytes, no rounding before the activation, beta 1."""
    return Emulated("emulate:triton-kernels", TRITON_KERNELS, None, fixed_beta=1.0)
