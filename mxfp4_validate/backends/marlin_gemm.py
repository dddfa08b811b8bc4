"""GPT-OSS on sglang's Marlin kernel before `fused_marlin_moe` takes biases and alpha (sgl-project/sglang#28231).

The kernel itself, `moe_wna16_marlin_gemm`, has added biases for longer than the function around it passes them. So sglang's own function runs,
with its blocks, workspace and reduction; while it does, its two GEMMs are given the biases, and the activation between them is GPT-OSS's,
computed in float32 and rounded once, as later versions fuse it. It answers for the kernel's arithmetic, not for a server's: no server runs this.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from mxfp4_validate.backends.base import DEFAULT_TACTIC, Available, Tactic, Unavailable
from mxfp4_validate.backends.marlin import KERNEL, Marlin, MarlinWeights
from mxfp4_validate.cases import SINGLE, Activation, Parallel
from mxfp4_validate.formats.moe_weights import MoeInputs


class MarlinGemm(Marlin):
    """`marlin` with what its function lacks; unavailable where the function has it."""

    name = "marlin-gemm"

    def availability(self) -> Available | Unavailable:
        found = super().availability()
        if isinstance(found, Available) and self.takes_biases:
            return Unavailable("fused_marlin_moe of this sglang takes biases and alpha itself; use the backend marlin")
        return found

    def _require_biases(self, biased: bool) -> None:
        """Nothing is missing: the GEMMs are given the biases."""

    def require(self, activation: Activation) -> None:
        """Nor is any activation: it is supplied."""

    def _constants(self, activation: Activation, prepared: MarlinWeights, parallel: Parallel) -> dict[str, Any]:
        return {}

    def timed(
        self,
        prepared: MarlinWeights,
        inputs: MoeInputs,
        activation: Activation,
        *,
        tactic: Tactic = DEFAULT_TACTIC,
        parallel: Parallel = SINGLE,
    ) -> Callable[[], Tensor]:
        """The call, with biases and activation supplied; times of it are not a server's, whose activation is one kernel."""
        module = import_module(KERNEL)
        call = super().timed(prepared, inputs, activation, tactic=tactic, parallel=parallel)
        supplied: dict[str, Any] = {}
        if prepared.biased:
            supplied["moe_wna16_marlin_gemm"] = _with_biases(module.moe_wna16_marlin_gemm, *prepared.biases(parallel))
        if (activation.alpha, activation.beta) != (1.0, 0.0):
            supplied["swiglu_limit_func"] = lambda out, h, limit: out.copy_(_swiglu(h, activation))
            supplied["silu_and_mul"] = lambda h, out: out.copy_(_swiglu(h, activation))

        def run() -> Tensor:
            if not supplied:
                return call()
            with patch.multiple(module, **supplied):
                return call()

        return run


def _with_biases(gemm: Callable[..., Tensor], w13: Tensor | None, w2: Tensor | None) -> Callable[..., Tensor]:
    """The GEMM with `b_bias_or_none`, its fourth argument: w13's in the first call, w2's in the one that multiplies by the routing weights."""

    def call(a: Tensor, c: Tensor, b: Tensor, bias: None, *rest: Any, mul_topk_weights: bool, **named: Any) -> Tensor:
        return gemm(a, c, b, w2 if mul_topk_weights else w13, *rest, mul_topk_weights=mul_topk_weights, **named)

    return call


def _swiglu(h: Tensor, activation: Activation) -> Tensor:
    """h [rows, 2I], gate then up -> [rows, I]: gate * sigmoid(alpha * gate) * (up + beta) in float32; a NaN goes through."""
    gate, up = h.float().chunk(2, dim=1)
    if activation.limit is not None:
        gate, up = gate.clamp(max=activation.limit), up.clamp(-activation.limit, activation.limit)
    return gate * torch.sigmoid(activation.alpha * gate) * (up + activation.beta)
