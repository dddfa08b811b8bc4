"""triton_kernels on a CPU: its own layouts, ragged metadata and torch reference, from the wheel of sglang-kernel; `triton` itself is a stub.

Named as a backend (`tests.triton_rig:triton_kernels`), so that a worker process holds the stubs. What is real: swizzling and unswizzling of
values and scales for Hopper, `make_ragged_tensor_metadata_torch`, and `matmul_ogs_torch`, which gathers, multiplies, adds biases, weights and
scatters. What is ours: the activation between the two GEMMs, from the twin. So this judges how the backend lays out weights and routes.
"""

from __future__ import annotations

import functools
import importlib
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mxfp4_validate.backends import triton_kernels as backend_module
from mxfp4_validate.backends.base import Available
from mxfp4_validate.cases import Activation
from mxfp4_validate.formats import e8m0, mxfp4
from mxfp4_validate.reference.interval import Interval, activate
from mxfp4_validate.reference.rounding import TRITON_KERNELS
from tests.sglang_rig import Finder, _module

WHEEL = Path(__file__).resolve().parent.parent / ".vendor" / "triton-kernels-0.4.2.post2"


class TritonFinder(Finder):
    """Stubs for `triton` and what hangs below it."""

    stubbed = ("triton",)


def _on_cpu(function: Any) -> Any:
    """A torch factory that leaves out device="cuda"."""

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **{k: v for k, v in kwargs.items() if (k, v) != ("device", "cuda")})

    return call


def _dense(w: Any, config: Any) -> Tensor:
    """The weights that a kernel would see, [E, K, N] float32: both layouts unswizzled by the package, then decoded by us."""
    values, scales = (t.storage.layout.unswizzle_data(t.storage.data) for t in (w, config.weight_scale))
    scales = scales[:, : values.shape[1] // 16, : values.shape[2]]  # the scale layout pads its rows
    rows = (t.transpose(-2, -1).contiguous() for t in (values, scales))
    return mxfp4.dequantise(*rows, e8m0.EXPONENT_FIELD, torch.float32).transpose(-2, -1)


def matmul_ogs(
    x: Tensor,
    w: Any,
    bias: Tensor,
    routing: Any,
    *,
    gather_indx: Any = None,
    scatter_indx: Any = None,
    precision_config: Any = None,
    fused_activation: Any = None,
    gammas: Tensor | None = None,
    y: Tensor,
) -> Tensor:
    """The package's torch reference on unswizzled weights; rows rounded to bf16 where the kernel stores them."""
    ogs = importlib.import_module("triton_kernels.matmul_ogs")
    dense = _dense(w, precision_config)
    if fused_activation is None:
        slots = ogs.matmul_ogs_torch(
            x.float(), dense, bias, routing, None, scatter_indx, gammas=gammas, round_y=lambda t: t.bfloat16().float()
        )
        return y.copy_(slots.view(y.shape))
    pairs = ogs.matmul_ogs_torch(x.float(), dense, bias, routing, gather_indx).view(-1, dense.shape[-1])
    alpha, limit = fused_activation.fn_args
    halves = Interval(torch.cat((pairs[:, 0::2], pairs[:, 1::2]), 1))
    return y.copy_(activate(halves, Activation(alpha, 1.0, limit), TRITON_KERNELS).value.view(y.shape))


def triton_kernels() -> Any:
    """The product's own backend class with its tensors on the CPU."""
    if not WHEEL.is_dir():
        raise RuntimeError(f"{WHEEL.name} is not fetched; run: python tools/vendor.py")
    sys.meta_path.insert(0, TritonFinder())
    _module("triton", cdiv=lambda a, b: -(-a // b), next_power_of_2=lambda n: 1 << (n - 1).bit_length())
    sys.path.insert(0, str(WHEEL))
    torch.cuda.get_device_capability = lambda *a, **k: (9, 0)  # type: ignore[assignment,method-assign]
    torch.arange, torch.zeros = _on_cpu(torch.arange), _on_cpu(torch.zeros)  # type: ignore[assignment]
    layout, tensor = (importlib.import_module(f"triton_kernels.{name}") for name in ("tensor_details.layout", "tensor"))
    layout.cuda_capability_geq = lambda major, minor=0: (major, minor) <= (9, 0)  # type: ignore[attr-defined]
    layout.is_hip_cdna4 = lambda: False  # type: ignore[attr-defined]
    tensor.make_ragged_tensor_metadata = tensor.make_ragged_tensor_metadata_torch  # type: ignore[attr-defined]
    importlib.import_module("triton_kernels.matmul_ogs").matmul_ogs = matmul_ogs  # type: ignore[attr-defined]
    backend = backend_module.TritonKernels()
    backend.device = "cpu"
    backend.availability = lambda: Available({"triton_kernels": "of sglang-kernel 0.4.2.post2", "kernels": "its torch reference"})  # type: ignore[method-assign]
    return backend


triton_kernels.device = "cpu"  # type: ignore[attr-defined]
