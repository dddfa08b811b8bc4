"""SmolLM2-135M with each MLP cut into MXFP4 experts: packed from its GGUF file, and as a transformers model whose experts run on a backend."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from mxfp4_validate.backends.registry import resolve
from mxfp4_validate.cases import Activation
from mxfp4_validate.formats.moe_weights import MoeWeights
from mxfp4_validate.formats.quantise import quantise_ocp
from mxfp4_validate.tiny.dense import make_exact
from mxfp4_validate.tiny.experts import BackendExperts, accelerated
from mxfp4_validate.tiny.faults import Fault
from mxfp4_validate.tiny.model import build_experts

HIDDEN, INTERMEDIATE, LAYERS, HEADS, KV_HEADS, EXPERTS = 576, 1536, 30, 9, 3, 4
SWIGLU = Activation()
DENSE = {"attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj"}
DENSE |= {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}


def export(source: Path, out: Path, vocabulary: int) -> None:
    """One file of what the model needs: experts in MXFP4, the rest in the blocks of the GGUF file, the first tokens of the vocabulary."""
    import gguf

    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(source).tensors}

    def values(name: str) -> Tensor:
        return torch.from_numpy(gguf.dequantize(tensors[name].data, tensors[name].tensor_type).copy())

    kept_as_is = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}
    kept_as_is |= {
        f"model.layers.{layer}.{mine}.weight": f"blk.{layer}.{theirs}.weight" for layer in range(LAYERS) for theirs, mine in DENSE.items()
    }
    arrays = {}
    for mine, theirs in kept_as_is.items():
        data = np.asarray(tensors[theirs].data)
        arrays[mine] = data[:vocabulary] if "embed" in mine else data
        again = _dense(torch.from_numpy(arrays[mine].copy()))
        if not torch.equal(again, values(theirs)[: len(again)]):
            raise SystemExit(f"{theirs}: its blocks are not read as the gguf package reads them")
    for layer in range(LAYERS):
        gate, up, down = (values(f"blk.{layer}.ffn_{name}.weight") for name in ("gate", "up", "down"))
        rows = torch.cat([gate.unflatten(0, (EXPERTS, -1)), up.unflatten(0, (EXPERTS, -1))], 1)
        w13, w2 = quantise_ocp(rows), quantise_ocp(down.unflatten(1, (EXPERTS, -1)).transpose(0, 1).contiguous())
        arrays |= {f"{layer}.{name}": t.numpy() for name, t in zip(("w13", "w13_scale", "w2", "w2_scale"), (*w13, *w2), strict=True)}
    np.savez_compressed(out, **arrays)  # type: ignore[arg-type,unused-ignore]
    print(f"{out}: {out.stat().st_size / 1e6:.1f} MB")


def _dense(data: Tensor) -> Tensor:
    """Float32 rows as they are, uint8 rows of Q8_0 (34 bytes a block: scale, 32 int8) or Q4_1 (20: scale, minimum, 16 x 2 codes)."""
    if data.dtype == torch.float32:
        return data
    size = 34 if data.shape[1] % (HIDDEN // 32 * 34) == 0 else 20
    blocks = data.unflatten(1, (-1, size))
    scale = blocks[..., :2].contiguous().view(torch.float16).float()
    if size == 34:
        return (blocks[..., 2:].contiguous().view(torch.int8).float() * scale).flatten(1)
    least, codes = blocks[..., 2:4].contiguous().view(torch.float16).float(), blocks[..., 4:]
    return (torch.cat([codes & 15, codes >> 4], -1).float() * scale + least).flatten(1)


@dataclass(frozen=True)
class Source:
    """The exported file; an `ExpertSource` of tiny/model.py."""

    arrays: dict[str, np.ndarray[Any, Any]]
    activation: Activation = SWIGLU
    num_layers: int = LAYERS

    def experts(self, layer: int) -> MoeWeights:
        return MoeWeights(*(torch.from_numpy(self.arrays[f"{layer}.{name}"]) for name in ("w13", "w13_scale", "w2", "w2_scale")))

    def dense(self) -> dict[str, Tensor]:
        """Everything but the experts under transformers' names, bf16. llama.cpp stores q and k with the halves of a head interleaved."""
        out = {name: _dense(torch.from_numpy(a)).bfloat16() for name, a in self.arrays.items() if name.startswith("model.")}
        for name in [name for name in out if "q_proj" in name or "k_proj" in name]:
            out[name] = out[name].unflatten(0, (-1, 32, 2)).transpose(1, 2).flatten(0, 2).contiguous()
        return out


class Mlp(torch.nn.Module):
    """All experts for every token, weight 1."""

    def __init__(self, experts: BackendExperts) -> None:
        super().__init__()
        self.experts = experts

    def forward(self, x: Tensor) -> Tensor:
        """x [B, T, H] bfloat16 -> the same shape."""
        rows = x.reshape(-1, x.shape[-1])
        ids = torch.arange(EXPERTS, device=x.device).expand(len(rows), -1)
        return self.experts(rows, ids, torch.ones(ids.shape, device=x.device)).view_as(x)


def model(source: Source, spec: str, fault: Fault | None = None, exact: bool = False) -> Any:
    """transformers' Llama around the experts of a backend."""
    backend = accelerated(resolve(spec))
    dense = source.dense()
    size = len(dense["model.embed_tokens.weight"])
    shape = {"hidden_size": HIDDEN, "intermediate_size": INTERMEDIATE, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS}
    more = {"num_key_value_heads": KV_HEADS, "rms_norm_eps": 1e-5, "max_position_embeddings": 8192, "tie_word_embeddings": True}
    config = LlamaConfig(vocab_size=size, rope_theta=1e5, **shape, **more)
    with torch.device("meta"):
        causal = LlamaForCausalLM(config)
    for layer in causal.model.layers:
        layer.mlp = torch.nn.Identity()
    causal.load_state_dict(dense | {"lm_head.weight": dense["model.embed_tokens.weight"]}, strict=True, assign=True)
    causal.model.rotary_emb = type(causal.model.rotary_emb)(config=config)
    causal.to(backend.device).eval().requires_grad_(False)
    for number, layer in enumerate(causal.model.layers):
        weights = source.experts(number).to(backend.device)
        layer.mlp = Mlp(build_experts(_Moved(source, weights), number, backend, fault))
    if exact:
        make_exact(causal)
    return causal


@dataclass(frozen=True)
class _Moved:
    """One layer's weights on the backend's device."""

    source: Source
    weights: MoeWeights

    @property
    def num_layers(self) -> int:
        return self.source.num_layers

    @property
    def activation(self) -> Activation:
        return self.source.activation

    def experts(self, layer: int) -> MoeWeights:
        return self.weights
