"""The real model's experts are its dense MLP: an exact partition, read from blocks as llama.cpp writes them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks import smollm2, smollm2_model
from mxfp4_validate.backends.registry import resolve
from mxfp4_validate.formats import mxfp4
from mxfp4_validate.formats.moe_weights import MoeWeights
from mxfp4_validate.formats.quantise import quantise_ocp
from mxfp4_validate.tiny.faults import Fault
from mxfp4_validate.tiny.model import build_experts

H, I, E = smollm2_model.HIDDEN, smollm2_model.INTERMEDIATE, smollm2_model.EXPERTS  # noqa: E741


@pytest.fixture(scope="module")
def layer() -> MoeWeights:
    """One layer split as `export` splits it."""
    g = torch.Generator().manual_seed(0)
    gate, up, down = (torch.randn(shape, generator=g) / 24 for shape in ((I, H), (I, H), (H, I)))
    rows = torch.cat([gate.unflatten(0, (E, -1)), up.unflatten(0, (E, -1))], 1)
    return MoeWeights(*quantise_ocp(rows), *quantise_ocp(down.unflatten(1, (E, -1)).transpose(0, 1).contiguous()))


def dense_mlp(x: Tensor, layer: MoeWeights) -> Tensor:
    """down(silu(gate x) * up x) of the whole matrices, put together again, float64."""
    w13, w2 = mxfp4.dequantise(layer.w13, layer.w13_scale).double(), mxfp4.dequantise(layer.w2, layer.w2_scale).double()
    gate, up = (half.flatten(0, 1) for half in w13.chunk(2, dim=1))
    down = w2.transpose(0, 1).flatten(1)
    return (torch.nn.functional.silu(x.double() @ gate.t()) * (x.double() @ up.t())) @ down.t()


class One:
    """A source of one layer."""

    num_layers, activation = smollm2_model.LAYERS, smollm2_model.SWIGLU

    def __init__(self, weights: MoeWeights) -> None:
        self.weights = weights

    def experts(self, layer: int) -> MoeWeights:
        return self.weights


@pytest.mark.parametrize("backend", ["emulate:sm90-cutlass", "emulate:marlin"])
def test_the_experts_together_are_the_dense_mlp(layer: MoeWeights, backend: str) -> None:
    x = torch.randn(1, 9, H, generator=torch.Generator().manual_seed(1)).bfloat16()
    got = smollm2_model.Mlp(build_experts(One(layer), 0, resolve(backend), None))(x)[0].double()
    want = dense_mlp(x[0], layer)
    assert float((got - want).norm() / want.norm()) < 0.006, "four bf16 roundings an output are allowed, a lost expert is half of it"


@pytest.mark.parametrize("fault", smollm2.FAULTS, ids=lambda fault: fault.name)
def test_every_fault_changes_its_layer(layer: MoeWeights, fault: Fault) -> None:
    """Also those in one layer, there; and none of them another layer, if it is in one."""
    x = torch.randn(1, 65, H, generator=torch.Generator().manual_seed(2)).bfloat16()
    backend, source = resolve("emulate:sm90-cutlass"), One(layer)
    wide = 30 if "clamp" in fault.name else 1  # a clamp shows where something exceeds it
    sound = smollm2_model.Mlp(build_experts(source, 0, backend, None))(wide * x)
    there = smollm2_model.Mlp(build_experts(source, smollm2.ONE, backend, fault))(wide * x)
    elsewhere = smollm2_model.Mlp(build_experts(source, 0, backend, fault))(wide * x)
    assert not torch.equal(there, sound)
    assert torch.equal(elsewhere, sound) == (fault.layer is not None)


def test_blocks_are_read_as_llama_cpp_writes_them() -> None:
    """Q8_0: value = scale * int8. Q4_1: value = scale * code + minimum, low nibbles first. Written by hand here."""
    rng = np.random.default_rng(0)
    blocks = H // 32
    scale, least = rng.normal(size=(2, 3, blocks)).astype(np.float16)
    whole, codes = rng.integers(-128, 128, (3, blocks, 32), dtype=np.int8), rng.integers(0, 16, (3, blocks, 32), dtype=np.uint8)
    q8 = np.concatenate([scale[..., None].view(np.uint8), whole.view(np.uint8)], -1).reshape(3, -1)
    want8 = whole.astype(np.float32) * scale[..., None].astype(np.float32)
    assert torch.equal(smollm2_model._dense(torch.from_numpy(q8)), torch.from_numpy(want8.reshape(3, H)))
    nibbles = codes[..., :16] | codes[..., 16:] << 4
    q4 = np.concatenate([scale[..., None].view(np.uint8), least[..., None].view(np.uint8), nibbles], -1).reshape(3, -1)
    want4 = codes.astype(np.float32) * scale[..., None].astype(np.float32) + least[..., None].astype(np.float32)
    assert torch.equal(smollm2_model._dense(torch.from_numpy(q4)), torch.from_numpy(want4.reshape(3, H)))
