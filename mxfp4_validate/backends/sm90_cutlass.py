"""FlashInfer's SM90 cutlass MoE (W4A16), weights packed by our own layouts, run with and without tuning and with every tactic forced."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib import metadata, util
from typing import Any

import torch
from torch import Tensor

from mxfp4_validate.backends.base import DEFAULT_TACTIC, Available, Tactic, Unavailable
from mxfp4_validate.cases import SINGLE, Activation, Parallel
from mxfp4_validate.errors import UsageError
from mxfp4_validate.formats.moe_weights import MoeInputs, MoeWeights
from mxfp4_validate.layouts.base import Layout
from mxfp4_validate.layouts.detect import detect
from mxfp4_validate.layouts.prepare import Sm90Weights, prepare_sm90
from mxfp4_validate.provenance import known_bad
from mxfp4_validate.reference.rounding import SM90_CUTLASS, RoundingModel

INSTALL = "pip install 'flashinfer-python>=0.6.11' (and its prebuilt flashinfer-jit-cache, or nvcc >= 12.8 to compile at first use)"
CLUSTERS = ("1x1x1", "2x1x1", "1x2x1", "2x2x1")
#: CTA tiles in the order FlashInfer enumerates them (its cutlass_heuristic.cpp), four cluster shapes each; layout A's kernels have K tile 128.
TILES_A = tuple(f"{m}x{n}x128" for m, n in ((64, 16), (64, 32), (64, 64), (64, 128), (128, 16), (128, 32), (128, 64)))
TILES_B = (
    *(f"{m}x{n}x{k}" for m in (64, 128) for n in (16, 32, 64, 128) for k in (128, 256, 512)),
    "128x256x128",
    "128x256x256",
    "256x128x128",
    "256x128x256",
    "256x256x128",
)


class Sm90Cutlass:
    """The candidate. Raises nothing on construction: `availability` says what is missing."""

    name = "sm90-cutlass"
    device = "cuda"

    def __init__(self) -> None:
        self._layout: Layout | None = None

    @property
    def layout(self) -> Layout:
        """The layout of the installed FlashInfer, detected from its scale helper's output."""
        if self._layout is None:
            from flashinfer.fused_moe import interleave_moe_scales_for_sm90_mixed_gemm

            self._layout = detect(interleave_moe_scales_for_sm90_mixed_gemm)
        return self._layout

    def availability(self) -> Available | Unavailable:
        if not torch.cuda.is_available():
            return Unavailable("no CUDA device is visible to torch; needs a Hopper GPU (compute capability 9.0)")
        capability = torch.cuda.get_device_capability()
        if capability != (9, 0):
            return Unavailable(f"GPU 0 has compute capability {capability[0]}.{capability[1]}; the SM90 kernel needs 9.0 (H100, H200)")
        if util.find_spec("flashinfer") is None:
            return Unavailable(f"flashinfer is not installed; {INSTALL}")
        version = metadata.version("flashinfer-python")
        try:
            import flashinfer.fused_moe as fused_moe

            fused_moe.interleave_moe_weights_for_sm90_mixed_gemm  # noqa: B018 - older versions lack the helpers
            layout = self.layout
        except (ImportError, AttributeError, UsageError) as error:
            return Unavailable(f"flashinfer {version} has no usable SM90 mixed-input helpers ({error}); {INSTALL}")
        facts = {"flashinfer-python": version, "layout": layout.name, "gpu": torch.cuda.get_device_name()}
        notice = known_bad("flashinfer-python", version)
        return Available(facts | ({"known_bad": notice} if notice else {}))

    def tiles(self) -> tuple[str, ...]:
        return TILES_A if self.layout.name.endswith("a") else TILES_B

    def tile_of(self, profile: int) -> str:
        """CTA tile of a profile id of either GEMM."""
        tiles = self.tiles()
        return tiles[profile % (4 * len(tiles)) // 4]

    def rounding(self, tactic: Tactic = DEFAULT_TACTIC) -> RoundingModel:
        if isinstance(tactic.value, tuple):
            first, second = (int(self.tile_of(p).rsplit("x", 1)[1]) if p >= 0 else 128 for p in tactic.value)
            return replace(SM90_CUTLASS, k_tiles=(first, second))
        return SM90_CUTLASS

    def tactics(self, prepared: Sm90Weights, num_tokens: int) -> list[Tactic]:
        """The default, then every profile of GEMM1 and every profile of GEMM2 that the kernel says it supports for this shape."""
        seen: dict[int, list[int]] = {}
        self._call_hook(prepared, num_tokens, seen)
        named = [{f"{self.tile_of(p)}/{CLUSTERS[p % 4]}": p for p in seen[stage]} for stage in (1, 2)]
        found = [DEFAULT_TACTIC]
        for name in dict.fromkeys((*named[0], *named[1])):  # the same configuration in both GEMMs where both can take it
            pair = tuple(profiles.get(name, -1) for profiles in named)  # group: the CTA tile without K
            found.append(Tactic(name, pair, group=name.split("/")[0].rsplit("x", 1)[0]))
        return found

    def _call_hook(self, prepared: Sm90Weights, num_tokens: int, seen: dict[int, list[int]]) -> None:
        def note(runner: Any, inputs: list[Any], gemm: int) -> int:
            runner.gemm_idx_for_tuning = gemm
            seen[gemm] = [int(t) for t in runner.get_valid_tactics(inputs, None)]
            return -1

        x = torch.zeros(num_tokens, prepared.hidden_size, dtype=torch.bfloat16, device="cuda")
        ids = torch.zeros(num_tokens, 1, dtype=torch.int32, device="cuda")
        with _choosing(note):
            self._call(prepared, MoeInputs(x, ids, ids.float()), Activation(), SINGLE, None)

    def prepare(self, weights: MoeWeights) -> Sm90Weights:
        return prepare_sm90(weights.to("cuda"), self.layout)

    def run(
        self,
        prepared: Sm90Weights,
        inputs: MoeInputs,
        activation: Activation,
        *,
        parallel: Parallel = SINGLE,
        tactic: Tactic = DEFAULT_TACTIC,
        out: Tensor | None = None,
    ) -> Tensor:
        if tactic.value == "tuned":  # whatever FlashInfer's own cache holds
            return self._call(prepared, inputs, activation, parallel, out)
        if isinstance(tactic.value, tuple):
            with _choosing(lambda runner, tensors, gemm: tactic.value[gemm - 1]):
                return self._call(prepared, inputs, activation, parallel, out)
        with _choosing(lambda runner, tensors, gemm: -1):  # whatever an earlier tuning left in the cache is not the default
            return self._call(prepared, inputs, activation, parallel, out)

    def tune(self, prepared: Sm90Weights, inputs: MoeInputs, activation: Activation) -> Tactic:
        """Let FlashInfer tune for this number of tokens (a power of two, one bucket); returns the profiles it will use from now on."""
        from flashinfer import autotune
        from flashinfer.autotuner import AutoTuner

        with autotune(True, tuning_buckets=(inputs.x.shape[0],)):
            self._call(prepared, inputs, activation, SINGLE, None)
        picked: list[int] = []
        original = AutoTuner.choose_one

        def listen(tuner: Any, *args: Any, **kwargs: Any) -> Any:
            runner, profile = original(tuner, *args, **kwargs)
            picked.append(int(profile))
            return runner, profile

        AutoTuner.choose_one = listen
        try:
            self._call(prepared, inputs, activation, SINGLE, None)
        finally:
            AutoTuner.choose_one = original
        return Tactic("+".join(self.tile_of(p) if p >= 0 else "default" for p in picked), tuple(picked), group="tuned")

    def timed(
        self, prepared: Sm90Weights, inputs: MoeInputs, activation: Activation, *, tactic: Tactic = DEFAULT_TACTIC
    ) -> Callable[[], Tensor]:
        """`cutlass_fused_moe` alone: x padded, constants and output made beforehand, the output left as wide as the padding makes it."""
        from flashinfer.fused_moe import cutlass_fused_moe

        M, H = inputs.x.shape
        buffer = torch.empty(M, prepared.padded_hidden, dtype=torch.bfloat16, device=inputs.x.device)
        args, named = _arguments(prepared, inputs, activation, SINGLE, buffer)
        view, value = buffer[:, :H], tactic.value

        def choose(runner: Any, tensors: Any, gemm: int) -> int:
            return int(value[gemm - 1]) if isinstance(value, tuple) else -1

        def call() -> Tensor:
            with contextlib.nullcontext() if value == "tuned" else _choosing(choose):
                cutlass_fused_moe(*args, **named)
            return view

        return call

    def _call(self, w: Sm90Weights, inputs: MoeInputs, activation: Activation, parallel: Parallel, out: Tensor | None) -> Tensor:
        from flashinfer.fused_moe import cutlass_fused_moe

        M, H = inputs.x.shape
        direct = out is not None and w.padded_hidden == H and out.is_contiguous()
        buffer = out if direct else torch.full((M, w.padded_hidden), float("nan"), dtype=torch.bfloat16, device=inputs.x.device)
        assert buffer is not None
        args, named = _arguments(w, inputs, activation, parallel, buffer)
        cutlass_fused_moe(*args, **named)
        if direct:
            return buffer
        if out is not None:
            return out.copy_(buffer[:, :H])
        return buffer[:, :H].contiguous() if w.padded_hidden != H else buffer


def _arguments(w: Sm90Weights, inputs: MoeInputs, activation: Activation, parallel: Parallel, output: Tensor) -> tuple[Any, dict[str, Any]]:
    """What `cutlass_fused_moe` is called with, by position and by name; `output` is [M, Hp]. Pads x and makes the activation's constants."""
    from flashinfer.fused_moe.core import ActivationType

    M, H = inputs.x.shape
    x = inputs.x
    if w.padded_hidden != H:
        x = torch.nn.functional.pad(x, (0, w.padded_hidden - H))
    plain = activation == Activation()
    constants = [
        None if plain else torch.full((w.num_experts,), v, dtype=torch.float32, device=x.device)
        for v in (activation.alpha, activation.beta, float("inf") if activation.limit is None else activation.limit)
    ]
    scales = [w.fc1_scale.view(torch.int32), w.fc2_scale.view(torch.int32)]
    fc1_bias, fc2_bias = _both_biases(w)
    return (x.contiguous(), inputs.topk_ids, inputs.topk_weights, w.fc1, w.fc2, torch.bfloat16, scales), {
        "fc1_expert_biases": fc1_bias,
        "fc2_expert_biases": fc2_bias,
        "swiglu_alpha": constants[0],
        "swiglu_beta": constants[1],
        "swiglu_limit": constants[2],
        "tp_size": parallel.tp_size,
        "tp_rank": parallel.tp_rank,
        "ep_size": parallel.ep_size,
        "ep_rank": parallel.ep_rank,
        "use_w4_group_scaling": True,
        "activation_type": ActivationType.Swiglu,
        "output": output,
        "tune_max_num_tokens": max(16, 1 << (M - 1).bit_length()),
    }


def _both_biases(w: Sm90Weights) -> tuple[Tensor | None, Tensor | None]:
    """FlashInfer takes both biases or none; a missing one is zeros, which change no value."""
    if w.fc1_bias is None and w.fc2_bias is None:
        return None, None
    zeros = [torch.zeros(w.num_experts, n, dtype=torch.bfloat16, device=w.fc1.device) for n in (2 * w.padded_intermediate, w.padded_hidden)]
    return zeros[0] if w.fc1_bias is None else w.fc1_bias, zeros[1] if w.fc2_bias is None else w.fc2_bias


@contextlib.contextmanager
def _choosing(choose: Any) -> Iterator[None]:
    """Make FlashInfer's tuner return `choose(runner, inputs, gemm_idx)` instead of its cached or default profile."""
    from flashinfer.autotuner import AutoTuner

    original = AutoTuner.choose_one

    def choose_one(self: Any, op: str, runners: Any, config: Any, inputs: Any, **kwargs: Any) -> Any:
        if "gemm_idx" not in kwargs:
            return original(self, op, runners, config, inputs, **kwargs)
        return runners[0], choose(runners[0], inputs, kwargs["gemm_idx"])

    AutoTuner.choose_one = choose_one
    try:
        yield
    finally:
        AutoTuner.choose_one = original
