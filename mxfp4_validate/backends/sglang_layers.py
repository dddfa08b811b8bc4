"""The MoE method classes that an sglang server really runs on Hopper, driven with a minimal layer.

Their loader transforms (`process_weights_after_loading`) and call plumbing (`apply`) are what is on trial: weights are put into the layer
as sglang's loader would leave them, and the bytes that come out must be our layout's, byte for byte.
"""

from __future__ import annotations

import dataclasses
import functools
import socket
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module, metadata, util
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module, Parameter

from mxfp4_validate.backends.base import DEFAULT_TACTIC, Available, Tactic, Unavailable
from mxfp4_validate.backends.sm90_cutlass import Sm90Cutlass
from mxfp4_validate.cases import SINGLE, Activation, Parallel
from mxfp4_validate.errors import NotSupported
from mxfp4_validate.formats import e8m0
from mxfp4_validate.formats.moe_weights import MoeInputs, MoeWeights
from mxfp4_validate.layouts.prepare import Sm90Weights
from mxfp4_validate.layouts.rows import interleave_gpt_oss

INSTALL = "pip install 'sglang>=0.5.12'"
GPT_OSS = Activation(1.702, 1.0, 7.0)


@dataclass(frozen=True)
class LayerWeights(Sm90Weights):
    """The tensors of `layer` after processing, under our names, and what calls them."""

    layer: Any = None
    method: Any = None


def not_driven() -> str:
    """Why the installed sglang's classes cannot be driven from here; empty if they can.

    Releases with `runtime_context` (0.5.23 is one) publish a whole engine's configuration before a class may be made, and their loaders leave
    other tensors (DeepSeek-V4's w13 as [up; gate], scales as E8M0). Driven as the releases before, they would be judged wrongly.
    """
    if util.find_spec("sglang.srt.runtime_context") is None:
        return ""
    return "loads and configures its MoE classes in another way (sglang.srt.runtime_context); they are driven up to the release before, 0.5.12.post1 tested"


@functools.cache
def start_engine(runner: str) -> None:
    """What the classes ask of a running engine: its global arguments, the chosen MoE runner, and process groups of one rank."""
    server_args = import_module("sglang.srt.server_args")
    fields = {f.name: f.default for f in dataclasses.fields(server_args.ServerArgs) if f.default is not dataclasses.MISSING}
    server_args.set_global_server_args_for_scheduler(SimpleNamespace(**{**fields, "moe_runner_backend": runner}))
    moe = import_module("sglang.srt.layers.moe.utils")
    setattr(moe, "MOE_RUNNER_BACKEND", moe.MoeRunnerBackend(runner))  # noqa: B010 - a module's global
    distributed = import_module("sglang.srt.distributed")
    if not torch.distributed.is_initialized():
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        distributed.init_distributed_environment(
            world_size=1, rank=0, local_rank=0, backend="gloo", distributed_init_method=f"tcp://127.0.0.1:{port}"
        )
        distributed.initialize_model_parallel()


class SglangLayer:
    """What both classes share. The kernel below is FlashInfer's, so arithmetic, tactics and layout are the candidate's."""

    name = ""
    device = "cuda"
    module = ""
    runner = "flashinfer_mxfp4"

    def __init__(self) -> None:
        self._kernel = Sm90Cutlass()

    @property
    def layout(self) -> Any:
        return self._kernel.layout

    def availability(self) -> Available | Unavailable:
        kernel = self._kernel.availability()
        if isinstance(kernel, Unavailable):
            return kernel
        if util.find_spec("sglang") is None:
            return Unavailable(f"sglang is not installed; {INSTALL}")
        version = metadata.version("sglang")
        try:
            import_module(self.module)
        except Exception as error:  # sglang imports half an engine: anything may be missing
            return Unavailable(f"sglang {version} cannot import {self.module} ({type(error).__name__}: {error}); {INSTALL}")
        if why := not_driven():
            return Unavailable(f"sglang {version} {why}")
        return Available({"sglang": version, **kernel.facts})

    def rounding(self, tactic: Tactic = DEFAULT_TACTIC) -> Any:
        return self._kernel.rounding(tactic)

    def tactics(self, prepared: LayerWeights, num_tokens: int) -> list[Tactic]:
        """The server forces none."""
        return [DEFAULT_TACTIC]

    def run(
        self,
        prepared: LayerWeights,
        inputs: MoeInputs,
        activation: Activation,
        *,
        parallel: Parallel = SINGLE,
        tactic: Tactic = DEFAULT_TACTIC,
        out: Tensor | None = None,
    ) -> Tensor:
        result = self.timed(prepared, inputs, activation, parallel=parallel)()
        return result if out is None else out.copy_(result)

    def timed(
        self,
        prepared: LayerWeights,
        inputs: MoeInputs,
        activation: Activation,
        *,
        tactic: Tactic = DEFAULT_TACTIC,
        parallel: Parallel = SINGLE,
    ) -> Callable[[], Tensor]:
        """`apply` on a standard dispatch: [M, H] bfloat16."""
        layer, method = prepared.layer, prepared.method
        self.require(activation)
        self._runner(method, layer, activation)
        layer.moe_tp_size, layer.moe_tp_rank = parallel.tp_size, parallel.tp_rank
        layer.moe_ep_size, layer.moe_ep_rank = parallel.ep_size, parallel.ep_rank
        topk = import_module("sglang.srt.layers.moe.topk")
        logits = torch.empty(inputs.x.shape[0], 1, device=inputs.x.device)
        routed = topk.StandardTopKOutput(inputs.topk_weights, inputs.topk_ids, logits)
        dispatch = SimpleNamespace(hidden_states=inputs.x, topk_output=routed)

        def call() -> Tensor:
            result: Tensor = method.apply(layer, dispatch).hidden_states
            return result

        return call

    def require(self, activation: Activation) -> None:
        """`NotSupported` for an activation that is not the class's own."""
        raise NotImplementedError

    def _runner(self, method: Any, layer: Any, activation: Activation) -> None:
        """What a class wants to know of the activation before `apply`."""

    def _layer(self, weights: MoeWeights) -> Any:
        layer = Module()
        layer.num_local_experts = layer.num_experts = weights.num_experts  # type: ignore[assignment]
        layer.hidden_size, layer.intermediate_size_per_partition = weights.hidden_size, weights.intermediate_size  # type: ignore[assignment]
        return layer

    def _packed(self, weights: MoeWeights, layer: Any, method: Any, scales: tuple[str, str], biased: bool) -> LayerWeights:
        return LayerWeights(
            fc1=layer.w13_weight.data,
            fc1_scale=getattr(layer, scales[0]).data,
            fc2=layer.w2_weight.data,
            fc2_scale=getattr(layer, scales[1]).data,
            fc1_bias=layer.w13_weight_bias.data if biased else None,
            fc2_bias=layer.w2_weight_bias.data if biased else None,
            hidden_size=weights.hidden_size,
            intermediate_size=weights.intermediate_size,
            layout=self.layout.name,
            layer=layer,
            method=method,
        )


class GptOssSm90(SglangLayer):
    """`Mxfp4MoEMethod` on its SM90 cutlass branch. Its alpha, beta and limit are constants in the source."""

    name = "sglang:gpt-oss-sm90"
    module = "sglang.srt.layers.quantization.mxfp4"

    def prepare(self, weights: MoeWeights) -> LayerWeights:
        """Rows interleaved gate, up, gate, ... as in the checkpoint, copied into the class's own buffers, then processed."""
        start_engine(self.runner)
        w = weights.to(self.device)
        method, layer = import_module(self.module).Mxfp4MoEMethod(prefix="model.layers.0.mlp.experts"), self._layer(w)
        with torch.device(self.device):
            method.create_weights(layer, w.num_experts, w.hidden_size, w.intermediate_size, torch.bfloat16, with_bias=True)
        fill_gpt_oss(layer, w)
        method.process_weights_after_loading(layer)
        return self._packed(w, layer, method, ("w13_weight_scale", "w2_weight_scale"), biased=True)

    def require(self, activation: Activation) -> None:
        """GPT-OSS's, which are constants in its source."""
        if activation != GPT_OSS:
            raise NotSupported(
                "Mxfp4MoEMethod sets alpha 1.702, beta 1 and limit 7 itself; the case needs "
                f"alpha {activation.alpha:g}, beta {activation.beta:g}, limit {activation.limit}"
            )


def fill_gpt_oss(layer: Any, w: MoeWeights) -> None:
    """As sglang's loader copies a GPT-OSS checkpoint: interleaved rows into the upper left corner of whatever the class allocated."""
    tensors = {
        "w13_weight": interleave_gpt_oss(w.w13),
        "w13_weight_scale": interleave_gpt_oss(w.w13_scale),
        "w2_weight": w.w2,
        "w2_weight_scale": w.w2_scale,
        "w13_weight_bias": None if w.w13_bias is None else interleave_gpt_oss(w.w13_bias),
        "w2_weight_bias": w.w2_bias,
    }
    for name, tensor in tensors.items():
        if tensor is not None:
            getattr(layer, name).data[tuple(slice(0, n) for n in tensor.shape)].copy_(tensor)


class DeepSeekV4Sm90(SglangLayer):
    """`Mxfp4FlashinferCutlassMoEMethod` over `Fp8MoEMethod`'s buffers: int8 codes, scales as fp32 numbers."""

    name = "sglang:dsv4-sm90"
    module = "sglang.srt.layers.quantization.mxfp4_flashinfer_cutlass_moe"

    def prepare(self, weights: MoeWeights) -> LayerWeights:
        """Rows [w1; w3], codes as int8, scales cast to fp32 by value, as the loader leaves them; then processed."""
        if weights.w13_bias is not None or weights.w2_bias is not None:
            raise NotSupported("Mxfp4FlashinferCutlassMoEMethod passes no biases: DeepSeek-V4's experts have none")
        if weights.hidden_size % 128 or weights.intermediate_size % 128:
            raise NotSupported(
                "Mxfp4FlashinferCutlassMoEMethod refuses sizes off 128 (it does not pad): "
                f"H={weights.hidden_size}, I={weights.intermediate_size}"
            )
        start_engine(self.runner)
        w = weights.to(self.device)
        fp8 = import_module("sglang.srt.layers.quantization.fp8")
        config = fp8.Fp8Config(is_checkpoint_fp8_serialized=True, weight_block_size=[128, 128], is_fp4_experts=True)
        method, layer = import_module(self.module).Mxfp4FlashinferCutlassMoEMethod(fp8.Fp8MoEMethod(config), prefix="0"), self._layer(w)
        layer.moe_runner_config = SimpleNamespace(is_gated=True)
        with torch.device(self.device):
            method.create_weights(layer, w.num_experts, w.hidden_size, w.intermediate_size, torch.bfloat16)
        _fill(layer.w13_weight, w.w13.view(torch.int8))
        _fill(layer.w2_weight, w.w2.view(torch.int8))
        _fill(layer.w13_weight_scale_inv, e8m0.decode(w.w13_scale, e8m0.EXPONENT_FIELD, torch.float32))
        _fill(layer.w2_weight_scale_inv, e8m0.decode(w.w2_scale, e8m0.EXPONENT_FIELD, torch.float32))
        method.process_weights_after_loading(layer)
        return self._packed(w, layer, method, ("w13_weight_scale_inv", "w2_weight_scale_inv"), biased=False)

    def require(self, activation: Activation) -> None:
        """Plain silu, with or without a limit."""
        if (activation.alpha, activation.beta) != (1.0, 0.0):
            raise NotSupported(f"DeepSeek-V4's class has alpha 1 and beta 0; the case needs {activation.alpha:g} and {activation.beta:g}")

    def _runner(self, method: Any, layer: Any, activation: Activation) -> None:
        method.create_moe_runner(layer, SimpleNamespace(swiglu_limit=activation.limit))


def _fill(parameter: Parameter, values: Tensor) -> None:
    if parameter.shape != values.shape or parameter.dtype != values.dtype:
        raise NotSupported(
            f"the class allocated {tuple(parameter.shape)} {parameter.dtype} where the loader has {tuple(values.shape)} {values.dtype}"
        )
    parameter.data.copy_(values)
