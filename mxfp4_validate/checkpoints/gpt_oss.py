"""GPT-OSS checkpoints, by Hugging Face's tensor names and by OpenAI's own: experts stacked, gate and up rows interleaved."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import Tensor

from mxfp4_validate.checkpoints.config import HF, OPENAI
from mxfp4_validate.checkpoints.reader import FLOATS, Checkpoint, Router, Spec
from mxfp4_validate.formats.moe_weights import MoeWeights
from mxfp4_validate.formats.mxfp4 import BLOCK

#: Role -> tensor name; "router" roles are the router's.
NAMES = {
    HF: {
        "w13": "model.layers.{}.mlp.experts.gate_up_proj_blocks",
        "w13_scale": "model.layers.{}.mlp.experts.gate_up_proj_scales",
        "w13_bias": "model.layers.{}.mlp.experts.gate_up_proj_bias",
        "w2": "model.layers.{}.mlp.experts.down_proj_blocks",
        "w2_scale": "model.layers.{}.mlp.experts.down_proj_scales",
        "w2_bias": "model.layers.{}.mlp.experts.down_proj_bias",
        "router": "model.layers.{}.mlp.router.weight",
        "router_bias": "model.layers.{}.mlp.router.bias",
    },
    OPENAI: {
        "w13": "block.{}.mlp.mlp1_weight.blocks",
        "w13_scale": "block.{}.mlp.mlp1_weight.scales",
        "w13_bias": "block.{}.mlp.mlp1_bias",
        "w2": "block.{}.mlp.mlp2_weight.blocks",
        "w2_scale": "block.{}.mlp.mlp2_weight.scales",
        "w2_bias": "block.{}.mlp.mlp2_bias",
        "router": "block.{}.mlp.gate.weight",
        "router_bias": "block.{}.mlp.gate.bias",
    },
}
_OWN = {
    HF: re.compile(r"model\.layers\.(\d+)\.mlp\.(?:experts|router)\..+"),
    OPENAI: re.compile(r"block\.(\d+)\.mlp\.(?:mlp[12]_.+|gate\..+)"),
}


def split_rows(rows: Tensor) -> Tensor:
    """[E, 2I, ...] with gate and up rows in turn -> the same rows as [gate; up]. Source: `swiglu` of OpenAI's gpt_oss/torch/model.py."""
    return torch.cat((rows[:, 0::2], rows[:, 1::2]), dim=1)


class GptOss(Checkpoint):
    """Either set of names; bytes are the same."""

    def names(self, layer: int) -> dict[str, str]:
        """Role -> tensor name of a layer."""
        return {role: name.format(layer) for role, name in NAMES[self.config.format].items()}

    def specs(self, layer: int) -> dict[str, Spec]:
        c, names = self.config, self.names(layer)
        E, H, rows, I = c.num_experts, c.hidden_size, 2 * c.intermediate_size, c.intermediate_size  # noqa: E741
        by_role = {
            "w13": Spec((E, rows, H // BLOCK, BLOCK // 2), ("U8",)),
            "w13_scale": Spec((E, rows, H // BLOCK), ("U8", "F8_E8M0"), scale=True),
            "w13_bias": Spec((E, rows), ("BF16",)),
            "w2": Spec((E, H, I // BLOCK, BLOCK // 2), ("U8",)),
            "w2_scale": Spec((E, H, I // BLOCK), ("U8", "F8_E8M0"), scale=True),
            "w2_bias": Spec((E, H), ("BF16",)),
            "router": Spec((E, H), FLOATS),
            "router_bias": Spec((E,), FLOATS),
        }
        return {names[role]: spec for role, spec in by_role.items()}

    def layer_of(self, name: str) -> int | None:
        match = _OWN[self.config.format].fullmatch(name)
        return int(match[1]) if match else None

    def _weights(self, layer: int, experts: Sequence[int]) -> MoeWeights:
        names, specs = self.names(layer), self.specs(layer)
        whole = list(experts) == list(range(self.config.num_experts))

        def stacked(role: str) -> Tensor:
            name, spec = names[role], specs[names[role]]
            read = self.scales if spec.scale else self.take
            parts = [None] if whole else [slice(e, e + 1) for e in experts]
            return torch.cat([read(name, spec, part) for part in parts])

        return MoeWeights(
            w13=split_rows(stacked("w13").flatten(-2)),
            w13_scale=split_rows(stacked("w13_scale")),
            w2=stacked("w2").flatten(-2),
            w2_scale=stacked("w2_scale"),
            w13_bias=split_rows(stacked("w13_bias")),
            w2_bias=stacked("w2_bias"),
        )

    def router(self, layer: int) -> Router:
        self.config.check_layer(layer)
        names, specs = self.names(layer), self.specs(layer)
        weight, bias = (self.take(names[role], specs[names[role]]) for role in ("router", "router_bias"))
        return Router(weight, bias)
