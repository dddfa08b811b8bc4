"""One door to all graders: the suite says what an answer is, the mode says whose rules read it."""

from __future__ import annotations

from mxfp4_validate.errors import UnknownName, UsageError
from mxfp4_validate.grading import profiles
from mxfp4_validate.grading.base import Grade
from mxfp4_validate.grading.figures import grade_number
from mxfp4_validate.grading.letters import grade_letter

#: Raised whenever any text could get another grade; two runs are compared under one version, and old texts are graded again.
GRADER_VERSION = "1"
SUITES = ("aime25", "gpqa", "gsm8k")
MODES = ("lenient", "strict", *profiles.PROFILES)


def grade(suite_grader: str, text: str, gold: str, *, mode: str = "lenient") -> Grade:
    """The grade of one answer.

    Args:
        suite_grader: `gsm8k`, `aime25` or `gpqa`.
        text: the content of the answer, reasoning included or not; any string.
        gold: a number as a string, or the letter of the right option as it was shown.
        mode: `lenient` or `strict` (our rules, docs/grading.md), or a tool's: `sgl-eval`, `run_eval`, `gpt-oss`.

    Our own rules are pure functions of the text, linear in its length, and depend on no other package. A grader that failed or ran out
    of time gives the flag `grader-error`: such a grade is no statement about the model.

    Raises:
        UnknownName: no such suite or mode.
        UsageError: a profile's package is not installed, or the profile has no such suite.
    """
    if suite_grader not in SUITES:
        raise UnknownName("grader", suite_grader, SUITES)
    if mode not in MODES:
        raise UnknownName("grading mode", mode, MODES)
    if suite_grader == "gpqa" and gold not in ("A", "B", "C", "D"):
        raise UsageError(f"gold is {gold!r}; for gpqa it must be the letter A, B, C or D of the right option as shown")
    if mode in profiles.PROFILES:
        return profiles.grade(mode, suite_grader, text, gold)
    if suite_grader == "gpqa":
        return grade_letter(text, gold, strict=mode == "strict")
    return grade_number(text, gold, strict=mode == "strict", whole=suite_grader == "aime25")
