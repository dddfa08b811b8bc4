"""The roofline a row is held against: bytes that must move over the memory's bandwidth, work over the tensor cores' peak. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from mxfp4_validate.cases import MoeShape

#: An MXFP4 block: 32 codes of four bits and a scale byte.
BLOCK_CODES, BLOCK_BYTES = 32, 17
#: (words in the GPU's name, bytes/s of its memory, dense bf16 FLOP/s), by NVIDIA's data sheets; the first row whose words all occur counts.
PEAKS = (
    (("H100", "PCIe"), 2.0e12, 756e12),
    (("H100", "NVL"), 3.9e12, 835e12),
    (("H100",), 3.35e12, 989e12),
    (("H200", "NVL"), 4.8e12, 835e12),
    (("H200",), 4.8e12, 989e12),
    (("GH200", "480GB"), 4.0e12, 989e12),
    (("H800", "PCIe"), 2.0e12, 756e12),
    (("H800",), 3.35e12, 989e12),
    (("H20",), 4.0e12, 148e12),
)


@dataclass(frozen=True)
class Peak:
    """What a GPU's data sheet promises: bytes/s of its memory and dense bf16 FLOP/s of its tensor cores."""

    bandwidth: float
    flops: float


@dataclass(frozen=True)
class Floor:
    """The least time a call can take, in ms: the larger of both parts. `bound` is `memory` or `tensor cores`."""

    memory_ms: float
    compute_ms: float

    @property
    def ms(self) -> float:
        return max(self.memory_ms, self.compute_ms)

    @property
    def bound(self) -> str:
        return "memory" if self.memory_ms >= self.compute_ms else "tensor cores"


def peak_of(gpu: str) -> Peak | None:
    """The peaks of a GPU by the name its driver gives; None for one that is not in the table, and for a slice (MIG) of one."""
    named = set(gpu.split())
    if "MIG" in named:
        return None
    return next((Peak(bandwidth, flops) for words, bandwidth, flops in PEAKS if set(words) <= named), None)


def bytes_moved(shape: MoeShape, tokens: int, experts_hit: int) -> int:
    """Bytes any implementation must move: weights, scales and biases of the experts hit, x, ids, routing weights and the output.

    Nothing of what lies between the two GEMMs counts: it may stay in caches. Unpadded sizes, since padding is the backend's choice.
    """
    H, I = shape.hidden_size, shape.intermediate_size  # noqa: E741
    weights = 3 * H * I // BLOCK_CODES * BLOCK_BYTES
    biases = 2 * (2 * I + H) if shape.has_bias else 0
    return experts_hit * (weights + biases) + tokens * (2 * H + 2 * H + 8 * shape.top_k)


def flop(shape: MoeShape, tokens: int) -> int:
    """Multiplications and additions of both GEMMs over all routed rows."""
    return 2 * tokens * shape.top_k * 3 * shape.hidden_size * shape.intermediate_size


def floor_of(shape: MoeShape, tokens: int, experts_hit: int, peak: Peak) -> Floor:
    """The floor of one call on one GPU."""
    return Floor(bytes_moved(shape, tokens, experts_hit) / peak.bandwidth * 1e3, flop(shape, tokens) / peak.flops * 1e3)
