"""Write a small random-weight checkpoint in DeepSeek-V4's format: config.json and two shards of safetensors, under 1 MB.

Run: python tools/make_dsv4.py DIR. It holds what the readers read and what a model's ends need: experts (I8 codes, F8_E8M0 scales), routers
of one hash layer and one learned layer, shared experts (FP8 in 128 x 128 blocks), embeddings, norms and head. Attention is left out, so it
is for readers and kernels and not for generation.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from mxfp4_validate.cases import DEEPSEEK_V4, MoeCase, MoeShape
from mxfp4_validate.checkpoints.synthetic import hash64, normal_grid, random_weights, uniform
from mxfp4_validate.formats.moe_weights import MoeWeights

HIDDEN, INTERMEDIATE, EXPERTS, TOP_K, VOCAB = 256, 128, 6, 2, 64
#: Layer 0 takes its experts from a table, layer 1 from scores.
LAYER_KINDS = ("hash_moe", "moe")


def config() -> dict[str, object]:
    """config.json in the fields of transformers' DeepseekV4Config; sizes that only attention uses are small."""
    return {
        "architectures": ["DeepseekV4ForCausalLM"], "model_type": "deepseek_v4", "torch_dtype": "bfloat16", "expert_dtype": "fp4",
        "vocab_size": VOCAB, "hidden_size": HIDDEN, "moe_intermediate_size": INTERMEDIATE, "num_hidden_layers": len(LAYER_KINDS),
        "n_routed_experts": EXPERTS, "n_shared_experts": 1, "num_experts_per_tok": TOP_K, "scoring_func": "sqrtsoftplus",
        "norm_topk_prob": True, "routed_scaling_factor": 1.5, "swiglu_limit": DEEPSEEK_V4.limit, "hidden_act": "silu",
        "mlp_layer_types": list(LAYER_KINDS), "layer_types": ["sliding_attention"] * len(LAYER_KINDS),
        "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 64, "q_lora_rank": 64, "o_lora_rank": 64, "o_groups": 2,
        "index_n_heads": 4, "index_head_dim": 32, "index_topk": 8, "sliding_window": 16, "max_position_embeddings": 512,
        "num_nextn_predict_layers": 0, "rms_norm_eps": 1e-6, "tie_word_embeddings": False,
        "quantization_config": {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128], "scale_fmt": "ue8m0"},
    }  # fmt: skip


def expert_tensors(layer: int, weights: MoeWeights) -> dict[str, Tensor]:
    """Canonical bytes of a layer as `layers.N.ffn.experts.E.*`: int8 codes and float8_e8m0fnu scales, viewed from the same bytes."""
    half, found = weights.intermediate_size, {}
    for expert in range(weights.num_experts):
        base = f"layers.{layer}.ffn.experts.{expert}"
        w13, s13 = weights.w13[expert], weights.w13_scale[expert]
        for name, codes, scale in (
            ("w1", w13[:half], s13[:half]),
            ("w3", w13[half:], s13[half:]),
            ("w2", weights.w2[expert], weights.w2_scale[expert]),
        ):
            found[f"{base}.{name}.weight"] = codes.clone().view(torch.int8)
            found[f"{base}.{name}.scale"] = scale.clone().view(torch.float8_e8m0fnu)
    return found


def random_table(seed: int) -> Tensor:
    """A hash layer's table [VOCAB, TOP_K] int64: distinct experts of a token, in random order."""
    return hash64(VOCAB * EXPERTS, seed).view(VOCAB, EXPERTS).argsort(dim=1)[:, :TOP_K].contiguous()


def layer_tensors(layer: int, seed: int) -> dict[str, Tensor]:
    """Everything below `layers.N` that is not attention."""
    shape = MoeShape(f"tiny-dsv4-{layer}", HIDDEN, INTERMEDIATE, EXPERTS, TOP_K, DEEPSEEK_V4, has_bias=False)
    case = MoeCase(shape, 1, seed=seed)
    base, found = f"layers.{layer}.ffn", expert_tensors(layer, random_weights(case))
    found[f"{base}.gate.weight"] = normal_grid((EXPERTS, HIDDEN), case.stream("gate"), 2.0**-7).bfloat16()
    if LAYER_KINDS[layer] == "hash_moe":
        found[f"{base}.gate.tid2eid"] = random_table(case.stream("tid2eid"))
    else:
        found[f"{base}.gate.bias"] = uniform((EXPERTS,), case.stream("gate bias")).float()
    for name, rows, columns in (("w1", INTERMEDIATE, HIDDEN), ("w3", INTERMEDIATE, HIDDEN), ("w2", HIDDEN, INTERMEDIATE)):
        values = normal_grid((rows, columns), case.stream(f"shared {name}"), 2.0**-3)
        blocks = torch.full((-(-rows // 128), -(-columns // 128)), 123, dtype=torch.uint8)
        found[f"{base}.shared_experts.{name}.weight"] = values.to(torch.float8_e4m3fn)
        found[f"{base}.shared_experts.{name}.scale"] = blocks.view(torch.float8_e8m0fnu)
    return found | {f"layers.{layer}.{norm}_norm.weight": torch.ones(HIDDEN, dtype=torch.bfloat16) for norm in ("attn", "ffn")}


def write(folder: Path, seed: int = 0) -> None:
    """Write the checkpoint into `folder`, which is made if need be: a shard a layer, the model's ends with the first."""
    folder.mkdir(parents=True, exist_ok=True)
    embedding = (normal_grid((VOCAB, HIDDEN), seed, 2.0**-6) * 0.25).bfloat16()
    ends = {"embed.weight": embedding, "head.weight": embedding.clone(), "norm.weight": torch.ones(HIDDEN, dtype=torch.bfloat16)}
    shards = [layer_tensors(layer, seed) for layer in range(len(LAYER_KINDS))]
    shards[0] |= ends
    index: dict[str, str] = {}
    for number, tensors in enumerate(shards, 1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        save_file(tensors, folder / name, metadata={"format": "pt"})
        index |= dict.fromkeys(tensors, name)
    total = sum(tensor.nbytes for tensors in shards for tensor in tensors.values())
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": index}, indent=1))
    (folder / "config.json").write_text(json.dumps(config(), indent=1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    write(args.folder, args.seed)


if __name__ == "__main__":
    main()
