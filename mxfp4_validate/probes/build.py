"""Probes B1, B2, S1, S2, D1 and A1. Each returns a `Probe`; the certificate of its expected output is asserted where it is used.

Rules common to all: routing weights are powers of two, biases small integers, scale bytes near 127, H and I at least 256 so that a
missing scale interleave shows, two or more experts a token, and for non-zero beta or bias an activation that is not symmetric in gate
and up, so that swapped halves show.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mxfp4_validate.cases import DEEPSEEK_V4, GPT_OSS, Activation, MoeCase
from mxfp4_validate.checkpoints.synthetic import random_bytes, random_ids
from mxfp4_validate.formats import e2m1
from mxfp4_validate.formats.moe_weights import MoeInputs, MoeWeights
from mxfp4_validate.formats.mxfp4 import BLOCK

#: Turns the clamp off without leaving it out: the kernel then takes alpha and beta as given.
NO_LIMIT = 1e30
ONE = 127  # scale byte of 1.0
S2_GATES = (-200.0, -128.0, 0.0, 6.0, 7.0, 7.5, 40.0, 300.0)
S2_UPS = (-300.0, -8.0, -7.0, -1.0, 0.0, 3.0, 7.0, 9.0, 300.0)


@dataclass(frozen=True)
class Probe:
    """A layer, an input, the activation's constants, and whether no rounding occurs anywhere (class A: the same bits in any backend)."""

    name: str
    weights: MoeWeights
    inputs: MoeInputs
    activation: Activation
    class_a: bool


class Draw:
    """Named random integers of a case, the same on every device."""

    def __init__(self, case: MoeCase, probe: str, device: torch.device) -> None:
        self.case, self.probe, self.device = case, probe, device
        self.E, self.H, self.I, self.k, self.M = (
            case.shape.num_experts,
            case.shape.hidden_size,
            case.shape.intermediate_size,
            case.shape.top_k,
            case.num_tokens,
        )

    def bytes(self, shape: tuple[int, ...], purpose: str, *, per_case: bool = False) -> Tensor:
        stream = self.case.stream if per_case else self.case.weight_stream
        return random_bytes(shape, stream(f"{self.probe}/{purpose}"), self.device)

    def integers(self, low: int, high: int, shape: tuple[int, ...], purpose: str, *, per_case: bool = False) -> Tensor:
        """Integers low..high inclusive, int64."""
        return self.bytes(shape, purpose, per_case=per_case).long() % (high - low + 1) + low

    def scales(self, low: int, high: int, rows: int, K: int, purpose: str) -> Tensor:
        return self.integers(low, high, (self.E, rows, K // BLOCK), purpose).to(torch.uint8)

    def codes(self, rows: int, K: int, purpose: str) -> Tensor:
        """Uniform codes, packed [E, rows, K/2]."""
        return self.bytes((self.E, rows, K // 2), purpose)

    def sparse(self, rows: int, K: int, count: int, largest: int, purpose: str, first: int = 0) -> Tensor:
        """`count` codes a row of magnitude index 1..largest with random sign at random columns >= first, packed [E, rows, K/2]."""
        shape = (self.E, rows, count)
        wide = self.integers(0, 255, shape, f"{purpose}/hi") * 256 + self.integers(0, 255, shape, f"{purpose}/lo")
        code = self.integers(1, largest, shape, f"{purpose}/code") + 8 * self.integers(0, 1, shape, f"{purpose}/sign")
        dense = torch.zeros(self.E, rows, K, dtype=torch.uint8, device=self.device)
        dense.scatter_(2, wide % (K - first) + first, code.to(torch.uint8))
        return e2m1.pack(dense)

    def one_hot_w2(self, purpose: str, code: Tensor | None = None) -> Tensor:
        """fc2 whose row o has one code, at unit o mod I: [E, H, I/2]. `code` [E, H] uint8; random and non-zero if not given."""
        if code is None:
            code = (self.integers(1, 7, (self.E, self.H), purpose) + 8 * self.integers(0, 1, (self.E, self.H), f"{purpose}/sign")).to(
                torch.uint8
            )
        dense = torch.zeros(self.E, self.H, self.I, dtype=torch.uint8, device=self.device)
        unit = (torch.arange(self.H, device=self.device) % self.I).expand(self.E, self.H)
        dense.scatter_(2, unit.unsqueeze(-1), code.unsqueeze(-1))
        return e2m1.pack(dense)

    def routing(self, top_k: int | None = None) -> tuple[Tensor, Tensor]:
        """Distinct experts a token and weights 1/2, 1/4, 1/8, 1/2, ... (1 for a single slot): few exponents keep the sum over slots exact."""
        k = self.k if top_k is None else top_k
        ids = random_ids(self.case, self.device)[:, :k].contiguous()
        exponents = -1 - torch.arange(k, device=self.device) % 3 if k > 1 else torch.zeros(1, device=self.device)
        return ids, torch.exp2(exponents.float()).expand(self.M, k).contiguous()

    def x(self, low: int, high: int) -> Tensor:
        return self.integers(low, high, (self.M, self.H), "x", per_case=True).bfloat16()

    def int_bias(self, low: int, high: int, width: int, purpose: str) -> Tensor:
        return self.integers(low, high, (self.E, width), purpose).bfloat16()

    def ones(self, rows: int, K: int) -> Tensor:
        return torch.full((self.E, rows, K // BLOCK), ONE, dtype=torch.uint8, device=self.device)


def b1(case: MoeCase, device: torch.device) -> Probe:
    """Every fc1 code, scale and bias: dense random fc1, bilinear activation (alpha 0, beta 1), one-hot fc2, one expert a token."""
    d = Draw(case, "b1", device)
    ids, weights = d.routing(top_k=1)
    w = MoeWeights(
        d.codes(2 * d.I, d.H, "w13"),
        d.scales(125, 129, 2 * d.I, d.H, "s13"),
        d.one_hot_w2("w2"),
        d.scales(125, 129, d.H, d.I, "s2"),
        d.int_bias(-8, 8, 2 * d.I, "b13"),
        d.int_bias(0, 0, d.H, "b2"),
    )
    return Probe("b1", w, MoeInputs(d.x(-3, 3), ids, weights), Activation(0.0, 1.0, NO_LIMIT), class_a=False)


def b2(case: MoeCase, device: torch.device) -> Probe:
    """Every fc2 code, scale and bias, the routing and the slots: two codes a row in fc1, dense random fc2, bilinear activation."""
    d = Draw(case, "b2", device)
    ids, weights = d.routing()
    w = MoeWeights(
        d.sparse(2 * d.I, d.H, 2, 3, "w13"),
        d.ones(2 * d.I, d.H),
        d.codes(d.H, d.I, "w2"),
        d.scales(126, 129, d.H, d.I, "s2"),
        d.int_bias(-2, 2, 2 * d.I, "b13"),
        d.int_bias(-8, 8, d.H, "b2"),
    )
    return Probe("b2", w, MoeInputs(d.x(-1, 1), ids, weights), Activation(0.0, 1.0, NO_LIMIT), class_a=False)


def s1(case: MoeCase, device: torch.device) -> Probe:
    """GPT-OSS's clamp and beta: gates all beyond the limit (bias 7..29, sigmoid saturated), sparse up, dense fc2."""
    d = Draw(case, "s1", device)
    ids, weights = d.routing()
    w13 = torch.cat((torch.zeros(d.E, d.I, d.H // 2, dtype=torch.uint8, device=device), d.sparse(d.I, d.H, 5, 4, "up")), 1)
    bias = torch.cat((d.int_bias(7, 29, d.I, "gate"), d.int_bias(-2, 2, d.I, "up_bias")), 1)
    w = MoeWeights(
        w13, d.ones(2 * d.I, d.H), d.codes(d.H, d.I, "w2"), d.scales(126, 128, d.H, d.I, "s2"), bias, d.int_bias(-8, 8, d.H, "b2")
    )
    return Probe("s1", w, MoeInputs(d.x(-1, 1), ids, weights), GPT_OSS, class_a=False)


def s2(case: MoeCase, device: torch.device) -> Probe:
    """Corners of the activation: x and weights 0, gate and up from biases on a grid around the clamp, one-hot fc2 that reads each unit."""
    d = Draw(case, "s2", device)
    ids, weights = d.routing()
    grid = torch.cartesian_prod(torch.tensor(S2_GATES), torch.tensor(S2_UPS)).to(device)
    unit = torch.arange(d.I, device=device) % len(grid)
    bias = torch.cat((grid[unit, 0], grid[unit, 1])).bfloat16().expand(d.E, 2 * d.I).contiguous()
    zero = torch.zeros(d.E, 2 * d.I, d.H // 2, dtype=torch.uint8, device=device)
    code = torch.full((d.E, d.H), 2, dtype=torch.uint8, device=device)
    w = MoeWeights(zero, d.ones(2 * d.I, d.H), d.one_hot_w2("w2", code), d.ones(d.H, d.I), bias, d.int_bias(0, 0, d.H, "b2"))
    return Probe("s2", w, MoeInputs(d.x(0, 0), ids, weights), GPT_OSS, class_a=True)


def d1(case: MoeCase, device: torch.device) -> Probe:
    """DeepSeek-V4's clamp (no bias, alpha 1, beta 0, limit 10): gates read channel 0 only and all saturate, sparse up, dense fc2."""
    d = Draw(case, "d1", device)
    ids, weights = d.routing()
    gate = torch.zeros(d.E, d.I, d.H // 2, dtype=torch.uint8, device=device)
    gate[:, :, 0] = 7  # code of 6.0 at channel 0: 6 * 2^0..2^3 times x = 2 is 12 or more
    scale = d.ones(2 * d.I, d.H)
    scale[:, : d.I, 0] = d.integers(127, 130, (d.E, d.I), "gate_scale").to(torch.uint8)
    w13 = torch.cat((gate, d.sparse(d.I, d.H, 5, 4, "up", first=1)), 1)
    x = d.x(-1, 1)
    x[:, 0] = 2
    w = MoeWeights(w13, scale, d.codes(d.H, d.I, "w2"), d.scales(126, 128, d.H, d.I, "s2"))
    return Probe("d1", w, MoeInputs(x, ids, weights), DEEPSEEK_V4, class_a=False)


def a1(case: MoeCase, device: torch.device) -> Probe:
    """Class A: not one rounding from end to end, so that every backend, whatever its rounding points, returns the same bits.

    D1's saturated gate (10), up one half or one with a sign, fc2 one code of 1.0 a row: a slot is 10 * 2^-1..0 * 2^-3..-1, and the sum of six
    is a multiple of 10/16 below 2^8 of those.
    """
    d = Draw(case, "a1", device)
    ids, weights = d.routing()
    gate = torch.zeros(d.E, d.I, d.H // 2, dtype=torch.uint8, device=device)
    gate[:, :, 0] = 7
    scale = d.ones(2 * d.I, d.H)
    scale[:, : d.I, 0] = d.integers(127, 130, (d.E, d.I), "gate_scale").to(torch.uint8)
    w13 = torch.cat((gate, d.sparse(d.I, d.H, 1, 2, "up", first=1)), 1)
    x = d.x(-1, 1)
    x[:, 0] = 2
    code = (2 + 8 * d.integers(0, 1, (d.E, d.H), "w2/sign")).to(torch.uint8)
    w = MoeWeights(w13, scale, d.one_hot_w2("w2", code), d.ones(d.H, d.I))
    return Probe("a1", w, MoeInputs(x, ids, weights), DEEPSEEK_V4, class_a=True)


def restate(probe: Probe, beta: float) -> Probe:
    """The same function for a backend whose activation adds `beta` to up whatever is asked: up's bias takes it back.

    Right as long as the clamp touches neither up nor up - beta; whoever uses it compares both statements' certified outputs.
    """
    w, I = probe.weights, probe.weights.intermediate_size  # noqa: E741
    bias = torch.zeros(w.num_experts, 2 * I, dtype=torch.bfloat16, device=w.w2.device) if w.w13_bias is None else w.w13_bias.clone()
    bias[:, I:] += probe.activation.beta - beta
    return replace(probe, weights=w.with_(w13_bias=bias), activation=replace(probe.activation, beta=beta))


PROBES: dict[str, Callable[[MoeCase, torch.device], Probe]] = {"b1": b1, "b2": b2, "s1": s1, "s2": s2, "d1": d1, "a1": a1}
