"""A GPT-OSS checkpoint folder as the tiny server needs it: settings, dense tensors, and each layer's experts in canonical order."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from mxfp4_validate.cases import Activation
from mxfp4_validate.checkpoints.config import HF
from mxfp4_validate.checkpoints.files import read_json
from mxfp4_validate.checkpoints.reader import Checkpoint as Reader
from mxfp4_validate.checkpoints.reader import open_checkpoint as open_reader
from mxfp4_validate.errors import UsageError
from mxfp4_validate.formats.moe_weights import MoeWeights


@dataclass(frozen=True)
class Checkpoint:
    """`config` is config.json as it stands; tensors are read when asked for."""

    folder: Path
    config: dict[str, Any]
    reader: Reader

    @property
    def num_layers(self) -> int:
        return self.reader.config.num_layers

    @property
    def activation(self) -> Activation:
        return self.reader.config.activation

    def dense(self) -> dict[str, Tensor]:
        """Everything but the experts, under transformers' names."""
        files = self.reader.files
        return {name: files.read(name) for name in files.tensors if ".mlp.experts." not in name}

    def experts(self, layer: int) -> MoeWeights:
        """Layer `layer`'s experts, rows [gate; up]. Raises `CheckpointError` by tensor and file."""
        return self.reader.weights(layer).map(lambda t: t.contiguous())


def open_checkpoint(folder: Path) -> Checkpoint:
    """A folder in Hugging Face's GPT-OSS format. Raises `UsageError` (`CheckpointError`) for any other, or one that cannot be read."""
    reader = open_reader(folder)
    if reader.config.format != HF:
        raise UsageError(f"--model {folder}: its format is {reader.config.format!r}, the tiny server runs Hugging Face's {HF!r}")
    return Checkpoint(folder, read_json(folder / "config.json"), reader)
