"""OpenAI's own torch reference, from its wheel: our backend's sums are `MLPBlock`'s, our reader's values its loader's."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from mxfp4_validate.backends.openai_torch import OpenAITorch
from mxfp4_validate.cases import GPT_OSS, SHAPES, MoeCase
from mxfp4_validate.checkpoints.reader import open_checkpoint
from mxfp4_validate.checkpoints.synthetic import random_inputs, random_weights
from mxfp4_validate.checks import random
from mxfp4_validate.checks.context import Context
from mxfp4_validate.errors import NotSupported
from mxfp4_validate.formats import e8m0, mxfp4
from mxfp4_validate.formats.moe_weights import MoeInputs
from mxfp4_validate.layouts.rows import interleave_gpt_oss
from tests import checkpoint_rig as rig

WHEEL = Path(__file__).resolve().parent.parent / ".vendor" / "gpt-oss-0.0.9"


@pytest.fixture(scope="module")
def gpt_oss() -> Iterator[Any]:
    """Imports a module of the package by name."""
    if not (WHEEL / "gpt_oss").is_dir():
        pytest.fail(f"{WHEEL} is missing: run `python tools/vendor.py`, which fetches it")
    sys.path.insert(0, str(WHEEL))
    yield lambda name: importlib.import_module(f"gpt_oss.torch.{name}")
    sys.path.remove(str(WHEEL))
    for name in [name for name in sys.modules if name.partition(".")[0] == "gpt_oss"]:
        del sys.modules[name]


@pytest.fixture
def backend(gpt_oss: Any) -> OpenAITorch:
    found = OpenAITorch()
    found.device = "cpu"
    return found


@pytest.mark.parametrize("tokens", [1, 17, 33])
def test_every_operator_in_bf16(backend: OpenAITorch, tokens: int) -> None:
    """Nothing unexplained, and most bits those of the twin, whose GEMMs have no order of their own."""
    found = random.twin(Context(backend), MoeCase(SHAPES["gpt-oss-tiny"], tokens))
    assert found["unexplained"] == 0
    assert float(str(found["bit_equal"])) > 0.99


def test_it_refuses_what_it_does_not_know(backend: OpenAITorch) -> None:
    with pytest.raises(NotSupported, match="always clamps and adds 1 to up"):
        random.twin(Context(backend), MoeCase(SHAPES["dsv4-tiny"], 3))


class Given(nn.Module):
    """Stands where the block has its norm or its router: what it returns does not depend on what it is given."""

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.value = value

    def forward(self, _: Tensor) -> Tensor:
        return self.value


@pytest.mark.parametrize("tokens", [1, 7, 33])
def test_the_sums_are_those_of_mlp_block(gpt_oss: Any, backend: OpenAITorch, tokens: int) -> None:
    """Bit for bit, biases and routing included. Its residual is 0 here, its norm hands on our x and its router fixed logits."""
    model, case = gpt_oss("model"), MoeCase(SHAPES["gpt-oss-tiny"], tokens)
    s, inputs, prepared = case.shape, random_inputs(case), backend.prepare(random_weights(case))
    config = model.ModelConfig(
        num_experts=s.num_experts, experts_per_token=s.top_k, hidden_size=s.hidden_size, intermediate_size=s.intermediate_size
    )
    block = model.MLPBlock(config, torch.device("cpu"))
    logits = torch.randn(tokens, s.num_experts, generator=torch.Generator().manual_seed(tokens)).bfloat16()
    block.norm, block.gate = Given(inputs.x), Given(logits)
    weights = (
        ("mlp1_weight", prepared.mlp1),
        ("mlp1_bias", prepared.mlp1_bias),
        ("mlp2_weight", prepared.mlp2),
        ("mlp2_bias", prepared.mlp2_bias),
    )
    for name, tensor in weights:
        setattr(block, name, nn.Parameter(tensor, requires_grad=False))
    best = logits.topk(s.top_k, dim=-1, sorted=True)
    routed = MoeInputs(inputs.x, best.indices.int(), best.values.softmax(-1).float())
    theirs, ours = block(torch.zeros_like(inputs.x)), backend.run(prepared, routed, GPT_OSS)
    assert theirs.abs().max() > 1
    assert torch.equal(theirs, ours)
    swapped = MoeInputs(inputs.x, best.indices.flip(-1).int(), routed.topk_weights)
    assert not torch.equal(theirs, backend.run(prepared, swapped, GPT_OSS))


@pytest.mark.parametrize("layer", range(rig.LAYERS))
def test_its_loader_reads_what_our_reader_reads(gpt_oss: Any, tmp_path: Path, layer: int) -> None:
    folder = rig.write_gpt_oss(tmp_path / "model", openai=True)
    theirs, ours = gpt_oss("weights").Checkpoint(str(folder), torch.device("cpu")), open_checkpoint(folder).weights(layer)
    base = f"block.{layer}.mlp"
    for name, codes, scale, bias in (("mlp1", ours.w13, ours.w13_scale, ours.w13_bias), ("mlp2", ours.w2, ours.w2_scale, ours.w2_bias)):
        assert bias is not None
        rows = interleave_gpt_oss if name == "mlp1" else Tensor.clone
        assert torch.equal(theirs.get(f"{base}.{name}_weight").float(), rows(mxfp4.dequantise(codes, scale, dtype=torch.float32))), name
        assert torch.equal(theirs.get(f"{base}.{name}_bias"), rows(bias)), name


def test_every_scale_byte_means_what_is_declared(gpt_oss: Any, tmp_path: Path) -> None:
    """256 bytes x 16 codes through its own loader, which decides what bytes 0 and 255 are.

    Byte 255 is torch.ldexp with 128: where torch makes a factor of 2^128 first, it is infinite and 0 becomes NaN; newer ones (2.13) scale
    exactly, so that only codes of 1 and more are infinite. Those are in both.
    """
    codes = torch.arange(0, 256, 17).repeat(256, 1, 1).to(torch.uint8)  # 00, 11, ... ff: every code twice a block
    scale = torch.arange(256).view(256, 1).to(torch.uint8)
    save_file({"w.blocks": codes, "w.scales": scale}, tmp_path / "one.safetensors")
    loader = gpt_oss("weights").Checkpoint(str(tmp_path), torch.device("cpu"))
    theirs = loader._get_mxfp4_tensor("w.blocks", "w.scales", dtype=torch.bfloat16)
    ours = mxfp4.dequantise(codes.view(1, 256, 16), scale.view(1, 256, 1), e8m0.OPENAI_TORCH, torch.float32)[0].bfloat16()
    assert torch.equal(theirs[:255], ours[:255])
    large = mxfp4.dequantise(codes[:1], torch.tensor([[[127]]], dtype=torch.uint8)).abs()[0, 0] >= 1
    assert bool(large.any())
    assert torch.equal(theirs[255][large], ours[255][large])
    assert bool(ours[255][large].isinf().all())
