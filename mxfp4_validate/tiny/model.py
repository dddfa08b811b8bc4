"""The tiny model: transformers' GPT-OSS around experts that any backend computes, one flat batch of sequences at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import GptOssConfig, GptOssForCausalLM

from mxfp4_validate import faults as kernel_faults
from mxfp4_validate.backends.base import Backend, Unavailable
from mxfp4_validate.backends.registry import resolve
from mxfp4_validate.cases import Activation
from mxfp4_validate.errors import BackendUnavailable, UsageError
from mxfp4_validate.formats.moe_weights import MoeWeights
from mxfp4_validate.tiny.dense import ATTENTION, Batch, Group, KvCache, Router, make_exact
from mxfp4_validate.tiny.experts import BackendExperts, accelerated
from mxfp4_validate.tiny.faults import Fault, fault_named
from mxfp4_validate.tiny.reference import TransformersExperts
from mxfp4_validate.tiny.weights import Checkpoint, open_checkpoint

REFERENCE = "reference"
#: What of config.json is about other things than the model's mathematics.
_NOT_OURS = ("quantization_config", "architectures", "transformers_version", "torch_dtype", "dtype")


@dataclass(frozen=True)
class Chunk:
    """New tokens of one sequence: they stand at positions start, start + 1, ... of cache slot `slot`."""

    slot: int
    start: int
    tokens: Sequence[int]


class TinyModel:
    """A model in memory. `forward` is not re-entrant: one thread calls it."""

    def __init__(self, checkpoint: Checkpoint, backend: str, fault: str | None = None, exact: bool = True) -> None:
        """Load. Raises `UnknownName` for a backend or fault, `BackendUnavailable`, `UsageError` for a checkpoint that does not fit."""
        self.fault = None if fault is None else fault_named(fault, checkpoint.activation)
        self.backend = _backend(backend, checkpoint, self.fault)
        self.device = self.backend.device
        self.causal = _build(checkpoint, self.backend, self.fault, exact)
        self.config = self.causal.config
        self.context_length = int(self.config.max_position_embeddings)
        self.vocab_size = int(self.config.vocab_size)

    def new_cache(self, slots: int, length: int) -> KvCache:
        """An empty cache for so many sequences of at most `length` tokens each."""
        config = self.config
        return KvCache(config.num_hidden_layers, slots, length, config.num_key_value_heads, config.head_dim, self.device)

    @torch.inference_mode()
    def forward(self, cache: KvCache, chunks: Sequence[Chunk], rows: Sequence[int]) -> Tensor:
        """Run the chunks, filling their cache slots; logits [len(rows), vocab] float32 of those rows of the chunks laid end to end."""
        ids = torch.tensor([[token for chunk in chunks for token in chunk.tokens]], device=self.device)
        batch = _batch(cache, chunks, self.device)
        # A slot's last owner may have left a NaN there, and 0 times NaN is NaN even where nobody may look.
        cache.values[:, [chunk.slot for chunk in chunks if chunk.start == 0]] = 0
        hidden = self.causal.model(
            input_ids=ids,
            position_ids=batch.positions.unsqueeze(0),
            attention_mask={"full_attention": None, "sliding_attention": None},  # ours is in `batch`
            use_cache=False,
            batch=batch,
        ).last_hidden_state[0]
        logits: Tensor = self.causal.lm_head(hidden[torch.tensor(rows, dtype=torch.long, device=self.device)])
        return logits.float().cpu()


def load(folder: Path, backend: str = "emulate:sm90-cutlass", fault: str | None = None, exact: bool = True) -> TinyModel:
    """The model of a checkpoint folder with the experts of a backend: a name of the registry, `reference`, or `pkg.module:factory`."""
    return TinyModel(open_checkpoint(folder), backend, fault, exact)


def _backend(spec: str, checkpoint: Checkpoint, fault: Fault | None) -> Backend:
    backend: Backend = TransformersExperts(_config(checkpoint)) if spec == REFERENCE else resolve(spec)
    available = backend.availability()
    if isinstance(available, Unavailable):
        raise BackendUnavailable(f"backend {spec!r} cannot run here: {available.reason}")
    if fault is not None and fault.kernel:
        backend = kernel_faults.inject(backend, fault.kernel)
    return accelerated(backend)


def _config(checkpoint: Checkpoint) -> Any:
    config = GptOssConfig(**{name: value for name, value in checkpoint.config.items() if name not in _NOT_OURS})
    config._attn_implementation, config._experts_implementation = ATTENTION, "eager"
    return config


def _build(checkpoint: Checkpoint, backend: Backend, fault: Fault | None, exact: bool) -> Any:
    """transformers' model with the checkpoint's dense tensors and the backend's experts; its own experts are never allocated."""
    config = _config(checkpoint)
    with torch.device("meta"):
        causal = GptOssForCausalLM(config)
    layers = causal.model.layers
    for layer in layers:
        layer.mlp.experts = torch.nn.Identity()
    _load_dense(causal, checkpoint)
    causal.model.rotary_emb = type(causal.model.rotary_emb)(config=config)  # its buffer is no checkpoint tensor and was left on "meta"
    causal.to(backend.device).eval().requires_grad_(False)
    for number, layer in enumerate(layers):
        layer.mlp.router = Router(layer.mlp.router, exact, fault is None or fault.renormalise)
        layer.mlp.experts = build_experts(checkpoint, number, backend, fault)
    if exact:
        make_exact(causal)
    return causal


def _load_dense(causal: Any, checkpoint: Checkpoint) -> None:
    """Raises `UsageError` naming tensors that are missing, unknown or of another shape."""
    dense = {name: t.bfloat16() for name, t in checkpoint.dense().items()}
    if causal.config.tie_word_embeddings and "model.embed_tokens.weight" in dense:
        dense.setdefault("lm_head.weight", dense["model.embed_tokens.weight"])
    try:
        causal.load_state_dict(dense, strict=True, assign=True)
    except RuntimeError as error:
        raise UsageError(f"--model {checkpoint.folder}: {' '.join(str(error).split())}") from error


class ExpertSource(Protocol):
    """What experts are built from: a GPT-OSS checkpoint, or whatever else has MXFP4 experts by layer."""

    @property
    def num_layers(self) -> int: ...
    @property
    def activation(self) -> Activation: ...
    def experts(self, layer: int) -> MoeWeights: ...


def build_experts(checkpoint: ExpertSource, layer: int, backend: Backend, fault: Fault | None) -> BackendExperts:
    """One layer's experts on a backend, broken where the fault says so."""
    weights, activation = checkpoint.experts(layer).to(backend.device), checkpoint.activation
    if fault is None or not fault.applies(layer, checkpoint.num_layers):
        return BackendExperts(backend, weights, activation)
    edit = None if fault.inputs is None else partial(_edited, fault, weights.num_experts)
    weights = weights if fault.weights is None else fault.weights(weights, layer)
    return BackendExperts(backend, weights, activation if fault.activation is None else fault.activation(activation), edit)


def _edited(fault: Fault, experts: int, inputs: Any) -> Any:
    assert fault.inputs is not None
    return fault.inputs(inputs, experts)


def _batch(cache: KvCache, chunks: Sequence[Chunk], device: str) -> Batch:
    """Rows are grouped by the number of new tokens: everybody who decodes is one group, prompts of equal length are another."""
    by_size: dict[int, list[tuple[int, Chunk]]] = {}
    slots: list[int] = []
    positions: list[int] = []
    for chunk in chunks:
        by_size.setdefault(len(chunk.tokens), []).append((len(slots), chunk))
        slots += [chunk.slot] * len(chunk.tokens)
        positions += range(chunk.start, chunk.start + len(chunk.tokens))
    groups = tuple(
        Group(
            torch.tensor([[first + i for i in range(n)] for first, _ in members], device=device),
            torch.tensor([chunk.slot for _, chunk in members], device=device),
            max(chunk.start for _, chunk in members) + n,
        )
        for n, members in by_size.items()
    )
    return Batch(cache, torch.tensor(slots, device=device), torch.tensor(positions, device=device), groups)
