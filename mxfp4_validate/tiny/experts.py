"""Experts of the tiny model: a module in place of transformers' own that hands each call to a backend, and a fast form of the twins."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor

from mxfp4_validate.backends.base import Backend
from mxfp4_validate.backends.emulate import Emulated
from mxfp4_validate.cases import Activation
from mxfp4_validate.fault_hooks import Faulty
from mxfp4_validate.formats import e2m1, e8m0
from mxfp4_validate.formats.moe_weights import MoeInputs, MoeWeights
from mxfp4_validate.formats.mxfp4 import BLOCK
from mxfp4_validate.reference.gemm import Sum, _order
from mxfp4_validate.reference.rounding import RoundingModel

EditInputs = Callable[[MoeInputs], MoeInputs]


class BackendExperts(torch.nn.Module):
    """Stands where `mlp.experts` stood. `weights` are prepared once, here; `edit` is a fault's change of every call's inputs."""

    def __init__(self, backend: Backend, weights: MoeWeights, activation: Activation, edit: EditInputs | None = None) -> None:
        super().__init__()
        self.backend, self.activation, self.edit = backend, activation, edit
        self.prepared = backend.prepare(weights)

    def forward(self, hidden_states: Tensor, router_indices: Tensor, routing_weights: Tensor) -> Tensor:
        """hidden_states [M, H] bfloat16, router_indices [M, k], routing_weights [M, k] of any floating dtype -> [M, H] bfloat16."""
        inputs = MoeInputs(hidden_states.contiguous(), router_indices.int(), routing_weights.float())
        return self.backend.run(self.prepared, inputs if self.edit is None else self.edit(inputs), self.activation)


class CachedGemm:
    """`reference.gemm.gemm` without its radius and with every expert's codes decoded once: the same value bit for bit.

    Experts are told apart by the address of their bytes, so whoever calls must keep those alive; `CachedTwin` does. Costs 8 bytes of
    memory a weight.
    """

    def __init__(self) -> None:
        self._decoded: dict[tuple[int, int, RoundingModel], tuple[Tensor, Tensor]] = {}

    def __call__(self, x: Tensor, packed: Tensor, scale: Tensor, model: RoundingModel, which: int, spread: Tensor | None = None) -> Sum:
        """x [m, K] holding bf16 values, packed [N, K/2] and scale [N, K/32] uint8 -> Sum of [m, N] float32 and no radius."""
        key = (packed.data_ptr(), scale.data_ptr(), model)
        if key not in self._decoded:
            self._decoded[key] = _decode(packed, scale, model)
        weight, factor = self._decoded[key]
        if not model.promote:
            return Sum((x.double() @ weight).float(), None)
        m, K = x.shape
        C, _, N = weight.shape
        partial = torch.bmm(x.double().view(m, C, BLOCK).transpose(0, 1), weight).float()
        acc = torch.zeros(m, N, dtype=torch.float32, device=x.device)
        for chunk in _order(K, model, model.k_tiles[which]):
            acc.addcmul_(partial[chunk], factor[chunk])
        return Sum(acc, None)


def _decode(packed: Tensor, scale: Tensor, model: RoundingModel) -> tuple[Tensor, Tensor]:
    """Promoted: codes [C, 32, N] float64 and factors [C, 1, N] float32. Folded: weights [K, N] float64 and the scales' values."""
    N, C = scale.shape
    codes = e2m1.decode(e2m1.unpack(packed)).view(N, C, BLOCK)
    if model.promote:
        return codes.permute(1, 2, 0).contiguous(), e8m0.decode(scale, model.e8m0, torch.float32).t().unsqueeze(1).contiguous()
    values = e8m0.decode(scale, model.e8m0)
    return (codes * values.unsqueeze(-1)).flatten(1).t().contiguous(), values


class CachedTwin:
    """An emulating backend that reads its packed bytes back once a layer instead of once a call. Everything else is the twin's own code."""

    def __init__(self, twin: Emulated) -> None:
        self.twin, self.name, self.device = twin, twin.name, twin.device
        if isinstance(twin, Faulty):  # a fault of the reader has happened by the time `prepare` returns and must not happen twice
            self._kernel: Emulated = Faulty(
                twin.name, twin.model, twin.layout, hooks={k: hook for k, hook in twin.hooks.items() if k != "view"}
            )
        else:
            self._kernel = Emulated(twin.name, twin.model, twin.layout, stages=twin.stages)
        self._kernel.stages = replace(self._kernel.stages, gemm=CachedGemm())
        self._alive: list[MoeWeights] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.twin, name)  # availability, rounding, tactics

    def prepare(self, weights: MoeWeights) -> MoeWeights:
        """The kernel's view of the packed bytes: through the layout and back, as `Emulated.read` sees them."""
        seen = self.twin.read(self.twin.prepare(weights))
        self._alive.append(seen)
        return seen

    def run(self, prepared: Any, inputs: MoeInputs, activation: Activation, **options: Any) -> Tensor:
        """As `Emulated.run`, bit for bit."""
        return self._kernel.run(prepared, inputs, activation, **options)


def accelerated(backend: Backend) -> Backend:
    """A `CachedTwin` of an emulating backend; any other backend, and a twin whose reader changes from call to call, as it is."""
    if not isinstance(backend, Emulated) or (isinstance(backend, Faulty) and backend.hooks.get("view") == "race"):
        return backend
    return cast("Backend", CachedTwin(backend))
