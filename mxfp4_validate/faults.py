"""Deliberate faults: each says where it lives and which check must catch it; each is a change of the emulating backend, never of a check.

`inject(backend, name)` wraps an `Emulated` backend. `CATCHERS` are the checks of the matrix, on the smallest cases that show every fault.
Numbers refer to the catalogue in `docs/faults.md`. Stages: load (canonical bytes), pack (what the packer returns), view (what the kernel
reads), inputs and activation (the call), parallel (the rank), stages (arithmetic), out (the result), layer
(how the shared expert is added).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mxfp4_validate.errors import UnknownName, UsageError


@dataclass(frozen=True)
class Fault:
    """One fault. `hooks` names functions of `fault_hooks` by stage; `indistinguishable` says why no check can see it, if none can."""

    name: str
    number: str
    what: str
    caught_by: tuple[str, ...]
    hooks: dict[str, str]
    model: str = "gpt-oss-tiny"
    indistinguishable: str = ""


def _f(number: str, name: str, what: str, caught_by: str, model: str = "gpt-oss-tiny", indistinguishable: str = "", **hooks: str) -> Fault:
    return Fault(name, number, what, tuple(caught_by.split()), hooks, model, indistinguishable)


DSV4 = "dsv4-tiny"
FAULTS: tuple[Fault, ...] = (
    _f("F1", "halves-swapped", "gate and up swapped: weights, scales and biases", "bytes probe-b1 probe-s2 twin", load="swap_all"),
    _f("F1", "halves-swapped-dsv4", "the same, DeepSeek-V4", "bytes probe-d1 twin", DSV4, load="swap_all"),
    _f("F2", "scale-halves-swapped", "scale halves not swapped with their weights", "bytes readout-fc1 probe-b1 twin", load="swap_scales"),
    _f("F3", "bias-halves-swapped", "bias halves not swapped", "bytes probe-b1 probe-s2 twin", load="swap_bias"),
    _f("F4", "bias-interleaved", "bias left interleaved", "bytes probe-b1 probe-s2 twin", load="interleave_bias"),
    _f("F5", "rows-interleaved", "w13 rows left interleaved", "bytes readout-fc1 probe-b1 twin", load="interleave_rows"),
    _f("F5", "scale-rows-interleaved", "scale rows left interleaved", "bytes readout-fc1 probe-b1 twin", load="interleave_scales"),
    _f("F6", "nibbles-swapped", "high nibble taken as the even element of w13", "bytes readout-fc1 probe-b1 twin", load="nibbles_w13"),
    _f("F6", "nibbles-swapped-w2", "the same in w2", "bytes readout-fc2 probe-b2 twin", load="nibbles_w2"),
    _f("F7", "no-interleave", "fc1 weights not interleaved", "bytes readout-fc1 probe-b1 twin", pack="raw_fc1"),
    _f("F7", "no-interleave-fc2", "fc2 weights not interleaved", "bytes readout-fc2 probe-b2 twin", pack="raw_fc2"),
    _f("F8", "interleaved-twice", "weights interleaved twice (reload)", "bytes readout-fc1 probe-b1 twin", pack="twice"),
    _f("F9", "wrong-layout", "layout B bytes in a layout A kernel", "bytes readout-fc1 probe-b1 twin", pack="layout_b"),
    _f("F9", "int4-interleave", "the INT4 interleave on E2M1 bytes", "bytes readout-fc1 probe-b1 twin", pack="int4"),
    _f("F10", "scales-raw", "fc1 scales not interleaved", "bytes readout-fc1 probe-b1 twin", pack="raw_scale1"),
    _f("F10", "scales-raw-fc2", "fc2 scales not interleaved", "bytes readout-fc2 probe-b2 twin", pack="raw_scale2"),
    _f("F11", "w13-scale-off-by-one", "all w13 exponents one too high", "bytes readout-fc1 probe-b1 twin", load="scale13_up"),
    _f("F12", "w2-scale-off-by-one", "all w2 exponents one too high", "bytes readout-fc2 probe-b2 twin", load="scale2_up"),
    _f("F13", "one-scale-byte", "a single scale byte off by one", "bytes readout-fc1", load="one_scale"),
    _f("F13", "one-code", "a single code wrong", "bytes readout-fc2", load="one_code"),
    _f("F14", "scale-cast-by-value", "scales cast by value, not by bits", "bytes readout-fc1 twin", load="scale_value"),
    _f("F16", "scales-unfilled", "a shard of scales left at 1.0", "bytes readout-fc1 twin", load="unfilled"),
    _f("F17", "scale-group-64", "scales read in groups of 64", "readout-fc1 probe-b1 twin", view="group64"),
    _f("F18", "k-tail-lost", "the last K tile of fc1 skipped", "readout-fc1 probe-b1 twin", view="k_tail13"),
    _f("F18", "k-tail-lost-fc2", "the last K tile of fc2 skipped", "readout-fc2 probe-b2 twin", view="k_tail2"),
    _f("F20", "rows-lost", "32 output columns zero", "readout-fc2 twin", out="rows_lost"),
    _f("F21", "pad-scale-nan", "pad scales left at 255", "bytes twin probe-b1", pack="pad_scale"),
    _f("F21", "x-pad-unwritten", "the pad of x left as it was", "twin", pack="pad_codes"),
    _f("F23", "six-as-four", "E2M1's 6 read as 4", "readout-fc1 probe-b1 twin", view="six_as_four"),
    _f("F24", "half-flushed", "E2M1's subnormal 0.5 flushed to 0", "readout-fc1 probe-b1 twin", view="half_flushed"),
    _f("F25", "sign-dragged", "int8 shift drags the sign into the other nibble", "bytes readout-fc1 twin", load="sign_dragged"),
    _f("F26", "no-clamp", "clamp missing", "probe-s2 probe-s1 twin", activation="no_clamp"),
    _f("F26", "no-clamp-dsv4", "clamp missing, DeepSeek-V4", "probe-d1 twin", DSV4, activation="no_clamp"),
    _f("F27", "gate-clamped-both", "gate clamped on both sides", "probe-s2", stages="gate_both"),
    _f("F29", "gate-not-clamped", "gate not clamped, up clamped", "probe-s1 probe-s2 twin", stages="gate_free"),
    _f("F30", "limit-10", "limit 10 instead of 7", "probe-s1 probe-s2 twin", activation="limit_10"),
    _f("F30", "limit-7-dsv4", "limit 7 instead of 10", "probe-d1 twin", DSV4, activation="limit_7"),
    _f("F31", "clamp-after-silu", "clamp after silu instead of before", "readout-fc1 scale-codes twin", stages="clamp_after"),
    _f("F32", "alpha-one", "alpha 1 instead of 1.702", "twin", activation="alpha_one"),
    _f("F33", "bf16-activation", "the activation rounds to bf16 at every step", "twin", stages="bf16_steps"),
    _f("F34", "no-beta", "beta missing", "probe-b1 probe-s2 twin", activation="no_beta"),
    _f("F34", "beta-on-gate", "beta added to the gate", "probe-b1 probe-s2 twin", stages="beta_on_gate"),
    _f("F34", "beta-before-clamp", "beta added before the clamp", "probe-s2 twin", stages="beta_early"),
    _f("F35", "other-model", "DeepSeek-V4's activation for GPT-OSS", "probe-s2 twin", activation="dsv4"),
    _f("F36", "no-bias1", "first bias missing", "bytes probe-b1 twin", load="no_bias1"),
    _f("F36", "no-bias2", "second bias missing", "bytes probe-b2 twin", load="no_bias2"),
    _f("F37", "bias2-every-rank", "second bias added on every TP rank", "tp2 tp-bias-once", parallel="rank_zero"),
    _f("F38", "e8m0-ocp", "scale bytes 0 and 255 read as OCP does", "scale-codes", DSV4, model_hook="ocp"),
    _f("F40", "routed-scale-twice", "routing weights scaled by 1.5 once more", "probe-b2 twin", inputs="scaled"),
    _f("F40", "routed-scale-omitted", "routed_scaling_factor left out", "routed-scale", DSV4, layer="omitted"),
    _f("F40", "routed-scale-in-both-places", "applied in the weights and while adding", "routed-scale", DSV4, layer="twice"),
    _f("F40", "routed-scale-on-shared", "applied to the sum with the shared expert", "routed-scale", DSV4, layer="on_shared"),
    _f("F41", "shared-over-factor", "shared expert divided by the factor", "routed-scale", DSV4, layer="shared_divided"),
    _f("F42", "shared-dropped", "shared expert left out", "routed-scale", DSV4, layer="shared_dropped"),
    _f("F43", "not-renormalised", "routing weights not renormalised", "probe-b2 twin", inputs="not_renormalised"),
    _f("F44", "weights-permuted", "routing weights of the wrong slots", "probe-b2 twin", inputs="weights_rolled"),
    _f("F48", "weights-bf16", "routing weights rounded to bf16", "twin", inputs="weights_bf16"),
    _f("F49", "expert-off-by-one", "expert ids off by one", "probe-b2 expert-permutation twin", DSV4, inputs="ids_shifted"),
    _f("F50", "sentinel-wraps", "id -1 indexes the last expert", "twin-foreign no-local-expert", inputs="sentinel"),
    _f("F51", "stale-rows", "rows without a local expert keep old values", "no-local-expert ep2", out="stale_rows"),
    _f("F52", "local-ids", "EP ranks take global ids for local ones", "ep2 ep4", parallel="rank_local"),
    _f("F53", "expert-0-everywhere", "expert 0 copied over the first experts", "bytes readout-fc1 twin", load="expert_zero"),
    _f("F57", "slot-dropped", "the last slot dropped", "probe-b2 twin", inputs="slot_dropped"),
    _f("F58", "bf16-sum", "slots summed in bf16", "twin", stages="bf16_sum"),
    _f("F59", "scale-race", "now and then a tile takes another expert's scales", "repeat", DSV4, view="race"),
    _f("F60", "small-m-garbage", "wrong rows for M = 2 and 3", "probe-b1", out="small_m"),
    _f("F61", "empty-experts", "with an expert empty, the last row is wrong", "single-row", DSV4, out="empty_experts"),
    _f("F62", "nan-tile", "NaN in one tile of 16 columns", "probe-b1 twin", out="nan_tile"),
    _f("F63", "x-fp8", "x rounded to FP8 (W4A8 by mistake)", "twin", inputs="x_fp8"),
    _f("F64", "no-h-rounding", "GEMM1's result not rounded to bf16", "twin", model_hook="h_fp32"),
    _f("F69", "writes-outside", "one value written beyond the output", "probe-b1 twin", out="outside"),
    _f("F70", "tile-unwritten", "a tile of the output not written", "probe-b1 twin", out="unwritten"),
)  # fmt: skip
BY_NAME: dict[str, Fault] = {fault.name: fault for fault in FAULTS}

#: The columns of the matrix: (check, case of the fault's model). Cases are the smallest that still show the fault.
CATCHERS: tuple[tuple[str, str], ...] = (
    ("bytes", "m1/random"), ("readout-fc1", "m1/random"), ("readout-fc2", "m1/random"), ("probe-b1", "m3/random"), ("probe-b2", "m7/random"),
    ("probe-s1", "m7/random"), ("probe-s2", "m3/random"), ("probe-d1", "m7/random"), ("twin", "m16/random"), ("twin-foreign", "m33/foreign"),
    ("single-row", "m17/random"), ("expert-permutation", "m17/random"), ("repeat", "m17/random"), ("tp2", "m9/random"),
    ("tp-bias-once", "m9/random"), ("ep2", "m9/foreign"), ("ep4", "m9/foreign"), ("no-local-expert", "m9/random"), ("scale-codes", "m3/random"),
    ("routed-scale", "m17/random"),
)  # fmt: skip


def inject(backend: Any, name: str) -> Any:
    """`backend` (an `Emulated`) with the fault of this name. Raises `UnknownName`, or `UsageError` for a backend with nothing to change."""
    from mxfp4_validate.backends.emulate import Emulated
    from mxfp4_validate.fault_hooks import Faulty

    if name not in BY_NAME:
        raise UnknownName("fault", name, BY_NAME)
    if not isinstance(backend, Emulated):
        raise UsageError(f"fault {name!r} can be injected into emulate:* backends only, not into {getattr(backend, 'name', backend)!r}")
    return Faulty(backend.name, backend.model, backend.layout, hooks=BY_NAME[name].hooks)
