"""What config.json and the tensors' names say of a model: its format and the shape of its MoE layers. No torch, so tests can be collected."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mxfp4_validate.cases import DEEPSEEK_V4, GPT_OSS, Activation, MoeCase, MoeShape
from mxfp4_validate.checkpoints.files import CheckpointError, TensorFiles, read_json
from mxfp4_validate.errors import UsageError

HF, OPENAI, DSV4 = "gpt-oss", "gpt-oss-openai", "deepseek-v4"
#: A tensor name that only this format has.
_SIGNS = {
    HF: re.compile(r"model\.layers\.\d+\.mlp\.experts\.(gate_up_proj|down_proj)_(blocks|scales)"),
    OPENAI: re.compile(r"block\.\d+\.mlp\.mlp[12]_weight\.(blocks|scales)"),
    DSV4: re.compile(r"layers\.\d+\.ffn\.experts\.\d+\.w[123]\.(weight|scale)"),
}
#: Separates a checkpoint's name from the layer in a case id; no shape of our own has it, and xdist splits ids at an @.
_AT = "+layer"
#: A layer of more weights than this is taken for a production one: it is ordered last, and a CPU is spared the slowest checks.
LARGE = 1 << 24


@dataclass(frozen=True)
class ModelConfig:
    """The MoE layers of a checkpoint. `hash_layers` are DeepSeek-V4's, whose experts come from a table by token id."""

    format: str
    name: str
    num_layers: int
    hidden_size: int
    intermediate_size: int
    num_experts: int
    top_k: int
    activation: Activation
    has_bias: bool
    vocab_size: int
    hash_layers: tuple[int, ...] = ()
    routed_scaling_factor: float = 1.0

    def shape(self, layer: int) -> MoeShape:
        """The layer as a shape, under a name that no other shape has; `UsageError` for a layer that is not there."""
        self.check_layer(layer)
        size = self.num_experts * self.hidden_size * self.intermediate_size
        name = f"{self.name}{_AT}{layer}"
        return MoeShape(
            name, self.hidden_size, self.intermediate_size, self.num_experts, self.top_k, self.activation, self.has_bias, size > LARGE
        )

    def check_layer(self, layer: int) -> None:
        if not 0 <= layer < self.num_layers:
            raise UsageError(f"layer {layer} is not in checkpoint {self.name}; it has layers 0..{self.num_layers - 1}")


def layer_of(shape: MoeShape) -> int:
    """The layer that `ModelConfig.shape` was asked for."""
    return int(shape.name.rpartition(_AT)[2])


def parse_case(case_id: str, config: ModelConfig) -> MoeCase:
    """`MoeCase.parse` for the ids of a checkpoint's cases, `NAME+layerN/mTOKENS/ROUTING/sSEED`."""
    name, _, rest = case_id.partition("/")
    layer = name.removeprefix(config.name + _AT)
    if not layer.isdecimal():
        raise UsageError(f"case id {case_id!r} does not read {config.name}{_AT}N/mTOKENS/ROUTING/sSEED")
    # The grammar after the shape is MoeCase's; any registered shape gets it parsed.
    return replace(MoeCase.parse(f"dsv4-tiny/{rest}"), shape=config.shape(int(layer)))


def parse_layers(text: str, config: ModelConfig) -> tuple[int, ...]:
    """`--layers 0,12` as numbers, each once; `UsageError` for anything else or a layer that is not there."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise UsageError(f"--layers {text!r} is not a comma list of layer numbers, e.g. 0,12")
    layers = tuple(dict.fromkeys(map(int, parts)))
    for layer in layers:
        config.check_layer(layer)
    return layers


def detect(names: Iterable[str], where: Path) -> str:
    """The format whose names these are; `CheckpointError` if it is none or more than one."""
    names = list(names)
    found = [kind for kind, sign in _SIGNS.items() if any(sign.fullmatch(name) for name in names)]
    if len(found) == 1:
        return found[0]
    if found:
        raise CheckpointError(f"{where} holds tensors of several formats ({', '.join(found)}); give a folder with one of them")
    raise CheckpointError(
        f"{where} holds no MXFP4 experts by the names of GPT-OSS (Hugging Face's or OpenAI's) or DeepSeek-V4; its first tensors are "
        f"{', '.join(sorted(names)[:3]) or 'none'}"
    )


def read_config(path: Path, files: TensorFiles | None = None) -> ModelConfig:
    """The configuration of the checkpoint at `path`. Raises `CheckpointError`, naming config.json and the key, for a value that is missing or wrong."""
    files = TensorFiles(path) if files is None else files
    kind = detect(files.tensors, path)
    values = _Values(read_json(files.folder / "config.json"))
    name = re.sub(r"[^A-Za-z0-9._-]", "_", files.folder.resolve().name) or "checkpoint"
    model = (_dsv4 if kind == DSV4 else _gpt_oss)(kind, name, values)
    for key, value in (("hidden_size", model.hidden_size), ("intermediate_size", model.intermediate_size)):
        if value % 32:
            raise CheckpointError(f"config.json: {key} {value} is not a multiple of 32, MXFP4's block size")
    if model.top_k > model.num_experts:
        raise CheckpointError(f"config.json: {model.top_k} experts a token of {model.num_experts} experts")
    return model


def _gpt_oss(kind: str, name: str, values: _Values) -> ModelConfig:
    return ModelConfig(
        kind, name,
        num_layers=values.count("num_hidden_layers"),
        hidden_size=values.count("hidden_size"),
        intermediate_size=values.count("intermediate_size"),
        num_experts=values.count("num_local_experts", "num_experts"),
        top_k=values.count("num_experts_per_tok", "experts_per_token"),
        activation=replace(GPT_OSS, limit=values.number("swiglu_limit", GPT_OSS.limit)),
        has_bias=True,
        vocab_size=values.count("vocab_size"),
    )  # fmt: skip


def _dsv4(kind: str, name: str, values: _Values) -> ModelConfig:
    return ModelConfig(
        kind, name,
        num_layers=values.count("num_hidden_layers"),
        hidden_size=values.count("hidden_size"),
        intermediate_size=values.count("moe_intermediate_size"),
        num_experts=values.count("n_routed_experts"),
        top_k=values.count("num_experts_per_tok"),
        activation=replace(DEEPSEEK_V4, limit=values.number("swiglu_limit", DEEPSEEK_V4.limit)),
        has_bias=False,
        vocab_size=values.count("vocab_size"),
        hash_layers=_hash_layers(values, values.count("num_hidden_layers")),
        routed_scaling_factor=values.number("routed_scaling_factor", 1.5),
    )  # fmt: skip


def _hash_layers(values: _Values, layers: int) -> tuple[int, ...]:
    """`mlp_layer_types` by layer, or the first `num_hash_layers`, by default 3. Source: transformers' DeepseekV4Config."""
    kinds = values.data.get("mlp_layer_types")
    if kinds is None:
        return tuple(range(min(layers, int(values.number("num_hash_layers", 3)))))
    if not isinstance(kinds, list) or len(kinds) < layers or any(kind not in ("hash_moe", "moe") for kind in kinds):
        raise CheckpointError(f"config.json: mlp_layer_types must name 'hash_moe' or 'moe' for each of {layers} layers, got {kinds!r}")
    return tuple(n for n, kind in enumerate(kinds[:layers]) if kind == "hash_moe")


@dataclass(frozen=True)
class _Values:
    """config.json with its errors."""

    data: dict[str, Any]

    def count(self, *keys: str) -> int:
        """A whole number of at least 1 under the first of `keys` that is there."""
        for key in keys:
            if key in self.data:
                value = self.data[key]
                if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                    raise CheckpointError(f"config.json: {key} is {value!r}, expected a whole number of at least 1")
                return value
        raise CheckpointError(f"config.json has no {' or '.join(keys)}; download it again")

    def number(self, key: str, default: float | None) -> float:
        """A positive number; `default` if it is not there."""
        value = self.data.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
            raise CheckpointError(f"config.json: {key} is {value!r}, expected a number of at least 0")
        return float(value)
