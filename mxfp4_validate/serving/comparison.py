"""Two stored runs and the options of `compare` to one verdict; `compare` and `report` both go through here."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from mxfp4_validate.errors import UsageError
from mxfp4_validate.records.evals import EvalStore
from mxfp4_validate.serving.legs import read_leg
from mxfp4_validate.verdicts import Plan, Verdict, compare


@dataclass(frozen=True)
class CompareOptions:
    """What the user may say of a comparison.

    Attributes:
        margin: in percentage points; None is the one the candidate's run was made with.
        anchor: `LOW:HIGH` in percent, the band in which the baseline's score is known to lie.
        expect: identity names that are meant to differ, beside the MoE backend.
        grader: another of the stored grades.
    """

    margin: float | None = None
    aa: bool = False
    allow_missing: int = 0
    anchor: str | None = None
    expect: tuple[str, ...] = ()
    grader: str | None = None


def compare_runs(baseline: Path, candidate: Path, options: CompareOptions) -> Verdict:
    """The verdict. Raises `UsageError` for runs that must not be paired, `IncompleteRun` while samples are missing, `InvalidRun` for damage."""
    legs = [read_leg(path, options.grader) for path in (baseline, candidate)]
    with EvalStore.open(candidate) as store:
        settings, boots = store.run().settings, set(store.boots())
    with EvalStore.open(baseline) as store:
        shared = boots & set(store.boots())
    if shared and not options.aa:
        raise UsageError(
            f"both runs were answered by the same boot of the same server ({', '.join(sorted(shared))}); --aa if that is meant"
        )
    margin = options.margin / 100 if options.margin is not None else settings["margin"]
    repeats = min(leg.repeats for leg in legs)
    looks = tuple(look for look in settings["looks"] if look <= repeats) or (repeats,)
    expected = ("moe_backend", "moe_runner_backend", *options.expect)
    plan = Plan(
        margin,
        looks,
        allow_missing=options.allow_missing,
        aa=options.aa,
        anchor=anchor_band(options.anchor),
        expected_differences=expected,
    )
    verdict = compare(legs[0], legs[1], plan)
    if margin == settings["margin"]:
        return verdict
    note = f"the margin was changed after the run, from {100 * settings['margin']:.2f} to {100 * margin:.2f} pp"
    return replace(verdict, flags=(note, *verdict.flags))


def anchor_band(text: str | None) -> tuple[float, float] | None:
    """`LOW:HIGH` in percent as fractions."""
    if text is None:
        return None
    try:
        low, high = (float(part) / 100 for part in text.split(":"))
    except ValueError as error:
        raise UsageError(f"--anchor is {text!r}, it must be LOW:HIGH in percent, as in 92:97") from error
    return low, high
