"""sglang 0.5.23's `fused_marlin_moe` on a CPU, as `sglang_rig` has 0.5.12.post1's: the first release in which it has GPT-OSS's biases, alpha and limit."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from mxfp4_validate.backends import marlin as marlin_backend
from mxfp4_validate.backends.marlin_gemm import _swiglu
from mxfp4_validate.cases import Activation
from tests import sglang_rig as rig
from tests.sglang_rig import _M


def moe_align_block_size(topk_ids: Tensor, block: int, num_experts: int, return_inactive_prefix_count: bool = False) -> Any:
    """As before; the count of blocks without an expert, which later GEMMs skip, is not needed by ours."""
    return rig.moe_align_block_size(topk_ids, block, num_experts)


def moe_align_single_token(topk_ids: Tensor, block: int, return_inactive_prefix_count: bool = False) -> Any:
    return rig.moe_align_block_size(topk_ids, block, 0)


def moe_wna16_marlin_gemm(*positional: Any, zero_inactive_output: bool = False, **named: Any) -> Tensor:
    """As before; rows of no expert are zeros where that is asked."""
    if zero_inactive_output:
        positional[1].zero_()
    return rig.moe_wna16_marlin_gemm(*positional, **named)


def swiglu_oai_split(gate_up: Tensor, alpha: float, beta: float, limit: float | None, out: Tensor) -> Tensor:
    """In float32, rounded once; what `marlin-gemm` supplies where a release has no such kernel."""
    return out.copy_(_swiglu(gate_up, Activation(alpha, beta, limit)))


def moe_topk_sum(x: Tensor, out: Tensor) -> None:
    torch.sum(x, dim=1, out=out)


RELEASE_23 = rig.Release(
    "0.5.23",
    {
        "sglang.kernels.ops.quantization.gptq_marlin_repack": {"gptq_marlin_repack": rig.gptq_marlin_repack},
        "sglang.kernels.ops.moe.moe_wna16_marlin": {"moe_wna16_marlin_gemm": moe_wna16_marlin_gemm},
        "sglang.kernels.ops.moe.moe_align_single_token": {"moe_align_single_token": moe_align_single_token},
        "sglang.kernels.ops.moe.moe_topk_sum": {"moe_topk_sum": moe_topk_sum},
        "sglang.kernels.ops.activation.activation": {"silu_and_mul": rig.silu_and_mul},
        "sglang.kernels.ops.activation.minimax_m3_swiglu": {"swiglu_oai_split": swiglu_oai_split},
        "sglang.srt.layers.zero_copy_context": {"get_moe_output": lambda x: None},
        "sglang.srt.runtime_context": {"get_platform": lambda: SimpleNamespace(is_sm90=True)},
        f"{_M}.fused_moe_triton": {"moe_align_block_size": moe_align_block_size},
    },
)


def marlin() -> Any:
    return rig.on_cpu(marlin_backend.Marlin(), RELEASE_23)


marlin.device = "cpu"  # type: ignore[attr-defined]
