"""Explained bits: every element equals the ordered twin's or lies in the interval that the kernel's declared freedom allows."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mxfp4_validate.comparison.bits import describe_first, differs, where
from mxfp4_validate.errors import CheckFailed
from mxfp4_validate.reference.rounding import SM90_CUTLASS, RoundingModel
from mxfp4_validate.reference.twin import Twin
from mxfp4_validate.tolerances import BIT_EQUAL_SHARE, EXACT_RELATIVE_L2, SHARE_TOKENS, UNORDERED_BIT_EQUAL_SHARE


@dataclass(frozen=True)
class Explained:
    """Counts of one comparison: `unexplained` must be 0."""

    elements: int
    different: int
    unexplained: int
    nan: int
    max_ulps: float
    determined: float
    relative_l2: float

    @property
    def bit_equal(self) -> float:
        return 1.0 - self.different / max(1, self.elements)

    def metrics(self) -> dict[str, object]:
        return vars(self) | {"bit_equal": self.bit_equal}


def compare(candidate: Tensor, twin: Twin) -> Explained:
    """Compare [M, H] bfloat16 with the twin; no verdict."""
    different = differs(candidate, twin.value)
    outside = different & ~((candidate >= twin.lower) & (candidate <= twin.upper))
    error = (candidate.float() - twin.value.float()).double()
    return Explained(
        elements=candidate.numel(),
        different=int(different.sum()),
        unexplained=int(outside.sum()),
        nan=int(candidate.isnan().sum()),
        max_ulps=_max_ulps(candidate, twin.value),
        determined=twin.determined,
        relative_l2=float(error.norm() / twin.value.double().norm().clamp(min=1e-300)),
    )


def _max_ulps(candidate: Tensor, expected: Tensor) -> float:
    """Largest difference in bf16 steps of max(|expected|, RMS): steps near zero would say nothing."""
    size = torch.maximum(expected.double().abs(), expected.double().pow(2).mean().sqrt())
    step = torch.ldexp(torch.ones_like(size), torch.frexp(size).exponent - 8)
    return float(((candidate.double() - expected.double()).abs() / step).nan_to_num(nan=torch.inf).max())


def least_equal(model: RoundingModel) -> float:
    """The share of bits that must be the twin's, by whether the model's summation order is the backend's own."""
    return BIT_EQUAL_SHARE.value if model.ordered else UNORDERED_BIT_EQUAL_SHARE.value


def require_explained(candidate: Tensor, twin: Twin, what: str, *, share: float = BIT_EQUAL_SHARE.value) -> dict[str, object]:
    """Metrics if nothing is unexplained and at least `share` of the bits are the twin's; else `CheckFailed`.

    The share is asked of at least `SHARE_TOKENS` rows; of fewer, only that nothing is unexplained.
    """
    result = compare(candidate, twin)
    enough = candidate.shape[0] >= SHARE_TOKENS.value
    allowed = max(1.0, (1.0 - share) * result.elements) if enough else result.elements
    if result.unexplained == 0 and result.different <= allowed:
        return result.metrics()
    different = differs(candidate, twin.value)
    wrong = different & ~((candidate >= twin.lower) & (candidate <= twin.upper)) if result.unexplained else different
    kind = "unexplained" if result.unexplained else f"different, more than the {1 - share:.2%} that intrinsics move"
    row_error = _row_error(candidate, twin.value)
    worst = row_error.topk(min(4, row_error.numel()))
    raise CheckFailed(
        f"{what}: {int(wrong.sum())} of {result.elements} values {kind} (bit-equal {result.bit_equal:.4%}, {result.nan} NaN, "
        f"max {result.max_ulps:.3g} ulp of RMS, relative L2 {result.relative_l2:.2e})\n{describe_first(candidate, twin.value, wrong)}\n{where(wrong)}\n"
        + "  worst rows by relative error: "
        + ", ".join(f"{i}: {e:.2e}" for e, i in zip(worst.values.tolist(), worst.indices.tolist(), strict=True)),
        result.metrics(),
    )


def _row_error(candidate: Tensor, expected: Tensor) -> Tensor:
    error = (candidate.double() - expected.double()).nan_to_num(nan=torch.inf).norm(dim=1)
    relative: Tensor = error / expected.double().norm(dim=1).clamp(min=1e-300)
    return relative


def tile_errors(candidate: Tensor, expected: Tensor) -> dict[str, object]:
    """Two norms and the worst row and column tile, all relative to the whole's RMS: for the record, also when everything passes."""
    error = candidate.double() - expected.double()
    rms = expected.double().pow(2).mean().sqrt().clamp(min=1e-300)
    result: dict[str, object] = {
        "max_relative": float(error.abs().max() / rms),
        "rms_relative": float(error.pow(2).mean().sqrt() / rms),
        "worst_row": float(error.pow(2).mean(1).max().sqrt() / rms),
    }
    for tile in (16, 64, 128):
        columns = torch.nn.functional.pad(error.pow(2), (0, -error.shape[1] % tile)).unflatten(1, (-1, tile)).mean(2)
        result[f"worst_tile_{tile}"] = float(columns.max().sqrt() / rms)
    return result


def exact_limit(model: RoundingModel) -> float:
    """Relative L2 to float64 that no correct kernel of this model exceeds.

    Independent roundings add up in squares, so the limit for FlashInfer's four grows with the root of their number: Marlin's nine (measured
    4.2e-3 to 4.9e-3 on an H200, 7.6e-3 the worst of 600 single rows of its twin) 9e-3, triton_kernels' three (2.8e-3 to 3.4e-3) 5.2e-3.
    """
    return float(EXACT_RELATIVE_L2.value * (model.bf16_roundings / SM90_CUTLASS.bf16_roundings) ** 0.5)


def require_close_to_exact(candidate: Tensor, exact: Tensor, what: str, model: RoundingModel) -> dict[str, object]:
    """The coarse guard: relative L2 against float64, whole and by row. Of the rounding model it takes only how often it rounds."""
    limit = exact_limit(model)
    total = float((candidate.double() - exact).norm() / exact.norm().clamp(min=1e-300))
    worst = float(_row_error(candidate, exact).nan_to_num(nan=torch.inf).max()) if exact.norm() else 0.0
    metrics: dict[str, object] = {"exact_relative_l2": total, "exact_limit": limit, "exact_worst_row": worst}
    if not total <= limit:
        raise CheckFailed(
            f"{what}: relative L2 to float64 is {total:.3e}, limit {limit:.1e} for {model.name}'s {model.bf16_roundings} roundings to bf16",
            metrics,
        )
    return metrics
