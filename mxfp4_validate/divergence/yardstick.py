"""A corpus with what the baseline, itself again and other accepted backends say of it, all in memory: candidates are held against it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from mxfp4_validate.divergence.corpus import Corpus
from mxfp4_validate.divergence.limits import Limits
from mxfp4_validate.divergence.rule import Decision, decide
from mxfp4_validate.divergence.scores import Scores
from mxfp4_validate.divergence.statistic import Arm, Compared, arm, compare_all


@dataclass(frozen=True, eq=False)
class Yardstick:
    """Every arm's scores, sequence by sequence; `floors` are the baseline again, `declared` other accepted backends."""

    corpus: Corpus
    baseline: Sequence[Scores]
    floors: Sequence[Sequence[Scores]]
    declared: Sequence[Sequence[Scores]] = ()

    def compared(self, scores: Sequence[Scores]) -> list[Compared]:
        """An arm against the baseline, sequence by sequence."""
        return compare_all(self.baseline, scores, [sequence.targets for sequence in self.corpus.sequences])

    @cached_property
    def arms(self) -> tuple[list[Arm], list[Arm]]:
        """The A/A runs and the declared backends, as the rule takes them."""
        floors, declared = ([arm(self.compared(scores)) for scores in group] for group in (self.floors, self.declared))
        return floors, declared

    def judge(self, scores: Sequence[Scores], limits: Limits | None = None) -> Decision:
        """The rule's decision on a candidate."""
        return decide(arm(self.compared(scores)), self.arms[0], limits, declared=self.arms[1])
