"""Measures what docs/statistics.md states: error rates and power of the default plans, and of whole verdicts with their alarms.

python benchmarks/power.py [RUNS] [VERDICTS]; two or three minutes for 20000 and 600.
"""

from __future__ import annotations

import sys
from collections import Counter

import numpy as np

from mxfp4_validate.states import ANSWERED, TRUNCATED
from mxfp4_validate.statistics import power, simulate
from mxfp4_validate.verdicts import Leg, Plan, compare

AIME = simulate.question_rates(0.96, 0.32, 30)
GPQA = simulate.question_rates(0.735, 0.6, 198)
PLANS = [
    ("gpqa x8", GPQA, (8,), 0.03, 20),
    ("gpqa 4/8/12/16", GPQA, (4, 8, 12, 16), 0.025, 20),
    ("aime25 x16", AIME, (16,), 0.03, 2),
    ("aime25 8/16/24/32", AIME, (8, 16, 24, 32), 0.03, 2),
]


def plans(runs: int) -> None:
    """One line a plan: identical candidate, candidate at the margin in two shapes, and two plain losses."""
    print("plan                 margin  same: PASS  FAIL  repeats | at margin: PASS all / few | FAIL at -5 (repeats) / -7.5")
    for name, rates, looks, margin, few in PLANS:
        same = simulate.repeated_plan(rates, rates, looks, margin, runs, 1)
        spread = simulate.repeated_plan(simulate.corrupted(rates, margin), rates, looks, margin, runs, 2)
        narrow = simulate.repeated_plan(simulate.corrupted(rates, margin, few), rates, looks, margin, runs, 3)
        five, more = (simulate.repeated_plan(simulate.corrupted(rates, loss), rates, looks, margin, runs, 4) for loss in (0.05, 0.075))
        print(
            f"{name:20} {100 * margin:5.1f} {same.passed:9.3f} {same.failed:7.3f} {same.repeats:7.1f}  | {spread.passed:.3f} / {narrow.passed:.3f}"
            f" | {five.failed:.3f} ({five.repeats:.1f}) / {more.failed:.3f} ({more.repeats:.1f})"
        )
    for discordance in (0.02, 0.03, 0.05, 0.08):
        design = power.Design("gsm8k", 1319, 1, discordance=discordance)
        worse = power.Design("gsm8k", 1319, 1, discordance=discordance + 0.015)
        print(
            f"gsm8k, {100 * discordance:.0f} % flips       1.5 {power.pass_probability(design, 0.015):9.3f} "
            f"{power.fail_probability(design, 0.015):7.3f}      1.0  | {power.pass_probability(worse, 0.015, true_difference=-0.015):.3f} (exact)"
        )


def _leg(name: str, rates: np.ndarray, repeats: int, truncated: float, rng: np.random.Generator) -> Leg:
    right = rng.random((len(rates), repeats)) < rates[:, None]
    # Truncations hit the samples that would have been wrong, so that both arms keep their rates.
    cut = ~right & (rng.random(right.shape) < truncated)
    boots = np.tile([f"{name}{j * 4 // repeats}" for j in range(repeats)], (len(rates), 1))
    ids = tuple(map(str, range(len(rates))))
    return Leg(name, "x", ids, repeats, np.where(cut, TRUNCATED, ANSWERED), right, boots, np.full(right.shape, np.nan), {}, {})


def verdicts(count: int) -> None:
    """Outcomes of `compare` itself on identical arms, four boots each, one in fifty of the wrong answers truncated."""
    rng = np.random.default_rng(5)
    for name, rates, looks, margin, _ in PLANS:
        plan = Plan(margin, looks, boot_variance=0.0)
        got = Counter(str(compare(*(_leg(arm, rates, looks[-1], 0.02, rng) for arm in "bc"), plan).outcome) for _ in range(count))
        print(f"{name:20} { ({key: round(value / count, 3) for key, value in sorted(got.items())}) }")


if __name__ == "__main__":
    plans(int(sys.argv[1]) if len(sys.argv) > 1 else 20_000)
    verdicts(int(sys.argv[2]) if len(sys.argv) > 2 else 600)
