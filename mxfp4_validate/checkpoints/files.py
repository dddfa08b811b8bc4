"""The safetensors files of a checkpoint folder: which tensors there are, by header alone, and one tensor's data when it is asked for.

Headers are read with the standard library, so that collecting tests needs neither torch nor safetensors and a file that was cut short is
told with the tensor it cuts. Data comes through the `safetensors` package (extra `demo`). A pickle can run code when it is read and is refused.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mxfp4_validate.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

#: Endings under which PyTorch pickles are handed round.
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")
#: Bits of one element of the dtypes that a checkpoint of ours may hold; others are listed and never read.
BITS = {
    "F4": 4, "F8_E8M0": 8, "F8_E4M3": 8, "F8_E5M2": 8, "I8": 8, "U8": 8, "BOOL": 8,
    "BF16": 16, "F16": 16, "I16": 16, "U16": 16, "F32": 32, "I32": 32, "U32": 32, "F64": 64, "I64": 64, "U64": 64,
}  # fmt: skip
#: The safetensors format's own limit on a header.
_LONGEST_HEADER = 100_000_000
_PART = re.compile(r"-(\d+)-of-(\d+)\.safetensors$")


class CheckpointError(UsageError):
    """A checkpoint that cannot be read as it is; one line that names the tensor, the file and the way out."""


@dataclass(frozen=True)
class TensorInfo:
    """What a header says of a tensor: safetensors' dtype name, shape (of F4: elements, not bytes) and the file's name."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: str


class TensorFiles:
    """The tensors of a folder (or of one .safetensors file), by name. Opening reads headers only.

    Attributes:
        tensors: every tensor that the index lists or, without an index, that a file holds.
        unindexed: tensors in a shard that the index does not list.
        pickles: names of pickle files that lie beside the safetensors files; they are not read.

    Raises `CheckpointError` for a folder without safetensors files (naming a pickle if there is one), a missing, cut or unreadable file, and
    an index that does not fit its files.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.folder = path if path.is_dir() else path.parent
        self._handles: dict[str, Any] = {}
        if path.suffix in PICKLES:
            raise _pickle(path.name)
        if not path.exists():
            raise CheckpointError(f"checkpoint {path} does not exist; give the folder that holds config.json and the .safetensors files")
        self.pickles = sorted(p.name for p in self.folder.iterdir() if p.suffix in PICKLES) if path.is_dir() else []
        index = self._index() if path.is_dir() else None
        names = sorted(set(index.values())) if index is not None else self._unindexed_files()
        headers = {name: read_header(self.folder / name) for name in names}
        self.tensors = _joined(headers.values()) if index is None else _indexed(index, headers)
        self.unindexed = sorted(name for header in headers.values() for name in header if name not in self.tensors)
        self.files = tuple(names)

    def _index(self) -> dict[str, str] | None:
        found = sorted(self.folder.glob("*.safetensors.index.json"))
        if len(found) > 1:
            raise CheckpointError(
                f"{self.path} holds {len(found)} index files ({', '.join(p.name for p in found)}); keep the one to be read"
            )
        if not found:
            return None
        data = read_json(found[0])
        index = data.get("weight_map")
        if not isinstance(index, dict) or not index or not all(isinstance(file, str) for file in index.values()):
            raise CheckpointError(f"{found[0].name} has no weight_map of tensor names to file names; download it again")
        counts = Counter(index.values())
        for file, tensor in {file: tensor for tensor, file in reversed(index.items())}.items():
            self._check_file(tensor, file, counts[file], found[0].name)
        return index

    def _check_file(self, tensor: str, file: str, count: int, index: str) -> None:
        if Path(file).suffix in PICKLES:
            raise _pickle(file, tensor)
        if Path(file).name != file or not file.endswith(".safetensors"):
            raise CheckpointError(f"{index} puts {tensor} into {file!r}, which is not a .safetensors file of this folder")
        if not (self.folder / file).is_file():
            raise CheckpointError(f"{tensor}: its file {file} is missing ({index} puts {count} tensors there); download that file")

    def _unindexed_files(self) -> list[str]:
        if not self.path.is_dir():
            return [self.path.name]
        names = sorted(p.name for p in self.folder.glob("*.safetensors"))
        if not names and self.pickles:
            raise _pickle(self.pickles[0])
        if not names:
            raise CheckpointError(f"{self.path} holds no .safetensors file; give the folder that holds config.json and the weights")
        for name in names:
            part = _PART.search(name)
            if part and len([n for n in names if _PART.search(n)]) < int(part[2]):
                raise CheckpointError(f"{name} says that there are {int(part[2])} parts, and {self.path} holds fewer; download the rest")
        return names

    def info(self, name: str) -> TensorInfo:
        """The header's word on a tensor; `CheckpointError` if there is no such tensor."""
        if name not in self.tensors:
            raise CheckpointError(f"{name} is missing: none of {_some(self.files)} holds it; download the checkpoint again")
        return self.tensors[name]

    def read(self, name: str, index: slice | None = None) -> Tensor:
        """The tensor, or its part `index` along the first dimension, in its own dtype on the CPU."""
        info = self.info(name)
        handle, problem = self._handle(info.file)
        try:
            tensor: Tensor = handle.get_tensor(name) if index is None else handle.get_slice(name)[index]
        except (problem, ValueError, TypeError, KeyError) as error:
            raise CheckpointError(f"{name} in {info.file} cannot be read ({error}); download the file again") from error
        return tensor

    def _handle(self, file: str) -> tuple[Any, type[Exception]]:
        try:
            from safetensors import SafetensorError, safe_open
        except ImportError as error:
            raise CheckpointError("reading a checkpoint needs safetensors; run: pip install 'mxfp4-validate[demo]'") from error
        if file not in self._handles:
            try:
                self._handles[file] = safe_open(self.folder / file, framework="pt")
            except (SafetensorError, OSError) as error:
                raise CheckpointError(f"{file} cannot be opened ({error}); download the file again") from error
        return self._handles[file], SafetensorError


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; `CheckpointError` if there is none."""
    try:
        data = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise CheckpointError(f"{path.name} is missing in {path.parent}; it belongs to the checkpoint, download it") from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path.name} cannot be read as JSON ({error}); download it again") from error
    if not isinstance(data, dict):
        raise CheckpointError(f"{path.name} holds a {type(data).__name__} instead of a JSON object; download it again")
    return data


def read_header(path: Path) -> dict[str, TensorInfo]:
    """The tensors of one file, in the order of their data. Source of the format: safetensors' README (length, JSON, data).

    Raises `CheckpointError` for a header that is cut or garbled, a tensor whose bytes are not what its dtype and shape ask for, and a file
    that ends before a tensor does, by the name of the first such tensor.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            text = file.read(length) if length <= min(size - 8, _LONGEST_HEADER) else b""
    except OSError as error:
        raise CheckpointError(f"{path.name} cannot be read ({error.strerror}); check the file") from error
    try:
        header = json.loads(text)
        header.pop("__metadata__", None)
        found = [(tuple(map(int, e["data_offsets"])), name, str(e["dtype"]), tuple(map(int, e["shape"]))) for name, e in header.items()]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        why = f"its header wants {length} bytes" if not text else "its header is garbled"
        raise CheckpointError(f"{path.name} ({size} bytes) is no whole safetensors file: {why}; download it again") from error
    infos = {}
    for offsets, name, dtype, shape in sorted(found):
        _check_extent(path.name, name, offsets, size - 8 - length, prod(shape) * BITS[dtype] if dtype in BITS else None)
        infos[name] = TensorInfo(name, dtype, shape, path.name)
    return infos


def _check_extent(file: str, name: str, offsets: tuple[int, ...], available: int, bits: int | None) -> None:
    """Whether a tensor's bytes are inside the file and as many as its shape says."""
    begin, end = offsets if len(offsets) == 2 else (0, -1)
    if not 0 <= begin <= end or (bits is not None and bits != 8 * (end - begin)):
        raise CheckpointError(f"{name} in {file}: its data_offsets {list(offsets)} do not fit its dtype and shape; download the file again")
    if end > available:
        raise CheckpointError(f"{name} in {file}: its data ends at byte {end} of {available}: the file is cut short; download it again")


def _indexed(index: Mapping[str, str], headers: Mapping[str, Mapping[str, TensorInfo]]) -> dict[str, TensorInfo]:
    for name, file in index.items():
        if name not in headers[file]:
            raise CheckpointError(f"{name} is missing in {file}, where the index puts it; download both again")
    return {name: headers[file][name] for name, file in index.items()}


def _joined(headers: Iterable[Mapping[str, TensorInfo]]) -> dict[str, TensorInfo]:
    found: dict[str, TensorInfo] = {}
    for header in headers:
        for name, info in header.items():
            if name in found:
                raise CheckpointError(f"{name} is in {found[name].file} and in {info.file}; without an index one of them must go")
            found[name] = info
    return found


def _pickle(file: str, tensor: str = "its tensors") -> CheckpointError:
    return CheckpointError(f"{file} is a pickle, which can run code when read: {tensor} must come from a .safetensors file; convert it")


def _some(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more files" if len(names) > 3 else "")
