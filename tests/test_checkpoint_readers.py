"""Readers give canonical bytes: both GPT-OSS name sets, DeepSeek-V4's storages, against oracles that share no code with them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from mxfp4_validate.cases import DEEPSEEK_V4, GPT_OSS
from mxfp4_validate.checkpoints.config import read_config
from mxfp4_validate.checkpoints.files import CheckpointError, TensorFiles
from mxfp4_validate.checkpoints.reader import Checkpoint, open_checkpoint
from mxfp4_validate.checkpoints.sglang_names import PARAMETERS, from_sglang
from mxfp4_validate.errors import ScaleError, UsageError
from mxfp4_validate.formats import mxfp4
from mxfp4_validate.formats.moe_weights import MoeWeights
from tests import checkpoint_rig as rig

#: E2M1 written out, code by code.
E2M1 = torch.tensor([0.0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One sound checkpoint of each kind; tests do not change them."""
    base = tmp_path_factory.mktemp("checkpoints")
    return {
        "hf": rig.write_gpt_oss(base / "hf"),
        "openai": rig.write_gpt_oss(base / "openai", openai=True),
        "dsv4": rig.write_dsv4(base / "dsv4"),
    }


def require_same(found: MoeWeights, expected: MoeWeights) -> None:
    assert found.tensors().keys() == expected.tensors().keys()
    for name, tensor in expected.tensors().items():
        assert torch.equal(found.tensors()[name], tensor), f"{name} differs"


@pytest.mark.parametrize("kind", ["hf", "openai"])
@pytest.mark.parametrize("layer", range(rig.LAYERS))
def test_gpt_oss_gives_the_bytes_that_were_written(folders: dict[str, Path], kind: str, layer: int) -> None:
    checkpoint, written = open_checkpoint(folders[kind]), rig.layer_weights(layer)
    require_same(checkpoint.weights(layer), written)
    require_same(checkpoint.weights(layer, [3, 1]), written.experts(torch.tensor([3, 1])))
    router = checkpoint.router(layer)
    tensors = rig.load(folders[kind])
    name = f"block.{layer}.mlp.gate" if kind == "openai" else f"model.layers.{layer}.mlp.router"
    assert torch.equal(router.weight, tensors[f"{name}.weight"])
    assert router.bias is not None
    assert torch.equal(router.bias, tensors[f"{name}.bias"])


def test_gpt_oss_equals_transformers_dequantisation(folders: dict[str, Path]) -> None:
    """transformers returns [E, K, rows] with gate and up rows in turn; every value is exact in float32."""
    raw, weights = rig.load(folders["hf"]), open_checkpoint(folders["hf"]).weights(1)
    base = "model.layers.1.mlp.experts."
    gate_up = convert_moe_packed_tensors(raw[base + "gate_up_proj_blocks"], raw[base + "gate_up_proj_scales"], dtype=torch.float32)
    down = convert_moe_packed_tensors(raw[base + "down_proj_blocks"], raw[base + "down_proj_scales"], dtype=torch.float32)
    ours = mxfp4.dequantise(weights.w13, weights.w13_scale, dtype=torch.float32)
    half = weights.intermediate_size
    assert torch.equal(gate_up[..., 0::2].transpose(1, 2), ours[:, :half]), "gate rows"
    assert torch.equal(gate_up[..., 1::2].transpose(1, 2), ours[:, half:]), "up rows"
    assert torch.equal(down.transpose(1, 2), mxfp4.dequantise(weights.w2, weights.w2_scale, dtype=torch.float32)), "w2"


def torch_dequantise(codes: Tensor, scales: Tensor) -> Tensor:
    """[rows, K/2] int8 and [rows, K/32] float8_e8m0fnu -> [rows, K] float32: torch decodes the scales, a literal table the codes."""
    low_first = torch.stack((codes.int() & 15, (codes.int() >> 4) & 15), dim=-1).flatten(-2)
    return E2M1[low_first] * scales.float().repeat_interleave(32, dim=-1)


def test_deepseek_v4_equals_torchs_own_scale_type(folders: dict[str, Path]) -> None:
    raw, checkpoint = rig.load(folders["dsv4"]), open_checkpoint(folders["dsv4"])
    weights, half = checkpoint.weights(1), checkpoint.config.intermediate_size
    w13, w2 = (mxfp4.dequantise(c, s, dtype=torch.float32) for c, s in ((weights.w13, weights.w13_scale), (weights.w2, weights.w2_scale)))
    for expert in range(checkpoint.config.num_experts):
        base = f"layers.1.ffn.experts.{expert}."
        assert raw[base + "w1.scale"].dtype == torch.float8_e8m0fnu
        w1_, w2_, w3_ = (torch_dequantise(raw[f"{base}{w}.weight"], raw[f"{base}{w}.scale"]) for w in ("w1", "w2", "w3"))
        assert torch.equal(w13[expert, :half], w1_), f"w1 of expert {expert} is not gate"
        assert torch.equal(w13[expert, half:], w3_), f"w3 of expert {expert} is not up"
        assert torch.equal(w2[expert], w2_), f"w2 of expert {expert}"


def test_deepseek_v4_routers(folders: dict[str, Path]) -> None:
    checkpoint, raw = open_checkpoint(folders["dsv4"]), rig.load(folders["dsv4"])
    hashed, learned = checkpoint.router(0), checkpoint.router(1)
    assert (checkpoint.config.hash_layers, checkpoint.config.routed_scaling_factor) == ((0,), 1.5)
    assert hashed.tid2eid is not None
    assert hashed.correction_bias is None
    assert torch.equal(hashed.tid2eid, raw["layers.0.ffn.gate.tid2eid"])
    assert learned.tid2eid is None
    assert learned.correction_bias is not None
    assert torch.equal(learned.correction_bias, raw["layers.1.ffn.gate.bias"])


STORAGES = {
    "U8": (torch.uint8, torch.uint8),
    "F4": (getattr(torch, "float4_e2m1fn_x2", None), torch.float8_e8m0fnu),
    "fp32 scales": (torch.int8, torch.float32),
}


@pytest.mark.parametrize("storage", STORAGES)
def test_deepseek_v4_storages_hold_the_same_bytes(folders: dict[str, Path], tmp_path: Path, storage: str) -> None:
    """Codes are viewed and fp32 scales go by their exponent field: every storage gives the bytes of the published one."""
    codes, scales = STORAGES[storage]
    if codes is None:
        pytest.skip("this torch has no float4_e2m1fn_x2")
    folder = rig.write_dsv4(tmp_path / "other")
    for layer in (0, 1):
        for expert in range(6):
            for w in ("w1", "w2", "w3"):
                base = f"layers.{layer}.ffn.experts.{expert}.{w}"
                rig.change(folder, f"{base}.weight", lambda t: t.view(codes))
                rig.change(folder, f"{base}.scale", lambda t: t.float() if scales is torch.float32 else t.view(scales))
    assert TensorFiles(folder).info("layers.0.ffn.experts.0.w1.weight").dtype == ("I8" if "scales" in storage else storage)
    for layer in (0, 1):
        require_same(open_checkpoint(folder).weights(layer, [4, 0]), open_checkpoint(folders["dsv4"]).weights(layer, [4, 0]))


@pytest.mark.parametrize("kind", ["hf", "dsv4"])
def test_only_what_is_asked_for_is_read(folders: dict[str, Path], kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, slice | None]] = []
    read = TensorFiles.read

    def spy(self: TensorFiles, name: str, index: slice | None = None) -> Tensor:
        asked.append((name, index))
        return read(self, name, index)

    monkeypatch.setattr(TensorFiles, "read", spy)
    checkpoint = open_checkpoint(folders[kind])
    assert asked == []
    checkpoint.weights(1, [2])
    assert asked
    assert all("layers.1." in name for name, _ in asked)
    assert all("experts.2." in name for name, _ in asked) or all(index == slice(2, 3) for _, index in asked)


@pytest.mark.parametrize(("kind", "activation", "bias"), [("hf", GPT_OSS, True), ("openai", GPT_OSS, True), ("dsv4", DEEPSEEK_V4, False)])
def test_configuration(folders: dict[str, Path], kind: str, activation: Any, bias: bool) -> None:
    config = read_config(folders[kind])
    shape = config.shape(1)
    assert (shape.activation, shape.has_bias, shape.top_k) == (activation, bias, 2)
    assert shape.name == f"{kind}+layer1"
    with pytest.raises(UsageError, match=r"layer 2 is not in checkpoint .* has layers 0..1"):
        config.shape(2)


def test_the_configuration_is_transformers_own(folders: dict[str, Path]) -> None:
    from transformers import AutoConfig

    theirs: Any = AutoConfig.from_pretrained(folders["dsv4"])
    ours = read_config(folders["dsv4"])
    assert type(theirs).__name__ == "DeepseekV4Config"
    assert tuple(n for n, kind in enumerate(theirs.mlp_layer_types) if kind == "hash_moe") == ours.hash_layers
    assert (theirs.n_routed_experts, theirs.moe_intermediate_size, theirs.num_experts_per_tok, theirs.swiglu_limit) == (
        ours.num_experts, ours.intermediate_size, ours.top_k, ours.activation.limit,
    )  # fmt: skip
    assert sum(path.stat().st_size for path in folders["dsv4"].iterdir()) < 1_000_000


@pytest.mark.parametrize("layers", [{"num_hash_layers": 1}, {"num_hash_layers": 5}, {}])
def test_hash_layers_by_number_follow_transformers(folders: dict[str, Path], tmp_path: Path, layers: dict[str, int]) -> None:
    from transformers import DeepseekV4Config

    folder = rig.write_dsv4(tmp_path / "x")
    rig.set_config(folder, mlp_layer_types=None, **layers)
    theirs = DeepseekV4Config(num_hidden_layers=2, **layers).mlp_layer_types
    assert theirs is not None
    assert read_config(folder).hash_layers == tuple(n for n, kind in enumerate(theirs) if kind == "hash_moe")


def test_unknown_experts_are_named(folders: dict[str, Path]) -> None:
    with pytest.raises(UsageError, match=r"experts \[4\] are not experts"):
        open_checkpoint(folders["hf"]).weights(0, [0, 4])


def test_one_file_needs_no_index(folders: dict[str, Path], tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file(rig.load(folders["hf"]), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_bytes((folders["hf"] / "config.json").read_bytes())
    require_same(open_checkpoint(tmp_path).weights(0), rig.layer_weights(0))
    require_same(open_checkpoint(tmp_path / "model.safetensors").weights(0), rig.layer_weights(0))


def test_the_configuration_needs_no_torch(folders: dict[str, Path]) -> None:
    code = (
        "import sys; sys.modules['torch'] = None; sys.modules['safetensors'] = None; from pathlib import Path\n"
        "from mxfp4_validate.checkpoints.config import read_config; print(read_config(Path(sys.argv[1])).num_experts)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(folders["dsv4"])], cwd=rig.ROOT, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "6", done.stderr


def test_without_safetensors_the_extra_is_named(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(CheckpointError, match=r"pip install 'mxfp4-validate\[demo\]'"):
        open_checkpoint(folders["hf"]).weights(0)


def sglang_dsv4(checkpoint: Checkpoint, folder: Path, layer: int) -> dict[str, Tensor]:
    """sglang 0.5.12's parameters of a DeepSeek-V4 layer: int8 [w1; w3], fp32 scales that begin as ones and are filled by value."""
    c, raw = checkpoint.config, rig.load(folder)
    E, H, I = c.num_experts, c.hidden_size, c.intermediate_size  # noqa: E741
    made = {
        "w13_weight": torch.empty(E, 2 * I, H // 2, dtype=torch.int8),
        "w2_weight": torch.empty(E, H, I // 2, dtype=torch.int8),
        "w13_weight_scale_inv": torch.ones(E, 2 * I, H // 32),
        "w2_weight_scale_inv": torch.ones(E, H, I // 32),
    }
    for e in range(E):
        for part, target, rows in (("w1", "w13", slice(0, I)), ("w3", "w13", slice(I, 2 * I)), ("w2", "w2", slice(0, H))):
            base = f"layers.{layer}.ffn.experts.{e}.{part}"
            made[f"{target}_weight"][e, rows].copy_(raw[f"{base}.weight"])
            made[f"{target}_weight_scale_inv"][e, rows].copy_(raw[f"{base}.scale"])
    return made


def test_sglangs_deepseek_v4_layer_is_ours(folders: dict[str, Path]) -> None:
    checkpoint = open_checkpoint(folders["dsv4"])
    layer = sglang_dsv4(checkpoint, folders["dsv4"], 1)
    assert layer.keys() == PARAMETERS["deepseek-v4"].keys()
    require_same(from_sglang(layer, checkpoint.config), checkpoint.weights(1))
    with pytest.raises(CheckpointError, match="w2_weight_scale_inv"):
        from_sglang({name: t for name, t in layer.items() if name != "w2_weight_scale_inv"}, checkpoint.config)
    layer["w13_weight_scale_inv"][2, 3, 1] *= 1.5
    with pytest.raises(ScaleError, match=r"scales\[2, 3, 1\]"):
        from_sglang(layer, checkpoint.config)


def test_sglangs_gpt_oss_layer_is_ours(folders: dict[str, Path]) -> None:
    """The loader's pairs of file name and parameter, with the file's shapes flattened as sglang views them."""
    checkpoint, raw = open_checkpoint(folders["hf"]), rig.load(folders["hf"])
    pairs = {
        "w13_weight": "gate_up_proj_blocks", "w13_weight_scale": "gate_up_proj_scales", "w13_weight_bias": "gate_up_proj_bias",
        "w2_weight": "down_proj_blocks", "w2_weight_scale": "down_proj_scales", "w2_weight_bias": "down_proj_bias",
    }  # fmt: skip
    layer = {name: raw[f"model.layers.0.mlp.experts.{file}"] for name, file in pairs.items()}
    layer |= {name: layer[name].flatten(-2) for name in ("w13_weight", "w2_weight")}
    E, H, I = rig.EXPERTS, rig.HIDDEN, rig.INTERMEDIATE  # noqa: E741
    assert layer["w13_weight"].shape == (E, 2 * I, H // 2)
    assert layer["w2_weight_scale"].shape == (E, H, I // 32)
    assert layer.keys() == PARAMETERS["gpt-oss"].keys()
    require_same(from_sglang(layer, checkpoint.config), checkpoint.weights(0))


def test_the_index_may_not_leave_its_folder(tmp_path: Path) -> None:
    folder = rig.write_gpt_oss(tmp_path / "x")
    index = folder / "model.safetensors.index.json"
    data = json.loads(index.read_text())
    name = next(iter(data["weight_map"]))
    data["weight_map"][name] = "../secret.safetensors"
    index.write_text(json.dumps(data))
    with pytest.raises(CheckpointError, match=rf"{name} into '\.\./secret\.safetensors'"):
        open_checkpoint(folder)
