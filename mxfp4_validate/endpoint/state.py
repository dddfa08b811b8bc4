"""The state a sample ends in, from its last attempt and what the grader found."""

from __future__ import annotations

from mxfp4_validate import states
from mxfp4_validate.endpoint.attempt import Attempt
from mxfp4_validate.grading.base import Grade


def state_of(attempt: Attempt, grade: Grade | None) -> str:
    """One of `states.STATES`. Truncated wins over everything a text may hold: an answer that was cut is not an answer.

    An unknown finish_reason is kept as if it were `stop` (its flag stays with the sample); a missing answer text with reasoning
    beside it is `empty`, never graded from the reasoning.
    """
    if not attempt.ok or attempt.reply is None:
        return attempt.outcome
    reply = attempt.reply
    if reply.finish_reason == "length":
        return states.TRUNCATED
    if not reply.content.strip():
        return states.EMPTY
    return states.ANSWERED if grade is not None and grade.answer is not None else states.NO_ANSWER
