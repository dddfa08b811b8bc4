"""triton_kernels' `matmul_ogs` with MXFP4 weights, called as sglang calls it for GPT-OSS on Hopper (`--moe-runner-backend triton_kernel`)."""

from __future__ import annotations

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
from mxfp4_validate.layouts.rows import interleave_gpt_oss, pad_layer, pad_x
from mxfp4_validate.reference.rounding import TRITON_KERNELS, RoundingModel

INSTALL = "pip install sglang-kernel (its wheel brings triton_kernels with the matmul_ogs interface)"
#: Warps that the scale layout is swizzled for; the kernel takes the same number from the layout.
NUM_WARPS = 8


@dataclass(frozen=True)
class TritonWeights:
    """Arguments of the two `matmul_ogs` calls: swizzled weights, their precision configurations, fp32 biases [E, 2Ip] and [E, Hp]."""

    w13: Any
    w2: Any
    config13: Any
    config2: Any
    bias13: Tensor
    bias2: Tensor
    num_experts: int
    padded_intermediate: int
    padded_hidden: int


class TritonKernels:
    """OpenAI's Triton kernels. Its SwiGLU always adds 1 to up, and it knows no expert parallelism."""

    name = "triton-kernels"
    device = "cuda"
    #: The one beta its activation has; checks that can state a layer with another beta do so.
    fixed_beta = 1.0
    timed_excludes = "routing data (sort and counts of expert ids) are made beforehand, as the engine makes them outside the MoE call"

    def availability(self) -> Available | Unavailable:
        if not torch.cuda.is_available():
            return Unavailable("no CUDA device is visible to torch; this backend's layouts are Hopper's (compute capability 9.0)")
        if torch.cuda.get_device_capability() != (9, 0):
            found = ".".join(map(str, torch.cuda.get_device_capability()))
            return Unavailable(f"GPU 0 has compute capability {found}; this backend's layouts are Hopper's (9.0)")
        if util.find_spec("triton_kernels") is None:
            return Unavailable(f"triton_kernels is not installed; {INSTALL}")
        try:
            import_module("triton_kernels.matmul_ogs").matmul_ogs  # noqa: B018 - later versions renamed it
        except Exception as error:
            return Unavailable(f"triton_kernels has no matmul_ogs interface ({type(error).__name__}: {error}); {INSTALL}")
        versions = {name: _version(name) for name in ("triton_kernels", "sglang-kernel", "triton")}
        return Available({name: v for name, v in versions.items() if v} | {"gpu": torch.cuda.get_device_name()})

    def rounding(self, tactic: Tactic = DEFAULT_TACTIC) -> RoundingModel:
        return TRITON_KERNELS

    def tactics(self, prepared: TritonWeights, num_tokens: int) -> list[Tactic]:
        """Tiles follow from M; the engine does not force any either."""
        return [DEFAULT_TACTIC]

    def require(self, activation: Activation) -> None:
        """Beta is a constant of its swiglu."""
        if activation.beta != self.fixed_beta:
            raise NotSupported(f"triton_kernels' swiglu always adds 1 to up; the case needs beta {activation.beta:g}")

    def prepare(self, weights: MoeWeights) -> TritonWeights:
        """Interleaved gate/up rows, H and I padded to 128 (the Hopper scale layout reads whole tiles), values and scales swizzled."""
        w = pad_layer(weights.to(self.device))
        rows = interleave_gpt_oss
        w13, config13 = _swizzle(rows(w.w13), rows(w.w13_scale))
        w2, config2 = _swizzle(w.w2, w.w2_scale)
        E, H, I = w.num_experts, w.hidden_size, w.intermediate_size  # noqa: E741
        bias13 = torch.zeros(E, 2 * I, device=w.w2.device) if w.w13_bias is None else rows(w.w13_bias).float()
        bias2 = torch.zeros(E, H, device=w.w2.device) if w.w2_bias is None else w.w2_bias.float()
        return TritonWeights(w13, w2, config13, config2, bias13, bias2, E, I, H)

    def run(
        self,
        prepared: TritonWeights,
        inputs: MoeInputs,
        activation: Activation,
        *,
        parallel: Parallel = SINGLE,
        tactic: Tactic = DEFAULT_TACTIC,
        out: Tensor | None = None,
    ) -> Tensor:
        result = self.timed(prepared, inputs, activation, parallel=parallel)()[:, : inputs.x.shape[1]]
        return result.contiguous() if out is None else out.copy_(result)

    def timed(
        self,
        prepared: TritonWeights,
        inputs: MoeInputs,
        activation: Activation,
        *,
        tactic: Tactic = DEFAULT_TACTIC,
        parallel: Parallel = SINGLE,
    ) -> Callable[[], Tensor]:
        """Both GEMMs with routing data ready, outputs allocated a call: [M, Hp] bfloat16."""
        self.require(activation)
        if parallel.ep_size > 1 or bool(((inputs.topk_ids < 0) | (inputs.topk_ids >= prepared.num_experts)).any()):
            raise NotSupported("triton_kernels as sglang calls it has no expert parallelism: every id must name a local expert")
        ogs, swiglu = import_module("triton_kernels.matmul_ogs"), import_module("triton_kernels.swiglu")
        act = ogs.FusedActivation(
            ogs.FnSpecs("swiglu", swiglu.swiglu_fn, ("alpha", "limit"), reduction_n=2), (activation.alpha, activation.limit)
        )
        x = pad_x(inputs.x).contiguous()
        (M, k), w = inputs.topk_ids.shape, prepared
        routing, gather, scatter = route(inputs, w.num_experts)
        bias2 = torch.zeros_like(w.bias2) if parallel.tp_rank else w.bias2

        def call() -> Tensor:
            h = torch.empty(1, M * k, w.padded_intermediate, dtype=torch.bfloat16, device=x.device)
            y = torch.empty(1, M, w.padded_hidden, dtype=torch.bfloat16, device=x.device)
            ogs.matmul_ogs(x, w.w13, w.bias13, routing, gather_indx=gather, precision_config=w.config13, fused_activation=act, y=h)
            rows = h.view(M * k, w.padded_intermediate)
            ogs.matmul_ogs(rows, w.w2, bias2, routing, scatter_indx=scatter, precision_config=w.config2, gammas=routing.gate_scal, y=y)
            return y.view(M, w.padded_hidden)

        return call


def route(inputs: MoeInputs, num_experts: int) -> tuple[Any, Any, Any]:
    """Routing data, gather and scatter indices of given ids and fp32 weights: (token, slot) pairs sorted by expert, stable."""
    ogs, tensor = import_module("triton_kernels.matmul_ogs"), import_module("triton_kernels.tensor")
    ids = inputs.topk_ids.flatten()
    combine = torch.argsort(ids, stable=True).int()
    dispatch = torch.empty_like(combine)
    dispatch[combine.long()] = torch.arange(ids.numel(), dtype=torch.int32, device=ids.device)
    counts = torch.bincount(ids.long(), minlength=num_experts).int()
    ragged = tensor.make_ragged_tensor_metadata(counts, ids.numel())
    gammas = inputs.topk_weights.flatten()[combine.long()]
    routing = ogs.RoutingData(gammas, ragged.slice_sizes, num_experts, inputs.topk_ids.shape[1], ragged)
    return routing, ogs.GatherIndx(combine, dispatch), ogs.ScatterIndx(dispatch, combine)


def _swizzle(packed: Tensor, scale: Tensor) -> tuple[Any, Any]:
    """[E, N, K/2] and [E, N, K/32] -> the Hopper value and scale layouts, and the precision configuration that names the scales."""
    ogs, numerics = import_module("triton_kernels.matmul_ogs"), import_module("triton_kernels.numerics")
    tensor, layout = import_module("triton_kernels.tensor"), import_module("triton_kernels.tensor_details.layout")
    import_module("triton_kernels.matmul_ogs_details.opt_flags").update_opt_flags_constraints({"split_k": 1})
    values, value_options = layout.make_default_matmul_mxfp4_w_layout(mx_axis=1)
    scales, scale_options = layout.make_default_matmul_mxfp4_w_scale_layout(mx_axis=1, num_warps=NUM_WARPS)
    w = tensor.convert_layout(tensor.wrap_torch_tensor(packed.transpose(-2, -1), dtype=tensor.FP4), values, **value_options)
    s = tensor.convert_layout(tensor.wrap_torch_tensor(scale.transpose(-2, -1)), scales, **scale_options)
    return w, ogs.PrecisionConfig(weight_scale=s, flex_ctx=ogs.FlexCtx(rhs_data=numerics.InFlexData()))


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
