"""Every number that decides a verdict, with its reason. Nothing else in this package may widen a comparison."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Tolerance:
    value: float
    reason: str


#: Significand bits that a Hopper tensor core keeps of every addend, counted from the largest one.
TENSOR_CORE_BITS = Tolerance(
    24, "bf16 products are aligned to the largest addend and cut at or below fp32's last place; 24 is the least observed"
)
#: Fixed units of last place a chunk of 32 may lose beyond its cut addends, once any addend is cut.
CHUNK_EXTRA_UNITS = Tolerance(4, "two MMA steps: the carried sum is cut once, each result normalised once, and the twin rounds once")
#: Units of last place that a sum of 16-wide tensor-core steps in unknown order may lose: a step, and beside the steps.
STEP_UNITS = Tolerance(2, "one MMA step: the carried sum is cut once and the result normalised once")
SLICE_UNITS = Tolerance(
    32, "slices of K that warps and blocks add up one after the other, in fp32; Marlin has 4 to 8 warps and a few blocks a column"
)
#: Relative error of the fp32 activation in units of 2^-23: CONSTANT + SLOPE * |alpha * gate|.
ACTIVATION_CONSTANT = Tolerance(
    8, "alpha*g, 1+e, quotient, u+beta and two products round once each; fast division and __expf add 2 ulp each"
)
ACTIVATION_SLOPE = Tolerance(
    1.2,
    "__expf evaluates 2^(x*log2 e), whose argument's rounding grows with |x|; with the constant it held in 33 million draws of both models' "
    "activations compiled with fast math on an H200, the worst at 0.55 of it",
)
#: Below this alpha*gate the kernel's exponential overflows and the result is exactly 0, where IEEE gives under 1e-35.
ACTIVATION_FLUSH = Tolerance(1e-30, "1/(1+inf) is 0; no result of this size can be seen in a bf16 output of order 1")
#: A sum whose absolute terms add up to at most this many of its quanta is exact in any order and grouping.
CERTIFICATE_QUANTA = Tolerance(2**22, "fp32 holds 2^24 quanta; two bits are left for alignment inside a tensor core")
#: Least share of outputs that must equal the ordered twin's on random data; the rest must be explained one by one.
BIT_EQUAL_SHARE = Tolerance(0.9995, "the activation's intrinsics move one bf16 in 2,000 to 10,000; measured 0.9998 to 1.0")
#: Rows below which that share is not asked, only that every difference is explained.
SHARE_TOKENS = Tolerance(
    16, "differences clump: one activation between two bf16 numbers moves 20 to 170 outputs of its row, so few rows say nothing"
)
#: The same share for a backend whose summation order is not known (Marlin, triton_kernels): fp32 order moves one bf16 in 200.
UNORDERED_BIT_EQUAL_SHARE = Tolerance(
    0.995, "another fp32 order moves 4e-5 to 1.4e-3 of outputs, per-slot bf16 roundings the rest; measured 0.9957 to 0.9998"
)
#: A-priori bound, section by section of `reference.bound`: Lipschitz constant of g*sigmoid(alpha*g).
SILU_LIPSCHITZ = Tolerance(1.1, "sup of the derivative is 1.0999, at alpha*g = 2.4")
#: Kernel against float64: relative L2 of a correct kernel with FlashInfer's four bf16 roundings; `exact_limit` gives another backend's.
EXACT_RELATIVE_L2 = Tolerance(
    6e-3,
    "bf16 rounding after GEMM1, activation, GEMM2 and the sum, each about 1.7e-3 (4 * 1.7e-3^2 is 3.4e-3^2); measured 3.4e-3 to 4.1e-3, "
    "and 5.9e-3 for the worst of 600 single rows of 64 and 256 outputs",
)
#: The tiny model with `reference` experts against transformers' own forward: a row's logits, RMS of the difference over their RMS.
TINY_LOGITS_RMS = Tolerance(
    0.05, "other summation orders move single bf16 last places, and layers carry them on; measured 0.026 at most in 6,400 rows"
)
#: The median of the same over all rows: what a small error everywhere, 1 % of one layer, would lift.
TINY_LOGITS_MEDIAN = Tolerance(2**-8, "one last place of bf16; measured 0, most rows are bit-equal")
#: Share of rows in which the two may choose other experts, about which those bounds then say nothing.
TINY_ROUTED_APART = Tolerance(0.01, "two bf16 router logits one last place apart; measured 0 to 0.004 with five random routers")
#: Share of greedy prompts that may part from transformers' other than at a tie of its own two best logits.
TINY_GREEDY_APART = Tolerance(
    0.02, "a router tie can do it in one of 50; measured 0 with four random models, 1 with a model before training"
)
#: The trainer's own forward against transformers', both in float32: largest difference of a logit.
TINY_TRAINER = Tolerance(
    1e-3, "float32 sums in another order; measured 5e-6 at logits up to 20, a wrong clamp, alpha or row order moves them by more than 1"
)
#: The tiny model served by sglang on a GPU against ours: mean distance of the log-probabilities of given tokens, in nat.
SERVED_LOGPROB = Tolerance(
    0.03,
    "both round logits of up to 30 to bf16, steps of 1/16 and 1/8: a uniform error of one step on either side is 0.02 on average; measured 0.0192 to "
    "0.0209, and 1.06 for a clamp at 7 instead of 2",
)

ALL: dict[str, Tolerance] = {name: value for name, value in globals().items() if isinstance(value, Tolerance)}
