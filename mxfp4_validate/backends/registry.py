"""Names of backends, and how `pkg.module:factory` becomes one; torch is imported only when a backend is resolved."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, cast

from mxfp4_validate.errors import MxfpError, UnknownName, UsageError

if TYPE_CHECKING:
    from mxfp4_validate.backends.base import Backend


@dataclass(frozen=True)
class Entry:
    """A backend of this package: where its factory lives, its device, and a line for `list`."""

    target: str
    device: str
    about: str


_HERE = "mxfp4_validate.backends"
BACKENDS: dict[str, Entry] = {
    "sm90-cutlass": Entry(f"{_HERE}.sm90_cutlass:Sm90Cutlass", "cuda", "FlashInfer's SM90 cutlass MoE, the candidate; needs a Hopper GPU"),
    "marlin": Entry(f"{_HERE}.marlin:Marlin", "cuda", "sglang's Marlin MoE, the baseline; needs sglang and a Hopper GPU"),
    "marlin-gemm": Entry(
        f"{_HERE}.marlin_gemm:MarlinGemm", "cuda", "sglang's Marlin kernel on GPT-OSS where `marlin` cannot take biases and alpha"
    ),
    "triton-kernels": Entry(f"{_HERE}.triton_kernels:TritonKernels", "cuda", "triton_kernels' matmul_ogs as sglang calls it for GPT-OSS"),
    "sglang:gpt-oss-sm90": Entry(
        f"{_HERE}.sglang_layers:GptOssSm90", "cuda", "the class an sglang server runs GPT-OSS with on SM90 cutlass"
    ),
    "sglang:dsv4-sm90": Entry(
        f"{_HERE}.sglang_layers:DeepSeekV4Sm90", "cuda", "the class an sglang server runs DeepSeek-V4 with on SM90 cutlass"
    ),
    "sglang:gpt-oss-marlin": Entry(f"{_HERE}.sglang_marlin:GptOssMarlin", "cuda", "the class an sglang server runs GPT-OSS with on Marlin"),
    "openai-torch": Entry(f"{_HERE}.openai_torch:OpenAITorch", "cuda", "OpenAI's torch reference for GPT-OSS, where gpt_oss is installed"),
    "humming": Entry(f"{_HERE}.declared:humming", "cuda", "FlashInfer's W4A8 path; declared, not judged"),
    "trtllm-gen": Entry(f"{_HERE}.declared:trtllm_gen", "cuda", "FlashInfer's SM100 path; declared, not judged"),
    "emulate:triton-kernels": Entry(f"{_HERE}.emulate:emulate_triton", "cpu", "the twin of triton_kernels' matmul_ogs, on any CPU"),
    "emulate:sm90-cutlass": Entry(f"{_HERE}.emulate:emulate_sm90", "cpu", "its twin with layout A, on any CPU"),
    "emulate:sm90-cutlass-b": Entry(f"{_HERE}.emulate:emulate_sm90_b", "cpu", "its twin with layout B, on any CPU"),
    "emulate:marlin": Entry(f"{_HERE}.emulate:emulate_marlin", "cpu", "the twin of sglang's Marlin MoE, on any CPU"),
}
#: What `backends.base.Backend` asks for; checked by name here, so that the message can say what is missing.
ATTRIBUTES = ("name", "device")
METHODS = ("availability", "rounding", "tactics", "prepare", "run")


def _factory(spec: str) -> Callable[[], Any]:
    target = BACKENDS[spec].target if spec in BACKENDS else spec
    module_name, _, attribute = target.partition(":")
    if not module_name or not attribute or (spec not in BACKENDS and spec.startswith("emulate:")):
        raise UnknownName("backend", spec, BACKENDS)
    try:
        found: Any = import_module(module_name)
        for part in attribute.split("."):
            found = getattr(found, part)
    except MxfpError:
        raise
    except Exception as error:
        raise UsageError(f"backend {spec!r}: cannot import {attribute!r} from {module_name!r} ({type(error).__name__}: {error})") from error
    if not callable(found):
        raise UsageError(f"backend {spec!r}: {target} is a {type(found).__name__}, not a function or class that returns a backend")
    return cast("Callable[[], Any]", found)


def device_of(spec: str) -> str:
    """ "cpu" or "cuda", without building the backend: a factory of one's own says it in an attribute `device`, default "cuda"."""
    device = BACKENDS[spec].device if spec in BACKENDS else getattr(_factory(spec), "device", "cuda")
    if device not in ("cpu", "cuda"):
        raise UsageError(f"backend {spec!r}: device {device!r} is neither 'cpu' nor 'cuda'")
    return str(device)


def resolve(spec: str) -> Backend:
    """The backend a name or `pkg.module:factory` stands for, complete or not at all."""
    factory = _factory(spec)
    try:
        backend = factory()
    except MxfpError:
        raise
    except Exception as error:
        raise UsageError(f"backend {spec!r}: its factory raised {type(error).__name__}: {error}") from error
    missing = [name for name in ATTRIBUTES if not hasattr(backend, name)]
    missing += [f"{name}()" for name in METHODS if not callable(getattr(backend, name, None))]
    if missing:
        kind = type(backend).__name__
        raise UsageError(
            f"backend {spec!r}: the {kind} its factory returned lacks {', '.join(missing)}; see mxfp4_validate.backends.base.Backend"
        )
    return cast("Backend", backend)
