"""The reference equals Hugging Face transformers' own modules in float64, and does what its docstrings say where those say nothing."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from transformers.models.deepseek_v4 import modeling_deepseek_v4 as hf_dsv4
from transformers.models.deepseek_v4.configuration_deepseek_v4 import DeepseekV4Config
from transformers.models.gpt_oss import modeling_gpt_oss as hf_gpt_oss
from transformers.models.gpt_oss.configuration_gpt_oss import GptOssConfig

from mxfp4_validate.cases import DEEPSEEK_V4, GPT_OSS, Activation
from mxfp4_validate.errors import ShapeError, UsageError
from mxfp4_validate.formats import e8m0
from mxfp4_validate.formats.moe_weights import MoeInputs, MoeWeights
from mxfp4_validate.reference.activation import swiglu
from mxfp4_validate.reference.exact import exact_moe, exact_stages
from mxfp4_validate.reference.layer import RoutedScale, combine_shared, shared_expert
from mxfp4_validate.reference.routing import gate_logits, route_deepseek_v4, route_gpt_oss, route_hash

E, H, I, K, M, VOCAB = 8, 96, 64, 3, 29, 50  # noqa: E741
TOLERANCE = 1e-12


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def random_bytes(seed: int, *shape: int, low: int = 0, high: int = 256) -> Tensor:
    return torch.randint(low, high, shape, generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def make_weights(biased: bool, seed: int = 0) -> MoeWeights:
    """Scales of 2^-5 .. 2^-1 put pre-activations on both sides of either model's clamp."""
    return MoeWeights(
        w13=random_bytes(seed, E, 2 * I, H // 2),
        w13_scale=random_bytes(seed + 1, E, 2 * I, H // 32, low=122, high=127),
        w2=random_bytes(seed + 2, E, H, I // 2),
        w2_scale=random_bytes(seed + 3, E, H, I // 32, low=110, high=128),
        w13_bias=normal(seed + 4, E, 2 * I).bfloat16() if biased else None,
        w2_bias=normal(seed + 5, E, H).bfloat16() if biased else None,
    )


def make_inputs(seed: int = 10, experts: int = E) -> MoeInputs:
    ids = normal(seed, M, experts).topk(K, dim=1).indices
    return MoeInputs(normal(seed + 1, M, H).bfloat16(), ids.int(), normal(seed + 2, M, K).softmax(1).float())


def dequantised(packed: Tensor, scale: Tensor) -> Tensor:
    """Nibble by nibble with a table of its own, and torch's E8M0 type: shares nothing with `formats`."""
    values = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
    out = torch.empty(*packed.shape[:-1], packed.shape[-1] * 2, dtype=torch.float64)
    for code in range(16):
        value = -values[code - 8] if code > 7 else values[code]
        out[..., 0::2][packed % 16 == code] = value
        out[..., 1::2][packed // 16 == code] = value
    return out * scale.view(torch.float8_e8m0fnu).double().repeat_interleave(32, -1)


def require_relative(got: Tensor, want: Tensor, what: str, tolerance: float = TOLERANCE) -> None:
    """Every element within `tolerance` of the expected one, relative to it or, where cancellation made it small, to the RMS."""
    assert got.dtype == torch.float64, f"{what}: {got.dtype}"
    assert torch.isfinite(want).all(), f"{what}: the expectation itself is not finite"
    scale = torch.maximum(want.abs(), want.pow(2).mean().sqrt())
    error = float(((got - want).abs() / scale).max())
    print(f"{what}: max relative error {error:.2e}")
    assert error <= tolerance, f"{what}: relative error {error:.3e} > {tolerance:.0e}"


def gpt_oss_config() -> GptOssConfig:
    config = GptOssConfig(
        num_hidden_layers=1, num_local_experts=E, hidden_size=H, intermediate_size=I, num_experts_per_tok=K,
        num_attention_heads=4, head_dim=24,
    )  # fmt: skip
    config._experts_implementation = "eager"
    return config


def dsv4_config() -> DeepseekV4Config:
    config = DeepseekV4Config(
        num_hidden_layers=2, n_routed_experts=E, hidden_size=H, moe_intermediate_size=I, num_experts_per_tok=K, vocab_size=VOCAB,
        mlp_layer_types=["hash_moe", "moe"],
    )  # fmt: skip
    config._experts_implementation = "eager"
    return config


def gpt_oss_experts(weights: MoeWeights) -> hf_gpt_oss.GptOssExperts:
    """transformers' module: transposed, gate and up interleaved."""
    module = hf_gpt_oss.GptOssExperts(gpt_oss_config()).double()
    w13, w2 = dequantised(weights.w13, weights.w13_scale), dequantised(weights.w2, weights.w2_scale)
    assert weights.w13_bias is not None
    assert weights.w2_bias is not None
    bias = weights.w13_bias.double()
    state = {
        "gate_up_proj": torch.stack((w13[:, :I], w13[:, I:]), 2).reshape(E, 2 * I, H).transpose(1, 2),
        "gate_up_proj_bias": torch.stack((bias[:, :I], bias[:, I:]), 2).reshape(E, 2 * I),
        "down_proj": w2.transpose(1, 2),
        "down_proj_bias": weights.w2_bias.double(),
    }
    module.load_state_dict(state)
    return module


def dsv4_experts(weights: MoeWeights) -> hf_dsv4.DeepseekV4Experts:
    module = hf_dsv4.DeepseekV4Experts(dsv4_config()).double()
    state = {"gate_up_proj": dequantised(weights.w13, weights.w13_scale), "down_proj": dequantised(weights.w2, weights.w2_scale)}
    module.load_state_dict(state)
    return module


@torch.no_grad()
def hf_experts(weights: MoeWeights, inputs: MoeInputs) -> Tensor:
    module = gpt_oss_experts(weights) if weights.w13_bias is not None else dsv4_experts(weights)
    out: Tensor = module(inputs.x.double(), inputs.topk_ids.long(), inputs.topk_weights.double())
    return out


CASES = [pytest.param(True, GPT_OSS, id="gpt-oss"), pytest.param(False, DEEPSEEK_V4, id="deepseek-v4")]


@pytest.mark.parametrize(("biased", "activation"), CASES)
@pytest.mark.parametrize("seed", range(3))
def test_experts_equal_transformers(biased: bool, activation: Activation, seed: int) -> None:
    """Routed experts, with data that reaches the clamp on every side it has."""
    weights, inputs = make_weights(biased, 100 * seed), make_inputs(100 * seed + 50)
    stages = exact_stages(weights, inputs, activation)
    assert activation.limit is not None
    for side in (stages.gate > activation.limit, stages.up > activation.limit, stages.up < -activation.limit):
        assert side.double().mean() > 0.005, "the data does not reach the clamp"
    what = "GptOssExperts" if biased else "DeepseekV4Experts"
    require_relative(exact_moe(weights, inputs, activation), hf_experts(weights, inputs), what)


WRONG = {
    "no clamp": replace(GPT_OSS, limit=None),
    "limit of the other model": replace(GPT_OSS, limit=10.0),
    "alpha 1": replace(GPT_OSS, alpha=1.0),
    "beta 0": replace(GPT_OSS, beta=0.0),
}


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_comparison_sees_a_wrong_activation(wrong: Activation) -> None:
    """The comparison above has power: each constant matters to this data."""
    weights, inputs = make_weights(True), make_inputs()
    with pytest.raises(AssertionError, match="relative error"):
        require_relative(exact_moe(weights, inputs, wrong), hf_experts(weights, inputs), "wrong", tolerance=1e-3)


def test_comparison_sees_swapped_halves_and_nibbles() -> None:
    weights, inputs = make_weights(True), make_inputs()
    swapped = weights.with_(w13=weights.w13.roll(I, 1), w13_scale=weights.w13_scale.roll(I, 1))
    nibbles = weights.with_(w13=(weights.w13 << 4) | (weights.w13 >> 4))
    for name, wrong in (("halves", swapped), ("nibbles", nibbles)):
        with pytest.raises(AssertionError, match="relative error"):
            require_relative(exact_moe(wrong, inputs, GPT_OSS), hf_experts(weights, inputs), name, tolerance=1e-3)


@torch.no_grad()
def test_gpt_oss_router_equals_transformers() -> None:
    module = hf_gpt_oss.GptOssTopKRouter(gpt_oss_config()).double()
    module.load_state_dict({"weight": normal(1, E, H) / 4, "bias": normal(2, E)})
    x = normal(3, M, H)
    hf_logits, hf_weights, hf_ids = module(x)
    logits = gate_logits(x, module.weight, module.bias)
    require_relative(logits, hf_logits, "GptOssTopKRouter logits")
    require_same_routing(route_gpt_oss(logits, K), (hf_ids, hf_weights), "GptOssTopKRouter")


@torch.no_grad()
@pytest.mark.parametrize("spread", [0.1, 3.0])
def test_dsv4_router_equals_transformers(spread: float) -> None:
    """With a bias that changes the selection."""
    module = hf_dsv4.DeepseekV4TopKRouter(dsv4_config()).double()
    module.load_state_dict({"weight": spread * normal(1, E, H) / H**0.5, "e_score_correction_bias": normal(2, E)})
    x = normal(3, M, H)
    _, hf_weights, hf_ids = module(x)
    logits = gate_logits(x, module.weight)
    bias = module.e_score_correction_bias
    assert bias is not None
    routed = route_deepseek_v4(logits, bias, K, premultiply=True)
    require_same_routing(routed, (hf_ids, hf_weights), f"DeepseekV4TopKRouter spread={spread}")
    unbiased, _ = route_deepseek_v4(logits, None, K, premultiply=True)
    assert (unbiased.sort(1).values != routed[0].sort(1).values).any(), "the bias changes nothing: choose other data"


@torch.no_grad()
def test_dsv4_hash_router_equals_transformers() -> None:
    module = hf_dsv4.DeepseekV4HashRouter(dsv4_config()).double()
    table = normal(5, VOCAB, E).topk(K, dim=1).indices
    module.load_state_dict({"weight": normal(1, E, H) / 4, "tid2eid": table})
    x, tokens = normal(3, M, H), torch.arange(M) * 7 % VOCAB
    _, hf_weights, hf_ids = module(x, tokens)
    ids, weights = route_hash(gate_logits(x, module.weight), table, tokens, premultiply=True)
    assert torch.equal(ids, hf_ids), "hash routing keeps the table's slot order"
    require_relative(weights, hf_weights, "DeepseekV4HashRouter")


def require_same_routing(got: tuple[Tensor, Tensor], want: tuple[Tensor, Tensor], what: str) -> None:
    """Same sets of ids, and the same weight for each id; slot order is left open."""
    dense = [torch.zeros(M, E, dtype=torch.float64).scatter_(1, ids, weights) for ids, weights in (got, want)]
    assert torch.equal(got[0].sort(1).values, want[0].sort(1).values), f"{what}: other experts selected"
    require_relative(dense[0], dense[1], f"{what} weights")


@torch.no_grad()
def dsv4_shared() -> hf_dsv4.DeepseekV4MLP:
    module = hf_dsv4.DeepseekV4MLP(dsv4_config()).double()
    scale = {"gate_proj": 0.7, "up_proj": 0.7, "down_proj": 0.1}
    for seed, (name, factor) in enumerate(scale.items()):
        getattr(module, name).weight.copy_(factor * normal(seed + 70, *getattr(module, name).weight.shape))
    return module


@torch.no_grad()
def test_shared_expert_equals_transformers() -> None:
    """And has the clamp of the routed experts: without it the result is another one."""
    module, x = dsv4_shared(), normal(3, M, H)
    weights = [module.gate_proj.weight, module.up_proj.weight, module.down_proj.weight]
    require_relative(shared_expert(x, *weights, DEEPSEEK_V4), module(x), "DeepseekV4MLP")
    with pytest.raises(AssertionError, match="relative error"):
        require_relative(shared_expert(x, *weights, replace(DEEPSEEK_V4, limit=None)), module(x), "unclamped", tolerance=1e-3)


@torch.no_grad()
@pytest.mark.parametrize(("layer", "premultiply"), [(0, True), (0, False), (1, True), (1, False)])
def test_whole_layer_equals_transformers(layer: int, premultiply: bool) -> None:
    """Router, experts, shared expert and the factor together, hash layer and learned layer, factor before and after."""
    block = hf_dsv4.DeepseekV4SparseMoeBlock(dsv4_config(), layer).double()
    weights, x = make_weights(False), normal(3, M, H).bfloat16()
    block.experts, block.shared_experts = dsv4_experts(weights), dsv4_shared()
    block.gate.weight.copy_(normal(1, E, H) / 4)
    table, tokens = normal(5, VOCAB, E).topk(K, dim=1).indices, torch.arange(M) * 7 % VOCAB
    logits = gate_logits(x, block.gate.weight)
    if layer == 0:
        block.gate.tid2eid.copy_(table)
        ids, routing = route_hash(logits, table, tokens, premultiply=premultiply)
    else:
        ids, routing = route_deepseek_v4(logits, block.gate.e_score_correction_bias, K, premultiply=premultiply)
    want = block(x.double()[None], tokens[None])[0]
    # MoeInputs carries float32 weights as kernels take them; a float64 slot weight enters by splitting off what float32 drops.
    coarse = routing.float()
    fine = (routing - coarse.double()).float()
    routed = sum(exact_moe(weights, MoeInputs(x, ids.int(), part), DEEPSEEK_V4) for part in (coarse, fine))
    assert isinstance(routed, Tensor)
    shared = shared_expert(x, *(getattr(block.shared_experts, n).weight for n in ("gate_proj", "up_proj", "down_proj")), DEEPSEEK_V4)
    mode = RoutedScale.PREMULTIPLIED if premultiply else RoutedScale.POST
    require_relative(combine_shared(shared, routed, 1.5, mode), want, f"DeepseekV4SparseMoeBlock layer {layer} {mode}")


def test_foreign_ids_equal_transformers_sentinel() -> None:
    """transformers masks with id E, engines with -1 or a foreign id: all add nothing."""
    weights, inputs = make_weights(False), make_inputs()
    away = random_bytes(9, M, K) < 90
    away[0] = True
    want = hf_experts(weights, replace(inputs, topk_ids=torch.where(away, E, inputs.topk_ids)))
    for foreign in (-1, E, E + 3, -7, 2**31 - 1):
        got = exact_moe(weights, replace(inputs, topk_ids=torch.where(away, foreign, inputs.topk_ids)), DEEPSEEK_V4)
        require_relative(got, want, f"foreign id {foreign}")
        assert not got[0].any(), "a token without an expert is 0"


def test_stages_recombine_and_rows_select() -> None:
    weights, inputs = make_weights(True), make_inputs()
    whole = exact_moe(weights, inputs, GPT_OSS)
    stages = exact_stages(weights, inputs, GPT_OSS)
    require_relative((inputs.topk_weights.double()[..., None] * stages.y).sum(1), whole, "weighted sum of y")
    require_relative(swiglu(stages.gate, stages.up, GPT_OSS), stages.act, "activation of gate and up")
    some = torch.tensor([7, 0, 7, 28])
    require_relative(exact_moe(weights, inputs, GPT_OSS, rows=some), whole[some], "rows by index")
    require_relative(exact_moe(weights, inputs, GPT_OSS, rows=slice(3, 9)), whole[3:9], "rows by slice")
    assert exact_moe(weights, inputs, GPT_OSS, rows=slice(0, 0)).shape == (0, H)


def test_first_expert_offsets_ids() -> None:
    weights, inputs = make_weights(True), make_inputs()
    shifted = replace(inputs, topk_ids=inputs.topk_ids + 5)
    assert torch.equal(exact_moe(weights, shifted, GPT_OSS, first_expert=5), exact_moe(weights, inputs, GPT_OSS))
    assert torch.equal(exact_stages(weights, shifted, GPT_OSS, first_expert=5).y, exact_stages(weights, inputs, GPT_OSS).y)


def test_the_same_expert_twice_counts_twice() -> None:
    weights, inputs = make_weights(True), make_inputs()
    twice = replace(inputs, topk_ids=inputs.topk_ids[:, :1].expand(M, K).contiguous())
    once = MoeInputs(inputs.x, inputs.topk_ids[:, :1], torch.ones(M, 1))
    want = exact_moe(weights, once, GPT_OSS) * inputs.topk_weights.double().sum(1, keepdim=True)
    require_relative(exact_moe(weights, twice, GPT_OSS), want, "one expert in every slot")


def test_zero_weight_hides_an_infinite_expert_and_scale_meanings_differ() -> None:
    """Byte 255 is NaN, or Inf, by meaning; a slot of weight 0 shows neither; byte 0 is 2^-127 or 0."""
    weights, inputs = make_weights(False), make_inputs()
    token = int((inputs.topk_ids == 0).any(1).nonzero()[0])
    slot = int((inputs.topk_ids[token] == 0).nonzero())
    scale, codes = weights.w2_scale.clone(), weights.w2.clone()
    scale[0, :4, 0], codes[0, :4, :16] = 255, 0x11
    bad, one = weights.with_(w2_scale=scale, w2=codes), slice(token, token + 1)
    assert exact_moe(bad, inputs, DEEPSEEK_V4, rows=one)[0, :4].isnan().all()
    assert not exact_moe(bad, inputs, DEEPSEEK_V4, e8m0.EXPONENT_FIELD, rows=one)[0, :4].isfinite().any()
    without = inputs.topk_weights.clone()
    without[token, slot] = 0
    hidden = exact_moe(bad, replace(inputs, topk_weights=without), DEEPSEEK_V4, rows=one)
    assert torch.equal(hidden, exact_moe(weights, replace(inputs, topk_weights=without), DEEPSEEK_V4, rows=one))
    tiny = weights.with_(w2_scale=torch.zeros_like(scale))
    assert not exact_moe(tiny, inputs, DEEPSEEK_V4, e8m0.EXPONENT_FIELD).any()
    ocp = exact_moe(tiny, inputs, DEEPSEEK_V4)
    assert ocp.any()
    assert torch.equal(ocp * 2.0**127, exact_moe(weights.with_(w2_scale=torch.full_like(scale, 127)), inputs, DEEPSEEK_V4))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_swiglu_nan_and_infinity(dtype: torch.dtype) -> None:
    """torch.clamp keeps a NaN; fminf and fmaxf hide it behind the limit; numbers are the same either way."""
    nan, inf, one = torch.full((3,), torch.nan, dtype=dtype), torch.full((3,), torch.inf, dtype=dtype), torch.ones(3, dtype=dtype)
    seven = 7 * one
    assert swiglu(nan, one, GPT_OSS).isnan().all()
    assert swiglu(one, nan, GPT_OSS).isnan().all()
    assert torch.equal(swiglu(nan, nan, GPT_OSS, fminmax=True), swiglu(seven, seven, GPT_OSS))
    assert torch.equal(swiglu(inf, -inf, GPT_OSS), swiglu(seven, -seven, GPT_OSS))
    unlimited = replace(GPT_OSS, limit=None)
    assert swiglu(nan, one, unlimited, fminmax=True).isnan().all()
    gate, up = (20 * normal(seed, 500).to(dtype) for seed in (1, 2))
    got = swiglu(gate, up, GPT_OSS)
    assert got.dtype == dtype
    assert torch.equal(got, swiglu(gate, up, GPT_OSS, fminmax=True))
    assert torch.equal(swiglu(gate, up, unlimited), swiglu(gate, up, replace(GPT_OSS, limit=torch.inf)))


def test_combine_shared_in_bf16() -> None:
    """One rounding a mode: fp32 inside, and POST differs from PREMULTIPLIED by the rounding of what it scales."""
    shared, routed = normal(1, 40, 60).bfloat16(), normal(2, 40, 60).bfloat16()
    post = combine_shared(shared, routed, 1.5, RoutedScale.POST, torch.bfloat16)
    assert torch.equal(post, shared.clone().add_(routed, alpha=1.5)), "torch's own add_(alpha) is one fp32 operation and one rounding"
    assert not torch.equal(post, shared + routed.mul(1.5)), "mul then add rounds twice"
    plain = combine_shared(shared, routed, 99.0, RoutedScale.PREMULTIPLIED, torch.bfloat16)
    assert torch.equal(plain, shared + routed)
    exact = combine_shared(shared, routed, 1.5, RoutedScale.POST)
    assert torch.equal(exact, shared.double() + 1.5 * routed.double())
    assert torch.equal(post, exact.float().bfloat16())


def test_shared_expert_in_bf16_is_near_and_not_equal() -> None:
    x, (gate, up, down) = normal(3, M, H).bfloat16(), (0.1 * normal(s, *shape) for s, shape in ((4, (I, H)), (5, (I, H)), (6, (H, I))))
    served, exact = shared_expert(x, gate, up, down, DEEPSEEK_V4, torch.bfloat16), shared_expert(x, gate, up, down, DEEPSEEK_V4)
    assert served.dtype == torch.bfloat16
    error = float((served.double() - exact).pow(2).mean().sqrt() / exact.pow(2).mean().sqrt())
    assert 1e-4 < error < 2**-7, f"three roundings to bf16 moved the result by {error:.2e} RMS"


def bad_arguments() -> dict[str, tuple[type[Exception], str, object]]:
    weights, inputs = make_weights(True), make_inputs()
    narrow = replace(inputs, x=inputs.x[:, :32])
    short = replace(inputs, topk_weights=inputs.topk_weights[:, :2])
    three, two, f32 = torch.zeros(3, dtype=torch.float64), torch.zeros(2, dtype=torch.float64), torch.zeros(3)
    matrix, meta = torch.zeros(4, 32), inputs.to("meta")
    return {
        "x too narrow": (ShapeError, r"H=96", lambda: exact_moe(weights, narrow, GPT_OSS)),
        "one routing weight short": (ShapeError, r"topk_weights \(29, 2\)", lambda: exact_moe(weights, short, GPT_OSS)),
        "negative first expert": (UsageError, r"first_expert=-1", lambda: exact_stages(weights, inputs, GPT_OSS, first_expert=-1)),
        "two devices": (UsageError, r"cpu, meta", lambda: exact_moe(weights, meta, GPT_OSS)),
        "gate and up of two shapes": (ShapeError, r"gate \(3,\)", lambda: swiglu(three, two, GPT_OSS)),
        "gate and up of two dtypes": (ShapeError, r"float32", lambda: swiglu(three, f32, GPT_OSS)),
        "integers": (ShapeError, r"floating", lambda: swiglu(three.int(), three.int(), GPT_OSS)),
        "limit 0": (UsageError, r"limit=0", lambda: swiglu(three, three, replace(GPT_OSS, limit=0.0))),
        "limit NaN": (UsageError, r"limit=nan", lambda: swiglu(three, three, replace(GPT_OSS, limit=torch.nan))),
        "down not transposed": (ShapeError, r"down_w \[H, I\]", lambda: shared_expert(matrix, matrix, matrix, matrix, GPT_OSS)),
        "shared in float8": (
            UsageError, r"float8", lambda: shared_expert(matrix, matrix, matrix, matrix.t(), GPT_OSS, torch.float8_e4m3fn)
        ),
        "shapes to combine": (ShapeError, r"routed \(2,\)", lambda: combine_shared(three, two, 1.5, RoutedScale.POST)),
        "unknown mode": (UsageError, r"RoutedScale\.POST", lambda: combine_shared(three, three, 1.5, "twice")),  # type: ignore[arg-type]
        "dtype to combine": (UsageError, r"torch\.int8", lambda: combine_shared(three, three, 1.5, RoutedScale.POST, torch.int8)),
    }  # fmt: skip


@pytest.mark.parametrize("name", bad_arguments())
def test_bad_arguments_say_what_is_wrong(name: str) -> None:
    error, message, call = bad_arguments()[name]
    assert callable(call)
    with pytest.raises(error, match=message):
        call()
