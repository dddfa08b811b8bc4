"""What must hold before a verdict means anything; each broken precondition is a reason with both values in it."""

from __future__ import annotations

from mxfp4_validate.errors import IncompleteRun
from mxfp4_validate.states import MISSING_STATES, NOT_RUN
from mxfp4_validate.verdicts.inputs import Leg, Plan
from mxfp4_validate.verdicts.results import LegSummary
from mxfp4_validate.verdicts.summary import boot_heterogeneity, identity_rows

#: One-sided error of each alarm (boots that differ, truncation that rose), beside the plan's own alpha.
ALARM = 0.01


def comparable(baseline: Leg, candidate: Leg, plan: Plan) -> list[str]:
    """Why these two legs must not be compared; empty if they may."""
    reasons = [f"{name}: {reason}" for name, leg in (("baseline", baseline), ("candidate", candidate)) for reason in leg.invalid]
    if baseline.run_id == candidate.run_id:
        reasons.append(f"both legs are run {baseline.run_id!r}; a run says nothing when compared with itself")
    if baseline.suite != candidate.suite:
        reasons.append(f"suite differs: baseline {baseline.suite!r}, candidate {candidate.suite!r}")
    for name in sorted(baseline.fingerprint.keys() | candidate.fingerprint.keys()):
        values = [leg.fingerprint.get(name) for leg in (baseline, candidate)]
        if values[0] != values[1]:
            shown = ["not recorded" if value is None else repr(value) for value in values]
            reasons.append(f"{name} differs: baseline {shown[0]}, candidate {shown[1]}")
    for one, other, name in ((baseline, candidate, "baseline"), (candidate, baseline, "candidate")):
        alone = sorted(set(one.question_ids) - set(other.question_ids))
        if alone:
            reasons.append(f"{len(alone)} of {len(one.question_ids)} questions are in the {name} only: {', '.join(alone[:5])}")
    if plan.aa:
        rows = [row for row in identity_rows(baseline, candidate, plan.expected_differences) if row.expected]
        reasons += [
            f"an A/A comparison needs one configuration, {r.name} differs: baseline {r.baseline!r}, candidate {r.candidate!r}" for r in rows
        ]
    return reasons


def trustworthy(baseline: Leg, summary: LegSummary, plan: Plan) -> list[str]:
    """Why the baseline cannot serve as one; empty if it can."""
    reasons = []
    present, truncated = int((~baseline.missing).sum()), int(baseline.truncated.sum())
    if truncated > plan.max_truncated * present:
        reasons.append(
            f"baseline truncated: {truncated} of {present} samples hit the cap ({100 * truncated / present:.1f} %, "
            f"at most {100 * plan.max_truncated:.1f} % allowed); raise max_tokens in both arms"
        )
    interval = summary.fixed or summary.similar
    if plan.anchor and interval and (interval.upper < plan.anchor[0] or interval.lower > plan.anchor[1]):
        low, high = plan.anchor
        reasons.append(
            f"baseline not as expected: its score is {100 * summary.score:.2f} %, interval [{100 * interval.lower:.2f}, "
            f"{100 * interval.upper:.2f}], the recorded band is [{100 * low:.2f}, {100 * high:.2f}]"
        )
    test, odd = boot_heterogeneity(baseline)
    if test.p <= ALARM:
        reasons.append(f"baseline boots differ (p = {test.p:.2g}), so it is no reference: {odd}")
    return reasons


def ready(leg: Leg, done: int, look: int, plan: Plan, name: str) -> bool:
    """Whether the first `look` repeats are complete enough to be looked at, `done` of them having been looked at before.

    The first look was promised: what it lacks raises `IncompleteRun`. A later one is due only once something of it was
    asked: before that the run has not been extended, and there is no look.
    """
    if done and not (leg.states[:, done:look] != NOT_RUN).any():
        return False
    used = leg.first(min(look, leg.repeats))
    counts = {state: int((used.states == state).sum()) for state in MISSING_STATES}
    unplanned = len(leg.question_ids) * max(0, look - leg.repeats)
    gone = sum(counts.values()) + unplanned
    if gone <= plan.allow_missing and not unplanned:
        return True
    shown = [f"{state} {count}" for state, count in counts.items() if count]
    shown += [f"{unplanned} beyond the {leg.repeats} repeats it was planned for"] if unplanned else []
    raise IncompleteRun(
        f"{name} {leg.run_id}: {gone} of {len(leg.question_ids) * look} samples of the first {look} repeats are missing "
        f"({', '.join(shown)}), {plan.allow_missing} allowed; resume the run to complete it"
    )
