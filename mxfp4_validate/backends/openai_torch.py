"""OpenAI's torch reference for GPT-OSS: dequantised bf16 weights and a rounding after every operator. Used where `gpt_oss` is installed."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module, metadata, util

import torch
from torch import Tensor

from mxfp4_validate.backends.base import DEFAULT_TACTIC, Available, Tactic, Unavailable
from mxfp4_validate.cases import SINGLE, Activation, Parallel
from mxfp4_validate.errors import NotSupported
from mxfp4_validate.formats import mxfp4
from mxfp4_validate.formats.moe_weights import MoeInputs, MoeWeights
from mxfp4_validate.layouts.rows import interleave_gpt_oss
from mxfp4_validate.reference.rounding import OPENAI_TORCH, RoundingModel

#: Tokens taken at a time: every one gathers its experts' whole matrices.
ROWS = 8


@dataclass(frozen=True)
class BlockWeights:
    """mlp1 [E, 2I, H] with interleaved rows, mlp2 [E, H, I], and biases (zeros where the layer has none), all bfloat16."""

    mlp1: Tensor
    mlp1_bias: Tensor
    mlp2: Tensor
    mlp2_bias: Tensor


class OpenAITorch:
    """The sums and the activation of `gpt_oss.torch.model.MLPBlock`, without its norm, router and residual."""

    name = "openai-torch"
    device = "cuda"
    fixed_beta = 1.0

    def availability(self) -> Available | Unavailable:
        if util.find_spec("gpt_oss") is None:
            return Unavailable("gpt_oss is not installed; pip install gpt-oss (OpenAI's reference implementation)")
        if self.device == "cuda" and not torch.cuda.is_available():
            return Unavailable("no CUDA device is visible to torch")
        try:
            import_module("gpt_oss.torch.model").swiglu  # noqa: B018 - only looked up
        except Exception as error:
            return Unavailable(f"gpt_oss.torch.model cannot be imported ({type(error).__name__}: {error})")
        return Available({"gpt-oss": metadata.version("gpt-oss")})

    def rounding(self, tactic: Tactic = DEFAULT_TACTIC) -> RoundingModel:
        return OPENAI_TORCH

    def tactics(self, prepared: BlockWeights, num_tokens: int) -> list[Tactic]:
        """One way to compute."""
        return [DEFAULT_TACTIC]

    def require(self, activation: Activation) -> None:
        """Its swiglu has a limit and a beta of 1."""
        if activation.beta != self.fixed_beta or activation.limit is None:
            raise NotSupported("gpt_oss's swiglu always clamps and adds 1 to up; the case asks for another activation")

    def prepare(self, weights: MoeWeights) -> BlockWeights:
        """Dequantised to bf16, which holds every E2M1 value times a power of two exactly."""
        w = weights.to(self.device)
        E, H, I = w.num_experts, w.hidden_size, w.intermediate_size  # noqa: E741
        zeros = torch.zeros(E, 2 * I + H, dtype=torch.bfloat16, device=w.w13.device)
        meaning = OPENAI_TORCH.e8m0
        return BlockWeights(
            interleave_gpt_oss(mxfp4.dequantise(w.w13, w.w13_scale, meaning, torch.float32)).bfloat16(),
            interleave_gpt_oss(zeros[:, : 2 * I] if w.w13_bias is None else w.w13_bias),
            mxfp4.dequantise(w.w2, w.w2_scale, meaning, torch.float32).bfloat16(),
            zeros[:, 2 * I :] if w.w2_bias is None else w.w2_bias,
        )

    def run(
        self,
        prepared: BlockWeights,
        inputs: MoeInputs,
        activation: Activation,
        *,
        parallel: Parallel = SINGLE,
        tactic: Tactic = DEFAULT_TACTIC,
        out: Tensor | None = None,
    ) -> Tensor:
        self.require(activation)
        if parallel != SINGLE or bool(((inputs.topk_ids < 0) | (inputs.topk_ids >= prepared.mlp1.shape[0])).any()):
            raise NotSupported("gpt_oss's MLPBlock shards by its own process group and knows no foreign expert ids")
        swiglu = import_module("gpt_oss.torch.model").swiglu
        parts = [
            _block(prepared, x, ids.long(), w, lambda t: swiglu(t, alpha=activation.alpha, limit=activation.limit))
            for x, ids, w in zip(*(t.split(ROWS) for t in (inputs.x, inputs.topk_ids, inputs.topk_weights)), strict=True)
        ]
        result = torch.cat(parts)
        return result if out is None else out.copy_(result)


def _block(w: BlockWeights, x: Tensor, ids: Tensor, weights: Tensor, swiglu: object) -> Tensor:
    """x [m, H] -> [m, H]: two einsums over each token's gathered experts, biases added in bf16, bf16 routing weights."""
    t = torch.einsum("beck,bk->bec", w.mlp1[ids], x) + w.mlp1_bias[ids]
    t = swiglu(t)  # type: ignore[operator]
    t = torch.einsum("beck,bek->bec", w.mlp2[ids], t) + w.mlp2_bias[ids]
    return torch.einsum("bec,be->bc", t, weights.bfloat16())
