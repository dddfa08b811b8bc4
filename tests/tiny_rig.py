"""A random checkpoint in genuine GPT-OSS format, for tests that need a model and not what it learned."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

SPECIAL = ("<|endoftext|>", "<|start|>", "<|message|>", "<|end|>", "<|return|>")
TEMPLATE = (
    "{% for m in messages %}<|start|>{{ m['role'] }}<|message|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant<|message|>{% endif %}"
)
CONFIG = {
    "architectures": ["GptOssForCausalLM"], "model_type": "gpt_oss", "vocab_size": 320, "hidden_size": 256, "intermediate_size": 256,
    "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "num_local_experts": 8,
    "num_experts_per_tok": 2, "sliding_window": 16, "max_position_embeddings": 1024, "swiglu_limit": 7.0, "tie_word_embeddings": False,
    "eos_token_id": 4, "pad_token_id": 0, "attention_bias": True, "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    "quantization_config": {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn", "model.layers.*.mlp.router", "lm_head"]},
}  # fmt: skip


def make_checkpoint(folder: Path, seed: int = 0) -> Path:
    """Write config, tokenizer and weights; scales are such that pre-activations reach the clamp and every layer adds about what it is given."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    _tokenizer(folder)
    save_file(_tensors(torch.Generator().manual_seed(seed)), folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def _tensors(rng: torch.Generator) -> dict[str, torch.Tensor]:
    H, V, E, q, kv = 256, 320, 8, 128, 64

    def normal(*shape: int, std: float) -> torch.Tensor:
        return (torch.randn(shape, generator=rng) * std).bfloat16()

    def scale(middle: int, *shape: int) -> torch.Tensor:
        return torch.randint(middle - 1, middle + 2, shape, generator=rng, dtype=torch.uint8)

    def codes(*shape: int) -> torch.Tensor:
        return torch.randint(0, 256, shape, generator=rng, dtype=torch.uint8)

    found = {"model.embed_tokens.weight": normal(V, H, std=1.0), "model.norm.weight": 1 + normal(H, std=0.1)}
    found["lm_head.weight"] = normal(V, H, std=0.15)
    for layer in range(4):
        p = f"model.layers.{layer}."
        found |= {p + f"{name}layernorm.weight": 1 + normal(H, std=0.1) for name in ("input_", "post_attention_")}
        for name, rows, width in (("q_proj", q, H), ("k_proj", kv, H), ("v_proj", kv, H), ("o_proj", H, q)):
            found |= {
                p + f"self_attn.{name}.weight": normal(rows, width, std=width**-0.5),
                p + f"self_attn.{name}.bias": normal(rows, std=0.1),
            }
        found |= {
            p + "self_attn.sinks": normal(4, std=1.0),
            p + "mlp.router.weight": normal(E, H, std=0.1),
            p + "mlp.router.bias": normal(E, std=0.1),
        }
        e = p + "mlp.experts."
        found |= {e + "gate_up_proj_blocks": codes(E, 512, 8, 16), e + "gate_up_proj_scales": scale(123, E, 512, 8)}
        found |= {e + "down_proj_blocks": codes(E, 256, 8, 16), e + "down_proj_scales": scale(120, E, 256, 8)}
        found |= {e + "gate_up_proj_bias": normal(E, 512, std=0.5), e + "down_proj_bias": normal(E, 256, std=0.5)}
    return found


def _tokenizer(folder: Path) -> None:
    """Bytes, one token each, after the special tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate((*SPECIAL, *alphabet))}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|return|>", "pad_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "chat_template.jinja").write_text(TEMPLATE)
