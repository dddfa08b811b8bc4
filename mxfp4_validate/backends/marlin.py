"""sglang's Marlin MoE (W4A16, MXFP4): the accepted baseline for DeepSeek-V4, and from sglang 0.5.23's interface on for GPT-OSS too.

Weights go through sglang's own `prepare_moe_mxfp4_layer_for_marlin`, since Marlin's tile order is no contract of anyone's: what the
kernel makes of the bytes is judged by the probes and the read-out, not by an inverse of ours.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module, metadata, util
from typing import Any

import torch
from torch import Tensor

from mxfp4_validate.backends.base import DEFAULT_TACTIC, Available, Tactic, Unavailable
from mxfp4_validate.cases import SINGLE, Activation, Parallel
from mxfp4_validate.errors import NotSupported
from mxfp4_validate.formats.moe_weights import MoeInputs, MoeWeights
from mxfp4_validate.layouts.rows import pad_layer, pad_x
from mxfp4_validate.reference.rounding import MARLIN, RoundingModel

INSTALL = "pip install 'sglang>=0.5.12' sglang-kernel"
KERNEL = "sglang.srt.layers.moe.fused_moe_triton.fused_marlin_moe"
_PREPARE = "sglang.srt.layers.quantization.marlin_utils_fp4"


@dataclass(frozen=True)
class MarlinWeights:
    """What `fused_marlin_moe` is called with: `layer` after sglang's preparation, of `num_experts` local experts."""

    layer: torch.nn.Module
    num_experts: int
    biased: bool

    def biases(self, parallel: Parallel) -> tuple[Tensor | None, Tensor | None]:
        """w13's and w2's, permuted as the kernel reads them; some cases have one of the two. An engine zeroes w2's on every rank but the first."""
        w13, w2 = (getattr(self.layer, f"{name}_weight_bias", None) for name in ("w13", "w2"))
        return w13, None if parallel.tp_rank else w2


class Marlin:
    """The baseline. What its interface lacks (biases, alpha) is found in its signature and refused by name."""

    name = "marlin"
    device = "cuda"

    def __init__(self) -> None:
        self._parameters: frozenset[str] | None = None

    @property
    def parameters(self) -> frozenset[str]:
        """Names of `fused_marlin_moe`'s parameters in the installed sglang."""
        if self._parameters is None:
            function = import_module(KERNEL).fused_marlin_moe
            self._parameters = frozenset(inspect.signature(getattr(function, "op_func", function)).parameters)
        return self._parameters

    @property
    def takes_biases(self) -> bool:
        """Whether the interface is that of sgl-project/sglang#28231 (0.5.23), GPT-OSS's biases and alpha included."""
        return {"w1_bias", "gemm1_alpha"} <= self.parameters

    def availability(self) -> Available | Unavailable:
        if not torch.cuda.is_available():
            return Unavailable("no CUDA device is visible to torch; sglang's MXFP4 Marlin needs a Hopper GPU (compute capability 9.0)")
        if torch.cuda.get_device_capability() < (9, 0):
            found = ".".join(map(str, torch.cuda.get_device_capability()))
            return Unavailable(f"GPU 0 has compute capability {found}; sglang's MXFP4 Marlin needs 9.0 or later")
        if util.find_spec("sglang") is None:
            return Unavailable(f"sglang is not installed; {INSTALL}")
        version = metadata.version("sglang")
        try:
            interface = "biases, alpha and limit" if self.takes_biases else "limit only: no biases, no alpha (before #28231)"
            import_module(_PREPARE).prepare_moe_mxfp4_layer_for_marlin  # noqa: B018 - only looked up
        except Exception as error:  # sglang imports half an engine: anything may be missing
            return Unavailable(f"sglang {version} has no usable MXFP4 Marlin ({type(error).__name__}: {error}); {INSTALL}")
        return Available({"sglang": version, "interface": interface, "gpu": torch.cuda.get_device_name()})

    def rounding(self, tactic: Tactic = DEFAULT_TACTIC) -> RoundingModel:
        return MARLIN

    def tactics(self, prepared: MarlinWeights, num_tokens: int) -> list[Tactic]:
        """The kernel picks its own tiles from M; nothing can be forced."""
        return [DEFAULT_TACTIC]

    def prepare(self, weights: MoeWeights) -> MarlinWeights:
        """Rows [gate; up], H and I padded to 128, then sglang's repack. `NotSupported` for biases that the interface would drop."""
        biased = weights.w13_bias is not None or weights.w2_bias is not None
        self._require_biases(biased)
        w = pad_layer(weights.to(self.device))
        layer = torch.nn.Module()
        layer.orig_dtype = torch.bfloat16  # type: ignore[assignment]
        for name, tensor in w.tensors().items():
            field = {"w13": "w13_weight", "w2": "w2_weight", "w13_scale": "w13_weight_scale", "w2_scale": "w2_weight_scale"}.get(
                name, name.replace("_bias", "_weight_bias")
            )
            layer.register_parameter(field, torch.nn.Parameter(tensor.contiguous(), requires_grad=False))
        import_module(_PREPARE).prepare_moe_mxfp4_layer_for_marlin(layer)
        return MarlinWeights(layer, w.num_experts, biased)

    def _require_biases(self, biased: bool) -> None:
        if biased and "w1_bias" not in self.parameters:
            raise NotSupported("fused_marlin_moe of this sglang takes no biases (it does since sgl-project/sglang#28231)")

    def run(
        self,
        prepared: MarlinWeights,
        inputs: MoeInputs,
        activation: Activation,
        *,
        parallel: Parallel = SINGLE,
        tactic: Tactic = DEFAULT_TACTIC,
        out: Tensor | None = None,
    ) -> Tensor:
        result = self.timed(prepared, inputs, activation, parallel=parallel)()
        result = result[:, : inputs.x.shape[1]]
        return result.contiguous() if out is None else out.copy_(result)

    def timed(
        self,
        prepared: MarlinWeights,
        inputs: MoeInputs,
        activation: Activation,
        *,
        tactic: Tactic = DEFAULT_TACTIC,
        parallel: Parallel = SINGLE,
    ) -> Callable[[], Tensor]:
        """The call a server makes, arguments ready: [M, Hp] bfloat16, Hp the padded hidden size."""
        constants = self._constants(activation, prepared, parallel)
        x = pad_x(inputs.x).contiguous()
        ids, expert_map = _local(inputs.topk_ids, prepared.num_experts, parallel)
        layer, kernel = prepared.layer, import_module(KERNEL).fused_marlin_moe
        logits = torch.empty(x.shape[0], 1, device=x.device)  # only its first dimension is read
        return lambda: kernel(
            x,
            layer.w13_weight,
            layer.w2_weight,
            layer.w13_weight_scale,
            layer.w2_weight_scale,
            logits,
            inputs.topk_weights,
            ids,
            expert_map=expert_map,
            num_bits=4,
            is_k_full=True,
            inplace=False,
            clamp_limit=activation.limit,
            **constants,
        )

    def _constants(self, activation: Activation, prepared: MarlinWeights, parallel: Parallel) -> dict[str, Any]:
        """What newer interfaces take beside the clamp."""
        self.require(activation)
        biases = dict(zip(("w1_bias", "w2_bias"), prepared.biases(parallel), strict=True)) if prepared.biased else {}
        return biases if (activation.alpha, activation.beta) == (1.0, 0.0) else {**biases, "gemm1_alpha": activation.alpha}

    def require(self, activation: Activation) -> None:
        """Alpha and beta are arguments of newer interfaces alone, and beta is 0 or, with an alpha, 1."""
        if (activation.alpha, activation.beta) == (1.0, 0.0) or ("gemm1_alpha" in self.parameters and activation.beta == 1.0):
            return
        has = "alpha with beta 1, or neither" if "gemm1_alpha" in self.parameters else "neither alpha nor beta"
        raise NotSupported(
            f"fused_marlin_moe of this sglang has {has}; the case needs alpha {activation.alpha:g}, beta {activation.beta:g}"
        )


def _local(topk_ids: Tensor, num_local: int, parallel: Parallel) -> tuple[Tensor, Tensor | None]:
    """Global ids -> ids of this rank's experts, -1 for any other, as sglang's dispatcher maps them; and the mark that switches EP on."""
    ids = topk_ids - parallel.ep_rank * num_local
    foreign = (ids < 0) | (ids >= num_local)
    if parallel.ep_size == 1 and not bool(foreign.any()):
        return topk_ids, None
    return torch.where(foreign, -1, ids).int(), torch.arange(num_local, dtype=torch.int32, device=ids.device)
