"""Damaged checkpoints: each gives one line that names the tensor and the file, and the verb's exit status says which kind it is."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mxfp4_validate import cli
from mxfp4_validate.checkpoints.files import CheckpointError
from mxfp4_validate.checkpoints.reader import open_checkpoint
from tests import checkpoint_rig as rig

SHARD = "model-00001-of-00002.safetensors"
GATE_UP = "model.layers.1.mlp.experts.gate_up_proj"
DOWN = "model.layers.1.mlp.experts.down_proj"
W1 = "layers.0.ffn.experts.3.w1"


@dataclass(frozen=True)
class Damage:
    """What is done to a checkpoint, and what its error must name. `status` 2: cannot be read; 1: the audit finds it."""

    name: str
    do: Callable[[Path], None]
    tensor: str
    file: str
    says: str
    status: int
    write: Callable[[Path], Path] = rig.write_gpt_oss
    layer: int = 1


def truncate(folder: Path) -> None:
    path = folder / SHARD
    path.write_bytes(path.read_bytes()[:-1000])


def cut_header(folder: Path) -> None:
    (folder / SHARD).write_bytes((folder / SHARD).read_bytes()[:100])


def swap(folder: Path, one: str, other: str) -> None:
    path = rig.file_of(folder, one)
    tensors = load_file(path)
    tensors[one], tensors[other] = tensors[other], tensors[one]
    save_file(tensors, path)


def scale_255(folder: Path) -> None:
    def put(scales: torch.Tensor) -> torch.Tensor:
        scales.view(torch.uint8).view(-1)[5] = 255
        return scales

    rig.change(folder, f"{W1}.scale", put)


def into_pickle(folder: Path) -> None:
    """The index names a .bin, which lies there: its content is never looked at."""
    index = folder / "model.safetensors.index.json"
    index.write_text(index.read_text().replace(SHARD, "pytorch_model.bin"))
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04")


def lying_index(folder: Path) -> None:
    index = folder / "model.safetensors.index.json"
    data = json.loads(index.read_text())
    data["weight_map"][f"{DOWN}_bias"] = "model-00000-of-00002.safetensors"
    index.write_text(json.dumps(data))


DAMAGES = (
    Damage("missing-shard", lambda f: (f / SHARD).unlink(), "model.layers.1.mlp", SHARD, "missing", 2),
    Damage("truncated", truncate, "model.layers.1.mlp", SHARD, "cut short", 2),
    Damage("cut-header", cut_header, "", SHARD, "no whole safetensors file", 2),
    Damage("pickle", into_pickle, "model.layers.1.mlp", "pytorch_model.bin", "pickle", 2),
    Damage("lying-index", lying_index, f"{DOWN}_bias", "model-00000-of-00002.safetensors", "where the index puts it", 2),
    Damage("wrong-dtype", lambda f: rig.change(f, f"{DOWN}_blocks", lambda t: t.float()), f"{DOWN}_blocks", SHARD, "dtype F32, expected U8", 1),
    Damage("bias-dtype", lambda f: rig.change(f, f"{DOWN}_bias", lambda t: t.float()), f"{DOWN}_bias", SHARD, "expected BF16", 1),
    Damage("swapped-scales", lambda f: swap(f, f"{GATE_UP}_scales", f"{DOWN}_scales"), "_scales", SHARD, "has shape", 1),
    Damage("missing-tensor", lambda f: rig.drop(f, f"{GATE_UP}_bias"), f"{GATE_UP}_bias", "", "is missing", 1),
    Damage("scale-255", scale_255, f"{W1}.scale", "model-00001-of-00002.safetensors", "255", 1, rig.write_dsv4, 0),
    Damage(
        "dsv4-scale-dtype", lambda f: rig.change(f, f"{W1}.scale", lambda t: t.float().half()), f"{W1}.scale", SHARD, "dtype F16", 1,
        rig.write_dsv4, 0,
    ),
    Damage(
        "dsv4-swapped-scales", lambda f: swap(f, f"{W1}.scale", "layers.0.ffn.experts.3.w2.scale"), f"{W1}.scale", SHARD, "has shape", 1,
        rig.write_dsv4, 0,
    ),
    Damage(
        "fp32-scale-no-power", lambda f: rig.change(f, f"{W1}.scale", lambda t: t.float() * 1.25), f"{W1}.scale", SHARD, "power of two", 1,
        rig.write_dsv4, 0,
    ),
)  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.name)
def test_one_line_names_tensor_and_file(damage: Damage, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = damage.write(tmp_path / "model")
    open_checkpoint(folder).weights(damage.layer)  # sound before
    damage.do(folder)
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(folder).weights(damage.layer)
    text = str(caught.value)
    assert "\n" not in text
    for part in (damage.tensor, damage.file, damage.says):
        assert part in text, f"{part!r} is not in: {text}"
    assert cli.main(["checkpoint", str(folder)]) == damage.status
    out, err = capsys.readouterr()
    told = [line for line in (err if damage.status == 2 else out).splitlines() if damage.says in line]
    assert told, out + err
    assert all(damage.file in line for line in told)
    assert any(damage.tensor in line for line in told)


@pytest.mark.parametrize("name", ["model.bin", "weights.pt", "x.pth", "y.pkl"])
def test_a_folder_of_pickles_is_refused_by_name(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / name).write_bytes(b"\x80\x04never read")
    (tmp_path / "config.json").write_text("{}")
    for path in (tmp_path, tmp_path / name):
        assert cli.main(["checkpoint", str(path)]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert len(err.splitlines()) == 1
        assert name in err
        assert "pickle" in err


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"hidden_size": None}, "config.json has no hidden_size"),
        ({"num_local_experts": "4"}, "num_local_experts is '4'"),
        ({"intermediate_size": 250}, "intermediate_size 250 is not a multiple of 32"),
        ({"num_experts_per_tok": 5}, "5 experts a token of 4 experts"),
        ({"swiglu_limit": "seven"}, "swiglu_limit is 'seven'"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0"),
    ],
)
def test_config_errors_name_key_and_value(values: dict[str, object], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = rig.write_gpt_oss(tmp_path / "model")
    rig.set_config(folder, **values)
    assert cli.main(["checkpoint", str(folder)]) == 2
    assert says in capsys.readouterr().err


def test_folders_that_are_no_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    both = rig.write_gpt_oss(tmp_path / "both", openai=True)
    save_file({f"{W1}.weight": torch.zeros(2, 2, dtype=torch.int8)}, both / "other.safetensors")
    dense = tmp_path / "dense"
    dense.mkdir()
    save_file({"lm_head.weight": torch.zeros(2, 2)}, dense / "model.safetensors")
    (tmp_path / "empty").mkdir()
    for name, says in (
        ("none", "does not exist"),
        ("empty", "no .safetensors file"),
        ("dense", "lm_head.weight"),
        ("both", "several formats"),
    ):
        assert cli.main(["checkpoint", str(tmp_path / name)]) == 2
        err = capsys.readouterr().err
        assert says in err
        assert len(err.splitlines()) == 1


def test_parts_without_an_index_must_all_be_there(tmp_path: Path) -> None:
    folder = rig.write_gpt_oss(tmp_path / "model", openai=True)
    (folder / SHARD).unlink()
    with pytest.raises(CheckpointError, match=r"model-00000-of-00002\.safetensors says that there are 2 parts"):
        open_checkpoint(folder)


@pytest.mark.parametrize("data", [b"", b"\0" * 7, b"\xff" * 8, (5).to_bytes(8, "little") + b"[1,2]", (2).to_bytes(8, "little") + b"{}x"])
def test_garbage_is_refused(data: bytes, tmp_path: Path) -> None:
    folder = rig.write_gpt_oss(tmp_path / "model")
    (folder / SHARD).write_bytes(data)
    with pytest.raises(CheckpointError, match="model-00001-of-00002"):
        open_checkpoint(folder)


@pytest.mark.parametrize("offsets", [[0, 7], [-8, 0], [8, 0], [0, 800], [0]])
def test_offsets_that_do_not_fit_are_refused_by_tensor(offsets: list[int], tmp_path: Path) -> None:
    folder = rig.write_gpt_oss(tmp_path / "model")
    header = json.dumps({"t": {"dtype": "U8", "shape": [8], "data_offsets": offsets}}).encode()
    (folder / "extra.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    (folder / "model.safetensors.index.json").unlink()
    with pytest.raises(CheckpointError, match=r"t in extra\.safetensors"):
        open_checkpoint(folder)
