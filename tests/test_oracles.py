"""The four oracles agree; the twin's intervals hold simulated kernels within the declared freedom and, on SM90, no wrong one tried here."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from itertools import product
from typing import TYPE_CHECKING

import pytest
import torch

from mxfp4_validate.cases import DEEPSEEK_V4, GPT_OSS, Activation, MoeCase, Routing, shape_named
from mxfp4_validate.checkpoints.synthetic import random_inputs, random_weights
from mxfp4_validate.comparison.explained import Explained, compare, exact_limit, require_close_to_exact
from mxfp4_validate.errors import CheckFailed
from mxfp4_validate.formats import e2m1, e8m0
from mxfp4_validate.probes.build import PROBES, Probe
from mxfp4_validate.reference.activation import swiglu
from mxfp4_validate.reference.bound import bounded_moe
from mxfp4_validate.reference.certificate import certified_moe
from mxfp4_validate.reference.exact import exact_moe
from mxfp4_validate.reference.gemm import chunk_freedom, gemm
from mxfp4_validate.reference.interval import Interval, activate
from mxfp4_validate.reference.rounding import MARLIN, OPENAI_TORCH, SM90_CUTLASS, TRITON_KERNELS, RoundingModel, chunk_order
from mxfp4_validate.reference.twin import Twin, twin_moe

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from mxfp4_validate.formats.moe_weights import MoeInputs, MoeWeights

SHAPES = ("gpt-oss-mini", "dsv4-mini")
MODELS = {model.name: model for model in (SM90_CUTLASS, MARLIN, TRITON_KERNELS)}
#: x on the grid of `synthetic`, where every chunk of GEMM1 is exact, or free bf16, where a tensor core may cut it.
DATA = ("grid", "free")
TOKENS = 6


def bf16(t: Tensor) -> Tensor:
    return t.bfloat16().float()


def fp32(t: Tensor) -> Tensor:
    """Round float64 to float32 and keep computing in float64."""
    return t.float().double()


@cache
def layer(shape: str, data: str = "grid", routing: Routing = Routing.RANDOM) -> tuple[MoeWeights, MoeInputs, Activation]:
    case = MoeCase(shape_named(shape), TOKENS, routing)
    inputs = random_inputs(case)
    if data == "free":
        inputs = replace(inputs, x=torch.randn(inputs.x.shape, generator=torch.Generator().manual_seed(1)).bfloat16())
    return random_weights(case), inputs, case.shape.activation


@cache
def twin_of(shape: str, data: str, model: RoundingModel) -> Twin:
    return twin_moe(*layer(shape, data), model)


# ---- a kernel written out step by step: shares no arithmetic with twin, gemm or interval ----


def sequential(products: Tensor, carried: Tensor, generator: torch.Generator) -> Tensor:
    """carried + products [..., K] float64, added one at a time in a random order, each addition rounded to fp32."""
    total, addends = carried.float(), products.float().movedim(-1, 0).contiguous()
    for i in torch.randperm(len(addends), generator=generator).tolist():
        total = total + addends[i]
    return total


def tensor_core(products: Tensor, carried: Tensor, generator: torch.Generator) -> Tensor:
    """carried + products [..., K] in MMA steps of 16: addends cut to 24 bits below the largest, the result cut to fp32."""
    total = carried.double()
    for step in products.split(16, dim=-1):
        addends = torch.cat((step, total.unsqueeze(-1)), -1)
        unit = torch.ldexp(torch.ones_like(total), torch.frexp(addends.abs().amax(-1)).exponent - 24)
        summed = (addends / unit.unsqueeze(-1)).trunc().sum(-1) * unit
        last = torch.ldexp(torch.ones_like(summed), torch.frexp(summed).exponent - 24)
        total = (summed / last).trunc() * last
    return total.float()


@dataclass(frozen=True)
class Kernel:
    """Knobs of the simulation. `sigmoid` is the relative error of each sigmoid, random within +-; `natural_order` ignores `chunk_order`."""

    add: Callable[[Tensor, Tensor, torch.Generator], Tensor] | None = None
    sigmoid: float = 0.0
    intrinsic_ulps: float | None = None
    natural_order: bool = False
    contract: bool = True

    def run(self, weights: MoeWeights, inputs: MoeInputs, activation: Activation, model: RoundingModel) -> Tensor:
        """[M, H] bfloat16."""
        generator = torch.Generator().manual_seed(0)
        M, k = inputs.topk_ids.shape
        rows, present = torch.zeros(M, k, weights.hidden_size), torch.zeros(M, k, dtype=torch.bool)
        for expert in range(weights.num_experts):
            token, slot = (inputs.topk_ids == expert).nonzero(as_tuple=True)
            if len(token):
                rows[token, slot] = self.expert(weights, expert, inputs.x[token], activation, model, generator)
                present[token, slot] = True
        return self.finalise(rows, inputs.topk_weights, present, model)

    def expert(
        self, weights: MoeWeights, expert: int, x: Tensor, activation: Activation, model: RoundingModel, generator: torch.Generator
    ) -> Tensor:
        h = self.gemm(x.double(), weights.w13[expert], weights.w13_scale[expert], model, 0, generator)
        h = bf16(h) if model.h_bf16 else h
        if weights.w13_bias is not None:
            h = h + weights.w13_bias[expert].float()
            h = bf16(h) if model.bias1_bf16 else h
        act = self.activate(h.double(), activation, model, generator)
        y = self.gemm(act, weights.w2[expert], weights.w2_scale[expert], model, 1, generator)
        y = bf16(y) if model.y_bf16 else y
        if weights.w2_bias is not None:
            y = y + weights.w2_bias[expert].float()
            y = bf16(y) if model.bias2_bf16 else y
        return y

    def gemm(self, x: Tensor, packed: Tensor, scale: Tensor, model: RoundingModel, which: int, generator: torch.Generator) -> Tensor:
        codes, factor = e2m1.decode(e2m1.unpack(packed)), e8m0.decode(scale, model.e8m0)
        total = torch.zeros(x.shape[0], codes.shape[0])
        if not model.promote:
            return self.dot(x, codes * factor.repeat_interleave(32, -1), generator)
        chunks = x.shape[1] // 32
        padded = -(-x.shape[1] // model.k_pad) * model.k_pad // 32
        order = list(range(padded)) if self.natural_order else chunk_order(padded, model.k_tiles[which] // 32)
        for c in order:
            if c < chunks:
                columns = slice(32 * c, 32 * c + 32)
                partial = self.dot(x[:, columns], codes[:, columns], generator)
                total = (total.double() + partial.double() * factor[:, c]).float()
        return total

    def dot(self, x: Tensor, w: Tensor, generator: torch.Generator) -> Tensor:
        """x [m, K] and w [N, K] float64 -> [m, N] float32, added up as `add` says; None: in float64, rounded once."""
        if self.add is None:
            return (x @ w.t()).float()
        return self.add(x[:, None, :] * w, torch.zeros(len(x), len(w)), generator)

    def activate(self, h: Tensor, activation: Activation, model: RoundingModel, generator: torch.Generator) -> Tensor:
        """Float64 holding fp32 numbers, every operation rounded; bf16 at the end."""

        def off(t: Tensor, relative: float) -> Tensor:
            return fp32(t * (1 + relative * (2 * torch.rand(t.shape, generator=generator, dtype=torch.float64) - 1)))

        gate, up = h.chunk(2, dim=-1)
        L = torch.inf if activation.limit is None else activation.limit
        gate, up = gate.clamp(max=L), up.clamp(-L, L)
        z = fp32(gate * torch.tensor(activation.alpha).double())
        if self.intrinsic_ulps is None:
            sigmoid = off(torch.sigmoid(z), self.sigmoid)
        else:
            error = self.intrinsic_ulps * 2.0**-23
            power = off(torch.exp2(fp32(-z * torch.tensor(1.44269504).double())), error)
            sigmoid = off(1 / fp32(1 + power), error)
        silu = fp32(gate * sigmoid)
        silu = bf16(silu.float()).double() if model.silu_bf16 and by_operators(activation) else silu
        product = silu * up + silu * activation.beta if model.fused_beta else silu * fp32(up + activation.beta)
        return bf16(product.float()).double()

    def finalise(self, rows: Tensor, topk_weights: Tensor, present: Tensor, model: RoundingModel) -> Tensor:
        w = bf16(topk_weights) if model.weight_bf16 else topk_weights
        total = torch.zeros(rows.shape[0], rows.shape[2])
        for j in range(rows.shape[1]):
            term = w[:, j, None].double() * rows[:, j].double()
            if model.slot_bf16:
                term = bf16(term.float()).double()
            elif not self.contract:
                term = fp32(term)
            total = torch.where(present[:, j, None], (total.double() + term).float(), total)
        return total.bfloat16()


def by_operators(activation: Activation) -> bool:
    """Whether Marlin activates with PyTorch's operators: sglang does so for a clamped silu, and has kernels for everything else."""
    return activation.limit is not None and activation.alpha == 1 and activation.beta == 0


def judged(kernel: Kernel, shape: str, data: str, model: RoundingModel, what: str) -> Explained:
    result = compare(kernel.run(*layer(shape, data), model), twin_of(shape, data, model))
    print(f"{what} {shape} {data} {model.name}: {result.different} of {result.elements} differ, {result.unexplained} unexplained")
    return result


# ---- agreement ----


@pytest.mark.parametrize(("shape", "data", "name"), list(product(SHAPES, DATA, MODELS)))
def test_twin_lies_within_the_bound_of_exact(shape: str, data: str, name: str) -> None:
    weights, inputs, activation = layer(shape, data)
    model = MODELS[name]
    twin, exact = twin_of(shape, data, model), exact_moe(weights, inputs, activation, model.e8m0)
    own, bound = bounded_moe(weights, inputs, activation, model)
    torch.testing.assert_close(own, exact, rtol=1e-12, atol=1e-12, msg=lambda text: f"bound and exact oracle differ: {text}")
    share = float(((twin.value.double() - exact).abs() / bound).max())
    l2 = float((twin.value.double() - exact).norm() / exact.norm())
    print(f"{shape} {data} {name}: largest error {share:.3f} of the bound, relative L2 {l2:.2e}, determined {twin.determined:.3f}")
    assert 0.01 < share <= 1, "outside the bound, or the bound bounds nothing"
    assert 1e-3 < l2 <= exact_limit(model)
    assert not twin.value.isnan().any()
    assert (twin.lower <= twin.value).all()
    assert (twin.value <= twin.upper).all()


@pytest.mark.parametrize("name", MODELS)
def test_one_percent_everywhere_is_refused_by_float64_alone(name: str) -> None:
    """Whatever a model may round, an output 1 % too large is outside it, and the message says how many roundings were allowed."""
    weights, inputs, activation = layer("gpt-oss-mini")
    model = MODELS[name]
    twin, exact = twin_of("gpt-oss-mini", "random", model).value, exact_moe(weights, inputs, activation, model.e8m0)
    assert require_close_to_exact(twin, exact, "sound", model)["exact_limit"] == pytest.approx(6e-3 * (model.bf16_roundings / 4) ** 0.5)
    with pytest.raises(CheckFailed, match=rf"limit .* for {model.name}'s {model.bf16_roundings} roundings to bf16"):
        require_close_to_exact((twin.double() * 1.01).bfloat16(), exact, "too large", model)


def test_how_often_each_backend_rounds() -> None:
    """Counted by hand from the kernels' sources, the points that `RoundingModel` names."""
    assert {model.name: model.bf16_roundings for model in (SM90_CUTLASS, MARLIN, TRITON_KERNELS, OPENAI_TORCH)} == {
        "sm90-cutlass": 4, "marlin": 9, "triton-kernels": 3, "openai-torch": 11,
    }  # fmt: skip


@pytest.mark.parametrize("routing", [Routing.FOREIGN, Routing.ZERO_WEIGHT, Routing.ONE])
@pytest.mark.parametrize("name", MODELS)
def test_oracles_agree_on_every_routing(name: str, routing: Routing) -> None:
    """Ids that are -1 or foreign and weights that are 0 mean the same to all of them."""
    weights, inputs, activation = layer("gpt-oss-mini", "grid", routing)
    twin, exact = twin_moe(weights, inputs, activation, MODELS[name]), exact_moe(weights, inputs, activation, MODELS[name].e8m0)
    own, bound = bounded_moe(weights, inputs, activation, MODELS[name])
    torch.testing.assert_close(own, exact, rtol=1e-12, atol=1e-12)
    assert ((twin.value.double() - exact).abs() <= bound).all()
    assert ((twin.lower <= twin.value) & (twin.value <= twin.upper)).all()


def test_twin_and_exact_mean_the_same_first_expert() -> None:
    weights, inputs, activation = layer("gpt-oss-mini")
    upper = weights.experts(slice(4, 8))
    twin = twin_moe(upper, inputs, activation, SM90_CUTLASS, first_expert=4)
    exact = exact_moe(upper, inputs, activation, SM90_CUTLASS.e8m0, first_expert=4)
    assert float((twin.value.double() - exact).norm() / exact.norm()) <= exact_limit(SM90_CUTLASS)
    assert torch.equal(twin.value.any(1), exact.any(1)), "other tokens are without a local expert"


@cache
def probe(name: str, shape: str) -> Probe:
    return PROBES[name](MoeCase(shape_named(shape), TOKENS), torch.device("cpu"))


PROBED = [(n, s) for n, s in product(PROBES, SHAPES) if not (n == "s1" and s == "dsv4-mini")]
#: Marlin has neither alpha nor beta as arguments, so only D1 is a call that it can make.
CERTIFIED = [(n, s, SM90_CUTLASS) for n, s in PROBED] + [("d1", "dsv4-mini", MARLIN), ("s2", "gpt-oss-mini", TRITON_KERNELS)]


@pytest.mark.parametrize(("name", "shape", "model"), CERTIFIED, ids=[f"{n}-{s}-{m.name}" for n, s, m in CERTIFIED])
def test_certified_elements_are_the_twins_and_every_kernels(name: str, shape: str, model: RoundingModel) -> None:
    """Where the certificate holds, the twin has these bits and so have kernels of any order; class A elements equal exact arithmetic."""
    p = probe(name, shape)
    certified = certified_moe(p.weights, p.inputs, p.activation, model)
    twin = twin_moe(p.weights, p.inputs, p.activation, model)
    share = float(certified.holds.double().mean())
    print(f"{name} {shape} {model.name}: {share:.4f} certified, {float(certified.class_a.double().mean()):.4f} class A")
    assert share > 0.9
    assert torch.equal(twin.value[certified.holds], certified.value[certified.holds])
    for add in (sequential, tensor_core):
        few = slice(0, 2)
        got, holds = Kernel(add=add, natural_order=True).run(p.weights, p.inputs.rows(few), p.activation, model), certified.holds[few]
        assert torch.equal(got[holds], certified.value[few][holds]), add.__name__
    assert certified.class_a[certified.holds].all() or not p.class_a


@pytest.mark.parametrize("shape", SHAPES)
def test_class_a_elements_are_exact(shape: str) -> None:
    """No rounding anywhere means equal to exact arithmetic; B1 has alpha 0, so that no sigmoid blurs it."""
    p = probe("b1", shape)
    certified = certified_moe(p.weights, p.inputs, p.activation, SM90_CUTLASS)
    exact = exact_moe(p.weights, p.inputs, p.activation, SM90_CUTLASS.e8m0)
    assert torch.equal(certified.value[certified.class_a].double(), exact[certified.class_a])


@pytest.mark.parametrize("name", MODELS)
def test_certificate_claims_nothing_about_random_data(name: str) -> None:
    """In GEMM2 of random data orders do differ, so a certificate there would be false."""
    weights, inputs, activation = layer("gpt-oss-mini")
    assert not certified_moe(weights, inputs.rows(slice(0, 2)), activation, MODELS[name]).holds.any()


# ---- the twin's intervals: what they must hold ----

FREE = {
    "another order inside a chunk": Kernel(add=sequential),
    "addends cut by a tensor core": Kernel(add=tensor_core),
    "sigmoid off by 5e-7": Kernel(sigmoid=5e-7),
    "intrinsics off by 2 ulp": Kernel(intrinsic_ulps=2.0),
    "all at once": Kernel(add=tensor_core, intrinsic_ulps=2.0),
}


@pytest.mark.parametrize("what", FREE)
@pytest.mark.parametrize("name", MODELS)
def test_kernels_within_the_freedom_are_explained(name: str, what: str) -> None:
    """For Marlin, whose order is unknown, "a chunk" is all of K.

    Bits that move come in clumps: one activation moved by one bf16 step moves a few per cent of its token's outputs, so the share of
    moved bits says little on few tokens and is not asserted.
    """
    data = "grid" if "sigmoid" in what else "free"
    results = [judged(FREE[what], shape, data, MODELS[name], what) for shape in SHAPES]
    assert [r.unexplained for r in results] == [0] * len(results)
    if "sigmoid" in what and MODELS[name].h_bf16:  # of so few activations from an fp32 h none need lie that near an edge
        assert any(r.different for r in results), "the kernel equals the twin everywhere: this shows nothing"


def test_the_simulation_itself_is_the_twin() -> None:
    """Without perturbation, but with the intrinsics' correctly rounded values, the two implementations give the same bits."""
    for shape, data in product(SHAPES, DATA):
        assert judged(Kernel(intrinsic_ulps=0.0), shape, data, SM90_CUTLASS, "unperturbed").different == 0


# ---- and what they must not hold ----


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("field", ["w13_scale", "w2_scale"])
@pytest.mark.parametrize("step", [-1, 1])
def test_one_scale_byte_off_by_one_is_unexplained(step: int, field: str, shape: str) -> None:
    """On the ordered model; the next test says what holds for Marlin."""
    assert compare(*wrong_scale_byte(step, field, shape, SM90_CUTLASS)).unexplained


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("model", [MARLIN, TRITON_KERNELS], ids=lambda m: m.name)
def test_an_unordered_model_sees_one_scale_byte(shape: str, model: RoundingModel) -> None:
    """Its intervals are wider, since any order of steps is allowed, but not so wide that one wrong byte of one block hides in them."""
    result = compare(*wrong_scale_byte(-1, "w13_scale", shape, model))
    assert result.unexplained


def wrong_scale_byte(step: int, field: str, shape: str, model: RoundingModel) -> tuple[Tensor, Twin]:
    """The output with one scale byte of a used expert off by `step`, and the twin of the right one."""
    weights, inputs, activation = layer(shape)
    expert = int(inputs.topk_ids[0, 0])
    scale = getattr(weights, field).clone()
    assert e2m1.unpack(getattr(weights, field.removesuffix("_scale"))[expert, 5, :16]).any(), "a block of zeros would show nothing"
    scale[expert, 5, 0] += step
    return twin_moe(weights.with_(**{field: scale}), inputs, activation, model).value, twin_of(shape, "grid", model)


@pytest.mark.parametrize(("shape", "error"), [(s, e) for s in SHAPES for e in (1e-3, 1e-4)])
def test_a_sigmoid_beyond_the_freedom_is_unexplained(shape: str, error: float) -> None:
    """200 times the freedom is enough on the ordered model; the interval of Marlin's unknown order is wider than 1e-4."""
    result = judged(Kernel(sigmoid=error), shape, "grid", SM90_CUTLASS, f"sigmoid off by {error}")
    assert result.unexplained > 0.01 * result.elements


def test_another_chunk_order_is_unexplained_where_it_shows() -> None:
    """The order is declared, not free. Random mini layers seldom show it, so chunks 5, 6 and 7 of 16 hold -2^25, 2^25 and 1."""
    x, scale = torch.zeros(1, 512), torch.full((1, 16), 127, dtype=torch.uint8)
    x[0, [160, 192, 224]] = torch.tensor([-1.0, 1.0, 1.0])
    scale[0, 5:7] = 127 + 25
    packed = e2m1.pack(torch.full((1, 512), 2, dtype=torch.uint8))
    declared = gemm(x, packed, scale, SM90_CUTLASS, 0)
    assert declared.radius is None, "every chunk is exact: nothing is free"
    assert declared.value.item() == 0, "1 is lost beside 2^25, as tile 1 adds chunk 7 before 6"
    generator = torch.Generator()
    assert Kernel().gemm(x.double(), packed, scale, SM90_CUTLASS, 0, generator).item() == 0
    assert Kernel(natural_order=True).gemm(x.double(), packed, scale, SM90_CUTLASS, 0, generator).item() == 1


def test_roundings_left_out_or_added_are_unexplained() -> None:
    """Each declared rounding point counts: the same kernel with one of them changed is another backend."""
    changes = [("gpt-oss-mini", {name: name != "h_bf16"}) for name in ("h_bf16", "bias1_bf16", "bias2_bf16", "weight_bf16", "slot_bf16")]
    for shape, change in [*changes, ("dsv4-mini", {"silu_bf16": True})]:
        candidate = Kernel().run(*layer(shape), replace(SM90_CUTLASS, **change))
        result = compare(candidate, twin_of(shape, "grid", SM90_CUTLASS))
        print(f"{change}: {result.different} differ, {result.unexplained} unexplained")
        assert result.unexplained > 0.01 * result.elements, f"{change} goes unseen"


# ---- the parts they are made of ----


@pytest.mark.parametrize("model", [SM90_CUTLASS, MARLIN, TRITON_KERNELS], ids=lambda m: m.name)
@pytest.mark.parametrize("activation", [GPT_OSS, DEEPSEEK_V4, Activation(0.0, 1.0, 1e30)], ids=["gpt-oss", "deepseek-v4", "bilinear"])
def test_interval_of_the_activation_holds_the_exact_one(model: RoundingModel, activation: Activation) -> None:
    """`swiglu` in float64, rounded where the model rounds; the clamp's corners, far tails and CUDA's way with NaN included."""
    grid = torch.tensor([-300.0, -128, -83, -20, -7, -1.25, -0.0, 0, 1e-6, 0.7, 3, 6.96875, 7, 7.03125, 10, 300, torch.inf, torch.nan])
    gate, up = torch.cartesian_prod(grid, grid[torch.isfinite(grid) | grid.isnan()]).unbind(1)
    extra = torch.randn(2, 4000, generator=torch.Generator().manual_seed(3)).mul(5).bfloat16().float()
    gate, up = torch.cat((gate, extra[0])), torch.cat((up, extra[1]))
    got = activate(Interval(torch.cat((gate, up))[None]), activation, model)
    want = swiglu(gate.double(), up.double(), activation, fminmax=True)
    if model.silu_bf16 and by_operators(activation):
        bound = torch.tensor(activation.limit).double()
        g = torch.fmin(gate.double(), bound)
        silu = bf16((g * torch.sigmoid(activation.alpha * g)).float()).double()
        want = silu * (torch.fmax(torch.fmin(up.double(), bound), -bound) + activation.beta)
    low, high = got.ends()
    want = bf16(want.float())
    usable = want.isfinite()
    assert usable.double().mean() > 0.95
    assert ((low[0] <= want) & (want <= high[0]))[usable].all()
    assert ((low[0] <= got.value[0]) & (got.value[0] <= high[0]))[usable].all()


@pytest.mark.parametrize(("chunks", "per_tile"), [(1, 4), (4, 4), (8, 4), (12, 4), (92, 4), (92, 8), (24, 16), (13, 4), (11, 8)])
def test_chunk_order(chunks: int, per_tile: int) -> None:
    """A permutation that stays within tiles; first and last tile natural, in all others the last two chunks swapped."""
    order = chunk_order(chunks, per_tile)
    assert sorted(order) == list(range(chunks))
    tiles = -(-chunks // per_tile)
    for tile in range(tiles):
        part = order[tile * per_tile : (tile + 1) * per_tile]
        natural = list(range(tile * per_tile, min((tile + 1) * per_tile, chunks)))
        middle = 0 < tile < tiles - 1
        assert part == (natural[:-2] + natural[:-3:-1] if middle else natural)


def test_chunk_order_by_hand() -> None:
    assert chunk_order(16, 4) == [0, 1, 2, 3, 4, 5, 7, 6, 8, 9, 11, 10, 12, 13, 14, 15]
    assert chunk_order(8, 4) == list(range(8)), "two tiles have no middle"
    assert chunk_order(12, 1) == list(range(12)), "nothing to swap in a tile of one chunk"


def test_chunks_on_the_grid_have_no_freedom_and_cut_ones_stay_inside() -> None:
    """The freedom is 0 exactly where 24 bits hold every addend, and covers what a tensor core cuts where they do not."""
    generator = torch.Generator().manual_seed(4)
    grid = torch.randint(-1200, 1200, (40, 32), generator=generator).double() / 256
    assert not chunk_freedom(grid.bfloat16()).any()
    x = torch.randn(40, 32, generator=generator).mul(torch.exp2(torch.randint(-14, 3, (40, 32), generator=generator))).bfloat16()
    freedom = chunk_freedom(x)
    assert (freedom > 0).double().mean() > 0.5
    codes = e2m1.decode(torch.randint(0, 16, (50, 32), generator=generator).to(torch.uint8))
    products = x.double()[:, None, :] * codes
    exact = fp32(products.sum(-1))
    for add in (tensor_core, sequential):
        error = (add(products, torch.zeros(40, 50), generator).double() - exact).abs()
        assert (error <= freedom).all(), add.__name__
        print(f"{add.__name__}: largest error {float((error / freedom).nan_to_num(nan=0).max()):.3f} of the freedom")
