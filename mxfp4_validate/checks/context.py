"""What a check is handed: the backend, its device, and caches that live as long as the worker."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from mxfp4_validate.backends.base import Backend
from mxfp4_validate.cases import MoeCase, MoeShape
from mxfp4_validate.formats.moe_weights import MoeInputs, MoeWeights


@dataclass
class Context:
    """The worker's side of a check. `options` are the command line's (`strict` and the like)."""

    backend: Backend
    options: dict[str, Any] = field(default_factory=dict)
    _weights: dict[tuple[str, str, int], tuple[MoeWeights, Any]] = field(default_factory=dict)

    @property
    def device(self) -> torch.device:
        return torch.device(self.backend.device)

    def layer(self, shape: MoeShape, seed: int = 0) -> tuple[MoeWeights, Any]:
        """Canonical weights of a shape on the backend's device, and the backend's prepared form.

        They are the synthetic ones of `seed` or, with the option `checkpoint`, those of the layer that the shape stands for.

        Only one layer is kept: production layers take gigabytes, and checks are ordered by shape.
        """
        key = (str(self.options.get("checkpoint", "")), shape.name, seed)
        if key not in self._weights:
            self._weights.clear()
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
            weights = self._canonical(shape, seed)
            self._weights[key] = (weights, self.backend.prepare(weights))
        return self._weights[key]

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
