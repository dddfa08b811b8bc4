"""Which MoE layer of a model goes wrong first, and under which oracle: every layer is given the baseline's own inputs, so errors do not add up.

The baseline runs the sequences and what enters each MoE layer is kept. Each layer of the candidate, router and experts, then gets exactly
that, and its output is held to three oracles in this order: the baseline's routing, the ordered twin of the candidate's rounding points, and
float64. A legitimate other backend differs from the baseline everywhere and from none of these.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mxfp4_validate.backends.registry import resolve
from mxfp4_validate.comparison.explained import compare, exact_limit
from mxfp4_validate.formats.moe_weights import MoeInputs
from mxfp4_validate.reference.exact import exact_moe
from mxfp4_validate.reference.rounding import RoundingModel
from mxfp4_validate.reference.twin import twin_moe
from mxfp4_validate.tiny.model import REFERENCE, Chunk, TinyModel
from mxfp4_validate.tiny.weights import Checkpoint
from mxfp4_validate.tolerances import EXACT_RELATIVE_L2


@dataclass(frozen=True)
class LayerFinding:
    """One layer on `tokens` tokens: what differs from its oracles. `wrong` names the first that it fails, "" for none."""

    layer: int
    tokens: int
    routed_apart: int
    bit_equal: float
    unexplained: int
    relative_l2: float
    floor: float
    wrong: str


@dataclass
class _Call:
    """What entered a layer, what its router told its experts, and what they returned; all on the model's device."""

    hidden: Tensor
    indices: Tensor
    weights: Tensor
    out: Tensor

    def inputs(self, device: torch.device) -> MoeInputs:
        rows = self.hidden.reshape(-1, self.hidden.shape[-1])
        return MoeInputs(rows.contiguous().to(device), self.indices.int().to(device), self.weights.float().to(device))


def _watch(mlp: Any, calls: list[_Call]) -> list[Any]:
    """Hooks that note every call of one MoE layer; the caller removes them."""
    entered: list[Tensor] = []

    def enter(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        entered.append(args[0] if args else kwargs["hidden_states"])

    def leave(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor) -> None:
        given = dict(zip(("hidden_states", "router_indices", "routing_weights"), args, strict=False)) | kwargs
        calls.append(_Call(entered[-1], given["router_indices"], given["routing_weights"], out))

    return [mlp.register_forward_pre_hook(enter, with_kwargs=True), mlp.experts.register_forward_hook(leave, with_kwargs=True)]


@torch.inference_mode()
def localise(
    checkpoint: Checkpoint, baseline: TinyModel, candidate: TinyModel, name: str, sequences: Sequence[Sequence[int]]
) -> list[LayerFinding]:
    """A finding a layer. `name` is the candidate's backend, whose declared rounding makes the twin; `reference` declares none."""
    seen: list[list[_Call]] = [[] for _ in baseline.causal.model.layers]
    hooks = [hook for layer, calls in zip(baseline.causal.model.layers, seen, strict=True) for hook in _watch(layer.mlp, calls)]
    cache = baseline.new_cache(len(sequences), max(map(len, sequences)))
    baseline.forward(cache, [Chunk(slot, 0, tokens) for slot, tokens in enumerate(sequences)], [0])
    for hook in hooks:
        hook.remove()
    model = None if name == REFERENCE else resolve(name).rounding()
    return [_judge(checkpoint, layer, calls[0], candidate, model) for layer, calls in enumerate(seen)]


def _judge(checkpoint: Checkpoint, layer: int, given: _Call, candidate: TinyModel, model: RoundingModel | None) -> LayerFinding:
    mlp, got = candidate.causal.model.layers[layer].mlp, []  # type: ignore[var-annotated]
    hooks = _watch(mlp, got)
    mlp(given.hidden.to(candidate.device))
    for hook in hooks:
        hook.remove()
    cpu = torch.device("cpu")
    mine, theirs, activation = got[0].inputs(cpu), given.inputs(cpu), checkpoint.activation
    weights = checkpoint.experts(layer)
    apart = _routed_apart(mine, theirs)
    exact = exact_moe(weights, theirs, activation)
    out, usual = (call.out.reshape(exact.shape).cpu() for call in (got[0], given))
    relative, floor = (float((t.double() - exact).norm() / exact.norm()) for t in (out, usual))
    found = None if model is None else compare(out, twin_moe(weights, theirs, activation, model))
    limit = EXACT_RELATIVE_L2.value if model is None else exact_limit(model)
    wrong = "routing" if apart else "twin" if found is not None and found.unexplained else "exact" if relative > limit else ""
    equal, unexplained = (1.0, 0) if found is None else (found.bit_equal, found.unexplained)
    return LayerFinding(layer, len(exact), apart, equal, unexplained, relative, floor, wrong)


def _routed_apart(mine: MoeInputs, theirs: MoeInputs) -> int:
    """Tokens sent to other experts, or with weights that differ, given the same hidden states."""
    same = (mine.topk_ids == theirs.topk_ids) & (mine.topk_weights == theirs.topk_weights)
    return int((~same.all(1)).sum())


def table(findings: Sequence[LayerFinding]) -> list[str]:
    """A line a layer, and which goes wrong first."""
    lines = ["layer  tokens  routed apart  bits of the twin  unexplained  relative L2 to float64  (baseline)  wrong under"]
    for f in findings:
        lines.append(
            f"{f.layer:5d}  {f.tokens:6d}  {f.routed_apart:12d}  {f.bit_equal:15.4%}  {f.unexplained:11d}  {f.relative_l2:22.2e}"
            f"  {f.floor:10.2e}  {f.wrong or '-'}"
        )
    first = next((f for f in findings if f.wrong), None)
    lines.append("no layer leaves its oracles" if first is None else f"layer {first.layer} is the first, under the oracle {first.wrong!r}")
    return lines
