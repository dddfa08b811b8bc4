"""From the records of two runs to a verdict: is the candidate no worse than the baseline by more than the margin?

Pure functions of plain data: the same records always give the same verdict, whatever order the samples arrived in and
however often a run was resumed.
"""

from mxfp4_validate.verdicts.inputs import Leg, Plan
from mxfp4_validate.verdicts.overall import combine
from mxfp4_validate.verdicts.results import (
    Differences,
    Flip,
    IdentityRow,
    LegSummary,
    LookRow,
    Outcome,
    Overall,
    Verdict,
    interval_text,
    points,
)
from mxfp4_validate.verdicts.rule import compare

__all__ = [
    "Differences",
    "Flip",
    "IdentityRow",
    "Leg",
    "LegSummary",
    "LookRow",
    "Outcome",
    "Overall",
    "Plan",
    "Verdict",
    "combine",
    "compare",
    "interval_text",
    "points",
]
