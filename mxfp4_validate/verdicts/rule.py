"""The verdict: non-inferiority on fixed questions, at looks after complete repeats only."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import ceil, nan

from mxfp4_validate.statistics import boots, missing, paired, sequential
from mxfp4_validate.statistics.distributions import one_sided_z
from mxfp4_validate.verdicts import preconditions, summary
from mxfp4_validate.verdicts.inputs import Leg, Plan
from mxfp4_validate.verdicts.results import LookRow, Outcome, Verdict, points

_OUTCOMES = {sequential.PASS: Outcome.PASS, sequential.FAIL: Outcome.FAIL, sequential.UNDECIDED: Outcome.INCONCLUSIVE}
#: Power at which the repeats asked for would pass an identical candidate.
_POWER = 0.9


@dataclass(frozen=True)
class _Arms:
    """Both arms at one look: right answers at both ends of what is missing, and how to bound their difference."""

    worst: missing.Completion
    best: missing.Completion
    repeats: int
    boot_variance: float
    boots: tuple[int, int]

    @classmethod
    def of(cls, baseline: Leg, candidate: Leg, plan: Plan) -> _Arms:
        (b, gone_b), (c, gone_c) = ((leg.right.sum(1), leg.missing.sum(1)) for leg in (baseline, candidate))
        counts = max(1, len(summary.boot_names(candidate))), max(1, len(summary.boot_names(baseline)))
        ends = missing.worst_case(c, b, gone_b), missing.best_case(c, gone_c, b)
        return cls(*ends, baseline.repeats, plan.boot_variance or 0.0, counts)

    def _end(self, end: missing.Completion, z: float) -> paired.Difference:
        return paired.difference(end.candidate, self.repeats, end.baseline, self.repeats, z, self.boot_variance, self.boots)

    def bounds(self, z: float) -> paired.Difference:
        """Lower bound of the worst completion, upper bound of the best: plainly both bounds if nothing is missing."""
        worst, best = self._end(self.worst, z), self._end(self.best, z)
        return replace(worst, upper=best.upper, se=max(worst.se, best.se))

    def crossing(self) -> float:
        """Largest critical value at which the upper bound is still below 0, by bisection; 0 if there is no loss."""
        low, high = 0.0, 40.0
        for _ in range(36):
            middle = (low + high) / 2
            low, high = (middle, high) if self._end(self.best, middle).upper < 0 else (low, middle)
        return low


@dataclass(frozen=True)
class _Look:
    """One look taken, its bounds, and the largest critical value at which it still shows a loss."""

    row: LookRow
    bounds: paired.Difference
    crossing: float


def compare(baseline: Leg, candidate: Leg, plan: Plan) -> Verdict:
    """PASS if the lower bound of candidate - baseline is above -margin, else FAIL if the upper is below 0, else INCONCLUSIVE.

    The estimator is the difference on these very questions: MOVER-Wilson over repeats, Tango's score bounds for single
    answers; looks spend alpha by Lan-DeMets O'Brien-Fleming on either side. If no boot effect exists, a candidate that
    lost the margin or more passes at most 5 % of the time and one that lost nothing fails at most 5 % of the time, plus
    1 % for each of two alarms (boots, truncation). Blind to any defect that both arms share. Raises `IncompleteRun`
    while planned samples are missing that `allow_missing` does not cover.
    """
    reasons = preconditions.comparable(baseline, candidate, plan)
    identity = summary.identity_rows(baseline, candidate, plan.expected_differences)
    if reasons:
        used = min(baseline.repeats, candidate.repeats, plan.looks[-1])
        baseline, candidate = baseline.first(used), candidate.first(used)
    else:
        candidate = candidate.ordered(baseline.question_ids)
        looks = _walk(baseline, candidate, plan)
        baseline, candidate = (leg.first(looks[-1].row.repeats) for leg in (baseline, candidate))
    legs = summary.summarise(baseline), summary.summarise(candidate)
    reasons += preconditions.trustworthy(baseline, legs[0], plan)
    blank = Verdict(Outcome.INVALID, baseline.suite, nan, nan, nan, plan.margin, plan.alpha, *legs, identity=identity)
    if reasons:
        return replace(blank, reasons=tuple(reasons))
    return _judged(blank, looks, baseline, candidate, plan)


def _judged(blank: Verdict, looks: list[_Look], baseline: Leg, candidate: Leg, plan: Plan) -> Verdict:
    """The verdict of legs that may be compared, cut to the repeats of the look that decided."""
    last = looks[-1]
    test, odd = summary.boot_heterogeneity(candidate)
    differences = summary.differences(blank.baseline, blank.candidate)
    verdict = replace(
        blank,
        outcome=last.row.outcome,
        estimate=differences.as_scored,
        lower=last.row.lower,
        upper=last.row.upper,
        looks=tuple(look.row for look in looks),
        method=last.bounds.method,
        se=last.bounds.se,
        differences=differences,
        if_sampled=summary.as_a_sample(baseline, candidate, plan.alpha),
        exact=summary.exact_change(baseline, candidate),
        truncation_p=summary.truncation_change(baseline, candidate),
        boots_p=test.p,
        fail_p=sequential.repeated_p([look.crossing for look in looks], sequential.look_fractions(plan.looks)),
        flipped=summary.flips(baseline, candidate),
    )
    verdict = _alarmed(verdict, int(baseline.truncated.sum()), int(candidate.truncated.sum()), odd)
    verdict = replace(verdict, flags=tuple(_flags(verdict, baseline, candidate, plan)))
    return _with_needs(verdict, plan) if verdict.outcome is Outcome.INCONCLUSIVE else verdict


def _walk(baseline: Leg, candidate: Leg, plan: Plan) -> list[_Look]:
    """Look after look until one decides, or the records end; each uses the first repeats of both arms and nothing else."""
    looks: list[_Look] = []
    critical = sequential.critical_values(sequential.look_fractions(plan.looks), plan.alpha)
    for repeats, z in zip(plan.looks, critical, strict=True):
        done = looks[-1].row.repeats if looks else 0
        due = [preconditions.ready(leg, done, repeats, plan, name) for leg, name in ((baseline, "baseline"), (candidate, "candidate"))]
        if not all(due):
            break
        arms = _Arms.of(baseline.first(repeats), candidate.first(repeats), plan)
        bounds = arms.bounds(z)
        outcome = _OUTCOMES[int(sequential.decide(bounds.lower, bounds.upper, plan.margin))]
        looks.append(_Look(LookRow(repeats, z, bounds.lower, bounds.upper, outcome), bounds, arms.crossing()))
        if outcome is not Outcome.INCONCLUSIVE:
            break
    return looks


def _alarmed(verdict: Verdict, truncated_baseline: int, truncated: int, odd: str) -> Verdict:
    """The verdict after both alarms: risen truncation is a failure of its own, boots that differ leave nothing to pass."""
    outcome, reasons = verdict.outcome, []
    if outcome is Outcome.FAIL:
        reasons.append(f"loss: the upper bound {points(verdict.upper)} is below 0 after {verdict.looks[-1].repeats} repeats")
    if verdict.truncation_p <= preconditions.ALARM:
        outcome = Outcome.FAIL
        reasons.append(
            f"truncation rose at the same cap: {truncated} samples against {truncated_baseline} of the baseline "
            f"(exact p = {verdict.truncation_p:.2g}); endless answers are a symptom of wrong numbers"
        )
    if verdict.boots_p <= preconditions.ALARM:
        outcome = outcome if outcome is Outcome.FAIL else Outcome.UNSTABLE
        reasons.append(f"boots of the candidate differ (p = {verdict.boots_p:.2g}): {odd}")
    return replace(verdict, outcome=outcome, reasons=tuple(reasons))


def _flags(verdict: Verdict, baseline: Leg, candidate: Leg, plan: Plan) -> list[str]:
    """What a reader must know beside the outcome."""
    flags = []
    if verdict.outcome is Outcome.PASS and verdict.upper < 0:
        flags.append("small but significant loss")
    if verdict.lower > 0:
        flags.append("unexpected gain: check that the arms differ only in what is on trial")
    if plan.boot_variance is None:
        flags.append(f"boot noise not measured (needs {boots.ENOUGH_PAIRS} A/A pairs)")
    for name, leg in (("baseline", baseline), ("candidate", candidate)):
        known = len(summary.boot_names(leg))
        if known < 2:
            flags.append(f"{name} ran in {'one known boot' if known else 'no known boot'}: a bad boot could not be told")
        if leg.missing.any():
            flags.append(f"{name} misses {int(leg.missing.sum())} samples: the bounds hold for every way they could have ended")
    if not plan.aa and baseline.identity and candidate.identity and not verdict.identity:
        flags.append("the legs name no difference between the servers: this may compare one with itself")
    flags += [f"differs although not on trial: {row.name}" for row in verdict.identity if not row.expected]
    return flags


def _with_needs(verdict: Verdict, plan: Plan) -> Verdict:
    """What would decide: the repeats at which an identical candidate passes with power, or at which the estimate seen is decided."""
    done, theta = verdict.looks[-1].repeats, verdict.estimate
    z = one_sided_z(plan.alpha)
    planned = ((z + one_sided_z(1 - _POWER)) * verdict.se / plan.margin) ** 2
    # Half widths shrink with the root of the repeats; the nearer of -margin and 0 is reached first.
    seen = min(((z * verdict.se / d) ** 2 for d in (theta + plan.margin, -theta) if d > 0), default=0.0)
    total = max(done + 1, ceil(done * max(planned, seen)))
    needs = f"about {total} repeats ({total - done} more) in each arm would decide, if the difference stays near {points(theta)}"
    following = [look for look in plan.looks if look > done]
    if following:
        total = following[0]
        needs = f"extend both arms to {total} repeats ({total - done} more), the next look of the plan; {needs}"
    else:
        needs += "; that takes a new plan and fresh runs, this one has no look left"
    gone = verdict.baseline.missing + verdict.candidate.missing
    return replace(verdict, needs=(f"complete the {gone} missing samples; then " if gone else "") + needs, repeats_needed=total)
