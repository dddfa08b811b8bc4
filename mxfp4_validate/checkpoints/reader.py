"""A checkpoint as layers: canonical `MoeWeights` and the router's tensors, read when asked for; and what each format must hold."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mxfp4_validate.checkpoints.config import DSV4, ModelConfig, read_config
from mxfp4_validate.checkpoints.files import CheckpointError, TensorFiles
from mxfp4_validate.errors import ScaleError, UsageError
from mxfp4_validate.formats import cast
from mxfp4_validate.formats.moe_weights import MoeWeights

FLOATS = ("BF16", "F32", "F16")
INTEGERS = ("I64", "I32")


@dataclass(frozen=True)
class Spec:
    """What a tensor must be: its shape, the dtypes it may have, whether it holds block scales, whether it may be absent."""

    shape: tuple[int, ...]
    dtypes: tuple[str, ...]
    scale: bool = False
    optional: bool = False


@dataclass(frozen=True)
class Router:
    """weight [E, H]; bias [E] (GPT-OSS); correction_bias [E] (DeepSeek-V4's learned layers); tid2eid [vocab, k] (its hash layers)."""

    weight: Tensor
    bias: Tensor | None = None
    correction_bias: Tensor | None = None
    tid2eid: Tensor | None = None


class Checkpoint(ABC):
    """Tensors of one model. Subclasses know the names; nothing but headers is read before `weights`, `router` or `scales` is called."""

    def __init__(self, files: TensorFiles, config: ModelConfig) -> None:
        self.files, self.config = files, config

    @abstractmethod
    def specs(self, layer: int) -> dict[str, Spec]:
        """Every tensor of a layer's experts and router, by name."""

    @abstractmethod
    def layer_of(self, name: str) -> int | None:
        """The layer whose experts or router a tensor belongs to by its name; None for any other tensor."""

    @abstractmethod
    def _weights(self, layer: int, experts: Sequence[int]) -> MoeWeights: ...

    @abstractmethod
    def router(self, layer: int) -> Router:
        """The router's tensors in their own dtypes. Raises `CheckpointError` by tensor and file."""

    def weights(self, layer: int, experts: Sequence[int] | None = None) -> MoeWeights:
        """Canonical bytes of a layer's experts, all of them or those given, in that order.

        Raises `UsageError` for a layer or expert that is not there, `CheckpointError` for a tensor that is missing, has another shape or
        dtype, or holds a scale that is no E8M0 byte; the message names tensor and file.
        """
        self.config.check_layer(layer)
        chosen = list(range(self.config.num_experts)) if experts is None else list(experts)
        wrong = [e for e in chosen if not 0 <= e < self.config.num_experts]
        if wrong or not chosen:
            raise UsageError(f"experts {wrong or chosen} are not experts of {self.config.name}; it has 0..{self.config.num_experts - 1}")
        return self._weights(layer, chosen)

    def problem(self, name: str, spec: Spec) -> str | None:
        """What the header shows to be wrong with a tensor, if anything: one line that names tensor and file."""
        if name not in self.files.tensors:
            return None if spec.optional else f"{name} is missing: no file of {self.files.path} holds it; download the checkpoint again"
        info = self.files.tensors[name]
        if info.dtype not in spec.dtypes:
            return (
                f"{name} in {info.file} has dtype {info.dtype}, expected {' or '.join(spec.dtypes)}; take the published file, unconverted"
            )
        # safetensors counts F4 elements, everything else of ours packs two codes a byte.
        want = (*spec.shape[:-1], spec.shape[-1] * 2) if info.dtype == "F4" else spec.shape
        if info.shape != want:
            return f"{name} in {info.file} has shape {list(info.shape)}, config.json asks for {list(want)}; files and config must be of one model"
        return None

    def take(self, name: str, spec: Spec, part: slice | None = None) -> Tensor:
        """A tensor, or its part along the first dimension, in its own dtype, after `problem` found none."""
        if problem := self.problem(name, spec):
            raise CheckpointError(problem)
        return self.files.read(name, part)

    def codes(self, name: str, spec: Spec, part: slice | None = None) -> Tensor:
        """Packed codes as uint8: I8, U8 and F4 are viewed, never converted."""
        return self.take(name, spec, part).view(torch.uint8)

    def scales(self, name: str, spec: Spec, part: slice | None = None) -> Tensor:
        """Block scales as E8M0 bytes, through `formats.cast`; its error and its warning get the tensor's name and file."""
        tensor = self.take(name, spec, part)
        where = f"{name} in {self.files.info(name).file}"
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                result = cast.scale_bytes(tensor)
        except ScaleError as error:
            raise CheckpointError(f"{where}: {error}") from error
        for warning in caught:
            warnings.warn(f"{where}: {warning.message}", cast.SuspiciousScale, stacklevel=2)
        return result


def open_checkpoint(path: Path) -> Checkpoint:
    """The checkpoint in a folder; its reader follows from the names of its tensors. Raises `CheckpointError` for one that cannot be read."""
    from mxfp4_validate.checkpoints.deepseek_v4 import DeepseekV4  # the readers are subclasses of what is defined here
    from mxfp4_validate.checkpoints.gpt_oss import GptOss

    files = TensorFiles(path)
    config = read_config(path, files)
    return (DeepseekV4 if config.format == DSV4 else GptOss)(files, config)
