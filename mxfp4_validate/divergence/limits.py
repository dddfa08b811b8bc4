"""Every number that decides in a divergence run, with its reason. `calibrate` may raise RATIO, TAIL_FACTOR and FLIP_RATIO, nothing lowers one."""

from __future__ import annotations

from dataclasses import dataclass

from mxfp4_validate.tolerances import Tolerance

#: FAIL-A: ratio of the candidate's mean KL to the A/A floor that no legitimate backend reaches.
RATIO = Tolerance(1.5, "on a 135M model another legitimate kernel stood at 1.17 and a fp32 reference at 0.91, an output off by 1 % at 1.8")
#: FAIL-B: a sequence's mean KL over the largest one among all A/A sequences.
TAIL_FACTOR = Tolerance(3.0, "sequence means of A/A spread by a factor of 2 at most; a fault in 5 % of sequences raised theirs 60 times")
#: FAIL-C: the same ratio for the share of positions whose most likely token changes.
FLIP_RATIO = Tolerance(1.5, "another legitimate kernel stood at 1.1 to 1.2 of A/A's flips, an output off by 1 % at 1.56")
#: FAIL-D: ratio of the typical (geometric mean) sequence's KL to the floor's.
TYPICAL = Tolerance(
    1.5, "on the tiny model sound backends stood at 0.9 to 1.4 of each other over 20 corpora, 1 % of its first layer at 2.3 and more"
)
#: FAIL-E: size of a drift of the log-probabilities to one side, over the floor's scatter (half the mean square of its log-ratios).
DRIFT = Tolerance(
    4.0, "what zero-mean noise leaves of a drift is of the second order, as the scatter is: sound twins kept within 0.9 of it on average and "
    "transformers' bf16 sums within 2.7; 1 % of one layer of the tiny model stood at 7, 22 and 40"
)  # fmt: skip
#: Log-ratio in nat at which a position's part of a drift is cut.
DRIFT_CLIP = Tolerance(
    0.2, "a position where a rounding chose another expert moves by whole nats, one where a layer is off by 1 % by hundredths: uncut, the "
    "few first hide the many second, and the same fault has half the t"
)  # fmt: skip
#: FAIL-B: so many sequences must stand out; one is enough where the floor is an assumed one, which no sound backend comes near.
TAIL_COUNT = Tolerance(
    3, "another expert or another token chosen by a rounding makes one sequence's KL any size: on SmolLM2 one of 160 of a sound backend stood above, "
    "on the tiny model one of 128. With a tail of 1/x^a, m stand above f times the floor's largest with chance (1 + f^a)^-m, 1.6 % at the worst a = 1 seen"
)  # fmt: skip
#: Confidence of each one-sided bound of the two ratios.
LEVEL = Tolerance(
    0.997, "three rules and several regimes are looked at; 0.3 % each keeps a sound candidate's false FAIL near 1 % over four"
)
#: Bootstrap draws.
DRAWS = Tolerance(10_000, "the 0.3 % quantile then rests on 30 draws; 256 sequences take well under a second")
#: Sequences below which the two bootstrapped rules say nothing.
LEAST_SEQUENCES = Tolerance(
    16, "resampling n sequences cannot reach below the least of them, which lies above the true ratio with chance 2^-n; 16 leaves room"
)
#: Mean KL of A/A in nats below which A/A is no measure of rounding: the server repeats its own bits, or nearly.
QUIET_FLOOR = Tolerance(
    1e-5, "bf16 models measured 1e-3 between two reduction orders; a hundredth of that means that hardly a sum was added up differently"
)
#: The same for the typical sequence.
QUIET_TYPICAL = Tolerance(
    1e-6, "one expert chosen otherwise lifts the mean of 128 sequences that all but repeat their bits over the line above; typical are 2e-5"
)
#: What a quiet A/A is replaced by: a mean KL in nats that another order of the same bf16 sums may well cause.
ASSUMED_FLOOR = Tolerance(
    2e-2, "sound kernels stood at 1.2e-3 from each other on a dense 135M model and at 0.9 to 1.2e-2 on a random MoE, where a rounding "
    "may choose another expert; about twice the larger one, an assumption that never lets anything go on"
)  # fmt: skip
#: The same for the share of flipped tokens.
ASSUMED_FLIPS = Tolerance(0.06, "2.0 % and 2.1 to 3.8 % in the same two measurements; half as many again")
#: The same for the largest sequence mean over the mean of all.
ASSUMED_SPREAD = Tolerance(
    5.0, "another expert chosen early moves a whole sequence: on the random MoE the largest of 32 stood at 4 to 6 times the mean"
)
#: Mean KL in nats up to which nothing has changed but the printing of numbers.
SAME = Tolerance(1e-7, "six digits behind the point move what is left beside twenty tokens by 1e-6, which is 5e-8 nat at REST_FLOOR")
#: Flips an A/A is taken to have had if it had fewer.
LEAST_FLIPS = Tolerance(5, "a rate from fewer than five events is unknown within a factor of two, and one from none divides by zero")
#: Probability below which what is left beside the named tokens is not told from 0.
REST_FLOOR = Tolerance(1e-5, "twenty fp32 log-probabilities add up within 20 * 2^-24 = 1.2e-6, so less than this is mostly rounding")
#: Log-probability above 0 that is rounding.
POSITIVE_DUST = Tolerance(
    1e-4, "log-softmax in fp32 ends within a few 1e-6 of 0; 1e-4 leaves room for a vocabulary of 200,000 summed naively"
)
#: Probability above 1 that is rounding.
MASS_DUST = Tolerance(1e-3, "fp32 keeps 1e-5; log-probabilities that went through bf16 miss by 1e-2 and are useless here")
#: How far a token's own log-probability may lie from the one in the list of the most likely.
CHOSEN_APART = Tolerance(1e-4, "both are read from one fp32 vector; servers print six digits or more")
#: Alternatives asked for at each position.
TOP = Tolerance(20, "what vLLM grants unless told otherwise; in a 135M model the other tokens hold a few percent")
#: Positions scored by one request.
WINDOW = Tolerance(
    512, "SGLang keeps a row of logits for each: 512 of a 200,000 vocabulary are 0.4 GB in fp32, a whole context ran out of memory"
)
#: Runs of the server against itself that a calibration needs.
LEAST_RUNS = Tolerance(3, "each is measured against the others; with two there is one ratio and its inverse")
#: Quantile of the resampled leave-one-out ratios that a calibration takes.
CALIBRATION_QUANTILE = Tolerance(0.997, "the level of the rule itself; sampling noise is counted twice, which errs towards no false FAIL")

ALL: dict[str, Tolerance] = {name: value for name, value in globals().items() if isinstance(value, Tolerance)}


@dataclass(frozen=True)
class Limits:
    """What one decision is taken by; `calibrate` makes others than the defaults."""

    ratio: float = RATIO.value
    tail_factor: float = TAIL_FACTOR.value
    flip_ratio: float = FLIP_RATIO.value
    typical: float = TYPICAL.value
    drift: float = DRIFT.value
    level: float = LEVEL.value
    draws: int = int(DRAWS.value)
    seed: int = 0
