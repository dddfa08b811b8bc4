"""`plan`: requests, tokens, hours and detectable losses of a design, before anything is asked."""

from __future__ import annotations

from mxfp4_validate.errors import UsageError
from mxfp4_validate.evalspec import EvalSpec
from mxfp4_validate.statistics.power import Design, detectable_margin, repeats_needed, standard_error, within_share

#: What is assumed of an eval where no run of it is at hand: accuracy and share of variance between questions, from published runs of the
#: models this project is for; discordance of two greedy runs; tokens an answer takes with thinking on.
ASSUMED = {"gsm8k": (0.95, 0.5, 0.03, 300.0), "gpqa": (0.88, 0.6, 0.06, 9000.0), "aime25": (0.96, 0.33, 0.06, 31000.0)}


def plan_lines(spec: EvalSpec, repeats: int | None, detect: str | None, tokens: float | None, speed: float | None) -> list[str]:
    """The plan as lines of text."""
    accuracy, icc, discordance, usual = ASSUMED[spec.grader]
    variance, k = within_share(accuracy, icc), repeats or spec.repeats
    design = Design(spec.name, spec.questions, k, 0.0 if k == 1 else variance, discordance if k == 1 else 0.0)
    total = spec.questions * k * (tokens or usual)
    lines = [
        f"{spec.title}: {spec.questions} questions x {k} = {spec.questions * k} requests a leg, about {total / 1e6:.1f} million tokens a leg",
        f"assumed: accuracy {accuracy:.0%}, {icc:.0%} of the variance between questions, answers that flip between two greedy runs {discordance:.0%}",
        f"standard error of the difference: {100 * standard_error(design):.2f} pp",
        f"an identical candidate passes with 80 % at margin {100 * detectable_margin(design, 0.8):.2f} pp, "
        f"with 90 % at {100 * detectable_margin(design, 0.9):.2f} pp",
        f"this eval's plan: margin {100 * spec.margin:.1f} pp, looks after {', '.join(map(str, spec.looks))} repeats",
    ]
    if speed:
        lines.insert(1, f"at {speed:.0f} tokens a second: {total / speed / 3600:.1f} hours a leg")
    if detect is not None:
        margin = _points(detect)
        needed = repeats_needed(spec.questions, variance, margin)
        lines.append(f"margin {100 * margin:.2f} pp needs {needed} repeats a leg for 90 % passes of an identical candidate")
    return lines


def _points(text: str) -> float:
    try:
        value = float(text.lower().removesuffix("pp")) / 100
    except ValueError as error:
        raise UsageError(f"--detect is {text!r}, it must be percentage points, as in 3pp") from error
    if not 0 < value < 1:
        raise UsageError(f"--detect is {text!r}, it must be between 0 and 100 points")
    return value
