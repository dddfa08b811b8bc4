"""Two stored runs and the options of `compare` to one verdict; `compare` and `report` both go through here."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from mxfp4_validate import published
from mxfp4_validate.errors import UsageError
from mxfp4_validate.records.evals import EvalStore
from mxfp4_validate.serving.legs import read_leg
from mxfp4_validate.verdicts import Plan, Verdict, compare


@dataclass(frozen=True)
class CompareOptions:
    """What the user may say of a comparison.

    Attributes:
        margin: in percentage points; None is the one the candidate's run was made with.
        anchor: the band in which the baseline's score is known to lie, see `anchor_band`; None is what the candidate's run was made with.
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
    anchor = options.anchor if options.anchor is not None else settings.get("anchor", "")
    band = anchor_band(anchor, legs[0].suite, len(legs[0].question_ids))
    plan = Plan(
        margin,
        looks,
        allow_missing=options.allow_missing,
        aa=options.aa,
        anchor=band,
        expected_differences=expected,
        boot_variance=settings.get("boot_variance"),
    )
    verdict = compare(legs[0], legs[1], plan)
    if band is not None:
        verdict = replace(verdict, flags=(*verdict.flags, _against(band, anchor, verdict)))
    if margin == settings["margin"]:
        return verdict
    note = f"the margin was changed after the run, from {100 * settings['margin']:.2f} to {100 * margin:.2f} pp"
    return replace(verdict, flags=(note, *verdict.flags))


def _against(band: tuple[float, float], anchor: str, verdict: Verdict) -> str:
    """Both legs against the band, as a note: the baseline's place decides whether there is a verdict, the candidate's is told."""
    parts = []
    for name, leg in (("baseline", verdict.baseline), ("candidate", verdict.candidate)):
        interval = leg.fixed or leg.similar
        inside = interval is not None and interval.upper >= band[0] and interval.lower <= band[1]
        parts.append(f"{name} {100 * leg.score:.2f} % {'meets' if inside else 'misses'} it")
    return f"anchor {anchor}, [{100 * band[0]:.2f}, {100 * band[1]:.2f}] %: {', '.join(parts)}"


def anchor_band(text: str | None, suite: str, questions: int) -> tuple[float, float] | None:
    """The band as fractions: of `LOW:HIGH` in percent, or of `MODEL@EFFORT`, the rows of `evals/published.toml`; None of nothing."""
    if not text:
        return None
    if "@" in text:
        model, _, effort = text.rpartition("@")
        found = published.anchor(model, suite, effort)
        if any(row.questions != questions for row in found.rows):
            raise UsageError(
                f"--anchor {text}: its scores are of {found.rows[0].questions} questions, the run asks {questions}; ask all of them, or give LOW:HIGH"
            )
        return found.low, found.high
    try:
        low, high = (float(part) / 100 for part in text.split(":"))
    except ValueError as error:
        raise UsageError(
            f"--anchor is {text!r}, it must be LOW:HIGH in percent, as in 92:97, or MODEL@EFFORT of evals/published.toml"
        ) from error
    if not 0 <= low <= high <= 1:
        raise UsageError(f"--anchor is {text!r}, it must be LOW:HIGH with 0 <= LOW <= HIGH <= 100")
    return low, high


def published_lines(anchor: str | None, model: str, suite: str) -> list[str]:
    """Published scores of the anchor's model, else of the model served, in this eval: a line each, nothing if there are none."""
    name = anchor.rpartition("@")[0] if anchor and "@" in anchor else model
    return [row.line() for row in published.load() if row.model == name and row.eval == suite]
