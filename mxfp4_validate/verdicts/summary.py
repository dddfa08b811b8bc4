"""One leg in numbers, two legs question by question; nothing here decides."""

from __future__ import annotations

from collections.abc import Callable
from math import nan

import numpy as np
from numpy.typing import NDArray

from mxfp4_validate.states import ANSWERED, STATES
from mxfp4_validate.statistics import exact, missing, paired
from mxfp4_validate.statistics.exact import ExactTest, Heterogeneity
from mxfp4_validate.statistics.intervals import Interval, fixed_questions, run_to_run, similar_questions
from mxfp4_validate.verdicts.inputs import Leg
from mxfp4_validate.verdicts.results import Differences, Flip, IdentityRow, LegSummary

Counts = NDArray[np.int64]


def summarise(leg: Leg) -> LegSummary:
    """Every number of one leg over all of its repeats."""
    right, present = leg.right, ~leg.missing
    score = _mean_over_questions(right.sum(1), present.sum(1))
    answered = leg.states == ANSWERED
    unanswered = int((present & ~answered).sum())
    whole = present.all(1)
    by_repeat = tuple(_share(int(right[:, j].sum()), int(present[:, j].sum())) for j in range(leg.repeats))
    deviation, mean_error = run_to_run(by_repeat)
    fixed = _over_completions(fixed_questions, leg, score) if leg.repeats > 1 else None
    similar = _over_completions(similar_questions, leg, score)
    se = fixed.se if fixed else similar.se
    tokens = leg.completion_tokens[present & ~np.isnan(leg.completion_tokens)]
    states, counts = np.unique(leg.states, return_counts=True)
    found = dict(zip(states.tolist(), counts.tolist(), strict=True))
    return LegSummary(
        run_id=leg.run_id,
        repeats=leg.repeats,
        states={state: found[state] for state in STATES if state in found},
        score=score,
        se=se if present.any() else nan,
        fixed=fixed if present.any() else None,
        similar=similar if present.any() else None,
        bounds=missing.score_bounds(right, leg.missing, right.size),
        answered_only=_share(int(right.sum()), int(answered.sum())),
        unanswered_bounds=(_share(int(right.sum()), int(present.sum())), _share(int(right.sum()) + unanswered, int(present.sum()))),
        pass_at_k=float(right[whole].any(1).mean()) if whole.any() else nan,
        by_repeat=by_repeat,
        run_sd=deviation,
        run_sem=mean_error,
        mean_tokens=float(tokens.mean()) if tokens.size else nan,
    )


def _mean_over_questions(right: Counts, present: Counts) -> float:
    """Mean of right / present over the questions that have any sample."""
    asked = present > 0
    return float((right[asked] / present[asked]).mean()) if asked.any() else nan


def _share(part: int, whole: int) -> float:
    return part / whole if whole else nan


def _over_completions(method: Callable[[Counts, int], Interval], leg: Leg, score: float) -> Interval:
    """The interval that holds for every completion of what is missing: with nothing missing, simply the interval."""
    right, gone = leg.right.sum(1), leg.missing.sum(1)
    ends = [method(counts, leg.repeats) for counts in ((right, right + gone) if gone.any() else (right,))]
    return Interval(score, max(e.se for e in ends), min(e.lower for e in ends), max(e.upper for e in ends), ends[0].level)


def differences(b: LegSummary, c: LegSummary) -> Differences:
    """Candidate c minus baseline b, each way."""
    return Differences(c.score - b.score, c.answered_only - b.answered_only, c.bounds[0] - b.bounds[1], c.bounds[1] - b.bounds[0])


def as_a_sample(baseline: Leg, candidate: Leg, alpha: float) -> paired.Difference | None:
    """The paired t over questions; None with missing samples, which it has no bounds for."""
    if baseline.missing.any() or candidate.missing.any():
        return None
    return paired.paired_t(candidate.right.sum(1), candidate.repeats, baseline.right.sum(1), baseline.repeats, alpha)


def exact_change(baseline: Leg, candidate: Leg) -> ExactTest:
    """Exact test that right answers are as common in both legs, over present samples."""
    return exact.stratified(candidate.right.sum(1), (~candidate.missing).sum(1), baseline.right.sum(1), (~baseline.missing).sum(1))


def truncation_change(baseline: Leg, candidate: Leg) -> float:
    """One-sided exact p-value that the candidate hits the cap no more often, over present samples."""
    present = [(~leg.missing).sum(1) for leg in (candidate, baseline)]
    return exact.stratified(candidate.truncated.sum(1), present[0], baseline.truncated.sum(1), present[1]).more


def boot_names(leg: Leg) -> list[str]:
    """Boots that answered at least one sample of the leg."""
    return [name for name in np.unique(leg.boots[~leg.missing]).tolist() if name]


def boot_heterogeneity(leg: Leg) -> tuple[Heterogeneity, str]:
    """Do the leg's boots differ inside questions, and a text that names the oddest boot."""
    names = boot_names(leg)
    present = ~leg.missing
    inside = [(leg.boots == name) & present for name in names]
    samples = np.stack([mask.sum(1) for mask in inside], -1) if names else np.zeros((len(leg.question_ids), 0), np.int64)
    events = np.stack([(leg.right & mask).sum(1) for mask in inside], -1) if names else samples
    result = exact.heterogeneity(events, samples)
    if result.oddest < 0:
        return result, ""
    i = result.oddest
    right, asked = int(events[:, i].sum()), int(samples[:, i].sum())
    return result, f"boot {names[i]!r} has {right} of {asked} right, {right - result.excess[i]:.1f} expected"


def flips(baseline: Leg, candidate: Leg) -> tuple[Flip, ...]:
    """Questions whose score changed, largest loss first, then by id."""
    rows = []
    (b, of_b), (c, of_c) = ((leg.right.sum(1).tolist(), (~leg.missing).sum(1).tolist()) for leg in (baseline, candidate))
    for i, question in enumerate(baseline.question_ids):
        if of_b[i] and of_c[i] and b[i] * of_c[i] != c[i] * of_b[i]:
            rows.append(Flip(question, (b[i], of_b[i]), (c[i], of_c[i]), c[i] / of_c[i] - b[i] / of_b[i]))
    return tuple(sorted(rows, key=lambda row: (row.change, row.question_id)))


def identity_rows(baseline: Leg, candidate: Leg, expected: tuple[str, ...]) -> tuple[IdentityRow, ...]:
    """What the servers do not share, expected differences first."""
    names = sorted(baseline.identity.keys() | candidate.identity.keys(), key=lambda name: (name not in expected, name))
    rows = [IdentityRow(n, baseline.identity.get(n, "unknown"), candidate.identity.get(n, "unknown"), n in expected) for n in names]
    return tuple(row for row in rows if row.baseline != row.candidate)
