"""`RoundingModel`: where a backend rounds, and in which order it adds up. Backends declare it, the twin obeys it."""

from __future__ import annotations

from dataclasses import dataclass

from mxfp4_validate.formats import e8m0


@dataclass(frozen=True)
class RoundingModel:
    """The declared arithmetic of one backend (and one tactic of it).

    Attributes:
        name: shown in messages.
        promote: True if each 32-wide chunk is summed unscaled and then added as `acc += partial * scale` in fp32 (FlashInfer SM90);
            False if the scale is folded into the bf16 weight and the whole of K is one fp32 sum (Marlin, triton_kernels).
        k_tiles: width of a K tile in elements, of GEMM1 and of GEMM2; decides the chunk order when `promote`.
        k_pad: K is padded to a multiple of this before it is cut into tiles.
        h_bf16: GEMM1's result is rounded to bf16 before the activation.
        bias1_bf16: the first bias is added in bf16 (one more rounding).
        fast_exp: the sigmoid is 1 / (1 + 2^(-z log2 e)) with every step rounded to fp32, as CUDA's fast math compiles it.
        silu_bf16: where there is a limit, no alpha and no beta, silu(gate) is rounded to bf16 before it meets up: Marlin clamps with PyTorch's
            bf16 operators there. Without a limit, and for GPT-OSS's activation (its own kernel since sglang 0.5.23), it fuses, with fast math.
        fused_beta: silu(gate) * (up + beta) is one fused multiply-add, fma(s, up, s * beta) (triton_kernels, whose beta is 1).
        steps_bf16: every step of the activation is a bf16 operator: alpha * g, its sigmoid, their product, up + beta, the last product.
        y_bf16: GEMM2's result is rounded to bf16 before the second bias and the routing weight.
        bias2_bf16: the second bias is added in bf16.
        weight_bf16: the routing weight is rounded to bf16 first.
        slot_bf16: weight * (y + bias2) is rounded to bf16 per slot before the sum over slots.
        ordered: the declared order is the backend's own order, so that what differs must be explained; otherwise the order is unknown
            and the freedom of the sum is part of every interval.
        repeatable: identical calls return identical bits. Marlin's do not on larger batches: sglang's `moe_align_block_size` sorts the tokens
            of an expert with atomics, so a token's block, and with it the cut of K between thread blocks, changes from call to call
            (measured on an H200, docs/findings.md). Relations between two of its calls are then held to the twin's intervals.
        e8m0: what scale bytes 0 and 255 are read as.
    """

    name: str
    promote: bool = True
    k_tiles: tuple[int, int] = (128, 128)
    k_pad: int = 128
    h_bf16: bool = True
    bias1_bf16: bool = False
    fast_exp: bool = False
    silu_bf16: bool = False
    fused_beta: bool = False
    steps_bf16: bool = False
    y_bf16: bool = True
    bias2_bf16: bool = False
    weight_bf16: bool = False
    slot_bf16: bool = False
    ordered: bool = True
    repeatable: bool = True
    e8m0: e8m0.Meaning = e8m0.EXPONENT_FIELD

    @property
    def bf16_roundings(self) -> int:
        """At how many points a value is rounded to bf16 on its way, at most: the activation's result, the sum, and what is declared."""
        points = (self.h_bf16, self.bias1_bf16, self.silu_bf16, self.y_bf16, self.bias2_bf16, self.weight_bf16, self.slot_bf16)
        return 2 + sum(points) + 4 * self.steps_bf16


SM90_CUTLASS = RoundingModel("sm90-cutlass", fast_exp=True)
MARLIN = RoundingModel(
    "marlin",
    promote=False,
    bias1_bf16=True,
    bias2_bf16=True,
    silu_bf16=True,
    weight_bf16=True,
    slot_bf16=True,
    ordered=False,
    repeatable=False,
)
TRITON_KERNELS = RoundingModel(
    "triton-kernels", promote=False, h_bf16=False, y_bf16=False, fast_exp=True, fused_beta=True, slot_bf16=True, ordered=False
)

OPENAI_TORCH = RoundingModel(
    "openai-torch",
    promote=False,
    bias1_bf16=True,
    bias2_bf16=True,
    steps_bf16=True,
    weight_bf16=True,
    ordered=False,
    e8m0=e8m0.OPENAI_TORCH,
)


def chunk_order(num_chunks: int, chunks_per_tile: int) -> list[int]:
    """Order in which FlashInfer's SM90 kernel adds its 32-wide chunks.

    First and last K tile in natural order, every middle tile with its last two chunks swapped (numerics measured on Hopper: with it the
    twin is bit-equal, with the natural order it is not).
    """
    order: list[int] = []
    tiles = -(-num_chunks // chunks_per_tile)
    for tile in range(tiles):
        chunk = list(range(tile * chunks_per_tile, min((tile + 1) * chunks_per_tile, num_chunks)))
        if 0 < tile < tiles - 1 and len(chunk) > 1:
            chunk[-2], chunk[-1] = chunk[-1], chunk[-2]
        order += chunk
    return order
