"""One GEMM as a backend's tensor cores do it: exact 32-wide partial sums, added up in the declared order, with the freedom that is left."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mxfp4_validate.formats import e2m1, e8m0
from mxfp4_validate.formats.mxfp4 import BLOCK
from mxfp4_validate.reference.rounding import RoundingModel, chunk_order
from mxfp4_validate.tolerances import CHUNK_EXTRA_UNITS, SLICE_UNITS, STEP_UNITS, TENSOR_CORE_BITS

#: K columns that one tensor-core instruction adds up (mma m16n8k16, wgmma k16).
STEP = 16


@dataclass(frozen=True)
class Sum:
    """A GEMM's fp32 result before it is rounded to bf16.

    Attributes:
        value: [m, N] float32, the twin's own result.
        radius: [m, N] float64, how far a kernel with the declared rounding points may be from it; None when it may not differ at all.
    """

    value: Tensor
    radius: Tensor | None


def least_bit(x: Tensor) -> Tensor:
    """The weight of the lowest set bit of every float32 value (0 for 0), in float64. Subnormals count as multiples of 2^-149."""
    bits = x.float().contiguous().view(torch.int32)
    exponent = (bits >> 23) & 0xFF
    mantissa = (bits & 0x7FFFFF) | torch.where(exponent > 0, 0x800000, 0)
    lowest = (mantissa & -mantissa).double()
    return torch.ldexp(lowest, exponent.clamp(min=1) - 150)


def chunk_freedom(x: Tensor, spread: Tensor | None = None) -> Tensor:
    """How far a tensor core's sum of each 32-wide chunk may be from the exact one, in units of unscaled E2M1 weights.

    Takes x [m, K] bf16 values; returns [m, K/32] float64. Let T = 6 * sum |x_i|, which bounds every addend and partial sum whatever
    the codes, and U the last place kept when T's exponent leads (`TENSOR_CORE_BITS`). Products are multiples of least_bit(x_i) / 2.
    If all of those are multiples of U nothing is ever cut and the chunk is exact: 0. Otherwise each product that is not may lose one U,
    and `CHUNK_EXTRA_UNITS` more go to the carried sum and the normalisations. An x that may be another bf16 number within `spread`
    counts with the last place of its binade.
    """
    least, reach = _least_bits(x, spread), x.double().abs()
    if spread is not None:
        reach = reach + spread
    least, reach = least.unflatten(-1, (-1, BLOCK)), reach.unflatten(-1, (-1, BLOCK))
    top = e2m1.MAX * reach.sum(-1)
    unit = torch.ldexp(torch.ones_like(top), torch.frexp(top).exponent - int(TENSOR_CORE_BITS.value))
    cut = ((reach != 0) & (least * e2m1.QUANTUM < unit.unsqueeze(-1))).sum(-1)
    return torch.where(cut > 0, (cut + CHUNK_EXTRA_UNITS.value) * unit, 0.0)


def _least_bits(x: Tensor, spread: Tensor | None) -> Tensor:
    """`least_bit` of each x, or where it may be another bf16 number within `spread` the last place of its binade."""
    least = least_bit(x)
    if spread is None:
        return least
    reach = x.double().abs()
    binade_end = torch.ldexp(torch.ones_like(reach), torch.frexp(reach).exponent - 9)
    return torch.where(spread > 0, torch.minimum(least, binade_end), least)


def promoted(x: Tensor, packed: Tensor, scale: Tensor, model: RoundingModel, k_tile: int, spread: Tensor | None = None) -> Sum:
    """x [m, K] bf16 values times one expert's weight [N, K], chunk by chunk: `acc = fma(partial, scale, acc)` in fp32.

    `spread` [m, K] float64 is how far each x may be from its value (None: not at all). Partial sums are taken in float64, where 32
    products of at most 10 bits are exact, so the result does not depend on the device. Scales are powers of two, so the fused
    multiply-add rounds exactly once, at the addition.
    """
    m, K = x.shape
    N, C = scale.shape
    codes = e2m1.decode(e2m1.unpack(packed)).view(N, C, BLOCK)
    partial = torch.bmm(x.double().view(m, C, BLOCK).transpose(0, 1), codes.permute(1, 2, 0)).float()  # [C, m, N]
    factor = e8m0.decode(scale, model.e8m0, torch.float32).t().unsqueeze(1)  # [C, 1, N]
    radius = _input_radius(x, codes, factor, spread)
    acc = torch.zeros(m, N, dtype=torch.float32, device=x.device)
    path = torch.zeros_like(acc) if radius is not None else None
    for c in _order(K, model, k_tile):
        acc.addcmul_(partial[c], factor[c])
        if path is not None:
            path += acc.abs()
    if radius is None or path is None:
        return Sum(acc, None)
    # Once two chains differ, each of their C additions may also round differently, by one unit of the running sum.
    radius += torch.where(radius > 0, 2.0**-23 * (path.double() + C * radius), 0.0)
    return Sum(acc, radius)


def _order(K: int, model: RoundingModel, k_tile: int) -> list[int]:
    """Chunk order for the padded K, without the chunks that are padding (they add exact zeros)."""
    padded = -(-K // model.k_pad) * model.k_pad // BLOCK
    return [c for c in chunk_order(padded, k_tile // BLOCK) if c < K // BLOCK]


def _input_radius(x: Tensor, codes: Tensor, factor: Tensor, spread: Tensor | None) -> Tensor | None:
    """Radius [m, N] from inexact chunks and from the spread of the inputs; None if both are nil."""
    freedom = chunk_freedom(x, spread)
    finite = torch.nan_to_num(factor.squeeze(1).double(), posinf=0.0)  # [C, N]; an infinite scale makes the value infinite anyway
    radius = None
    if bool((freedom > 0).any()):
        radius = freedom @ finite
    if spread is not None:
        weight = (codes.abs() * finite.t().unsqueeze(-1)).flatten(1)
        moved = spread @ weight.t()
        radius = moved if radius is None else radius + moved
    return radius


def folded(x: Tensor, packed: Tensor, scale: Tensor, model: RoundingModel, spread: Tensor | None = None) -> Sum:
    """x [m, K] times bf16(code * scale) [N, K] as one fp32 sum of unknown order (Marlin, triton_kernels): float64, rounded once.

    The radius is that of `any_order`, plus what the inputs' spread moves.
    """
    N, C = scale.shape
    codes = e2m1.decode(e2m1.unpack(packed)).view(N, C, BLOCK)
    factor = e8m0.decode(scale, model.e8m0)
    weight = (codes * factor.unsqueeze(-1)).flatten(1)
    xd = x.double()
    moved = None if spread is None else spread @ weight.abs().t()
    radius = any_order(x, weight, factor, spread, moved)
    return Sum((xd @ weight.t()).float(), radius if moved is None else radius + moved)


def any_order(x: Tensor, weight: Tensor, factor: Tensor, spread: Tensor | None, moved: Tensor | None) -> Tensor:
    """How far a tensor core's fp32 sum of x [m, K] times weight [N, K] may be from the exact one: [m, N] float64.

    The kernel adds up steps of `STEP` columns, in any order and in any slices of K. Whatever it holds at any time is then a sum of some steps,
    so it lies between the sum of the negative steps and that of the positive ones, and with the largest product that bounds the unit U in the
    last place kept. A product of bf16 and E2M1 has few bits: it loses a U only where its own last bit is below U (`least_bit`). Beside that
    a step loses `STEP_UNITS` and the joining of slices `SLICE_UNITS`. factor [N, K/32] are the block scales in `weight`.
    """
    xd = x.double()
    positive, negative = (torch.zeros(x.shape[0], weight.shape[0], dtype=torch.float64, device=x.device) for _ in range(2))
    for first in range(0, x.shape[1], STEP):
        part = xd[:, first : first + STEP] @ weight[:, first : first + STEP].t()
        positive += part.clamp(min=0)
        negative -= part.clamp(max=0)
    top = torch.maximum(positive, negative) + xd.abs().amax(1, keepdim=True) * weight.abs().amax(1)
    top = torch.nan_to_num(top if moved is None else top + 2 * moved, posinf=0.0)  # an infinite value is infinite in any order
    unit = torch.ldexp(torch.ones_like(top), torch.frexp(top).exponent - int(TENSOR_CORE_BITS.value))
    least = _least_bits(x, spread)
    least = torch.where(x == 0, torch.inf, least).unflatten(-1, (-1, BLOCK)).sort(-1).values
    cut = torch.zeros_like(unit)
    for block in range(factor.shape[1]):
        smallest = unit / (e2m1.QUANTUM * factor[:, block])  # the last bit that an x of this block must reach
        cut += torch.searchsorted(least[:, block].contiguous(), torch.nan_to_num(smallest, posinf=0.0).contiguous())
    return unit * (cut + STEP_UNITS.value * (x.shape[1] // STEP) + SLICE_UNITS.value)


def gemm(x: Tensor, packed: Tensor, scale: Tensor, model: RoundingModel, which: int, spread: Tensor | None = None) -> Sum:
    """x [m, K] times one expert's MXFP4 weight [N, K/2], [N, K/32] the way `model` adds up in GEMM `which` (0 or 1)."""
    if model.promote:
        return promoted(x, packed, scale, model, model.k_tiles[which], spread)
    return folded(x, packed, scale, model, spread)
