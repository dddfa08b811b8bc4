"""Raw answer to one grade and the rule that fired."""

from __future__ import annotations

from mxfp4_validate.grading.base import Grade
from mxfp4_validate.grading.grade import GRADER_VERSION, MODES, SUITES, grade

__all__ = ["GRADER_VERSION", "MODES", "SUITES", "Grade", "grade"]
