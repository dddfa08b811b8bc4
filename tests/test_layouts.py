"""Layouts, rows, padding and detection against second implementations in `literal_layouts`, on a CPU and, where there is one, on a GPU."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mxfp4_validate.errors import ShapeError, UsageError
from mxfp4_validate.formats import e2m1, mxfp4
from mxfp4_validate.formats.cast import scale_bytes
from mxfp4_validate.formats.moe_weights import MoeWeights
from mxfp4_validate.layouts import prepare, rows, sm90_a
from mxfp4_validate.layouts.base import Layout, LayoutUnknown
from mxfp4_validate.layouts.detect import detect
from mxfp4_validate.layouts.prepare import Sm90Weights, prepare_sm90, unprepare_sm90
from mxfp4_validate.layouts.sm90_a import SM90_A
from mxfp4_validate.layouts.sm90_b import SM90_B
from tests import literal_layouts as literal

if TYPE_CHECKING:
    from collections.abc import Callable

LAYOUTS = (SM90_A, SM90_B)
DEVICES = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)
SHAPES = ((16, 64), (32, 128), (48, 192), (64, 512), (144, 320))
any_layout = pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)


def random_bytes(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def require_equal(found: Tensor, expected: Tensor, what: str) -> None:
    assert found.shape == expected.shape, f"{what}: {tuple(found.shape)}, expected {tuple(expected.shape)}"
    wrong = (found.cpu() != expected.cpu()).nonzero()
    assert not len(wrong), f"{what}: {len(wrong)} elements differ, first at {wrong[0].tolist()}"


@any_layout
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("device", DEVICES)
def test_weights_equal_the_formula(layout: Layout, shape: tuple[int, int], device: str) -> None:
    """Every stored byte of two experts, by the place formula."""
    N, K = shape
    weight = random_bytes(2, N, K // 2)
    packed = layout.pack_weights(weight.to(device))
    for e in range(2):
        expected = literal.WEIGHTS[layout.name](literal.codes_of(weight[e]), torch.arange(N))
        require_equal(packed[e], expected, f"layout {layout.name} expert {e}")


@any_layout
@pytest.mark.parametrize("shape", SHAPES[:4], ids=str)
def test_weights_equal_the_vendors_kernel_as_loops(layout: Layout, shape: tuple[int, int]) -> None:
    """Every stored byte, by the index arithmetic of the vendor's threads."""
    N, K = shape
    weight = random_bytes(1, N, K // 2, seed=1)
    expected = torch.tensor(literal.KERNELS[layout.name](weight.flatten().tolist(), N, K), dtype=torch.uint8).view_as(weight)
    require_equal(layout.pack_weights(weight), expected, f"layout {layout.name}")


@any_layout
@pytest.mark.parametrize("device", DEVICES)
def test_every_byte_at_every_place_survives(layout: Layout, device: str) -> None:
    """Each of 256 byte values in all of a tile's 512 places, one expert a value; random neighbours, and the same byte everywhere."""
    same = torch.arange(256, dtype=torch.uint8).view(256, 1, 1).expand(256, 16, 32).contiguous()
    shifted = same + torch.arange(512, dtype=torch.uint8).view(16, 32)
    for weight in (same, shifted):
        packed = layout.pack_weights(weight.to(device))
        require_equal(layout.unpack_weights(packed), weight, f"layout {layout.name}")
        ones = torch.tensor([b.bit_count() for b in range(256)])
        require_equal(ones[packed.cpu().long()].sum((1, 2)), ones[weight.long()].sum((1, 2)), "bits are moved, none made or lost")


@any_layout
def test_every_nibble_moves_alone(layout: Layout) -> None:
    """One code in an empty tile: each of 1024 places, by each of its bits, gives bits that no other place gives, and comes back."""
    places = torch.zeros(1024, 1024, dtype=torch.uint8)
    for code in (1, 2, 4, 8, 15):
        weight = e2m1.pack(places.fill_diagonal_(code).view(1024, 16, 64))
        packed = layout.pack_weights(weight)
        require_equal(layout.unpack_weights(packed), weight, f"code {code}")
        assert not ((packed != 0).sum((1, 2)) == 0).any(), f"code {code} vanished"
    owners = layout.pack_weights(e2m1.pack(places.fill_diagonal_(15).view(1024, 16, 64))).long()
    assert (owners.sum(0) == 255).all(), "two places share a bit of the packed tile, or one bit is nobody's"


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(LAYOUTS), st.integers(0, 3), st.integers(1, 3), st.integers(1, 4), st.integers(0, 1000))
def test_round_trips(layout: Layout, experts: int, row_blocks: int, k_blocks: int, seed: int) -> None:
    """pack then unpack, and unpack then pack, of weights and scales of any shape, E = 0 included."""
    weight = random_bytes(experts, 64 * row_blocks, 64 * k_blocks, seed=seed)
    require_equal(layout.unpack_weights(layout.pack_weights(weight)), weight, "weights")
    require_equal(layout.pack_weights(layout.unpack_weights(weight)), weight, "weights, the other way round")
    scale = random_bytes(experts, 64 * row_blocks, 4 * k_blocks, seed=seed)
    packed = layout.pack_scales(scale)
    require_equal(layout.unpack_scales(packed), scale, "scales")
    require_equal(layout.pack_scales(layout.unpack_scales(packed)), packed, "scales, the other way round")


def test_layout_a_has_order_six() -> None:
    """Packing six times is the identity, once to five times is not: a double pack shows. (Layout B has order 3762 on bits.)"""
    weight = random_bytes(1, 64, 128)
    packed = weight
    for times in range(1, 7):
        packed = SM90_A.pack_weights(packed)
        assert torch.equal(packed, weight) == (times == 6), f"packed {times} times"


@any_layout
@pytest.mark.parametrize("shape", [(64, 4), (128, 8), (192, 92)], ids=str)
@pytest.mark.parametrize("device", DEVICES)
def test_scales_equal_the_formula(layout: Layout, shape: tuple[int, int], device: str) -> None:
    scale = random_bytes(2, *shape)
    packed = layout.pack_scales(scale.to(device))
    assert packed.is_contiguous(), "the kernel is handed the storage"
    for e in range(2):
        require_equal(packed[e], literal.SCALES[layout.name](scale[e]), f"layout {layout.name} expert {e}")


def test_at_k_128_scale_layout_a_is_the_identity_and_b_is_not() -> None:
    """Why no test may use K = 128 alone: a forgotten interleave does not show in layout A."""
    scale = random_bytes(2, 64, 4)
    assert torch.equal(SM90_A.pack_scales(scale).flatten(), scale.flatten()), "layout A at K = 128"
    assert not torch.equal(SM90_B.pack_scales(scale).flatten(), scale.flatten()), "layout B at K = 128"
    assert not torch.equal(SM90_A.pack_scales(random_bytes(2, 64, 8)).flatten(), random_bytes(2, 64, 8).flatten()), "layout A at K = 256"


@any_layout
@pytest.mark.parametrize("device", DEVICES)
def test_experts_are_packed_one_by_one(layout: Layout, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some experts alone, strided views, misaligned storage and chunks of one expert give the bytes of the whole."""
    weight = random_bytes(5, 32, 64).to(device)
    whole = layout.pack_weights(weight)
    require_equal(layout.pack_weights(weight[1:3]), whole[1:3], "a slice")
    require_equal(layout.pack_weights(weight.mT.contiguous().mT), whole, "a transposed view")
    odd = torch.empty(weight.numel() + 1, dtype=torch.uint8, device=device)[1:].view_as(weight).copy_(weight)
    require_equal(layout.pack_weights(odd), whole, "an odd address")
    monkeypatch.setattr(sm90_a, "SCRATCH_BYTES", 1)
    require_equal(layout.pack_weights(weight), whole, "chunks of one expert")


REFUSED_WEIGHTS = (
    (torch.zeros(1, 16, 32, dtype=torch.int8), r"int8.*view\(torch\.uint8\)"),
    (torch.zeros(1, 16, 32, dtype=torch.int32), r"int32.*expected torch\.uint8"),
    (torch.zeros(16, 32, dtype=torch.uint8), r"\[E, N, K/2\], got \(16, 32\)"),
    (torch.zeros(1, 24, 32, dtype=torch.uint8), "N = 24 is not a multiple of 16"),
    (torch.zeros(1, 16, 48, dtype=torch.uint8), "K = 96 is no multiple of 64"),
)


@any_layout
@pytest.mark.parametrize(("weight", "message"), REFUSED_WEIGHTS, ids=[m for _, m in REFUSED_WEIGHTS])
def test_weights_refused(layout: Layout, weight: Tensor, message: str) -> None:
    """Shapes of which the vendor's kernel leaves bytes unwritten or reads outside, and dtypes it would misread."""
    for carry in (layout.pack_weights, layout.unpack_weights):
        with pytest.raises(ShapeError, match=message):
            carry(weight)


@any_layout
def test_scales_refused(layout: Layout) -> None:
    for scale, message in (
        (torch.zeros(1, 64, 8, dtype=torch.int8), r"view\(torch\.uint8\)"),
        (torch.ones(1, 64, 8), "expected torch.uint8"),
        (torch.zeros(64, 8, dtype=torch.uint8), r"got \(64, 8\)"),
        (torch.zeros(1, 64, 90, dtype=torch.uint8), "K = 2880 is not a multiple of 128"),
    ):
        with pytest.raises(ShapeError, match=message):
            layout.pack_scales(scale)
    with pytest.raises(ShapeError, match="group_size=128"):
        layout.pack_scales(torch.zeros(1, 64, 8, dtype=torch.uint8), 128)
    other = SM90_B if layout is SM90_A else SM90_A
    with pytest.raises(ShapeError, match="another layout packed them"):
        layout.unpack_scales(other.pack_scales(torch.zeros(1, 64, 8, dtype=torch.uint8)))


def test_rows_of_scale_layout_b() -> None:
    """Layout B folds 64 rows; layout A takes any number."""
    scale = random_bytes(1, 96, 8)
    with pytest.raises(ShapeError, match=re.escape("layout sm90_b needs rows % 64 == 0")):
        SM90_B.pack_scales(scale)
    require_equal(SM90_A.unpack_scales(SM90_A.pack_scales(scale)), scale, "layout A, 96 rows")


def test_row_orders() -> None:
    """Row numbers themselves, through each reordering, for [E, 2I] biases and [E, 2I, W] weights."""
    bias = torch.arange(6).view(1, 6)
    for t in (bias, bias[..., None].expand(1, 6, 2)):
        first = (lambda x: x[0].tolist()) if t.dim() == 2 else (lambda x: x[0, :, 0].tolist())
        assert first(rows.to_up_gate(t)) == [3, 4, 5, 0, 1, 2], "[up; gate]"
        assert first(rows.deinterleave_gpt_oss(t)) == [0, 2, 4, 1, 3, 5], "even rows are gate, odd rows up"
        for there, back in ((rows.to_up_gate, rows.to_gate_up), (rows.deinterleave_gpt_oss, rows.interleave_gpt_oss)):
            assert torch.equal(back(there(t)), t), f"{back.__name__} is not the inverse of {there.__name__}"
    for reorder in (rows.to_up_gate, rows.to_gate_up, rows.deinterleave_gpt_oss, rows.interleave_gpt_oss):
        with pytest.raises(ShapeError, match="two equal halves"):
            reorder(torch.zeros(1, 5))


def layer(experts: int, hidden: int, inter: int, seed: int = 0) -> MoeWeights:
    draw = torch.Generator().manual_seed(seed)
    return MoeWeights(
        random_bytes(experts, 2 * inter, hidden // 2, seed=seed), 110 + random_bytes(experts, 2 * inter, hidden // 32, seed=seed + 1) % 16,
        random_bytes(experts, hidden, inter // 2, seed=seed + 2), 110 + random_bytes(experts, hidden, inter // 32, seed=seed + 3) % 16,
        torch.randn(experts, 2 * inter, generator=draw).bfloat16(), torch.randn(experts, hidden, generator=draw).bfloat16(),
    )  # fmt: skip


def require_same_layer(found: MoeWeights, expected: MoeWeights) -> None:
    assert found.tensors().keys() == expected.tensors().keys(), "tensors present"
    for name, t in expected.tensors().items():
        require_equal(found.tensors()[name], t, name)


def test_pad_layer_changes_no_product() -> None:
    """Each half padded by itself, zeros and scale bytes 0 there, x W^T as before, and trimming gives the layer back."""
    w, x = layer(2, 416, 352), torch.arange(3 * 416).view(3, 416).double()
    wide, inter, Ip = rows.pad_layer(w), 352, 384
    assert (wide.hidden_size, wide.intermediate_size) == (512, 384), "padded sizes"
    gate_up = mxfp4.dequantise(w.w13, w.w13_scale) @ x.T
    padded = mxfp4.dequantise(wide.w13, wide.w13_scale) @ rows.pad_x(x).T
    require_equal(padded.unflatten(1, (2, Ip))[:, :, :inter], gate_up.unflatten(1, (2, inter)), "products")
    assert not padded.unflatten(1, (2, Ip))[:, :, inter:].any(), "padded units are not zero"
    assert not mxfp4.dequantise(wide.w2, wide.w2_scale)[:, 416:].any(), "padded outputs are not zero"
    assert not mxfp4.dequantise(wide.w2, wide.w2_scale)[:, :, inter:].any(), "padded K of w2"
    assert wide.w13_scale.view(2, 2, Ip, 16)[:, :, inter:].count_nonzero() == 0, "pad scale bytes are 0"
    require_same_layer(rows.trim_layer(wide, 416, 352), w)
    even = layer(1, 256, 128)
    assert rows.pad_layer(even).w13 is even.w13, "a layer that needs no pad is copied"
    assert rows.pad_x(x[:, :384]).shape == (3, 384), "x that needs no pad"


def test_padding_refuses_to_cut() -> None:
    with pytest.raises(ShapeError, match=re.escape("cannot pad (1, 64, 8) to (1, 32, 8)")):
        rows.pad_to(torch.zeros(1, 64, 8), 32, 8)
    with pytest.raises(ShapeError, match="cannot trim a layer of H=64, I=32 to H=128"):
        rows.trim_layer(layer(1, 64, 32), 128, 32)
    with pytest.raises(ShapeError, match=r"must be \[M, H\]"):
        rows.pad_x(torch.zeros(4))


@any_layout
@pytest.mark.parametrize("biased", [True, False], ids=["bias", "no-bias"])
@pytest.mark.parametrize("sizes", [(3, 192, 320), (3, 256, 128), (0, 192, 64)], ids=str)
@pytest.mark.parametrize("device", DEVICES)
def test_prepare_and_back(layout: Layout, biased: bool, sizes: tuple[int, int, int], device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """`unprepare_sm90` gives the canonical layer back; packing expert by expert gives the same bytes."""
    w = layer(*sizes) if biased else layer(*sizes).with_(w13_bias=None, w2_bias=None)
    prepared = prepare_sm90(w.to(device), layout)
    assert (prepared.num_experts, prepared.hidden_size, prepared.intermediate_size) == sizes, "sizes"
    assert prepared.layout == layout.name, "layout"
    assert [prepared.padded_hidden, prepared.padded_intermediate] == [-(-n // 128) * 128 for n in sizes[1:]], "padded sizes"
    require_same_layer(unprepare_sm90(prepared, layout), w)
    monkeypatch.setattr(prepare, "CHUNK_BYTES", 1)
    again = prepare_sm90(w.to(device), layout)
    for name, t in vars(prepared).items():
        assert not isinstance(t, Tensor) or torch.equal(getattr(again, name), t), f"{name} depends on the chunks"


def require_prepared(found: Sm90Weights, layout: Layout, fc1: dict[str, Tensor], fc2: dict[str, Tensor], order: str) -> None:
    """One expert's prepared tensors against the index formulas over the checkpoint's tensors {codes, scale, bias} of each GEMM."""
    inter, Hp, Ip = found.intermediate_size, -(-found.hidden_size // 128) * 128, -(-found.intermediate_size // 128) * 128
    for name, source, K, place in (
        ("fc1", fc1, Hp, lambda t, width: literal.fc1(t, inter, Ip, width, order)),
        ("fc2", fc2, Ip, lambda t, width: literal.fc2(t, Hp, width)),
    ):
        codes = place(literal.codes_of(source["codes"]), K)
        for part in torch.arange(codes.shape[0]).split(512):  # a part at a time: indices of all 5888 x 2944 codes would take gigabytes
            require_equal(getattr(found, name)[0, part], literal.WEIGHTS[layout.name](codes, part), f"{name} rows {part[0]}..{part[-1]}")
        scale = place(source["scale"], K // 32)
        require_equal(getattr(found, f"{name}_scale")[0], literal.SCALES[layout.name](scale), f"{name} scales")
        if "bias" in source:
            require_equal(getattr(found, f"{name}_bias")[0], place(source["bias"][:, None], 1)[:, 0], f"{name} bias")


@any_layout
@pytest.mark.parametrize("size", [192, 2880])
def test_gpt_oss_from_checkpoint_rows_to_kernel_bytes(layout: Layout, size: int) -> None:
    """Blocks [2I, H/32, 16] with interleaved rows: view, de-interleave, pad, swap, pack; against one index formula."""
    w = layer(1, size, size)
    assert w.w13_bias is not None
    assert w.w2_bias is not None
    blocks = w.w13.view(1, 2 * size, size // 32, 16)  # random bytes serve as the checkpoint's rows, whatever their order
    canonical = w.with_(
        w13=rows.deinterleave_gpt_oss(blocks.flatten(2)),
        w13_scale=rows.deinterleave_gpt_oss(scale_bytes(w.w13_scale)),
        w13_bias=rows.deinterleave_gpt_oss(w.w13_bias),
    )
    checkpoint1 = {"codes": w.w13[0], "scale": w.w13_scale[0], "bias": w.w13_bias[0]}
    checkpoint2 = {"codes": w.w2[0], "scale": w.w2_scale[0], "bias": w.w2_bias[0]}
    require_prepared(prepare_sm90(canonical, layout), layout, checkpoint1, checkpoint2, "interleaved")


@any_layout
@pytest.mark.parametrize(("size", "dtype"), [(192, torch.float32), (192, torch.float8_e8m0fnu), (2880, torch.float32)], ids=str)
def test_deepseek_v4_from_checkpoint_tensors_to_kernel_bytes(layout: Layout, size: int, dtype: torch.dtype) -> None:
    """int8 w1, w2, w3 and fp32 or e8m0 scales: view, stack [w1; w3], cast, swap, pack; against one index formula."""
    made = layer(1, size, size)
    stored = made.w13_scale[0].view(torch.float8_e8m0fnu)
    scale13 = stored.float() if dtype == torch.float32 else stored
    w1, w3 = made.w13[0].view(torch.int8).chunk(2)
    canonical = MoeWeights(
        w13=torch.cat((w1, w3)).view(torch.uint8)[None], w13_scale=scale_bytes(scale13)[None], w2=made.w2, w2_scale=made.w2_scale
    )
    found = prepare_sm90(canonical, layout)
    assert found.fc1_bias is None
    assert found.fc2_bias is None
    first = {"codes": made.w13[0], "scale": made.w13_scale[0]}
    require_prepared(found, layout, first, {"codes": made.w2[0], "scale": made.w2_scale[0]}, "w1w3")


@any_layout
def test_detect_by_the_helpers_bytes(layout: Layout) -> None:
    assert detect(layout.pack_scales) is layout, "our own packer is not recognised"


@pytest.mark.parametrize(("helper", "message"), [
    (lambda s: s, r"turned \[1, 64, 4\] into \[1, 64, 4\]"),
    (lambda s: s.view(1, 1, 1, 64, 4), r"into \[1, 1, 1, 64, 4\]"),
    (lambda s: s.flip(1).reshape(1, 1, 256), "shape of layout sm90_a but other bytes"),
    (lambda s: s.view(1, 1, 1, 16, 16), "shape of layout sm90_b but other bytes"),
    (lambda s: s.undefined, "refused"),
])  # fmt: skip
def test_detect_says_what_came_back(helper: Callable[[Tensor], Tensor], message: str) -> None:
    """Unknown shapes, known shapes with other bytes, and helpers that raise."""
    with pytest.raises(LayoutUnknown, match=message):
        detect(helper)
    assert issubclass(LayoutUnknown, UsageError), "exit code 2"
