"""Checkpoints for tests: GPT-OSS under both sets of names from canonical bytes, and tools to damage files."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from mxfp4_validate.cases import GPT_OSS, MoeCase, MoeShape
from mxfp4_validate.checkpoints.synthetic import normal_grid, random_weights
from mxfp4_validate.formats.moe_weights import MoeWeights

ROOT = Path(__file__).resolve().parents[1]
LAYERS, HIDDEN, EXPERTS, TOP_K = 2, 64, 4, 2
#: Cut by TP=8 into whole blocks, so that a sound checkpoint has no finding at all.
INTERMEDIATE = 256


def layer_weights(layer: int, intermediate: int = INTERMEDIATE) -> MoeWeights:
    """Canonical bytes of a test layer."""
    shape = MoeShape(f"rig{layer}", HIDDEN, intermediate, EXPERTS, TOP_K, GPT_OSS, has_bias=True)
    return random_weights(MoeCase(shape, 1))


def interleave(rows: Tensor) -> Tensor:
    """[E, 2I, ...] as [gate; up] -> gate_0, up_0, gate_1, ..., by a loop, so as not to share a formula with the reader."""
    half = rows.shape[1] // 2
    return torch.stack([rows[:, i // 2 + half * (i % 2)] for i in range(2 * half)], dim=1)


def gpt_oss_layer(layer: int, openai: bool, intermediate: int = INTERMEDIATE) -> dict[str, Tensor]:
    """One layer's tensors, names written out."""
    w = layer_weights(layer, intermediate)
    assert w.w13_bias is not None
    assert w.w2_bias is not None
    w13, w2 = interleave(w.w13).unflatten(-1, (-1, 16)), w.w2.unflatten(-1, (-1, 16))
    gate, bias = normal_grid((EXPERTS, HIDDEN), 5 + layer, 2.0**-6).bfloat16(), normal_grid((EXPERTS,), 9, 2.0**-6).bfloat16()
    if openai:
        b = f"block.{layer}.mlp"
        return {
            f"{b}.mlp1_weight.blocks": w13, f"{b}.mlp1_weight.scales": interleave(w.w13_scale), f"{b}.mlp1_bias": interleave(w.w13_bias),
            f"{b}.mlp2_weight.blocks": w2, f"{b}.mlp2_weight.scales": w.w2_scale, f"{b}.mlp2_bias": w.w2_bias,
            f"{b}.gate.weight": gate, f"{b}.gate.bias": bias,
        }  # fmt: skip
    b = f"model.layers.{layer}.mlp"
    return {
        f"{b}.experts.gate_up_proj_blocks": w13, f"{b}.experts.gate_up_proj_scales": interleave(w.w13_scale),
        f"{b}.experts.gate_up_proj_bias": interleave(w.w13_bias),
        f"{b}.experts.down_proj_blocks": w2, f"{b}.experts.down_proj_scales": w.w2_scale, f"{b}.experts.down_proj_bias": w.w2_bias,
        f"{b}.router.weight": gate, f"{b}.router.bias": bias,
    }  # fmt: skip


def write_gpt_oss(folder: Path, *, openai: bool = False, intermediate: int = INTERMEDIATE) -> Path:
    """A shard a layer; Hugging Face's with an index, OpenAI's without."""
    folder.mkdir(parents=True)
    index: dict[str, str] = {}
    for layer in range(LAYERS):
        tensors, name = gpt_oss_layer(layer, openai, intermediate), f"model-0000{layer}-of-0000{LAYERS}.safetensors"
        save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, folder / name)
        index |= dict.fromkeys(tensors, name)
    if not openai:
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    experts = {"num_experts": EXPERTS, "experts_per_token": TOP_K}
    if not openai:
        experts = {"num_local_experts": EXPERTS, "num_experts_per_tok": TOP_K}
    config = {"num_hidden_layers": LAYERS, "hidden_size": HIDDEN, "intermediate_size": intermediate, "vocab_size": 50, "swiglu_limit": 7.0}
    (folder / "config.json").write_text(json.dumps(config | experts))
    return folder


def write_dsv4(folder: Path) -> Path:
    """What tools/make_dsv4.py writes."""
    spec = importlib.util.spec_from_file_location("make_dsv4", ROOT / "tools" / "make_dsv4.py")
    assert spec is not None
    assert spec.loader is not None
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    tool.write(folder)
    return folder


def load(folder: Path) -> dict[str, Tensor]:
    """Every tensor of a folder, by safetensors' own reader."""
    return {name: tensor for path in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(path).items()}


def file_of(folder: Path, tensor: str) -> Path:
    """The file that holds a tensor."""
    return next(path for path in sorted(folder.glob("*.safetensors")) if tensor in load_file(path))


def change(folder: Path, tensor: str, by: Callable[[Tensor], Tensor]) -> None:
    """Rewrite one tensor."""
    path = file_of(folder, tensor)
    tensors = load_file(path)
    tensors[tensor] = by(tensors[tensor].clone()).contiguous()
    save_file(tensors, path)


def drop(folder: Path, tensor: str) -> None:
    """Leave a tensor out of its file and of the index."""
    path, index = file_of(folder, tensor), folder / "model.safetensors.index.json"
    save_file({name: t for name, t in load_file(path).items() if name != tensor}, path)
    data = json.loads(index.read_text())
    del data["weight_map"][tensor]
    index.write_text(json.dumps(data))


def add(folder: Path, tensor: str, value: Tensor, *, listed: bool = True) -> None:
    """Put a tensor into the first file."""
    path, index = min(folder.glob("*.safetensors")), folder / "model.safetensors.index.json"
    save_file(load_file(path) | {tensor: value}, path)
    if listed:
        data = json.loads(index.read_text())
        data["weight_map"][tensor] = path.name
        index.write_text(json.dumps(data))


def set_config(folder: Path, **values: object) -> None:
    """Change or (None) remove keys of config.json."""
    path = folder / "config.json"
    data = json.loads(path.read_text()) | values
    path.write_text(json.dumps({key: value for key, value in data.items() if value is not None}))
