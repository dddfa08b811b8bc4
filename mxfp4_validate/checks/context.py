"""What a check is handed: the backend, its device, and caches that live as long as the worker."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from mxfp4_validate.backends.base import Backend, require
from mxfp4_validate.cases import MoeCase, MoeShape
from mxfp4_validate.formats.moe_weights import MoeInputs, MoeWeights


@dataclass
class Context:
    """The worker's side of a check. `options` are the command line's (`strict` and the like)."""

    backend: Backend
    options: dict[str, Any] = field(default_factory=dict)
    _weights: dict[tuple[str, str, int], MoeWeights] = field(default_factory=dict)
    _packed: dict[tuple[str, str, int], Any] = field(default_factory=dict)

    @property
    def device(self) -> torch.device:
        return torch.device(self.backend.device)

    def weights(self, shape: MoeShape, seed: int = 0) -> MoeWeights:
        """Canonical weights of a shape on the backend's device.

        They are the synthetic ones of `seed` or, with the option `checkpoint`, those of the layer that the shape stands for.

        Only one layer is kept: production layers take gigabytes, and checks are ordered by shape.
        """
        key = self._key(shape, seed)
        if key not in self._weights:
            self._weights.clear()
            self._packed.clear()
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
            self._weights[key] = self._canonical(shape, seed)
        return self._weights[key]

    def packed(self, shape: MoeShape, seed: int = 0) -> tuple[MoeWeights, Any]:
        """The same weights, and the backend's prepared form of them, for checks that read its bytes."""
        weights, key = self.weights(shape, seed), self._key(shape, seed)
        if key not in self._packed:
            self._packed[key] = self.backend.prepare(weights)
        return weights, self._packed[key]

    def layer(self, shape: MoeShape, seed: int = 0) -> tuple[MoeWeights, Any]:
        """What `packed` gives, to be run with the shape's own activation, after `require`."""
        self.require(shape)
        return self.packed(shape, seed)

    def require(self, shape: MoeShape) -> None:
        """Raise `NotSupported` if the backend says that it does not have the shape's activation, before anything is made for it."""
        require(self.backend, shape.activation)

    def _key(self, shape: MoeShape, seed: int) -> tuple[str, str, int]:
        return str(self.options.get("checkpoint", "")), shape.name, seed

    def _canonical(self, shape: MoeShape, seed: int) -> MoeWeights:
        if folder := self.options.get("checkpoint"):
            from mxfp4_validate.checkpoints.config import layer_of
            from mxfp4_validate.checkpoints.reader import open_checkpoint

            return open_checkpoint(Path(folder)).weights(layer_of(shape)).to(self.device)
        from mxfp4_validate.checkpoints.synthetic import random_weights

        return random_weights(MoeCase(shape, 1, seed=seed), self.device)

    def inputs(self, case: MoeCase) -> MoeInputs:
        from mxfp4_validate.checkpoints.synthetic import random_inputs

        return random_inputs(case, self.device)
