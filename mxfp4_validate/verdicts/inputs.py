"""What a comparison takes: two legs and a plan."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from mxfp4_validate.errors import InvalidRun, UsageError
from mxfp4_validate.states import ANSWERED, MISSING_STATES, STATES, TRUNCATED

Bools = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Leg:
    """One arm of a comparison, n questions by k planned repeats.

    Attributes:
        question_ids: n, in any order: pairing is by id.
        states: [n, k], a value of `states.STATES` for every sample, `not_run` where nothing was asked.
        correct: [n, k], what the grader said; it counts for answered samples only, and is never true for a missing one.
        boots: [n, k], id of the server boot that answered, "" where unknown.
        completion_tokens: [n, k], NaN where unknown.
        fingerprint: name -> value; any that differs between the legs makes them incomparable.
        identity: name -> value; what differs is shown, and judged only against `Plan.expected_differences`.
        invalid: reasons found while running, such as a backend that changed.
    """

    run_id: str
    suite: str
    question_ids: tuple[str, ...]
    repeats: int
    states: NDArray[np.str_]
    correct: Bools
    boots: NDArray[np.str_]
    completion_tokens: NDArray[np.float64]
    fingerprint: Mapping[str, str]
    identity: Mapping[str, str]
    invalid: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        shape = (len(self.question_ids), self.repeats)
        for name in ("states", "correct", "boots", "completion_tokens"):
            if getattr(self, name).shape != shape:
                raise InvalidRun(
                    f"run {self.run_id}: {name} is {getattr(self, name).shape}, {shape[0]} questions x {shape[1]} repeats expected"
                )
        twice = sorted({q for q in self.question_ids if self.question_ids.count(q) > 1}) if len(set(self.question_ids)) < shape[0] else []
        if twice:
            raise InvalidRun(f"run {self.run_id}: question ids occur twice: {', '.join(twice[:5])}")
        if 0 in shape:
            raise InvalidRun(f"run {self.run_id}: {shape[0]} questions x {shape[1]} repeats hold no sample")
        unknown = sorted(set(np.unique(self.states).tolist()) - set(STATES))
        if unknown:
            raise InvalidRun(f"run {self.run_id}: unknown states {', '.join(map(repr, unknown))}")
        if (self.correct & self.missing).any():
            raise InvalidRun(f"run {self.run_id}: {int((self.correct & self.missing).sum())} missing samples are marked right")

    @property
    def missing(self) -> Bools:
        """[n, k]: samples without an outcome of the model."""
        missing: Bools = np.isin(self.states, MISSING_STATES)
        return missing

    @property
    def right(self) -> Bools:
        """[n, k]: answered, and right."""
        right: Bools = self.correct & (self.states == ANSWERED)
        return right

    @property
    def truncated(self) -> Bools:
        """[n, k]: the token cap was hit."""
        truncated: Bools = self.states == TRUNCATED
        return truncated

    def first(self, repeats: int) -> Leg:
        """The same run as if it had ended after that many repeats."""
        cut = {name: getattr(self, name)[:, :repeats] for name in ("states", "correct", "boots", "completion_tokens")}
        return replace(self, repeats=repeats, **cut)

    def ordered(self, question_ids: tuple[str, ...]) -> Leg:
        """The same run with its questions in that order."""
        at = {question: i for i, question in enumerate(self.question_ids)}
        rows = [at[question] for question in question_ids]
        moved = {name: getattr(self, name)[rows] for name in ("states", "correct", "boots", "completion_tokens")}
        return replace(self, question_ids=question_ids, **moved)


@dataclass(frozen=True)
class Plan:
    """What was fixed before the run.

    Attributes:
        margin: largest loss, a fraction, that is still called no loss.
        looks: complete repeats after which to look; one of them is a fixed plan.
        alpha: one-sided error on each side, over all looks.
        allow_missing: missing samples a leg may have; any at all replaces the score by bounds over every completion.
        max_truncated: share of the baseline's samples that may hit the cap.
        anchor: band, as fractions, that the baseline's interval must touch.
        expected_differences: identity names that are on trial: may differ, and must not in an A/A comparison.
        aa: the same configuration twice.
        boot_variance: tau^2 of `statistics.boots` from A/A pairs; None is "not measured".
    """

    margin: float
    looks: tuple[int, ...]
    alpha: float = 0.05
    allow_missing: int = 0
    max_truncated: float = 0.02
    anchor: tuple[float, float] | None = None
    expected_differences: tuple[str, ...] = ("moe_runner_backend",)
    aa: bool = False
    boot_variance: float | None = None

    def __post_init__(self) -> None:
        if not 0 < self.margin < 1:
            raise UsageError(f"margin is {self.margin}, it must be a fraction between 0 and 1 (0.03 is 3 points)")
        if not self.looks or any(b <= a for a, b in zip((0, *self.looks), self.looks, strict=False)):
            raise UsageError(f"looks are {self.looks}, they must be increasing numbers of repeats")
        if not 0 < self.alpha < 0.5:
            raise UsageError(f"alpha is {self.alpha}, it must be between 0 and 0.5")
