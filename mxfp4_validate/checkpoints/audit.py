"""The audit of a checkpoint: every layer's tensors against config.json, every scale byte, the hash tables, and where tensor parallelism cuts."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from mxfp4_validate.checkpoints.config import DSV4
from mxfp4_validate.checkpoints.reader import Checkpoint, Spec
from mxfp4_validate.errors import ScaleError
from mxfp4_validate.formats import cast, e8m0
from mxfp4_validate.formats.mxfp4 import BLOCK
from mxfp4_validate.reference.routing import looks_default

ERROR, WARNING = "error", "warning"
TP_SIZES = (1, 2, 4, 8)
NAN_BYTE = 255


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong (`error`) or asks for a look (`warning`). `layer` None: the model as a whole; `file` "": in no file."""

    severity: str
    layer: int | None
    tensor: str
    file: str
    message: str


def audit(checkpoint: Checkpoint) -> Iterator[Finding]:
    """Every finding, layer by layer. Reads all headers, all scales and all hash tables, and no codes.

    Raises `CheckpointError` if a file cannot be read any more.
    """
    yield from _folder(checkpoint)
    yield from _extra(checkpoint)
    yield from _parallel(checkpoint)
    for layer in range(checkpoint.config.num_layers):
        for name, spec in checkpoint.specs(layer).items():
            if problem := checkpoint.problem(name, spec):
                yield _finding(checkpoint, ERROR, layer, name, problem)
            elif spec.scale:
                for severity, message in _scale_findings(checkpoint.files.read(name)):
                    yield _finding(checkpoint, severity, layer, name, message)
            elif name.endswith(".tid2eid"):
                for message in _table_findings(checkpoint.files.read(name), checkpoint.config.num_experts):
                    yield _finding(checkpoint, ERROR, layer, name, message)


def _finding(checkpoint: Checkpoint, severity: str, layer: int | None, name: str, message: str) -> Finding:
    info = checkpoint.files.tensors.get(name)
    return Finding(severity, layer, name, info.file if info else "", message)


def _folder(checkpoint: Checkpoint) -> Iterator[Finding]:
    """What lies in the folder and is not read."""
    for name in checkpoint.files.pickles:
        yield Finding(WARNING, None, "", name, "a pickle lies beside the safetensors files; it was not read, and nothing should load it")
    for name in checkpoint.files.unindexed:
        yield Finding(WARNING, checkpoint.layer_of(name), name, "", "the index does not list this tensor, so loaders leave it out")


def _extra(checkpoint: Checkpoint) -> Iterator[Finding]:
    """Tensors that by their names are a layer's experts or router, and that no layer of config.json has."""
    specs: dict[int, dict[str, Spec]] = {}
    layers = checkpoint.config.num_layers
    for name in sorted(checkpoint.files.tensors):
        layer = checkpoint.layer_of(name)
        if layer is not None and layer not in specs and layer < layers:
            specs[layer] = checkpoint.specs(layer)
        if layer is not None and name not in specs.get(layer, {}):
            why = f"layer {layer} of {layers}" if layer >= layers else "not one that config.json asks for"
            yield _finding(checkpoint, WARNING, layer, name, f"an extra tensor ({why}); files and config may be of two models")


def _parallel(checkpoint: Checkpoint) -> Iterator[Finding]:
    """Tensor-parallel sizes that cut the intermediate dimension inside a 32-block: w2's columns then lose their scales' edges."""
    size = checkpoint.config.intermediate_size
    scales = (name for name, spec in checkpoint.specs(0).items() if spec.scale)
    name = next(n for n in scales if any(part in n for part in ("down_proj", "mlp2", ".w2.")))
    for tp in TP_SIZES:
        if size % (tp * BLOCK):
            share = f"{size / tp:g}"
            yield _finding(
                checkpoint, WARNING, None, name,
                f"TP={tp} gives each rank {size}/{tp} = {share} intermediate channels, not a multiple of {BLOCK}: ranks must be cut at "
                f"multiples of {BLOCK} and padded, and a loader that divides evenly reads wrong scales",
            )  # fmt: skip


def _scale_findings(scales: Tensor) -> Iterator[tuple[str, str]]:
    """What the scales of one tensor hold: [rows, K/32], or [E, rows, K/32] where experts are stacked."""
    if scales.dtype in cast.FLOAT_DTYPES:
        try:
            # Out-of-range bytes are counted below like those of any other storage.
            data = _float_bytes(scales)
        except ScaleError as error:
            yield ERROR, str(error)
            return
    else:
        data = scales.view(torch.uint8)
    low, high = e8m0.PLAUSIBLE.start, e8m0.PLAUSIBLE.stop - 1
    odd = ((data < low) | (data > high)) & (data != 0) & (data != NAN_BYTE)
    for severity, wrong, what in (
        (ERROR, data == NAN_BYTE, "are 255, E8M0's NaN, which kernels read as infinity: the shard is uninitialised or damaged"),
        (WARNING, data == 0, "are 0, which is 2^-127 by OCP and 0.0 in Hopper's kernels: backends disagree about these blocks"),
        (WARNING, odd, f"lie outside {low}..{high}, where released checkpoints have theirs"),
    ):
        if count := int(wrong.sum()):
            at = wrong.nonzero()[0].tolist()
            yield severity, f"{count} of {data.numel()} scale bytes {what}; the first is {int(data[tuple(at)])} at {at}"
    yield from _unfilled(data)


def _float_bytes(scales: Tensor) -> Tensor:
    """`cast.scale_bytes` without its warning: the audit counts those bytes itself."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", cast.SuspiciousScale)
        return cast.scale_bytes(scales)


def _unfilled(data: Tensor) -> Iterator[tuple[str, str]]:
    """Scales that are all 1.0: of the whole tensor, or of some of its stacked experts."""
    why = "byte 127 (scale 1.0), what memory created as ones and never filled holds"
    if cast.looks_unfilled(data):
        yield ERROR, f"all {data.numel()} scale bytes are {why}"
    elif data.dim() == 3:
        experts = [e for e in range(data.shape[0]) if cast.looks_unfilled(data[e])]
        if experts:
            shown = ", ".join(map(str, experts[:8])) + (", ..." if len(experts) > 8 else "")
            yield ERROR, f"all scale bytes of {len(experts)} of {data.shape[0]} experts ({shown}) are {why}"


def _table_findings(table: Tensor, experts: int) -> Iterator[str]:
    """What is wrong with a hash layer's table [vocab, k]."""
    outside = (table < 0) | (table >= experts)
    if bool(outside.any()):
        at = outside.nonzero()[0].tolist()
        yield f"{int(outside.sum())} entries are no expert of 0..{experts - 1}; the first is {int(table[tuple(at)])} at {at}"
    elif looks_default(table, experts):
        kind = "all zeros" if not bool(table.any()) else "(token + slot) % E"
        yield f"the table is {kind}, what an engine starts from before it loads one: it routes plausibly and wrong"
    else:
        ordered = table.sort(dim=1).values
        twice = (ordered[:, 1:] == ordered[:, :-1]).any(1)
        if bool(twice.any()):
            yield f"{int(twice.sum())} of {table.shape[0]} tokens name an expert twice, first token {int(twice.int().argmax())}"


def summary(checkpoint: Checkpoint) -> dict[str, object]:
    """What the checkpoint is, for people and for --json."""
    c, files = checkpoint.config, checkpoint.files
    found: dict[str, object] = {name: value for name, value in vars(c).items() if name not in ("activation", "hash_layers")}
    found |= {"activation": dict(vars(c.activation)), "tensors": len(files.tensors), "files": len(files.files)}
    return found | ({"hash_layers": list(c.hash_layers)} if c.format == DSV4 else {})
