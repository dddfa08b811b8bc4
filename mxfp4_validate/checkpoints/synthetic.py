"""Synthetic layers and inputs: the same bytes from the same seed on a CPU and on a GPU, in a regime where faults show.

Random numbers come from a counter through an integer hash (splitmix64's finaliser), so a byte depends on nothing but its seed and its
position. The regime: pre-activations reach the clamp on about one unit in a hundred on each side, every code and a spread of scales
occurs, and x lies on the grid 2^-8, which makes every 32-wide partial sum of GEMM1 exact on any tensor core.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mxfp4_validate.cases import Activation, MoeCase, Routing
from mxfp4_validate.formats.moe_weights import MoeInputs, MoeWeights
from mxfp4_validate.formats.mxfp4 import BLOCK

#: Mean square of the 16 E2M1 values.
CODE_MEAN_SQUARE = 8.5625
#: Pre-activation RMS as a share of the clamp limit: P(|N| > 2.2) is 1.4 % a side.
LIMIT_IN_RMS = 2.2
#: Target RMS of one expert's output.
OUTPUT_RMS = 3.0
X_GRID = 2.0**-8
_SIGNED = 1 << 63


def _signed(value: int) -> int:
    """An unsigned 64-bit constant as the int64 with the same bits."""
    return (value & (2 * _SIGNED - 1)) - (2 * _SIGNED if value & _SIGNED else 0)


def _shift(z: Tensor, bits: int) -> Tensor:
    """Logical right shift of int64."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)


def hash64(count: int, seed: int, device: torch.device | str = "cpu") -> Tensor:
    """`count` hashed int64: splitmix64 (Steele, Lea, Flood 2014) of a counter started at `seed`."""
    z = torch.arange(count, dtype=torch.int64, device=device) * _signed(0x9E3779B97F4A7C15) + seed
    z = (z ^ _shift(z, 30)) * _signed(0xBF58476D1CE4E5B9)
    z = (z ^ _shift(z, 27)) * _signed(0x94D049BB133111EB)
    return z ^ _shift(z, 31)


def random_bytes(shape: tuple[int, ...], seed: int, device: torch.device | str = "cpu") -> Tensor:
    """Uniform bytes of any shape."""
    count = math.prod(shape)
    return hash64(-(-count // 8), seed, device).view(torch.uint8)[:count].view(shape)


def uniform(shape: tuple[int, ...], seed: int, device: torch.device | str = "cpu") -> Tensor:
    """Uniform float64 in [0, 1), 32 bits each."""
    return (_shift(hash64(math.prod(shape), seed, device), 32).double() * 2.0**-32).view(shape)


def normal_grid(shape: tuple[int, ...], seed: int, grid: float, device: torch.device | str = "cpu") -> Tensor:
    """Near-normal float32 (mean 0, RMS 1, |x| < 4.9), rounded to multiples of `grid`: the centred sum of eight bytes.

    Integer arithmetic up to one IEEE division, so that a CPU and a GPU agree on every bit.
    """
    sums = random_bytes((*shape, 8), seed, device).sum(-1, dtype=torch.int32).double() - 1020.0
    return ((sums / (209.0 * grid)).round() * grid).float()


def scale_bytes(shape: tuple[int, ...], mean_square: float, seed: int, device: torch.device | str = "cpu") -> Tensor:
    """Scale bytes of four neighbouring values whose mean of 4^(b - 127) is `mean_square`."""
    level = math.log(mean_square, 4) - math.log(1.75, 4)  # offsets -1, 0, +1 in equal shares have mean square 1.75
    low = math.floor(level)
    up_share = (4.0 ** (level - low) - 1.0) / 3.0
    draw = random_bytes((*shape, 2), seed, device).long()
    offset = draw[..., 0] % 3 - 1 + (draw[..., 1] < round(256 * up_share)).long()
    result: Tensor = (offset + (127 + low)).to(torch.uint8)
    return result


def activation_rms(activation: Activation, rms: float) -> float:
    """RMS of the activation for independent normal gate and up of this RMS; a sum over a fixed grid, good to a per cent."""
    z = torch.linspace(-4.5, 4.5, 181, dtype=torch.float64)
    density = torch.exp(-z * z / 2)
    density /= density.sum()
    limit = math.inf if activation.limit is None else activation.limit
    gate = (z * rms).clamp(max=limit)
    up = (z * rms).clamp(-limit, limit) + activation.beta
    silu = gate * torch.sigmoid(activation.alpha * gate)
    return float(((silu**2 * density).sum() * (up**2 * density).sum()).sqrt())


def random_weights(case: MoeCase, device: torch.device | str = "cpu") -> MoeWeights:
    """Canonical weights of the case's shape and seed: uniform codes, scales and biases in the regime above."""
    s, seed = case.shape, case.weight_stream
    E, H, I = s.num_experts, s.hidden_size, s.intermediate_size  # noqa: E741
    rms = (s.activation.limit or 10.0) / LIMIT_IN_RMS
    w2_mean_square = (OUTPUT_RMS / activation_rms(s.activation, rms)) ** 2 / (I * CODE_MEAN_SQUARE)

    def bias(shape: tuple[int, ...], purpose: str) -> Tensor | None:
        return (0.5 * normal_grid(shape, seed(purpose), 2.0**-6, device)).bfloat16() if s.has_bias else None

    return MoeWeights(
        w13=random_bytes((E, 2 * I, H // 2), seed("w13"), device),
        w13_scale=scale_bytes((E, 2 * I, H // BLOCK), rms**2 / (H * CODE_MEAN_SQUARE), seed("w13_scale"), device),
        w2=random_bytes((E, H, I // 2), seed("w2"), device),
        w2_scale=scale_bytes((E, H, I // BLOCK), w2_mean_square, seed("w2_scale"), device),
        w13_bias=bias((E, 2 * I), "w13_bias"),
        w2_bias=bias((E, H), "w2_bias"),
    )


def random_ids(case: MoeCase, device: torch.device | str = "cpu") -> Tensor:
    """topk_ids [M, k] int32 as the case's routing says; distinct within a token."""
    s, M = case.shape, case.num_tokens
    scores = _shift(hash64(M * s.num_experts, case.stream("ids"), device), 1).view(M, s.num_experts)
    if case.routing is Routing.EMPTY:
        scores[:, torch.arange(s.num_experts, device=device) % 3 != 0] = -1
    if case.routing is Routing.ONE:
        scores[:, 0] = torch.iinfo(torch.int64).max
    ids = scores.topk(s.top_k, dim=1).indices.int()
    if case.routing is Routing.FOREIGN:
        draw = random_bytes((M, s.top_k), case.stream("foreign"), device)
        ids = torch.where(draw < 48, -1, ids)
        ids = torch.where(draw >= 224, s.num_experts + (draw.int() - 224), ids)
    return ids.int()


def random_inputs(case: MoeCase, device: torch.device | str = "cpu") -> MoeInputs:
    """x on the grid 2^-8, ids by the case's routing, positive float32 weights that sum to about 1 (a third is 0 for `zero-weight`)."""
    s, M = case.shape, case.num_tokens
    raw = (uniform((M, s.top_k), case.stream("weights"), device) * 0.95 + 0.05).float()
    weights = raw / raw.sum(1, keepdim=True, dtype=torch.float64).float()
    if case.routing is Routing.ZERO_WEIGHT:
        weights = torch.where(random_bytes((M, s.top_k), case.stream("zeros"), device) < 85, 0.0, weights)
    x = normal_grid((M, s.hidden_size), case.stream("x"), X_GRID, device).bfloat16()
    return MoeInputs(x, random_ids(case, device), weights)
