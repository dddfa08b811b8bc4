"""Deliberate faults of the tiny model, so that evals and divergence can show what they see.

Those of `FAULTS` change what a backend is given - canonical bytes, a call's inputs, the activation's constants - or the router, and so work
with every backend. Their changes are those of `fault_hooks` where the same fault exists. Any other fault of `mxfp4_validate.faults` changes
the emulated kernel itself and works with `emulate:*` alone. Layers count from 0; "one layer" is the one in the middle.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from mxfp4_validate import faults as kernel_faults
from mxfp4_validate.cases import Activation
from mxfp4_validate.checkpoints.synthetic import uniform
from mxfp4_validate.errors import UnknownName, UsageError
from mxfp4_validate.fault_bytes import LOAD, VIEW
from mxfp4_validate.fault_hooks import ACTIVATION, INPUTS
from mxfp4_validate.formats.moe_weights import MoeInputs, MoeWeights

#: Share of blocks that `scales-1-in-1000` moves.
BLOCK_SHARE = 1e-3


@dataclass(frozen=True)
class Fault:
    """One fault by its changes; None changes nothing.

    Attributes:
        weights: canonical bytes and number of a layer -> what the backend prepares.
        inputs: a call's inputs and the number of experts -> what the backend is given.
        activation: the constants the backend is given.
        renormalise: False for a router whose chosen weights do not add up to 1.
        one_layer: the change happens in one layer only, `layer` or the middle one.
        kernel: the name of a fault of `mxfp4_validate.faults` instead of all this.
    """

    name: str
    what: str
    how: str
    weights: Callable[[MoeWeights, int], MoeWeights] | None = None
    inputs: Callable[[MoeInputs, int], MoeInputs] | None = None
    activation: Callable[[Activation], Activation] | None = None
    renormalise: bool = True
    one_layer: bool = False
    kernel: str = ""
    layer: int | None = None

    def applies(self, layer: int, num_layers: int) -> bool:
        return not self.one_layer or layer == (num_layers // 2 if self.layer is None else self.layer)


def _load(name: str) -> Callable[[MoeWeights, int], MoeWeights]:
    """A change of canonical bytes that `fault_hooks` knows as one of the loader or of the reader."""
    change = LOAD[name] if name in LOAD else VIEW[name]()
    return lambda weights, _layer: change(weights)


def _no_biases(weights: MoeWeights, _layer: int) -> MoeWeights:
    return weights.with_(w13_bias=None, w2_bias=None)


def rare_scales(weights: MoeWeights, layer: int, share: float = BLOCK_SHARE) -> MoeWeights:
    """One exponent in a thousand, or that share, one too high; which ones depends on the layer and the tensor alone."""

    def change(scale: torch.Tensor, seed: int) -> torch.Tensor:
        hit = uniform(tuple(scale.shape), seed, scale.device) < share
        return torch.where(hit, scale + 1, scale)

    return weights.with_(w13_scale=change(weights.w13_scale, 2 * layer), w2_scale=change(weights.w2_scale, 2 * layer + 1))


def _wrong_limit(activation: Activation) -> Activation:
    """DeepSeek-V4's 10 for GPT-OSS's 7, or as much too high where a checkpoint has a limit of its own."""
    return activation if activation.limit is None else replace(activation, limit=activation.limit * 10 / 7)


def _call(name: str) -> Callable[[MoeInputs, int], MoeInputs]:
    """A change of a call's inputs that `fault_hooks` knows."""
    return lambda inputs, _experts: INPUTS[name](inputs)


def times(factor: float) -> Callable[[MoeInputs, int], MoeInputs]:
    """Routing weights, and so the output, times a factor."""
    return lambda inputs, _experts: replace(inputs, topk_weights=inputs.topk_weights * factor)


def _next_expert(inputs: MoeInputs, experts: int) -> MoeInputs:
    """The last expert becomes the first: an id past the end would be skipped by one backend and read foreign memory in another."""
    return replace(inputs, topk_ids=((inputs.topk_ids + 1) % experts).int())


FAULTS: tuple[Fault, ...] = (
    Fault("no-clamp", "clamp missing", "activation limit None", activation=ACTIVATION["no_clamp"]),
    Fault("wrong-limit", "clamp limit 10/7 of the right one", "activation limit", activation=_wrong_limit),
    Fault("alpha-one", "alpha 1 instead of 1.702", "activation alpha", activation=ACTIVATION["alpha_one"]),
    Fault("no-beta", "up without its + 1", "activation beta", activation=ACTIVATION["no_beta"]),
    Fault("halves-swapped", "gate and up swapped", "w13 rows, scales and bias", weights=_load("swap_all")),
    Fault("no-bias", "both biases missing", "w13_bias and w2_bias dropped", weights=_no_biases),
    Fault("no-bias1", "first bias missing", "w13_bias dropped", weights=_load("no_bias1")),
    Fault("no-bias2", "second bias missing", "w2_bias dropped", weights=_load("no_bias2")),
    Fault("bias-interleaved", "first bias left interleaved", "w13_bias rows", weights=_load("interleave_bias")),
    Fault("scale-one-layer", "w13 exponents of one layer one too high", "w13_scale + 1", weights=_load("scale13_up"), one_layer=True),
    Fault("scales-1-in-1000", "one block in a thousand with its exponent one too high", "w13_scale and w2_scale", weights=rare_scales),
    Fault("layer-1-percent", "one layer's output 1 % too large", "routing weights * 1.01", inputs=times(1.01), one_layer=True),
    Fault("not-renormalised", "routing weights not renormalised over the chosen experts", "router", renormalise=False),
    Fault("expert-off-by-one", "expert ids off by one", "topk_ids + 1, the last wraps", inputs=_next_expert),
    Fault("weights-permuted", "routing weights of the wrong slots (top-k order)", "topk_weights rolled", inputs=_call("weights_rolled")),
    Fault("slot-dropped", "the last slot dropped", "topk_ids -1", inputs=_call("slot_dropped")),
    Fault("x-fp8", "input activations rounded to FP8 (W4A8 by mistake)", "x through float8_e4m3fn", inputs=_call("x_fp8")),
    Fault("k-tail-lost", "the last K tile of the first GEMM lost", "last 128 codes of w13 zero", weights=_load("k_tail13")),
    Fault("k-tail-lost-fc2", "the last K tile of the second GEMM lost", "last 128 codes of w2 zero", weights=_load("k_tail2")),
    Fault("scale-group-64", "scales read in groups of 64", "every second scale repeated", weights=_load("group64")),
    Fault("nibbles-swapped", "high nibble of w13 taken as the even element", "w13", weights=_load("nibbles_w13")),
    Fault("six-as-four", "E2M1's 6 read as 4", "codes of w13 and w2", weights=_load("six_as_four")),
    Fault("half-flushed", "E2M1's subnormal 0.5 flushed to 0", "codes of w13 and w2", weights=_load("half_flushed")),
    Fault("expert-0-everywhere", "expert 0 copied over the first half", "w13", weights=_load("expert_zero")),
)
#: Faults of the kernel that cannot show here, and why.
UNSEEN: dict[str, str] = {
    "x-pad-unwritten": "a hidden size that is a multiple of 128 has no padding",
    "pad-scale-nan": "a hidden size that is a multiple of 128 has no padding",
    "bias2-every-rank": "the model runs on one rank",
    "local-ids": "the model runs on one rank",
    "sentinel-wraps": "every expert is local, so no id is -1",
    "stale-rows": "every token has a local expert",
    "weights-bf16": "transformers' router gives bf16 weights already",
    "writes-outside": "the model takes what the backend returns and gives it no tensor to write to",
    "tile-unwritten": "the model takes what the backend returns and gives it no tensor to write to",
}
#: Faults of the emulated kernel that GPT-OSS layers show, by name.
KERNEL_FAULTS: tuple[Fault, ...] = tuple(
    Fault(f.name, f.what, f"emulated kernel, {f.number}", kernel=f.name)
    for f in kernel_faults.FAULTS
    if f.model == "gpt-oss-tiny" and f.name not in UNSEEN and f.name not in {mine.name for mine in FAULTS}
)
BY_NAME: dict[str, Fault] = {fault.name: fault for fault in (*FAULTS, *KERNEL_FAULTS)}


def fault_named(name: str, activation: Activation) -> Fault:
    """The fault of this name, for a checkpoint with this activation; `NAME@LAYER` puts one "in one layer" into that layer.

    Raises `UnknownName` with the nearest names, and `UsageError` for a fault that would leave this model as it is.
    """
    if "@" in name:
        return _in_layer(name, activation)
    if name in UNSEEN:
        raise UsageError(f"fault {name!r} cannot show in this model: {UNSEEN[name]}")
    if name not in BY_NAME:
        raise UnknownName("fault", name, BY_NAME)
    fault = BY_NAME[name]
    hook = kernel_faults.BY_NAME[fault.kernel].hooks.get("activation") if fault.kernel else None
    change = ACTIVATION[hook] if hook else fault.activation
    if change is not None and change(activation) == activation:
        raise UsageError(f"fault {name!r} ({fault.what}) leaves this checkpoint's {activation} as it is")
    return fault


def _in_layer(name: str, activation: Activation) -> Fault:
    plain, _, layer = name.partition("@")
    fault = fault_named(plain, activation)
    if not fault.one_layer or not layer.isdecimal():
        known = ", ".join(other.name for other in FAULTS if other.one_layer)
        raise UsageError(f"fault {name!r}: NAME@LAYER takes a layer's number from 0 and a fault in one layer, which are {known}")
    return replace(fault, name=name, layer=int(layer))
