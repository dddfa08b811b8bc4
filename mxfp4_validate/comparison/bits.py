"""Exact comparison of two bf16 tensors: equality, and the first mismatch by coordinate and value."""

from __future__ import annotations

import torch
from torch import Tensor

from mxfp4_validate.errors import CheckFailed


def differs(candidate: Tensor, expected: Tensor) -> Tensor:
    """Elementwise inequality of values: -0 equals 0, a NaN equals nothing, not even a NaN."""
    return candidate.ne(expected)


def describe_first(candidate: Tensor, expected: Tensor, wrong: Tensor, limit: int = 8) -> str:
    """The first wrong elements as `[row, column] candidate V (0xBITS), expected V (0xBITS)`, one a line."""
    lines = []
    for index in wrong.nonzero()[:limit]:
        at = tuple(index.tolist())
        got, want = candidate[at], expected[at]
        lines.append(f"  {list(at)} candidate {got.item():.9g} ({_hex(got)}), expected {want.item():.9g} ({_hex(want)})")
    return "\n".join(lines)


def _hex(value: Tensor) -> str:
    return f"0x{int(value.bfloat16().view(torch.int16).item()) & 0xFFFF:04x}"


def require_equal(candidate: Tensor, expected: Tensor, what: str) -> dict[str, object]:
    """Metrics if all values are equal; else `CheckFailed` with counts, first mismatches, worst rows and tiles."""
    if candidate.shape != expected.shape:
        raise CheckFailed(f"{what}: shape {tuple(candidate.shape)}, expected {tuple(expected.shape)}")
    wrong = differs(candidate, expected)
    count = int(wrong.sum())
    metrics: dict[str, object] = {"elements": wrong.numel(), "different": count}
    if count == 0:
        return metrics
    metrics["nan"] = int(candidate.isnan().sum())
    raise CheckFailed(
        f"{what}: {count} of {wrong.numel()} values differ ({metrics['nan']} NaN)\n{describe_first(candidate, expected, wrong)}\n"
        + where(wrong),
        metrics,
    )


def where(wrong: Tensor) -> str:
    """How wrong elements of [rows, columns] lie: rows and columns touched, worst rows, and density by tiles of 16, 64 and 128 columns."""
    wrong = wrong.reshape(-1, wrong.shape[-1])
    rows, columns = wrong.sum(1), wrong.sum(0)
    worst = rows.topk(min(4, rows.numel()))
    text = [
        f"  in {int((rows > 0).sum())} of {rows.numel()} rows and {int((columns > 0).sum())} of {columns.numel()} columns; worst rows "
        + ", ".join(f"{i}: {n}" for n, i in zip(worst.values.tolist(), worst.indices.tolist(), strict=True) if n)
    ]
    for tile in (16, 64, 128):
        padded = torch.nn.functional.pad(columns.float(), (0, -columns.numel() % tile)).view(-1, tile).sum(1)
        touched = (padded > 0).nonzero().flatten().tolist()
        text.append(f"  column tiles of {tile}: {len(touched)} of {padded.numel()} touched, first {touched[:6]}")
    return "\n".join(text)
