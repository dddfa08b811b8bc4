"""What sglang holds of a checkpoint in memory, as canonical `MoeWeights`: a dump of its parameters can be compared with the files.

Names and shapes are those of sglang 0.5.12's FusedMoE layer. GPT-OSS keeps the file's interleaved rows; DeepSeek-V4's are [w1; w3], and its
scales are fp32, created as ones and filled by value.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from mxfp4_validate.checkpoints.config import DSV4, HF, ModelConfig
from mxfp4_validate.checkpoints.files import CheckpointError
from mxfp4_validate.checkpoints.gpt_oss import split_rows
from mxfp4_validate.formats import cast
from mxfp4_validate.formats.moe_weights import MoeWeights

#: Parameter below `...mlp.experts.` -> field of `MoeWeights`.
PARAMETERS = {
    HF: {
        "w13_weight": "w13",
        "w13_weight_scale": "w13_scale",
        "w13_weight_bias": "w13_bias",
        "w2_weight": "w2",
        "w2_weight_scale": "w2_scale",
        "w2_weight_bias": "w2_bias",
    },
    DSV4: {"w13_weight": "w13", "w13_weight_scale_inv": "w13_scale", "w2_weight": "w2", "w2_weight_scale_inv": "w2_scale"},
}


def from_sglang(parameters: Mapping[str, Tensor], config: ModelConfig) -> MoeWeights:
    """Parameters of one FusedMoE layer, as loaded and before any repacking -> canonical bytes.

    Codes are int8 or uint8 [E, 2I, H/2] and [E, H, I/2]; scales are bytes, or fp32 powers of two, [E, rows, K/32]. Raises `CheckpointError`
    for a parameter that is missing, `ScaleError` for a scale that is no E8M0 byte, `ShapeError` where shapes do not belong together.
    """
    names = PARAMETERS[DSV4 if config.format == DSV4 else HF]
    if missing := [name for name in names if name not in parameters]:
        raise CheckpointError(f"sglang's layer lacks {', '.join(missing)}; it was given {', '.join(sorted(parameters)) or 'nothing'}")
    found: dict[str, Tensor] = {}
    for name, role in names.items():
        tensor = parameters[name]
        if role.endswith("_scale"):
            tensor = cast.scale_bytes(tensor)
        elif not role.endswith("_bias"):
            tensor = tensor.view(torch.uint8)
        found[role] = split_rows(tensor) if role.startswith("w13") and config.format != DSV4 else tensor
    return MoeWeights(**found)
