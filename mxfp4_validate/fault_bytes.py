"""Faults of bytes: what the loader hands over (`LOAD`), what the packer returns (`PACK`), what the kernel reads (`VIEW`)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from mxfp4_validate.formats import e2m1, e8m0
from mxfp4_validate.formats.moe_weights import MoeWeights
from mxfp4_validate.layouts.prepare import Sm90Weights
from mxfp4_validate.layouts.rows import interleave_gpt_oss, swap_halves
from mxfp4_validate.layouts.sm90_a import SM90_A
from mxfp4_validate.layouts.sm90_b import SM90_B

Load = Callable[[MoeWeights], MoeWeights]


def _edit(*names: str, by: Callable[[Tensor], Tensor]) -> Load:
    """Apply `by` to the named tensors where present."""
    return lambda w: w.with_(**{n: by(t) for n, t in w.tensors().items() if n in names})


def _at(name: str, index: tuple[int, ...], by: Callable[[Tensor], Tensor]) -> Load:
    """Change one element."""

    def change(t: Tensor) -> Tensor:
        t = t.clone()
        t[index] = by(t[index])
        return t

    return _edit(name, by=change)


def _swap_nibbles(t: Tensor) -> Tensor:
    return (t >> 4) | (t << 4)


def _recode(table: dict[int, int]) -> Callable[[Tensor], Tensor]:
    """Replace codes, keeping the rest."""
    lookup = torch.tensor([table.get(code, code) for code in range(16)], dtype=torch.uint8)
    return lambda packed: e2m1.pack(lookup[e2m1.unpack(packed).long()])


def _zero_tail(t: Tensor) -> Tensor:
    t = t.clone()
    t[:, :, -64:] = 0  # 128 codes
    return t


def _group64(scale: Tensor) -> Tensor:
    return scale[..., 0::2].repeat_interleave(2, -1)


def _sign_dragged(t: Tensor) -> Tensor:
    shifted = (t.view(torch.int8) >> 4).view(torch.uint8)  # arithmetic: the sign fills the high nibble
    return (t & 0xF) | (shifted << 4) | (shifted & 0xF0)


def _first_half_from_zero(t: Tensor) -> Tensor:
    t = t.clone()
    t[: t.shape[0] // 2] = t[:1]
    return t


def _unfilled(t: Tensor) -> Tensor:
    t = t.clone()
    t[:, :, -(t.shape[2] // 4) :] = 127
    return t


W13 = ("w13", "w13_scale", "w13_bias")
LOAD: dict[str, Load] = {
    "swap_all": _edit(*W13, by=swap_halves),
    "swap_scales": _edit("w13_scale", by=swap_halves),
    "swap_bias": _edit("w13_bias", by=swap_halves),
    "interleave_bias": _edit("w13_bias", by=interleave_gpt_oss),
    "interleave_rows": _edit(*W13, by=interleave_gpt_oss),
    "interleave_scales": _edit("w13_scale", by=interleave_gpt_oss),
    "nibbles_w13": _edit("w13", by=_swap_nibbles),
    "nibbles_w2": _edit("w2", by=_swap_nibbles),
    "scale13_up": _edit("w13_scale", by=lambda t: t + 1),
    "scale2_up": _edit("w2_scale", by=lambda t: t + 1),
    "one_scale": _at("w13_scale", (-1, 5, 2), lambda t: t + 1),
    "one_code": _at("w2", (-1, 7, 3), lambda t: t ^ 0x04),
    "scale_value": _edit("w13_scale", "w2_scale", by=lambda t: e8m0.decode(t).to(torch.uint8)),
    "unfilled": _edit("w13_scale", by=_unfilled),
    "sign_dragged": _edit("w13", "w2", by=_sign_dragged),
    "no_bias1": lambda w: w.with_(w13_bias=None),
    "no_bias2": lambda w: w.with_(w2_bias=None),
    "expert_zero": _edit("w13", "w13_scale", by=_first_half_from_zero),
}


def _int4(w: Tensor) -> Tensor:
    """The INT4 interleave (units of 16 bits): row 16R + 8s + i, unit 16p + 8c + 4q + t -> row 16R + 8q + i, unit 16p + 8c + 2t + s."""
    E, N, half = w.shape
    units = w.view(torch.int16).view(E, N // 16, 2, 8, half // 32, 2, 2, 4)  # E R s i p c q t
    return units.permute(0, 1, 6, 3, 4, 5, 7, 2).contiguous().view(torch.uint8).view(E, N, half)


def _raw(name: str) -> Callable[[Sm90Weights], Sm90Weights]:
    """The bytes as they were before the weight or scale interleave."""
    weight = not name.endswith("scale")

    def change(p: Sm90Weights) -> Sm90Weights:
        packed = getattr(p, name)
        plain = SM90_A.unpack_weights(packed) if weight else SM90_A.unpack_scales(packed)
        changes: dict[str, Any] = {name: plain.reshape(packed.shape)}
        return replace(p, **changes)

    return change


def _repack(by: Callable[[Tensor], Tensor]) -> Callable[[Sm90Weights], Sm90Weights]:
    return lambda p: replace(p, fc1=by(SM90_A.unpack_weights(p.fc1)), fc2=by(SM90_A.unpack_weights(p.fc2)))


def _pad_scale(p: Sm90Weights) -> Sm90Weights:
    scale = SM90_A.unpack_scales(p.fc1_scale).clone()
    scale[:, :, -(p.padded_hidden - p.hidden_size) // 32 :] = 0xFF
    return replace(p, fc1_scale=SM90_A.pack_scales(scale))


def _pad_codes(p: Sm90Weights) -> Sm90Weights:
    """Pads of fc1's bias left over from another layer: padded units come alive and reach fc2's pad, whose scale is not zero either."""
    codes, scale = SM90_A.unpack_weights(p.fc2).clone(), SM90_A.unpack_scales(p.fc2_scale).clone()
    codes[:, :, p.intermediate_size // 2 :] = 0x22
    scale[:, :, p.intermediate_size // 32 :] = 127
    bias = None if p.fc1_bias is None else p.fc1_bias.clone()
    if bias is not None:
        bias[:, p.intermediate_size : p.padded_intermediate] = 1.0
        bias[:, p.padded_intermediate + p.intermediate_size :] = 1.0
    return replace(p, fc2=SM90_A.pack_weights(codes), fc2_scale=SM90_A.pack_scales(scale), fc1_bias=bias)


PACK: dict[str, Callable[[Sm90Weights], Sm90Weights]] = {
    "raw_fc1": _raw("fc1"), "raw_fc2": _raw("fc2"), "raw_scale1": _raw("fc1_scale"), "raw_scale2": _raw("fc2_scale"),
    "twice": lambda p: replace(p, fc1=SM90_A.pack_weights(p.fc1), fc2=SM90_A.pack_weights(p.fc2)),
    "layout_b": _repack(SM90_B.pack_weights), "int4": _repack(_int4), "pad_scale": _pad_scale, "pad_codes": _pad_codes,
}  # fmt: skip


@dataclass
class _Race:
    """Every third call takes the first expert's second-GEMM scales from the next expert."""

    calls: int = 0

    def __call__(self, w: MoeWeights) -> MoeWeights:
        self.calls += 1
        return w if self.calls % 3 else w.with_(w2_scale=w.w2_scale.roll(1, 0))


VIEW: dict[str, Callable[[], Load]] = {
    "group64": lambda: _edit("w13_scale", "w2_scale", by=_group64),
    "k_tail13": lambda: _edit("w13", by=_zero_tail),
    "k_tail2": lambda: _edit("w2", by=_zero_tail),
    "six_as_four": lambda: _edit("w13", "w2", by=_recode({7: 6, 15: 14})),
    "half_flushed": lambda: _edit("w13", "w2", by=_recode({1: 0, 9: 8})),
    "race": _Race,
}
