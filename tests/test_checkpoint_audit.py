"""The audit finds each defect in a checkpoint that has exactly that defect, and nothing in a sound one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mxfp4_validate import cli
from mxfp4_validate.checkpoints.audit import Finding, audit
from mxfp4_validate.checkpoints.reader import open_checkpoint
from mxfp4_validate.reference.routing import default_tid2eid
from tests import checkpoint_rig as rig

SCALES = "model.layers.1.mlp.experts.down_proj_scales"
TABLE = "layers.0.ffn.gate.tid2eid"
W3 = "layers.1.ffn.experts.2.w3.scale"
OF_1 = "model-00001-of-00002.safetensors"


def findings(folder: Path) -> list[Finding]:
    """What the audit finds beyond what it says of make_dsv4's shape, which TP=8 cuts."""
    return [f for f in audit(open_checkpoint(folder)) if "TP=8 gives each rank 128/8" not in f.message]


@pytest.mark.parametrize("openai", [False, True])
def test_a_sound_gpt_oss_has_no_finding(tmp_path: Path, openai: bool) -> None:
    assert list(audit(open_checkpoint(rig.write_gpt_oss(tmp_path / "x", openai=openai)))) == []


def test_a_sound_deepseek_v4_has_its_tp_finding_alone(tmp_path: Path) -> None:
    found = list(audit(open_checkpoint(rig.write_dsv4(tmp_path / "x"))))
    assert [(f.severity, f.layer) for f in found] == [("warning", None)]
    assert "TP=8 gives each rank 128/8 = 16" in found[0].message


def at(index: tuple[int, ...], byte: int) -> Callable[[Tensor], Tensor]:
    def put(scales: Tensor) -> Tensor:
        scales.view(torch.uint8)[index] = byte
        return scales

    return put


def expert_of_ones(scales: Tensor) -> Tensor:
    scales[2] = 127
    return scales


@pytest.mark.parametrize(
    ("by", "severity", "says"),
    [
        (at((1, 2, 3), 255), "error", "1 of 2048 scale bytes are 255, E8M0's NaN, which kernels read as infinity: the shard is uninitialised or damaged; "
         "the first is 255 at [1, 2, 3]"),
        (at((0, 0, 1), 0), "warning", "the first is 0 at [0, 0, 1]"),
        (at((3, 1, 0), 99), "warning", "lie outside 100..140, where released checkpoints have theirs; the first is 99 at [3, 1, 0]"),
        (at((3, 1, 0), 141), "warning", "the first is 141 at [3, 1, 0]"),
        (lambda t: torch.full_like(t, 127), "error", "all 2048 scale bytes are byte 127"),
        (expert_of_ones, "error", "all scale bytes of 1 of 4 experts (2) are byte 127"),
    ],
)  # fmt: skip
def test_scale_bytes(by: Callable[[Tensor], Tensor], severity: str, says: str, tmp_path: Path) -> None:
    folder = rig.write_gpt_oss(tmp_path / "x")
    rig.change(folder, SCALES, by)
    (found,) = findings(folder)
    assert (found.severity, found.layer, found.tensor, found.file) == (severity, 1, SCALES, OF_1)
    assert says in found.message


@pytest.mark.parametrize("byte", [100, 140])
def test_the_edges_of_the_range_are_fine(byte: int, tmp_path: Path) -> None:
    folder = rig.write_gpt_oss(tmp_path / "x")
    rig.change(folder, SCALES, at((1, 2, 3), byte))
    assert findings(folder) == []


@pytest.mark.parametrize(
    ("by", "severity", "says"),
    [
        (at((5, 1), 255), "error", "255 at [5, 1]"),
        (lambda t: torch.full_like(t.view(torch.uint8), 127).view(t.dtype), "error", "all 1024 scale bytes are byte 127"),
        (lambda t: torch.ones_like(t.float()), "error", "all 1024 scale bytes are byte 127"),
        (lambda t: -t.float(), "error", "is not a power of two"),
    ],
)
def test_deepseek_v4_scales(by: Callable[[Tensor], Tensor], severity: str, says: str, tmp_path: Path) -> None:
    """Also as sglang holds them, where a scale that was never filled is the float 1.0."""
    folder = rig.write_dsv4(tmp_path / "x")
    rig.change(folder, W3, by)
    (found,) = findings(folder)
    assert (found.severity, found.layer, found.tensor, found.file) == (severity, 1, W3, "model-00002-of-00002.safetensors")
    assert says in found.message


def twice(table: Tensor) -> Tensor:
    table[7, 1] = table[7, 0]
    return table


@pytest.mark.parametrize(
    ("by", "says"),
    [
        (torch.zeros_like, "the table is all zeros"),
        (lambda t: default_tid2eid(*t.shape, 6), "the table is (token + slot) % E"),
        (lambda t: torch.where(t == t[3, 0], torch.tensor(6), t), "are no expert of 0..5"),
        (twice, "1 of 64 tokens name an expert twice, first token 7"),
    ],
)
def test_hash_tables(by: Callable[[Tensor], Tensor], says: str, tmp_path: Path) -> None:
    folder = rig.write_dsv4(tmp_path / "x")
    rig.change(folder, TABLE, by)
    (found,) = findings(folder)
    assert (found.severity, found.layer, found.tensor, found.file) == ("error", 0, TABLE, OF_1)
    assert says in found.message


def test_missing_and_extra_tensors(tmp_path: Path) -> None:
    folder = rig.write_gpt_oss(tmp_path / "x")
    rig.drop(folder, "model.layers.0.mlp.router.bias")
    rig.add(folder, "model.layers.1.mlp.experts.extra", torch.zeros(1))
    rig.add(folder, "model.layers.2.mlp.experts.down_proj_bias", torch.zeros(1))
    rig.add(folder, "model.layers.0.mlp.experts.left_out", torch.zeros(1), listed=False)
    rig.add(folder, "model.layers.0.self_attn.q_proj.weight", torch.zeros(1))
    found = {f.tensor: (f.severity, f.layer) for f in findings(folder)}
    assert found == {
        "model.layers.0.mlp.router.bias": ("error", 0),
        "model.layers.1.mlp.experts.extra": ("warning", 1),
        "model.layers.2.mlp.experts.down_proj_bias": ("warning", 2),
        "model.layers.0.mlp.experts.left_out": ("warning", 0),
    }


def test_a_learned_layer_with_a_table_and_no_bias(tmp_path: Path) -> None:
    folder = rig.write_dsv4(tmp_path / "x")
    rig.set_config(folder, mlp_layer_types=["moe", "moe"])
    assert {(f.severity, f.tensor) for f in findings(folder)} == {("warning", TABLE), ("error", "layers.0.ffn.gate.bias")}


def test_a_pickle_beside_the_files_is_told(tmp_path: Path) -> None:
    folder = rig.write_gpt_oss(tmp_path / "x")
    (folder / "pytorch_model.bin").write_bytes(b"never read")
    assert [(f.severity, f.file) for f in findings(folder)] == [("warning", "pytorch_model.bin")]


@pytest.mark.parametrize(("intermediate", "sizes"), [(256, []), (288, [2, 4, 8]), (320, [4, 8]), (64, [4, 8]), (384, [8])])
def test_tensor_parallel_sizes(intermediate: int, sizes: list[int], tmp_path: Path) -> None:
    found = findings(rig.write_gpt_oss(tmp_path / "x", intermediate=intermediate))
    assert [int(f.message.split()[0].removeprefix("TP=")) for f in found] == sizes
    assert all(f.severity == "warning" and f.layer is None for f in found)


def test_shape_of_another_model(tmp_path: Path) -> None:
    folder = rig.write_gpt_oss(tmp_path / "x")
    rig.set_config(folder, hidden_size=96)
    found = findings(folder)
    assert len(found) == 2 * 6  # blocks, scales, bias of down, blocks and scales of gate_up, and the router's weight, in each layer
    assert all("config.json asks for" in f.message and f.severity == "error" for f in found)


def test_the_verb_says_it_as_json_and_as_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = rig.write_gpt_oss(tmp_path / "x")
    assert cli.main(["checkpoint", str(folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["findings"] == []
    rig.change(folder, SCALES, at((1, 2, 3), 255))
    assert cli.main(["checkpoint", str(folder), "--json"]) == 1
    out, err = capsys.readouterr()
    said = json.loads(out)
    assert err == ""
    assert (said["errors"], said["warnings"], said["exit_status"], said["checkpoint"]["format"]) == (1, 0, 1, "gpt-oss")
    assert (said["findings"][0]["tensor"], said["findings"][0]["file"], said["findings"][0]["layer"]) == (SCALES, OF_1, 1)
    assert cli.main(["checkpoint", str(folder)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "x: gpt-oss, 2 layers of 4 experts, H=64 I=256 top_k=2; 16 tensors in 2 files"
    assert lines[1].startswith(f"ERROR    layer 1: {SCALES} ({OF_1}): 1 of 2048 scale bytes are 255")
    assert lines[-1] == "1 errors, 0 warnings"
