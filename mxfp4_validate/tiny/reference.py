"""The `reference` backend: transformers' own GPT-OSS experts on weights dequantised to bf16, behind our protocol."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssExperts

from mxfp4_validate.backends.base import DEFAULT_TACTIC, Available, Tactic, Unavailable
from mxfp4_validate.cases import GPT_OSS, SINGLE, Activation, Parallel
from mxfp4_validate.errors import UsageError
from mxfp4_validate.formats.moe_weights import MoeInputs, MoeWeights
from mxfp4_validate.formats.mxfp4 import dequantise
from mxfp4_validate.layouts.rows import interleave_gpt_oss
from mxfp4_validate.reference.rounding import TRITON_KERNELS, RoundingModel


@dataclass
class TransformersExperts:
    """`config` is transformers' GptOssConfig; its `_experts_implementation` says how transformers computes them."""

    config: Any
    name: str = "reference"
    device: str = "cpu"

    def availability(self) -> Available | Unavailable:
        return Available({"torch": torch.__version__})

    def rounding(self, tactic: Tactic = DEFAULT_TACTIC) -> RoundingModel:
        """The nearest declared model: scales folded into bf16 weights, sums of unknown order."""
        return TRITON_KERNELS

    def tactics(self, prepared: Any, num_tokens: int) -> list[Tactic]:
        return [DEFAULT_TACTIC]

    def prepare(self, weights: MoeWeights) -> Any:
        """The module with its parameters [E, in, out] bfloat16, gate and up interleaved; a bias that is None becomes zeros."""
        experts = GptOssExperts(self.config)
        w13 = interleave_gpt_oss(dequantise(weights.w13, weights.w13_scale, dtype=torch.bfloat16))
        w2 = dequantise(weights.w2, weights.w2_scale, dtype=torch.bfloat16)
        bias13 = w13.new_zeros(w13.shape[:2]) if weights.w13_bias is None else interleave_gpt_oss(weights.w13_bias)
        state = {
            "gate_up_proj": w13.transpose(1, 2).contiguous(),
            "gate_up_proj_bias": bias13,
            "down_proj": w2.transpose(1, 2).contiguous(),
            "down_proj_bias": w2.new_zeros(w2.shape[:2]) if weights.w2_bias is None else weights.w2_bias,
        }
        experts.load_state_dict(state, strict=True, assign=True)
        return experts.requires_grad_(False)

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
        """Routing weights are rounded to bf16, transformers' own dtype for them. Id -1 counts as expert 0 with weight 0."""
        if activation.beta != GPT_OSS.beta or parallel != SINGLE:
            raise UsageError("backend 'reference' is transformers' GPT-OSS experts: beta is 1 there and there is one rank; use emulate:*")
        prepared.alpha, prepared.limit = activation.alpha, math.inf if activation.limit is None else activation.limit
        skipped = inputs.topk_ids < 0
        weights = inputs.topk_weights.masked_fill(skipped, 0.0).to(inputs.x.dtype)
        result: Tensor = prepared(inputs.x, inputs.topk_ids.clamp(min=0).long(), weights)
        return result if out is None else out.copy_(result)
