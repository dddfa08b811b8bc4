"""What each fault changes, small functions by stage (those of bytes: `fault_bytes`), and the emulating backend that calls them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from mxfp4_validate.backends.base import DEFAULT_TACTIC, Tactic
from mxfp4_validate.backends.combine import engine_layer
from mxfp4_validate.backends.emulate import Emulated, Stages
from mxfp4_validate.cases import DEEPSEEK_V4, SINGLE, Activation, Parallel
from mxfp4_validate.fault_bytes import LOAD, PACK, VIEW, Load
from mxfp4_validate.formats import e8m0
from mxfp4_validate.formats.moe_weights import MoeInputs, MoeWeights
from mxfp4_validate.reference.interval import round_bf16
from mxfp4_validate.reference.layer import RoutedScale
from mxfp4_validate.reference.rounding import RoundingModel


def _foreign_to_last(i: MoeInputs) -> MoeInputs:
    return replace(i, topk_ids=torch.where(i.topk_ids == -1, 0, i.topk_ids).int())


def _drop_last(i: MoeInputs) -> MoeInputs:
    return (
        replace(i, topk_ids=torch.cat((i.topk_ids[:, :-1], torch.full_like(i.topk_ids[:, -1:], -1)), 1)) if i.topk_ids.shape[1] > 1 else i
    )


INPUTS: dict[str, Callable[[MoeInputs], MoeInputs]] = {
    "scaled": lambda i: replace(i, topk_weights=i.topk_weights * 1.5),
    "not_renormalised": lambda i: replace(i, topk_weights=i.topk_weights * 0.75),
    "weights_rolled": lambda i: replace(i, topk_weights=i.topk_weights.roll(1, 1)),
    "weights_bf16": lambda i: replace(i, topk_weights=round_bf16(i.topk_weights)),
    "ids_shifted": lambda i: replace(i, topk_ids=(i.topk_ids + 1).int()),
    "sentinel": _foreign_to_last,
    "slot_dropped": _drop_last,
    "x_fp8": lambda i: replace(i, x=i.x.to(torch.float8_e4m3fn).to(torch.bfloat16)),
}
ACTIVATION: dict[str, Callable[[Activation], Activation]] = {
    "no_clamp": lambda a: replace(a, limit=None),
    "limit_10": lambda a: replace(a, limit=10.0) if a.limit == 7.0 else a,
    "limit_7": lambda a: replace(a, limit=7.0) if a.limit == 10.0 else a,
    "alpha_one": lambda a: replace(a, alpha=1.0) if a.alpha > 1 else a,
    "no_beta": lambda a: replace(a, beta=0.0),
    "dsv4": lambda a: DEEPSEEK_V4 if a.limit == 7.0 else a,
}
PARALLEL: dict[str, Callable[[Parallel], Parallel]] = {
    "rank_zero": lambda p: replace(p, tp_rank=0),
    "rank_local": lambda p: replace(p, ep_rank=0),
}


def _plain(
    gate_low: bool = False, gate_high: bool = True, late: bool = False, beta: str = "up", steps: bool = False
) -> Callable[..., Tensor]:
    """An activation with one habit changed: [m, 2I] -> [m, I] float32 holding bf16."""

    def run(h: Tensor, a: Activation, model: RoundingModel) -> Tensor:
        r = (lambda t: round_bf16(t.float()).double()) if steps else (lambda t: t)
        gate, up = h.double().chunk(2, dim=-1)
        limit = torch.inf if a.limit is None else a.limit
        up = (up + a.beta).clamp(-limit, limit) if beta == "early" else up.clamp(-limit, limit)
        gate = gate.clamp(max=limit) if gate_high and not late else gate
        gate = gate.clamp(min=-limit) if gate_low else gate
        gate = gate + a.beta if beta == "gate" else gate
        s = r(r(gate) * r(torch.sigmoid(r(a.alpha * gate))))
        s = s.clamp(max=limit) if late else s
        return round_bf16((s * r(up + (a.beta if beta == "up" else 0.0))).float())

    return run


def _bf16_sum(rows: Tensor, w: Tensor, present: Tensor, model: RoundingModel) -> Tensor:
    acc = torch.zeros(rows.shape[0], rows.shape[2], dtype=torch.bfloat16)
    for j in range(rows.shape[1]):
        acc = torch.where(present[:, j, None], (acc.float() + w[:, j, None] * rows[:, j]).bfloat16(), acc)
    return acc


STAGES: dict[str, Stages] = {
    "gate_both": Stages(activate=_plain(gate_low=True)),
    "gate_free": Stages(activate=_plain(gate_high=False)),
    "clamp_after": Stages(activate=_plain(late=True)),
    "bf16_steps": Stages(activate=_plain(steps=True)),
    "beta_on_gate": Stages(activate=_plain(beta="gate")),
    "beta_early": Stages(activate=_plain(beta="early")),
    "bf16_sum": Stages(finalise=_bf16_sum),
}
MODEL: dict[str, Callable[[RoundingModel], RoundingModel]] = {
    "ocp": lambda m: replace(m, e8m0=e8m0.OCP),
    "h_fp32": lambda m: replace(m, h_bf16=False),
}


def _set(out: Tensor, rows: Any, columns: Any, value: float) -> Tensor:
    out = out.clone()
    out[rows, columns] = value
    return out


def _stale(out: Tensor, inputs: MoeInputs) -> Tensor:
    return torch.where((out == 0).all(1, keepdim=True), torch.ones_like(out), out)


OUT: dict[str, Callable[[Tensor, MoeInputs], Tensor]] = {
    "rows_lost": lambda out, i: _set(out, slice(None), slice(-32, None), 0.0),
    "stale_rows": _stale,
    "small_m": lambda out, i: out.roll(1, 1) if out.shape[0] in (2, 3) else out,
    "empty_experts": lambda out, i: _set(out, -1, slice(None), 7.0) if out.shape[0] == 1 else out,
    "nan_tile": lambda out, i: _set(out, 0, slice(16, 32), float("nan")),
    "outside": lambda out, i: out,
    "unwritten": lambda out, i: out,
}


#: How a shared expert is added wrongly: (shared, routed(factor), factor) -> the layer's output.
LAYER: dict[str, Callable[[Tensor, Callable[[float], Tensor], float], Tensor]] = {
    "omitted": lambda shared, routed, factor: shared + routed(1.0),
    "twice": lambda shared, routed, factor: shared.clone().add_(routed(factor), alpha=factor),
    "on_shared": lambda shared, routed, factor: (shared + routed(1.0)) * factor,
    "shared_divided": lambda shared, routed, factor: shared / factor + routed(factor),
    "shared_dropped": lambda shared, routed, factor: routed(factor),
}


@dataclass
class Faulty(Emulated):
    """An `Emulated` whose stages call the hooks of one fault. What it declares stays that of the healthy backend."""

    hooks: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if "stages" in self.hooks:
            self.stages = STAGES[self.hooks["stages"]]
        self._view: Load | None = VIEW[self.hooks["view"]]() if "view" in self.hooks else None

    def load(self, weights: MoeWeights) -> MoeWeights:
        return LOAD[self.hooks["load"]](weights) if "load" in self.hooks else weights

    def pack(self, weights: MoeWeights) -> Any:
        packed = super().pack(weights)
        return PACK[self.hooks["pack"]](packed) if "pack" in self.hooks else packed

    def read(self, prepared: Any) -> MoeWeights:
        seen = super().read(prepared)
        return self._view(seen) if self._view is not None else seen

    def compute(self, weights: MoeWeights, inputs: MoeInputs, activation: Activation, parallel: Parallel, model: RoundingModel) -> Tensor:
        model = MODEL[self.hooks["model_hook"]](model) if "model_hook" in self.hooks else model
        inputs = INPUTS[self.hooks["inputs"]](inputs) if "inputs" in self.hooks else inputs
        activation = ACTIVATION[self.hooks["activation"]](activation) if "activation" in self.hooks else activation
        parallel = PARALLEL[self.hooks["parallel"]](parallel) if "parallel" in self.hooks else parallel
        return super().compute(weights, inputs, activation, parallel, model)

    def layer(self, shared: Tensor, routed: Callable[[float], Tensor], routed_scaling_factor: float, mode: RoutedScale) -> Tensor:
        if "layer" in self.hooks:
            return LAYER[self.hooks["layer"]](shared, routed, routed_scaling_factor)
        return engine_layer(shared, routed, routed_scaling_factor, mode)

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
        result = super().run(prepared, inputs, activation, parallel=parallel, tactic=tactic)
        hook = self.hooks.get("out")
        result = OUT[hook](result, inputs) if hook else result
        if out is None:
            return result
        if hook == "unwritten":
            out[:, 16:] = result[:, 16:]
            return out
        out.copy_(result)
        if hook == "outside":
            out.as_strided((1,), (1,), out.storage_offset() + out.numel()).fill_(1.0)
        return out
