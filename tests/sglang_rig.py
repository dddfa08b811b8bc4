"""sglang's own MoE classes on a CPU: its Python runs as it is, and the GPU functions that it calls are our emulations of them.

Of 0.5.12.post1 here, of 0.5.23 by `tests.sglang_rig_23`: one release a process.

Named as a backend (`tests.sglang_rig:gpt_oss_sm90`), so that a worker process, and not pytest's, holds the stubs. What is real: the files
in `REAL`, from the fetched wheel. What is emulated: `cutlass_fused_moe` and its interleave helpers, `gptq_marlin_repack`,
`moe_align_block_size` and `moe_wna16_marlin_gemm`, by their documented contracts. So this judges loader transforms, row orders, padding,
biases and arguments; the kernels themselves are judged on a GPU.
"""

from __future__ import annotations

import collections
import contextlib
import importlib
import importlib.abc
import importlib.machinery
import sys
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from mxfp4_validate.backends import marlin as marlin_backend
from mxfp4_validate.backends import marlin_gemm as marlin_gemm_backend
from mxfp4_validate.backends import sglang_layers, sglang_marlin
from mxfp4_validate.backends.base import Available
from mxfp4_validate.backends.emulate import Stages, emulate_sm90, emulated_kernel
from mxfp4_validate.cases import Activation
from mxfp4_validate.formats.moe_weights import MoeInputs
from mxfp4_validate.layouts.prepare import Sm90Weights, unpack_sm90
from mxfp4_validate.layouts.sm90_a import SM90_A
from mxfp4_validate.reference.gemm import folded
from mxfp4_validate.reference.interval import round_bf16
from mxfp4_validate.reference.rounding import MARLIN, SM90_CUTLASS

VENDOR = Path(__file__).resolve().parent.parent / ".vendor"
WHEEL = VENDOR / "sglang-0.5.12.post1"
_Q, _M = "sglang.srt.layers.quantization", "sglang.srt.layers.moe"
#: Modules that run as they stand in the wheel.
REAL = {
    f"{_Q}.mxfp4",
    f"{_Q}.mxfp4_flashinfer_cutlass_moe",
    f"{_Q}.fp8",
    f"{_Q}.utils",
    f"{_Q}.base_config",
    f"{_Q}.marlin_utils",
    f"{_Q}.marlin_utils_fp4",
    f"{_M}.utils",
    f"{_M}.topk",
    f"{_M}.moe_runner.base",
    f"{_M}.moe_runner.marlin",
    f"{_M}.moe_runner.runner",
    f"{_M}.fused_moe_triton.fused_marlin_moe",
    "sglang.srt.environ",
}
PACKAGES = (
    "sglang",
    "sglang.srt",
    "sglang.srt.layers",
    "sglang.srt.layers.quantization",
    "sglang.srt.layers.moe",
    "sglang.srt.layers.moe.moe_runner",
    "sglang.srt.layers.moe.fused_moe_triton",
)
STUBBED = ("sglang", "flashinfer", "sgl_kernel", "triton", "triton_kernels", "pybase64", "orjson", "psutil", "zmq", "fastapi", "starlette")


class Blank(type):
    """The type of stubs: classes whose every attribute is one more, and whose instances are false and return false."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        found = blank(name)
        setattr(cls, name, found)
        return found


def blank(name: str) -> Any:
    body = {"__init__": lambda self, *a, **k: None, "__call__": lambda self, *a, **k: False, "__bool__": lambda self: False}
    return Blank(name, (), body)


class Stub(types.ModuleType):
    """Any name asked of it is a blank class."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        found = blank(name)
        setattr(self, name, found)
        return found


class Package(Stub):
    """A package whose names come from its real modules where they have them."""

    def __getattr__(self, name: str) -> Any:
        for module in (f"{_M}.moe_runner.base", f"{_M}.moe_runner.runner", f"{_M}.utils") if self.__name__ == _M else ():
            real = importlib.import_module(module)
            if hasattr(real, name):
                return getattr(real, name)
        return super().__getattr__(name)


class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Stubs for all of sglang but `REAL`, and for whatever else of `STUBBED` is asked for."""

    stubbed = STUBBED

    def find_spec(self, name: str, path: Any, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        if name in REAL or name.partition(".")[0] not in self.stubbed:
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        return Stub(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        pass


def cutlass_fused_moe(
    input: Tensor,  # noqa: A002 - FlashInfer's name, by which it is called
    token_selected_experts: Tensor,
    token_final_scales: Tensor,
    fc1_expert_weights: Tensor,
    fc2_expert_weights: Tensor,
    output_dtype: torch.dtype,
    quant_scales: Sequence[Tensor],
    *,
    fc1_expert_biases: Tensor | None,
    fc2_expert_biases: Tensor | None,
    swiglu_alpha: Tensor | None,
    swiglu_beta: Tensor | None,
    swiglu_limit: Tensor | None,
    tp_size: int,
    tp_rank: int,
    ep_size: int,
    ep_rank: int,
    use_w4_group_scaling: bool,
    activation_type: Any,
    tune_max_num_tokens: int,
    output: Tensor,
) -> list[Tensor]:
    """FlashInfer 0.6.11's entry by its documented arguments: layout A, rows [up; gate], the twin's arithmetic, written into `output`."""
    assert use_w4_group_scaling
    assert output_dtype is torch.bfloat16
    assert all(s.dtype is torch.int32 for s in quant_scales)
    assert token_selected_experts.dtype is torch.int32
    assert token_final_scales.dtype is torch.float32
    E, rows, half = fc1_expert_weights.shape
    scales = [s.view(torch.uint8) for s in quant_scales]
    prepared = Sm90Weights(
        fc1_expert_weights, scales[0], fc2_expert_weights, scales[1], fc1_expert_biases, fc2_expert_biases, half * 2, rows // 2, "sm90_a"
    )
    weights = unpack_sm90(prepared, SM90_A)
    weights = weights.with_(w2_bias=None) if tp_rank else weights
    constants = [None if t is None else float(t.unique().item()) for t in (swiglu_alpha, swiglu_beta, swiglu_limit)]
    assert all(t is None or t.shape == (E,) for t in (swiglu_alpha, swiglu_beta, swiglu_limit))
    activation = Activation(1.0 if constants[0] is None else constants[0], constants[1] or 0.0, constants[2])
    inputs = MoeInputs(input, token_selected_experts, token_final_scales)
    output.copy_(emulated_kernel(weights, inputs, activation, SM90_CUTLASS, ep_rank * E, Stages()))
    return [output]


def gptq_marlin_repack(*, b_q_weight: Tensor, perm: Tensor, size_k: int, size_n: int, num_bits: int) -> Tensor:
    """[K/8, N] int32 -> [K/16, 2N] int32. Marlin's tile order is not imitated: any bijection that the emulated GEMM undoes will do."""
    assert tuple(b_q_weight.shape) == (size_k // 8, size_n)
    assert b_q_weight.is_contiguous()
    assert num_bits == 4
    assert perm.numel() == 0
    return b_q_weight.view(size_k // 16, 2 * size_n)


def moe_align_block_size(topk_ids: Tensor, block: int, num_experts: int) -> tuple[Tensor, Tensor, Tensor]:
    """(token, slot) pairs sorted by expert, each expert's padded to a block with M * k; an id of -1 makes a block of expert -1."""
    flat, rows, experts = topk_ids.flatten().long(), [], []
    for expert in flat.unique().tolist():
        pairs = (flat == expert).nonzero().flatten()
        count = -(-pairs.numel() // block) * block
        rows.append(torch.nn.functional.pad(pairs, (0, count - pairs.numel()), value=flat.numel()))
        experts += [expert] * (count // block)
    sorted_ids = torch.cat(rows).int()
    return sorted_ids, torch.tensor(experts, dtype=torch.int32), torch.tensor([sorted_ids.numel()], dtype=torch.int32)


def _unpermuted_scales(scale: Tensor, K: int, N: int) -> Tensor:
    """One expert's Marlin scales back to [N, K/32] bytes, through the inverse of sglang's own permutation of an index."""
    utils, fp4 = importlib.import_module(f"{_Q}.marlin_utils"), importlib.import_module(f"{_Q}.marlin_utils_fp4")
    index = torch.arange(N * K // 32, dtype=torch.float64).view(K // 32, N)
    moved = utils.marlin_permute_scales(s=index, size_k=K, size_n=N, group_size=32)
    moved = moved.view(-1, 4)[:, [0, 2, 1, 3]].flatten().long()  # the exchange of `mxfp4_marlin_process_scales`
    assert fp4.mxfp4_marlin_process_scales(torch.ones(1, 64)).dtype is torch.float8_e8m0fnu
    flat = torch.empty(N * K // 32, dtype=torch.uint8)
    flat[moved] = scale.view(torch.uint8).flatten()
    return flat.view(K // 32, N).t().contiguous()


def _unpermuted_bias(bias: Tensor) -> Tensor:
    """One expert's bias [N] as the kernel reads it, through the inverse of sglang's own permutation of an index."""
    moved = importlib.import_module(f"{_Q}.marlin_utils").marlin_permute_bias(torch.arange(bias.numel()))
    flat = torch.empty_like(bias)
    flat[moved] = bias
    return flat


def moe_wna16_marlin_gemm(
    a: Tensor,
    c: Tensor,
    b: Tensor,
    bias: Tensor | None,
    scales: Tensor,
    global_scale: Any,
    zeros: Any,
    g_idx: Any,
    sort_indices: Any,
    workspace: Tensor,
    sorted_token_ids: Tensor,
    expert_ids: Tensor,
    num_tokens_post_padded: Tensor,
    topk_weights: Tensor,
    *,
    moe_block_size: int,
    top_k: int,
    mul_topk_weights: bool,
    is_ep: bool,
    size_m: int,
    size_n: int,
    size_k: int,
    **rest: Any,
) -> Tensor:
    """Row r of c is expert's weights times row r // top_k of a, rounded to bf16, plus the bf16 bias, then times the bf16 routing weight where asked."""
    for place, expert in enumerate(expert_ids.tolist()):
        pairs = sorted_token_ids[place * moe_block_size : (place + 1) * moe_block_size].long()
        pairs = pairs[pairs < size_m * top_k]
        if expert < 0:
            continue
        packed = b[expert].view(size_k // 8, size_n).t().contiguous().view(torch.uint8)
        scale = _unpermuted_scales(scales[expert], size_k, size_n)
        rows = round_bf16(folded(a[pairs // top_k], packed, scale, MARLIN).value)
        if bias is not None:
            rows = round_bf16(rows + _unpermuted_bias(bias[expert]).double())
        if mul_topk_weights:
            rows = round_bf16(rows * round_bf16(topk_weights.flatten()[pairs]).unsqueeze(1))
        c.view(-1, size_n)[pairs] = rows.bfloat16()
    return c


def silu_and_mul(x: Tensor, out: Tensor) -> None:
    gate, up = x.float().chunk(2, dim=1)
    out.copy_((gate * torch.sigmoid(gate)) * up)


def _module(name: str, **names: Any) -> None:
    module = sys.modules.setdefault(name, Stub(name))
    if not isinstance(module, Package):
        module.__path__ = []
    for key, value in names.items():
        setattr(module, key, value)
    parent, _, last = name.rpartition(".")
    if parent in sys.modules:  # as an import of it would
        setattr(sys.modules[parent], last, module)


@dataclass(frozen=True)
class Release:
    """What differs between releases of sglang: where the kernels and settings that we emulate are imported from (module -> names)."""

    version: str
    kernels: Mapping[str, Mapping[str, Any]]


RELEASE_12 = Release(
    "0.5.12.post1",
    {
        "sglang.jit_kernel.gptq_marlin_repack": {"gptq_marlin_repack": gptq_marlin_repack},
        "sglang.jit_kernel.moe_wna16_marlin": {"moe_wna16_marlin_gemm": moe_wna16_marlin_gemm},
        "sglang.jit_kernel.activation": {"silu_and_mul": silu_and_mul},
        f"{_M}.fused_moe_triton": {"moe_align_block_size": moe_align_block_size},
    },
)


def install(release: Release = RELEASE_12) -> None:
    """Stubs and emulations into this process's `sys.modules`; once."""
    if any(isinstance(finder, Finder) for finder in sys.meta_path):
        return
    wheel = VENDOR / f"sglang-{release.version}"
    if not wheel.is_dir():
        raise RuntimeError(f"{wheel.name} is not fetched; run: python tools/vendor.py")
    for name in PACKAGES:  # the wheel's own __init__ files import the whole server
        package = Package(name)
        package.__path__ = [str(wheel.joinpath(*name.split(".")))]
        sys.modules[name] = package
    sys.meta_path.insert(0, Finder())
    yes, no, same = (lambda *a, **k: True), (lambda *a, **k: False), (lambda fn=None, **k: fn or (lambda f: f))
    utilities = {
        **dict.fromkeys(("is_flashinfer_available", "is_sm90_supported", "is_cuda"), yes),
        **dict.fromkeys(("is_sm100_supported", "is_sm120_supported", "is_hip", "is_npu", "is_cpu", "is_musa", "is_gfx95_supported"), no),
        **dict.fromkeys(("is_triton_kernels_available", "get_bool_env_var", "mxfp_supported", "cpu_has_amx_support"), no),
        "next_power_of_2": lambda n: 1 << (n - 1).bit_length(),
        "round_up": lambda n, to: -(-n // to) * to,
        "set_weight_attrs": lambda weight, attrs: None,
        "log_info_on_rank0": lambda *a: None,
        "get_device_capability": lambda *a: (9, 0),
    }
    _module("sglang.srt.utils", **utilities)
    _module("sglang.srt.utils.common", **utilities)
    _module("sglang.srt.utils.custom_op", register_custom_op=same)
    _module("sglang.srt.distributed", get_tensor_model_parallel_world_size=lambda: 1, get_tp_group=lambda: None)
    _module("sglang.srt.distributed.device_communicators.pynccl_allocator", use_symmetric_memory=lambda *a, **k: contextlib.nullcontext())
    combined = collections.namedtuple("StandardCombineInput", "hidden_states")
    for name in ("", ".standard"):
        _module(f"{_M}.token_dispatcher{name}", StandardCombineInput=combined)
    _module("sglang.srt.server_args", get_global_server_args=lambda: SimpleNamespace(flashinfer_mxfp4_moe_precision="default"))
    helpers = {
        "interleave_moe_weights_for_sm90_mixed_gemm": lambda w, kind: SM90_A.pack_weights(w),
        "interleave_moe_scales_for_sm90_mixed_gemm": lambda s, group_size=32: SM90_A.pack_scales(s),
    }
    _module("flashinfer.fused_moe", cutlass_fused_moe=cutlass_fused_moe, **helpers)
    for module, names in release.kernels.items():
        _module(module, **names)
    properties = SimpleNamespace(multi_processor_count=132)
    torch.cuda.get_device_properties = lambda *a, **k: properties  # type: ignore[assignment,method-assign]
    torch.cuda.get_device_capability = lambda *a, **k: (9, 0)  # type: ignore[assignment,method-assign]
    torch.cuda.empty_cache = lambda: None
    torch.library.register_fake = lambda *a, **k: lambda function: function  # type: ignore[assignment]  # operators that are not here
    marlin_utils = importlib.import_module(f"{_Q}.marlin_utils")
    marlin_utils.marlin_make_workspace = lambda *a, **k: torch.zeros(1, dtype=torch.int32)
    importlib.import_module(f"{_Q}.marlin_utils_fp4").marlin_make_workspace = marlin_utils.marlin_make_workspace


def on_cpu(backend: Any, release: Release = RELEASE_12) -> Any:
    """The product's own backend class with its tensors on the CPU and the engine's globals set by hand."""
    install(release)
    backend.device = "cpu"
    facts = {"backend": backend.name, "sglang": release.version, "kernels": "emulated"}
    backend.availability = lambda: Available(facts)
    backend._kernel = emulate_sm90()

    def start_engine(runner: str) -> None:
        utils = importlib.import_module(f"{_M}.utils")
        utils.MOE_RUNNER_BACKEND = utils.MoeRunnerBackend(runner)

    sglang_layers.start_engine = start_engine  # type: ignore[assignment]
    return backend


def gpt_oss_sm90() -> Any:
    return on_cpu(sglang_layers.GptOssSm90())


def dsv4_sm90() -> Any:
    return on_cpu(sglang_layers.DeepSeekV4Sm90())


def gpt_oss_marlin() -> Any:
    return on_cpu(sglang_marlin.GptOssMarlin())


def marlin() -> Any:
    return on_cpu(marlin_backend.Marlin())


def marlin_gemm() -> Any:
    return on_cpu(marlin_gemm_backend.MarlinGemm())


for factory in (gpt_oss_sm90, dsv4_sm90, gpt_oss_marlin, marlin, marlin_gemm):
    factory.device = "cpu"  # type: ignore[attr-defined]
