"""What a comparison gives: a verdict, the looks and legs behind it, and the words for a difference."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from math import isnan

from mxfp4_validate.states import MISSING_STATES
from mxfp4_validate.statistics.exact import ExactTest
from mxfp4_validate.statistics.intervals import Interval
from mxfp4_validate.statistics.paired import Difference


class Outcome(StrEnum):
    """What a comparison can end with; UNSTABLE counts as FAIL."""

    PASS = "PASS"
    FAIL = "FAIL"
    UNSTABLE = "UNSTABLE"
    INCONCLUSIVE = "INCONCLUSIVE"
    INVALID = "INVALID"

    @property
    def exit_code(self) -> int:
        return {"PASS": 0, "FAIL": 1, "UNSTABLE": 1, "INCONCLUSIVE": 3, "INVALID": 4}[self.value]


@dataclass(frozen=True)
class LookRow:
    """One look: complete repeats, critical value, one-sided bounds at it, and what it says."""

    repeats: int
    critical: float
    lower: float
    upper: float
    outcome: Outcome


@dataclass(frozen=True)
class LegSummary:
    """One arm over the repeats that the verdict used; a missing sample is in `states` and in no score.

    Attributes:
        score: mean over questions of right / present; `bounds`: its ends over every completion of the missing samples.
        se: of the score on these questions (over questions, with one repeat); the larger one over both ends if any is missing.
        fixed: E1, "this benchmark" (None with one repeat); similar: E2, "questions like these".
        answered_only: right / answered; explains a score and never replaces it, because which samples answer is an outcome.
        unanswered_bounds: score if all that gave no answer were wrong, and if they were right.
        pass_at_k: share of questions without missing samples that were right at least once.
        by_repeat, run_sd, run_sem: each repeat's score, their standard deviation and that over sqrt(k): not an interval.
    """

    run_id: str
    repeats: int
    states: Mapping[str, int]
    score: float
    se: float
    fixed: Interval | None
    similar: Interval | None
    bounds: tuple[float, float]
    answered_only: float
    unanswered_bounds: tuple[float, float]
    pass_at_k: float
    by_repeat: tuple[float, ...]
    run_sd: float
    run_sem: float
    mean_tokens: float

    @property
    def missing(self) -> int:
        """Samples without an outcome of the model."""
        return sum(self.states.get(state, 0) for state in MISSING_STATES)


@dataclass(frozen=True)
class Differences:
    """Candidate minus baseline, four ways: of the scores, of answered samples only, and at both ends of what is missing."""

    as_scored: float
    answered_only: float
    worst_case: float
    best_case: float


@dataclass(frozen=True)
class Flip:
    """A question whose score changed: right answers of those present in each arm."""

    question_id: str
    baseline: tuple[int, int]
    candidate: tuple[int, int]
    change: float


@dataclass(frozen=True)
class IdentityRow:
    """Something the two servers do not share."""

    name: str
    baseline: str
    candidate: str
    expected: bool


@dataclass(frozen=True)
class Verdict:
    """The outcome of a comparison and everything that led to it.

    `estimate`, `lower` and `upper` belong to the look that decided, the bounds being one-sided at its critical value; NaN
    when INVALID. `fail_p` is the smallest alpha at which the loss side would have been crossed.
    """

    outcome: Outcome
    suite: str
    estimate: float
    lower: float
    upper: float
    margin: float
    alpha: float
    baseline: LegSummary
    candidate: LegSummary
    reasons: tuple[str, ...] = ()
    needs: str = ""
    repeats_needed: int | None = None
    flags: tuple[str, ...] = ()
    looks: tuple[LookRow, ...] = ()
    method: str = ""
    se: float = float("nan")
    differences: Differences | None = None
    if_sampled: Difference | None = None
    exact: ExactTest | None = None
    truncation_p: float = 1.0
    boots_p: float = 1.0
    fail_p: float = 1.0
    flipped: tuple[Flip, ...] = ()
    identity: tuple[IdentityRow, ...] = ()

    @property
    def exit_code(self) -> int:
        return self.outcome.exit_code

    @property
    def headline(self) -> str:
        """One line: outcome, difference, bounds and margin, or why there is none."""
        if isnan(self.estimate):
            return f"{self.outcome} {self.suite}: {'; '.join(self.reasons) or self.needs}"
        return f"{self.outcome} {self.suite}: candidate - baseline {interval_text(self.estimate, self.lower, self.upper)}, margin {points(-self.margin)}"


@dataclass(frozen=True)
class Overall:
    """Several verdicts as one; `adjusted` holds each suite's FAIL-side p-value after Holm's correction."""

    outcome: Outcome
    reasons: tuple[str, ...]
    adjusted: Mapping[str, float]

    @property
    def exit_code(self) -> int:
        return self.outcome.exit_code


def points(fraction: float) -> str:
    """A difference in percentage points, signed."""
    return f"{100 * fraction:+.2f} pp"


def interval_text(estimate: float, lower: float, upper: float) -> str:
    """An estimate of a difference with both one-sided bounds, named as what they are."""
    return f"{points(estimate)}, one-sided bounds [{100 * lower:+.2f}, {100 * upper:+.2f}] pp"
