"""DeepSeek-V4 checkpoints: an expert's w1 (gate), w3 (up) and w2 (down) each on its own, with E8M0 scales; hash layers route by a table."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch

from mxfp4_validate.checkpoints.reader import FLOATS, INTEGERS, Checkpoint, Router, Spec
from mxfp4_validate.formats.moe_weights import MoeWeights
from mxfp4_validate.formats.mxfp4 import BLOCK

#: Bytes of two codes under any of these names; they are viewed, since a conversion from int8 would take bytes for numbers.
CODES = ("I8", "U8", "F4")
#: E8M0 bytes, or the fp32 powers of two that sglang makes of them.
SCALES = ("F8_E8M0", "U8", "F32")
_OWN = re.compile(r"layers\.(\d+)\.ffn\.(?:experts|gate)\..+")


class DeepseekV4(Checkpoint):
    """`layers.N.ffn.experts.E.w{1,2,3}.{weight,scale}` and `layers.N.ffn.gate.*`."""

    def specs(self, layer: int) -> dict[str, Spec]:
        experts = [spec for e in range(self.config.num_experts) for spec in self._expert(layer, e).items()]
        return dict(experts) | self._gate(layer)

    def _expert(self, layer: int, expert: int) -> dict[str, Spec]:
        H, I = self.config.hidden_size, self.config.intermediate_size  # noqa: E741
        found = {}
        for part, rows, K in (("w1", I, H), ("w3", I, H), ("w2", H, I)):
            name = f"layers.{layer}.ffn.experts.{expert}.{part}"
            found[f"{name}.weight"] = Spec((rows, K // 2), CODES)
            found[f"{name}.scale"] = Spec((rows, K // BLOCK), SCALES, scale=True)
        return found

    def _gate(self, layer: int) -> dict[str, Spec]:
        c, name = self.config, f"layers.{layer}.ffn.gate"
        hashed = layer in c.hash_layers
        table = {f"{name}.tid2eid": Spec((c.vocab_size, c.top_k), INTEGERS)}
        bias = {f"{name}.bias": Spec((c.num_experts,), FLOATS)}
        return {f"{name}.weight": Spec((c.num_experts, c.hidden_size), FLOATS)} | (table if hashed else bias)

    def layer_of(self, name: str) -> int | None:
        match = _OWN.fullmatch(name)
        return int(match[1]) if match else None

    def _weights(self, layer: int, experts: Sequence[int]) -> MoeWeights:
        c, E = self.config, len(experts)
        H, I = c.hidden_size, c.intermediate_size  # noqa: E741
        w13, s13 = torch.empty(E, 2 * I, H // 2, dtype=torch.uint8), torch.empty(E, 2 * I, H // BLOCK, dtype=torch.uint8)
        w2, s2 = torch.empty(E, H, I // 2, dtype=torch.uint8), torch.empty(E, H, I // BLOCK, dtype=torch.uint8)
        for place, expert in enumerate(experts):
            specs, base = self._expert(layer, expert), f"layers.{layer}.ffn.experts.{expert}"
            for part, codes, scale in (
                ("w1", w13[place, :I], s13[place, :I]),
                ("w3", w13[place, I:], s13[place, I:]),
                ("w2", w2[place], s2[place]),
            ):
                codes.copy_(self.codes(f"{base}.{part}.weight", specs[f"{base}.{part}.weight"]))
                scale.copy_(self.scales(f"{base}.{part}.scale", specs[f"{base}.{part}.scale"]))
        return MoeWeights(w13, s13, w2, s2)

    def router(self, layer: int) -> Router:
        self.config.check_layer(layer)
        found = {name.rpartition(".")[2]: self.take(name, spec) for name, spec in self._gate(layer).items()}
        return Router(found["weight"], None, found.get("bias"), found.get("tid2eid"))
