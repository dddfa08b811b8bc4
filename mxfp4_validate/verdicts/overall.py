"""Several benchmarks, one outcome."""

from __future__ import annotations

from collections.abc import Sequence

from mxfp4_validate.errors import UsageError
from mxfp4_validate.statistics.multiple import holm, intersection_union
from mxfp4_validate.verdicts.preconditions import ALARM
from mxfp4_validate.verdicts.results import Outcome, Overall, Verdict


def combine(verdicts: Sequence[Verdict], planned: int = 0) -> Overall:
    """PASS if every one passed; FAIL if any failure survives Holm; then INVALID, then INCONCLUSIVE.

    The pass side is an intersection-union test and needs no correction. On the fail side three benchmarks would fail an
    identical candidate 14 % of the time; Holm (1979) keeps that at the error of one. An alarm enters scaled from its own 1 %
    to alpha. A failure that does not survive leaves the whole INCONCLUSIVE, never PASS. With `planned` benchmarks a plan that stopped
    early is corrected for all of them: those not run count as if nothing had failed.
    """
    if not verdicts:
        raise UsageError("there is no verdict to combine")
    alphas = {verdict.alpha for verdict in verdicts}
    if len(alphas) > 1:
        raise UsageError(f"the verdicts were made at different alpha: {sorted(alphas)}")
    alpha = alphas.pop()
    adjusted = holm([*(_fail_side(verdict, alpha) for verdict in verdicts), *[1.0] * (planned - len(verdicts))])
    failed = [v for v, p in zip(verdicts, adjusted, strict=False) if v.outcome.exit_code == 1 and p <= alpha]
    if failed:
        outcome = Outcome.FAIL
    elif any(verdict.outcome is Outcome.INVALID for verdict in verdicts):
        outcome = Outcome.INVALID
    elif intersection_union(verdict.outcome is Outcome.PASS for verdict in verdicts):
        outcome = Outcome.PASS
    else:
        outcome = Outcome.INCONCLUSIVE
    reasons = tuple(_reason(v, p, alpha, len(adjusted)) for v, p in zip(verdicts, adjusted, strict=False) if v.outcome is not Outcome.PASS)
    return Overall(outcome, reasons, {v.suite: p for v, p in zip(verdicts, adjusted, strict=False)})


def _fail_side(verdict: Verdict, alpha: float) -> float:
    """The p-value of what failed, 1 where nothing did."""
    if verdict.outcome.exit_code != 1:
        return 1.0
    return min(1.0, verdict.fail_p, verdict.truncation_p * alpha / ALARM, verdict.boots_p * alpha / ALARM)


def _reason(verdict: Verdict, adjusted: float, alpha: float, count: int) -> str:
    if verdict.outcome.exit_code == 1 and adjusted > alpha:
        return f"{verdict.headline}; alone a failure, not among {count} benchmarks (adjusted p = {adjusted:.3f})"
    return verdict.headline
