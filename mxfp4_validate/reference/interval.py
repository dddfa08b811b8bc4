"""Values with the interval they may lie in, and the activation on them. All operations are monotone, so ends are mapped like values."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from mxfp4_validate.cases import Activation
from mxfp4_validate.reference.rounding import RoundingModel
from mxfp4_validate.tolerances import ACTIVATION_CONSTANT, ACTIVATION_FLUSH, ACTIVATION_SLOPE

Pair = tuple[Tensor, Tensor]
#: z where z * sigmoid(z) is least; below it the function falls, above it rises.
SILU_MINIMUM = -1.2784645427610738
#: alpha * gate below which e^(-alpha g) may overflow fp32 (it surely does at 88.8), and below which e^(alpha g) underflows even subnormals.
FLUSH_BEGINS, DEAD = -80.0, -104.0


def round_bf16(t: Tensor) -> Tensor:
    """Round float32 to the nearest bf16, ties to even, and return it as float32."""
    return t.bfloat16().float()


@dataclass
class Interval:
    """`value` float32 with `low` <= it <= `high`; both ends None mean that the value is certain."""

    value: Tensor
    low: Tensor | None = None
    high: Tensor | None = None

    @classmethod
    def zeros(cls, shape: tuple[int, ...], device: torch.device) -> Self:
        return cls(torch.zeros(shape, dtype=torch.float32, device=device))

    @classmethod
    def around(cls, value: Tensor, radius: Tensor | None) -> Self:
        if radius is None:
            return cls(value)
        return cls(value, (value.double() - radius).float(), (value.double() + radius).float())

    def ends(self) -> tuple[Tensor, Tensor]:
        return (self.value, self.value) if self.low is None or self.high is None else (self.low, self.high)

    def map(self, fn: Callable[[Tensor], Tensor]) -> Self:
        """A non-decreasing function of every element."""
        low, high = (None if end is None else fn(end) for end in (self.low, self.high))
        return type(self)(fn(self.value), low, high)

    def add(self, bias: Tensor) -> Self:
        """fp32 addition of a known bias, one rounding."""
        return self.map(lambda t: t + bias.float())

    def spread(self) -> Tensor | None:
        """float64 distance to the further end; None if certain everywhere."""
        if self.low is None or self.high is None:
            return None
        reach = torch.maximum(self.high.double() - self.value.double(), self.value.double() - self.low.double())
        return reach if bool((reach > 0).any()) else None

    def put(self, index: Tensor, rows: Interval) -> None:
        """Overwrite rows, keeping ends only once some row has them."""
        if rows.low is not None and rows.high is not None and (self.low is None or self.high is None):
            self.low, self.high = self.value.clone(), self.value.clone()
        self.value[index] = rows.value
        if self.low is not None and self.high is not None:
            self.low[index], self.high[index] = rows.ends()

    def unflatten(self, *sizes: int) -> Interval:
        return self.map(lambda t: t.unflatten(0, sizes))


def activation_error(result: Tensor, gate: Tensor, alpha: float) -> Tensor:
    """Largest error [...] float64 of the fp32 activation with fast intrinsics: (8 + 1.2 |alpha g|) 2^-23 relative; none for alpha = 0.

    With alpha = 0 the sigmoid is exactly 1/2 and one correctly rounded product is left. Where the kernel's exponential may already
    overflow while IEEE's quotient is still a tiny number, the result may also be 0.
    """
    if alpha == 0:
        return torch.zeros_like(result)
    z = alpha * gate
    relative = (ACTIVATION_CONSTANT.value + ACTIVATION_SLOPE.value * z.abs()) * 2.0**-23
    return relative * result.abs() + torch.where((z < FLUSH_BEGINS) & (result != 0), ACTIVATION_FLUSH.value, 0.0)


def silu(gate: Tensor, alpha: float) -> Tensor:
    """g * sigmoid(alpha g) in float64, exactly 0 where fp32's quotient 1 / (1 + e^(-alpha g)) is 0 in every implementation."""
    z = alpha * gate
    return torch.where(z < DEAD, 0.0, gate * torch.sigmoid(z))


LOG2_E = 1.44269502162933349609375  # fp32's log2 e


def _fast_quotient(gate: Tensor, up: Tensor, alpha: float, beta: float, fused: bool) -> Tensor:
    """The activation as fast math compiles it, were its 2^t and its division correctly rounded: float64 holding float32 numbers.

    g * (1 / (1 + e)) becomes one quotient g / (1 + e): of ten ways to round, this one left the fewest bits different on a Hopper GPU.
    """
    z = _fp32(gate * torch.tensor(alpha, dtype=torch.float32).double())
    power = _fp32(torch.exp2(_fp32(-z * LOG2_E)))
    s = _fp32(gate / _fp32(1.0 + power))
    return _fp32(s * up + s * beta) if fused else _fp32(s * _fp32(up + beta))


def _clamp(h: Tensor, limit: float | None) -> tuple[Tensor, Tensor]:
    """[m, 2I] = [gate; up] clamped by CUDA's fminf/fmaxf: a NaN gate becomes the limit, a NaN up the upper limit."""
    gate, up = h.chunk(2, dim=-1)
    if limit is None:
        return gate, up
    bound = torch.tensor(limit, dtype=gate.dtype, device=gate.device)
    return torch.fmin(gate, bound), torch.fmax(torch.fmin(up, bound), -bound)


def activate(h: Interval, activation: Activation, model: RoundingModel) -> Interval:
    """h [m, 2I] = [gate; up] -> bf16 activation [m, I] with the interval its intrinsics and the spread of h allow."""
    (gate, up), (gate_low, up_low), (gate_high, up_high) = (_clamp(end.double(), activation.limit) for end in (h.value, *h.ends()))
    alpha, beta = activation.alpha, activation.beta
    if model.steps_bf16:
        return _bf16_steps((gate, up), (gate_low, up_low), (gate_high, up_high), activation)
    silu_bf16 = model.silu_bf16 and activation.limit is not None and (alpha, beta) == (1.0, 0.0)
    fast = model.fast_exp or (model.silu_bf16 and not silu_bf16)
    if h.low is None and not silu_bf16:
        centre = silu(gate, alpha) * _fp32(up + beta)
        error = activation_error(centre, gate, alpha)
        value = _fast_quotient(gate, up, alpha, beta, model.fused_beta) if fast else centre
        return _rounded(value, centre - error, centre + error)
    s = silu(gate, alpha)
    s_low, s_high = torch.minimum(*(ends := (silu(gate_low, alpha), silu(gate_high, alpha)))), torch.maximum(*ends)
    if alpha:
        least = torch.tensor(SILU_MINIMUM / alpha, dtype=torch.float64, device=s.device)
        s_low = torch.where((gate_low < least) & (least < gate_high), silu(least, alpha), s_low)
    reach = torch.maximum(gate_low.abs(), gate_high.abs())
    if silu_bf16:
        s = round_bf16(s.float()).double()
        s_low = round_bf16((s_low - activation_error(s_low, reach, alpha)).float()).double()
        s_high = round_bf16((s_high + activation_error(s_high, reach, alpha)).float()).double()
    corners = torch.stack([a * _fp32(b + beta) for a in (s_low, s_high) for b in (up_low, up_high)])
    low, high = corners.amin(0), corners.amax(0)
    low, high = low - activation_error(low, reach, alpha), high + activation_error(high, reach, alpha)
    value = _fast_quotient(gate, up, alpha, beta, model.fused_beta) if fast else s * _fp32(up + beta)
    return _rounded(value, low, high)


def _bf16_steps(value: Pair, low: Pair, high: Pair, activation: Activation) -> Interval:
    """Operator by operator in bf16; the sigmoid is free within its fp32 error, and silu's minimum counts where a gate's interval holds it."""

    def round_(t: Tensor) -> Tensor:
        return round_bf16(t.float()).double()

    def steps(gate: Tensor, up: Tensor, slack: float) -> Tensor:
        z = round_(activation.alpha * gate)
        return round_(round_(gate * round_(torch.sigmoid(z) * (1 + slack))) * round_(up + activation.beta))

    gates = [low[0], high[0], value[0]]
    if activation.alpha:
        least = torch.full_like(low[0], SILU_MINIMUM / activation.alpha)
        gates.append(torch.where((low[0] < least) & (least < high[0]), round_(least), value[0]))
    error = ACTIVATION_CONSTANT.value * 2.0**-23
    corners = torch.stack([steps(g, u, slack) for g in gates for u in (low[1], high[1]) for slack in (-error, error)])
    return _rounded(steps(*value, 0.0), corners.amin(0), corners.amax(0))


def _fp32(t: Tensor) -> Tensor:
    return t.float().double()


def _rounded(value: Tensor, low: Tensor, high: Tensor) -> Interval:
    return Interval(value.float(), low.float(), high.float()).map(round_bf16)
