"""Backends beside the candidate: what is declared, what is missing on a CPU, and the twin of triton_kernels."""

from __future__ import annotations

import pytest
import torch

from mxfp4_validate.backends.base import Unavailable
from mxfp4_validate.backends.registry import resolve
from mxfp4_validate.cases import SHAPES, MoeCase
from mxfp4_validate.checks import metamorphic, probes, random, readout
from mxfp4_validate.checks.context import Context
from mxfp4_validate.errors import BackendUnavailable, NotSupported
from mxfp4_validate.formats.moe_weights import MoeWeights


@pytest.mark.parametrize(("name", "reason"), [("humming", "W4A8"), ("trtllm-gen", "SM100")])
def test_what_is_not_judged_is_named_with_its_reason(name: str, reason: str) -> None:
    backend = resolve(name)
    found = backend.availability()
    assert isinstance(found, Unavailable)
    assert reason in found.reason
    with pytest.raises(BackendUnavailable, match=reason):
        backend.prepare(None)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "name", ["marlin", "triton-kernels", "sglang:gpt-oss-sm90", "sglang:dsv4-sm90", "sglang:gpt-oss-marlin", "openai-torch"]
)
def test_a_backend_that_cannot_run_here_says_what_is_missing(name: str) -> None:
    """On a machine without GPU; must not raise."""
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    found = resolve(name).availability()
    assert isinstance(found, Unavailable)
    assert "CUDA device" in found.reason or "pip install" in found.reason


def test_a_backend_with_a_beta_of_its_own() -> None:
    """triton_kernels adds 1 to up: GPT-OSS's probes and read-outs run, A1 restated; what needs another beta is refused by name."""
    ctx, gpt_oss, dsv4 = Context(resolve("emulate:triton-kernels")), SHAPES["gpt-oss-tiny"], SHAPES["dsv4-tiny"]
    assert random.twin(ctx, MoeCase(gpt_oss, 17))["unexplained"] == 0
    assert probes.a1(ctx, MoeCase(dsv4, 7))["beta"] == 1.0
    assert readout.fc1(ctx, MoeCase(gpt_oss, 1))["values_compared"] == 4 * 4 * 416 * 416
    assert "up_flipped" in metamorphic.sign_flip(ctx, MoeCase(gpt_oss, 3))
    with pytest.raises(NotSupported, match="always adds 1 to up; the case needs beta 0"):
        random.twin(ctx, MoeCase(dsv4, 3))


def test_a1_gives_the_same_bits_in_every_twin() -> None:
    names = ("emulate:sm90-cutlass", "emulate:sm90-cutlass-b", "emulate:marlin", "emulate:triton-kernels")
    found = {name: probes.a1(Context(resolve(name)), MoeCase(SHAPES["dsv4-mini"], 17))["sha256"] for name in names}
    assert len(set(found.values())) == 1, found


class Counting:
    """A backend that counts what it is asked to prepare."""

    def __init__(self, name: str) -> None:
        self.inner, self.prepared = resolve(name), 0

    def prepare(self, weights: MoeWeights) -> object:
        self.prepared += 1
        return self.inner.prepare(weights)

    def __getattr__(self, name: str) -> object:
        return getattr(self.inner, name)


def test_what_is_refused_is_refused_before_weights_are_prepared() -> None:
    """triton_kernels' layouts of a DeepSeek-V4-Pro layer do not fit into 80 GB: cases that it cannot be asked ended there as out of memory."""
    backend = Counting("emulate:triton-kernels")
    ctx = Context(backend)
    with pytest.raises(NotSupported, match="always adds 1 to up"):
        random.twin(ctx, MoeCase(SHAPES["dsv4-tiny"], 3))
    assert (backend.prepared, ctx._weights) == (0, {})
    random.coverage(ctx, MoeCase(SHAPES["dsv4-mini"], 17))  # asks about the data alone
    assert backend.prepared == 0
    random.twin(ctx, MoeCase(SHAPES["gpt-oss-tiny"], 3))
    random.twin(ctx, MoeCase(SHAPES["gpt-oss-tiny"], 1))
    assert backend.prepared == 1
