"""GPT-OSS through sglang's own class with the Marlin runner, as a server would run it."""

from __future__ import annotations

from importlib import import_module
from types import SimpleNamespace
from typing import Any

import torch

from mxfp4_validate.backends import sglang_layers as engine
from mxfp4_validate.backends.base import DEFAULT_TACTIC, Available, Tactic, Unavailable
from mxfp4_validate.backends.marlin import Marlin
from mxfp4_validate.cases import Activation
from mxfp4_validate.errors import NotSupported
from mxfp4_validate.formats.moe_weights import MoeWeights
from mxfp4_validate.reference.rounding import MARLIN


class GptOssMarlin(engine.SglangLayer):
    """`Mxfp4MoEMethod` with the Marlin runner. Before sglang#28231 it drops biases and alpha and leaves gate and up interleaved."""

    name = "sglang:gpt-oss-marlin"
    module = "sglang.srt.layers.quantization.mxfp4"
    runner = "marlin"

    def availability(self) -> Available | Unavailable:
        found = Marlin().availability()
        if isinstance(found, Available) and (why := engine.not_driven()):
            return Unavailable(f"sglang {found.facts['sglang']} {why}; the backend marlin runs its kernel and function")
        return found

    @property
    def layout(self) -> Any:
        raise AttributeError("Marlin's layout is sglang's own")

    def rounding(self, tactic: Tactic = DEFAULT_TACTIC) -> Any:
        return MARLIN

    def prepare(self, weights: MoeWeights) -> Any:
        """As `GptOssSm90.prepare`, with the engine's runner set to Marlin."""
        engine.start_engine(self.runner)
        w = weights.to(self.device)
        method, layer = import_module(self.module).Mxfp4MoEMethod(prefix="model.layers.0.mlp.experts"), self._layer(w)
        with torch.device(self.device):
            method.create_weights(layer, w.num_experts, w.hidden_size, w.intermediate_size, torch.bfloat16, with_bias=True)
        engine.fill_gpt_oss(layer, w)
        config = import_module("sglang.srt.layers.moe.moe_runner.base").MoeRunnerConfig(
            num_experts=w.num_experts, num_local_experts=w.num_experts, gemm1_alpha=1.702, gemm1_clamp_limit=7.0
        )
        layer.moe_runner_config = config
        try:
            method.process_weights_after_loading(layer)
        except RuntimeError as error:
            if "not supported by Marlin" not in str(error):
                raise
            raise NotSupported(f"sglang itself refuses H={w.hidden_size}, I={w.intermediate_size}: {error}") from error
        method.create_moe_runner(layer, config)
        return SimpleNamespace(layer=layer, method=method)

    def require(self, activation: Activation) -> None:
        """GPT-OSS's."""
        if activation != engine.GPT_OSS:
            raise NotSupported("a GPT-OSS server has one activation: alpha 1.702, beta 1, limit 7")
