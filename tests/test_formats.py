"""Bytes and reals: E8M0 over all 256 bytes, both quantisers against a search over the grid in fractions, and what `scale_bytes` refuses."""

from __future__ import annotations

import warnings
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mxfp4_validate.errors import ScaleError, ShapeError, UsageError
from mxfp4_validate.formats import e2m1, e8m0, mxfp4
from mxfp4_validate.formats.cast import SuspiciousScale, looks_unfilled, scale_bytes
from mxfp4_validate.formats.quantise import quantise_ocp, quantise_round_up

ALL_BYTES = torch.arange(256, dtype=torch.uint8)
MAGNITUDES = [Fraction(v) for v in ("0", "1/2", "1", "3/2", "2", "3", "4", "6")]
FLOATS = (torch.float32, torch.bfloat16)


def test_every_e8m0_byte_decodes_as_torchs_e8m0() -> None:
    """All 256 bytes, NaN included, mean in `e8m0.decode` what they mean in torch.float8_e8m0fnu."""
    expected = ALL_BYTES.view(torch.float8_e8m0fnu).float().double()
    found = e8m0.decode(ALL_BYTES)
    assert torch.equal(found[:255], expected[:255]), "some byte decodes differently from torch"
    assert found[255].isnan(), "byte 255 is NaN in OCP's meaning"
    assert expected[255].isnan(), "byte 255 is NaN in torch"


def test_exponent_field_meaning_is_the_float32_with_the_byte_as_exponent() -> None:
    """Bytes moved into float32's exponent field: 0 is 0.0 and 255 is +Inf, the rest as OCP."""
    expected = (ALL_BYTES.int() << 23).view(torch.float32).double()
    assert torch.equal(e8m0.decode(ALL_BYTES, e8m0.EXPONENT_FIELD), expected), "differs from the bits"


def test_every_packed_byte_survives_unpack_and_pack() -> None:
    """256 bytes -> 512 codes -> 256 bytes, the low nibble first."""
    codes = e2m1.unpack(ALL_BYTES)
    assert codes.tolist() == [n for b in range(256) for n in (b & 15, b >> 4)], "nibble order"
    assert torch.equal(e2m1.pack(codes), ALL_BYTES), "pack is not the inverse of unpack"


def nearest_code(value: Fraction) -> int:
    """The code, without sign, of the grid's nearest magnitude; the even code of two equally near."""
    return min(range(8), key=lambda c: (abs(MAGNITUDES[c] - abs(value)), c % 2))


def search_scale(amax: Fraction, rule: str) -> int:
    """The byte by trying all: OCP's largest 2^X with 4 * 2^X <= amax; round-up's smallest 2^X with amax <= 6 * 2^X. 0 for no magnitude."""
    if amax == 0:
        return 0
    powers = range(-127, 128)
    if rule == "ocp":
        return max([x for x in powers if 4 * Fraction(2) ** x <= amax], default=-127) + 127
    return max(1, min(x for x in powers if amax <= 6 * Fraction(2) ** x) + 127)


QUANTISERS = {"ocp": quantise_ocp, "round_up": quantise_round_up}


def require_matches_search(values: Tensor, rule: str) -> None:
    packed, scale = QUANTISERS[rule](values)
    codes = e2m1.unpack(packed)
    for row, (reals, got, byte) in enumerate(zip(values.double().tolist(), codes.tolist(), scale.flatten().tolist(), strict=True)):
        exact = [Fraction(v) for v in reals]
        want = search_scale(max(map(abs, exact)), rule)
        assert byte == want, f"{rule} block {row}: scale byte {byte}, the search finds {want}"
        power = Fraction(2) ** (byte - 127)
        for k, v in enumerate(exact):
            sign = 8 if torch.signbit(values[row, k]) else 0
            assert got[k] == nearest_code(v / power) + sign, f"{rule} [{row}, {k}] = {reals[k]!r} / 2^{byte - 127} became code {got[k]}"


@pytest.mark.parametrize("rule", QUANTISERS)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_quantisers_equal_the_search_over_the_grid(rule: str, dtype: torch.dtype) -> None:
    """Random blocks over 60 binades, by scale and by code."""
    draw = torch.Generator().manual_seed(1)
    values = torch.randn(40, 32, generator=draw) * torch.ldexp(torch.ones(40, 1), torch.randint(-30, 31, (40, 1), generator=draw))
    require_matches_search(values.to(dtype), rule)


@pytest.mark.parametrize("rule", QUANTISERS)
@pytest.mark.parametrize("amax", [4.0, 5.0, 6.0, 6.000000476837158, 7.0, 7.999999523162842])
def test_ties_and_their_neighbours(rule: str, amax: float) -> None:
    """Every midpoint of the grid, one float32 below and one above it, positive and negative, under block maxima on each side of 6."""
    middle = torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0])
    neighbours = middle.nextafter(torch.tensor(9.0)), middle.nextafter(torch.tensor(0.0))
    near = torch.cat((middle, *neighbours, -middle, torch.tensor([0.0, -0.0, amax])))
    near = near[near.abs() <= amax]
    require_matches_search(torch.nn.functional.pad(near, (0, 32 - near.numel())).view(1, 32), rule)


@pytest.mark.parametrize(("tie", "rounded"), [(0.25, 0), (0.75, 1), (1.25, 1), (1.75, 2), (2.5, 2), (3.5, 4), (5.0, 4)])
def test_ties_round_to_even(tie: float, rounded: float) -> None:
    """OCP's ties, as values: the block maximum 4 fixes the scale at 1."""
    block = torch.zeros(1, 32)
    block[0, 0], block[0, 1], block[0, 2] = max(4.0, tie), tie, -tie
    assert mxfp4.dequantise(*quantise_ocp(block))[0, 1:3].tolist() == [rounded, -rounded], f"{tie} did not round to {rounded}"


@pytest.mark.parametrize("rule", QUANTISERS)
def test_extremes_of_float32(rule: str) -> None:
    """Zero blocks, the largest float32, and subnormal magnitudes do not overflow the byte."""
    top = torch.finfo(torch.float32).max
    rows = torch.zeros(4, 32)
    rows[1, 0], rows[2, 5], rows[3, 1] = top, 2.0**-126, -0.0
    packed, scale = QUANTISERS[rule](rows)
    assert scale[0].item() == 0, "a zero block gets the smallest byte"
    assert scale[1].item() == (252 if rule == "ocp" else 253), "largest float32"
    assert packed[0].count_nonzero() == 0, "a zero block has zero codes"
    assert packed[3, 0].item() == 0x80, "-0.0 keeps its sign"


def test_the_rules_differ_where_the_mantissa_exceeds_one_and_a_half() -> None:
    """One exponent apart for mantissas in (1.5, 2), equal elsewhere."""
    mantissa = 1 + torch.arange(1024) / 1024
    blocks = torch.nn.functional.pad(mantissa.view(-1, 1), (0, 31))
    apart = quantise_round_up(blocks)[1].int() - quantise_ocp(blocks)[1].int()
    assert torch.equal(apart.flatten(), (mantissa > 1.5).int()), "the rules differ elsewhere"


def test_quantiser_scales_are_those_of_torchs_e8m0() -> None:
    """The scale byte, read by torch, is the power of two below (OCP) or above (round-up, of amax / 6) the block's maximum."""
    amax = torch.rand(500, generator=torch.Generator().manual_seed(2)) * 100 + 0.01
    blocks = torch.nn.functional.pad(amax.view(-1, 1), (0, 31))
    ocp, up = (q(blocks)[1].view(torch.float8_e8m0fnu).float().flatten() for q in (quantise_ocp, quantise_round_up))
    assert torch.equal(ocp, (2.0 ** amax.log2().floor() / 4).to(torch.float8_e8m0fnu).float()), "OCP scale"
    assert bool(((amax / up <= 6) & (amax / up > 3)).all()), "round-up must neither saturate nor waste a binade"


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-1e4, 1e4, width=32), min_size=32, max_size=32), st.sampled_from(sorted(QUANTISERS)))
def test_quantising_what_was_quantised_changes_no_value(block: list[float], rule: str) -> None:
    """Values on the grid stay: dequantise, quantise, dequantise gives the same reals."""
    once = mxfp4.dequantise(*QUANTISERS[rule](torch.tensor([block])), dtype=torch.float32)
    again = mxfp4.dequantise(*QUANTISERS[rule](once), dtype=torch.float32)
    assert torch.equal(once, again), f"{rule} moved a value of its own grid"


@pytest.mark.parametrize("rule", QUANTISERS)
def test_quantisers_refuse(rule: str) -> None:
    """Other dtypes, odd K and non-finite values, by name and place."""
    with pytest.raises(ShapeError, match=r"dtype torch\.float64.*pass float32"):
        QUANTISERS[rule](torch.zeros(32, dtype=torch.float64))
    with pytest.raises(ShapeError, match=r"\(2, 33\).*multiple of 32"):
        QUANTISERS[rule](torch.zeros(2, 33))
    for bad in ("inf", "nan"):
        values = torch.zeros(2, 32)
        values[1, 7] = float(bad)
        with pytest.raises(UsageError, match=rf"values\[1, 7\] = {bad}"):
            QUANTISERS[rule](values)


@pytest.mark.parametrize("rule", QUANTISERS)
def test_quantisers_keep_leading_dimensions(rule: str) -> None:
    """[..., K] -> [..., K/2] and [..., K/32], zero-sized ones too."""
    for shape in ((64,), (3, 5, 96), (0, 64), (2, 0)):
        packed, scale = QUANTISERS[rule](torch.zeros(shape))
        assert tuple(packed.shape) == (*shape[:-1], shape[-1] // 2), shape
        assert tuple(scale.shape) == (*shape[:-1], shape[-1] // 32), shape


def powers(dtype: torch.dtype) -> Tensor:
    """2^-126 .. 2^127, bytes 1..254."""
    return torch.ldexp(torch.ones(254), torch.arange(1, 255) - 127).to(dtype)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_scale_bytes_of_every_power_of_two(dtype: torch.dtype) -> None:
    """Bytes 1..254 through float storage, and their values are those torch's e8m0 reads back."""
    with pytest.warns(SuspiciousScale, match=r"213 of 254 scale bytes lie outside 100\.\.140, e\.g\. scales\[0\] = 1"):
        found = scale_bytes(powers(dtype))
    assert found.tolist() == list(range(1, 255)), "exponent fields"
    assert torch.equal(found.view(torch.float8_e8m0fnu).float(), powers(torch.float32)), "values"


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.float8_e8m0fnu], ids=str)
def test_scale_bytes_views_byte_storage(dtype: torch.dtype) -> None:
    """The bytes of int8 and e8m0 storage come through unconverted, in the same memory."""
    stored = torch.arange(100, 141, dtype=torch.uint8).view(dtype)
    found = scale_bytes(stored)
    assert found.tolist() == list(range(100, 141)), "bytes changed"
    assert found.data_ptr() == stored.data_ptr(), "copied, not viewed"


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("bad", [3.0, 1.0078125, -1.0, -(2.0**-7), 0.0, -0.0, 2.0**-127, 2.0**-130, *map(float, ("inf", "-inf", "nan"))])
def test_scale_bytes_refuses_floats_that_are_no_scale(dtype: torch.dtype, bad: float) -> None:
    """Named by their first index and value, where torch's own cast would round or drop the sign in silence."""
    scales = torch.full((2, 3, 4), 2.0**-7, dtype=dtype)
    scales[1, 2, 1] = scales[1, 2, 3] = bad
    with pytest.raises(ScaleError, match=r"scales\[1, 2, 1\] = .* is not a power of two .*2 of 24") as refusal:
        scale_bytes(scales)
    assert repr(float(scales[1, 2, 1])) in str(refusal.value), "the value is not named"


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.float8_e8m0fnu], ids=str)
def test_scale_bytes_refuses_byte_255(dtype: torch.dtype) -> None:
    """E8M0's NaN, by index."""
    stored = torch.tensor([[120, 121], [255, 120]], dtype=torch.uint8).view(dtype)
    with pytest.raises(ScaleError, match=r"scales\[1, 0\] = 255 is byte 255"):
        scale_bytes(stored)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64, torch.int32], ids=str)
def test_scale_bytes_refuses_other_dtypes(dtype: torch.dtype) -> None:
    with pytest.raises(ScaleError, match="accepted are"):
        scale_bytes(torch.ones(4, dtype=dtype))


def test_scale_bytes_warns_of_implausible_bytes_alone() -> None:
    """100..140 in silence; 99, 141 and 0 with count and example."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scale_bytes(torch.arange(100, 141, dtype=torch.uint8))
        scale_bytes(torch.zeros(0, 4, dtype=torch.uint8))
    for odd in (0, 99, 141, 254):
        with pytest.warns(SuspiciousScale, match=rf"1 of 6 .*scales\[1, 1\] = {odd};"):
            scale_bytes(torch.tensor([[120, 120, 120], [120, odd, 120]], dtype=torch.uint8))


def test_looks_unfilled() -> None:
    """Ones everywhere is an unloaded shard; one other byte, or no byte at all, is not."""
    ones = scale_bytes(torch.ones(4, 8))
    assert looks_unfilled(ones), "scales created as ones"
    ones[3, 7] = 126
    assert not looks_unfilled(ones), "one byte was loaded"
    assert not looks_unfilled(ones[:0]), "empty"
