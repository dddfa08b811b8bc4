"""How long the kernel suite's two heavy steps take on a GPU: packing a layer (ours against the vendor's helper) and the ordered twin.

python benchmarks/kernel.py            needs a Hopper GPU and FlashInfer; prints one line a figure, medians of interleaved runs
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

from mxfp4_validate.backends.sm90_cutlass import Sm90Cutlass
from mxfp4_validate.cases import SHAPES, MoeCase
from mxfp4_validate.checkpoints.synthetic import random_inputs, random_weights
from mxfp4_validate.layouts.prepare import prepare_sm90
from mxfp4_validate.layouts.rows import pad_halves, pad_to, swap_halves
from mxfp4_validate.reference.twin import twin_moe

ROUNDS = 7


def seconds(call: Callable[[], object]) -> float:
    """One timed call, the device idle before and after."""
    torch.cuda.synchronize()
    start = time.perf_counter()
    call()
    torch.cuda.synchronize()
    return time.perf_counter() - start


def paired(first: Callable[[], object], second: Callable[[], object]) -> tuple[float, float, float]:
    """Medians of both, taken in turn, and the median of the ratios."""
    first(), second()
    rounds = [(seconds(first), seconds(second)) for _ in range(ROUNDS)]
    return statistics.median(a for a, _ in rounds), statistics.median(b for _, b in rounds), statistics.median(a / b for a, b in rounds)


def pack(name: str, backend: Sm90Cutlass) -> None:
    """Weights alone (one tensor, our bijection against theirs) and the whole layer (swap, pad, pack)."""
    from flashinfer.fused_moe import interleave_moe_scales_for_sm90_mixed_gemm as vendor_scales
    from flashinfer.fused_moe import interleave_moe_weights_for_sm90_mixed_gemm as vendor_weights

    weights = random_weights(MoeCase(SHAPES[name], 1), "cuda")
    H, I = -(-weights.hidden_size // 128) * 128, -(-weights.intermediate_size // 128) * 128  # noqa: E741
    rows = pad_halves(swap_halves(weights.w13), I, H // 2)
    ours, theirs, ratio = paired(lambda: backend.layout.pack_weights(rows), lambda: vendor_weights(rows, "fp4"))
    print(f"{name} w13 weights: ours {ours * 1e3:.2f} ms, vendor {theirs * 1e3:.2f} ms, ratio {ratio:.2f}")

    def vendor() -> None:
        vendor_weights(pad_halves(swap_halves(weights.w13), I, H // 2), "fp4")
        vendor_scales(pad_halves(swap_halves(weights.w13_scale), I, H // 32))
        vendor_weights(pad_to(weights.w2, H, I // 2), "fp4")
        vendor_scales(pad_to(weights.w2_scale, H, I // 32))

    ours, theirs, ratio = paired(lambda: prepare_sm90(weights, backend.layout), vendor)
    print(f"{name} whole layer: ours {ours * 1e3:.2f} ms, vendor {theirs * 1e3:.2f} ms, ratio {ratio:.2f}")


def twin(name: str, tokens: int, backend: Sm90Cutlass) -> None:
    case = MoeCase(SHAPES[name], tokens)
    weights, inputs = random_weights(case, "cuda"), random_inputs(case, "cuda")
    times = [seconds(lambda: twin_moe(weights, inputs, case.shape.activation, backend.rounding())) for _ in range(3)]
    print(f"twin of {name}, M={tokens}: {statistics.median(times):.2f} s")


def main() -> None:
    backend = Sm90Cutlass()
    print(backend.availability())
    for name in ("gpt-oss-20b", "dsv4-flash"):
        pack(name, backend)
    twin("dsv4-flash", 1024, backend)
    twin("gpt-oss-20b", 1024, backend)


if __name__ == "__main__":
    main()
