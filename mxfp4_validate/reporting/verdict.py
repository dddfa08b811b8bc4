"""A verdict as plain lines for a terminal; the other formats are made from the same object."""

from __future__ import annotations

from math import isnan

from mxfp4_validate.statistics.intervals import Interval
from mxfp4_validate.verdicts import LegSummary, Verdict, points


def score_lines(name: str, leg: LegSummary) -> list[str]:
    """One leg: score with both intervals, named for what they are, and how its samples ended."""
    states = ", ".join(f"{state} {count}" for state, count in leg.states.items() if count)
    lines = [f"{name:<10} {100 * leg.score:.2f} %  ({leg.repeats} repeat{'s' * (leg.repeats > 1)}; {states})"]
    if leg.fixed is not None:
        lines.append(f"{'':<10} 95 % for these questions {_interval(leg.fixed)}, for questions like these {_interval(leg.similar)}")
    else:
        lines.append(f"{'':<10} 95 % for questions like these {_interval(leg.similar)}; one repeat says nothing of run-to-run noise")
    if leg.missing:
        lines.append(
            f"{'':<10} {leg.missing} samples missing: the score lies between {100 * leg.bounds[0]:.2f} and {100 * leg.bounds[1]:.2f} %"
        )
    return lines


def _interval(interval: Interval | None) -> str:
    return f"[{100 * interval.lower:.2f}, {100 * interval.upper:.2f}]" if interval else "unknown"


def verdict_lines(verdict: Verdict, most_flips: int = 10) -> list[str]:
    """The whole verdict: headline first, then reasons, what would decide, both legs, looks, changed questions, what differs."""
    lines = [verdict.headline]
    lines += [f"  because {reason}" for reason in verdict.reasons if not isnan(verdict.estimate)]
    lines += [f"  note: {flag}" for flag in verdict.flags]
    if verdict.needs:
        lines.append(f"  to decide: {verdict.needs}")
    lines += ["", *score_lines("baseline", verdict.baseline), *score_lines("candidate", verdict.candidate)]
    if verdict.differences is not None:
        d = verdict.differences
        lines.append(f"difference as scored {points(d.as_scored)}, of answered samples only {points(d.answered_only)}")
    if verdict.exact is not None:
        lines.append(
            f"no change at all: p = {verdict.exact.two_sided:.3g} (exact); truncation rose: p = {verdict.truncation_p:.3g}; "
            f"boots differ: p = {verdict.boots_p:.3g}; method {verdict.method}"
        )
    for row in verdict.looks:
        lines.append(
            f"look at {row.repeats} repeats, critical value {row.critical:.3f}: [{100 * row.lower:+.2f}, {100 * row.upper:+.2f}] pp, {row.outcome}"
        )
    for flip in verdict.flipped[:most_flips]:
        lines.append(f"  {flip.question_id}: {flip.baseline[0]}/{flip.baseline[1]} -> {flip.candidate[0]}/{flip.candidate[1]}")
    if len(verdict.flipped) > most_flips:
        lines.append(f"  and {len(verdict.flipped) - most_flips} more changed questions (--json lists all)")
    for item in verdict.identity:
        mark = "on trial" if item.expected else "also differs"
        lines.append(f"{mark}: {item.name}: baseline {item.baseline!r}, candidate {item.candidate!r}")
    return lines
