"""What a grader says about a text."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Grade:
    """One grade and why.

    Attributes:
        correct: whether the extracted answer equals the gold one; False if nothing was extracted.
        answer: what was extracted, normalised; None if nothing was.
        rule: the rule that fired, e.g. `boxed`, `answer-phrase`, `last-number`, or why nothing did: `cut`, `two-answers`, `nothing`.
        weak: the answer came from a fall-back a stricter grader would not accept.
        flags: things a reader should know: `out-of-range`, `think-in-content`, `unparsed`, `grader-error`.
    """

    correct: bool
    answer: str | None
    rule: str
    weak: bool = False
    flags: tuple[str, ...] = ()
