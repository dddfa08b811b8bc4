"""The serving wing's first room: load, pin and hash question sets."""

from __future__ import annotations

from mxfp4_validate.questions.base import Question, QuestionSet, digest
from mxfp4_validate.questions.loading import examples, first, load

__all__ = ["Question", "QuestionSet", "digest", "examples", "first", "load"]
