"""What a plan costs and what each of its stages can detect, before anything starts; a pure function of the plan."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from mxfp4_validate.errors import UsageError
from mxfp4_validate.plans.fleet import speculates
from mxfp4_validate.plans.spec import LEGS, EvalStage, PlanFile
from mxfp4_validate.questions import load
from mxfp4_validate.serving.costs import ASSUMED
from mxfp4_validate.statistics.power import Design, detectable_margin, within_share

#: Sequences of a divergence that share an intermittent fault and canaries that show one are found by the same rule: 1 - 0.05^(1/n).
_SURE = 0.05


@dataclass(frozen=True)
class StageCost:
    """Of both legs together, at most: an adaptive eval may stop earlier. `shows` is what the stage can detect, in words."""

    name: str
    requests: int
    tokens: float
    launches: int
    shows: str


def costs(plan: PlanFile) -> list[StageCost]:
    """One row a stage, in the plan's order; launches are those that this stage adds at most, canaries are asked on every boot but those for scores."""
    rows = [_of(plan, name) for name in plan.stages]
    begins = next((at for at, row in enumerate(rows) if row.name != "kernel"), None)
    if begins is not None:  # whatever needs a server first starts the first one; side by side, both
        first = _launched(plan) if plan.order == "side-by-side" else min(1, _launched(plan))
        rows[begins] = replace(rows[begins], launches=rows[begins].launches + first)
    boots = max(2, sum(row.launches for row in rows if row.name != "divergence"))
    return [_with_boots(plan, row, boots) if row.name == "canary" else row for row in rows]


def _of(plan: PlanFile, name: str) -> StageCost:
    if name == "kernel":
        return StageCost(name, 0, 0, 0, "any single wrong bit in any case of the suite")
    if name == "canary":
        share = 100 * (1 - _SURE ** (1 / plan.canary.generations))
        return StageCost(name, 0, 0, _turns(plan, 1, 1), f"rubbish in {share:.1f} % of generations or more, each boot")
    return _divergence(plan) if name == "divergence" else _eval(plan, name)


def _with_boots(plan: PlanFile, row: StageCost, boots: int) -> StageCost:
    asked = boots * plan.canary.generations
    return replace(row, requests=asked, tokens=float(asked * plan.canary.tokens))


def _launched(plan: PlanFile) -> int:
    return sum(not plan.leg(leg).base_url for leg in LEGS)


def _turns(plan: PlanFile, interleaved: int, sequence: int) -> int:
    """Launches by so many turns from one leg to the other; none where both are up."""
    turns = {"interleaved": interleaved, "sequence": sequence, "side-by-side": 0}[plan.order]
    return turns * _launched(plan) // 2


def _blocks(plan: PlanFile, looks: int) -> int:
    """Launches of an eval at most: a turn a look, or with fresh boots one for each block of each leg."""
    if plan.fresh_boots:
        return (1 if plan.order == "sequence" else looks) * _launched(plan)
    return _turns(plan, looks, 1)


def _divergence(plan: PlanFile) -> StageCost:
    """Each leg once, and interleaved the baseline again for the floor; a server that speculates is started without for this, and again after."""
    d = plan.divergence
    arms, share = 2 + d.floors, 100 * (1 - _SURE ** (1 / d.sequences))
    scored = d.sequences * d.max_tokens * len(d.widths) * arms
    requests = d.sequences + sum(d.sequences * -(-d.max_tokens // width) for width in d.widths) * arms
    own = sum(speculates(plan.leg(leg)) for leg in LEGS)
    around = 2 * own if plan.order == "side-by-side" else 2 if own else 0
    shows = f"an output off by 1 %, mean KL 1.5 times the floor; a fault that touches {share:.1f} % of sequences or more"
    return StageCost("divergence", requests, float(scored + d.sequences * d.max_tokens), _turns(plan, 2, 1) + around, shows)


def _eval(plan: PlanFile, name: str) -> StageCost:
    spec, stage = plan.eval_spec(name), plan.evals.get(name, EvalStage())
    accuracy, icc, discordance, usual = ASSUMED[spec.grader]
    accuracy, questions = stage.accuracy or accuracy, _questions(plan, name)
    k = spec.repeats
    design = Design(name, questions, k, 0.0 if k == 1 else within_share(accuracy, icc), discordance if k == 1 else 0.0)
    found = detectable_margin(design, 0.9)
    tokens = 2.0 * questions * k * (stage.tokens_per_answer or min(usual, float(stage.max_tokens or usual)))
    shows = (
        f"margin {100 * spec.margin:.1f} pp; an identical candidate passes {100 * found:.1f} pp with 90 %, looks after {_list(spec.looks)}"
    )
    if found > spec.margin:
        shows += "; TOO FEW samples for this margin"
    return StageCost(name, 2 * questions * k, tokens, _blocks(plan, len(spec.looks)), shows)


def _questions(plan: PlanFile, name: str) -> int:
    """How many are asked; of a local file it is opened to see."""
    spec, stage = plan.eval_spec(name), plan.evals.get(name, EvalStage())
    have = len(load(spec, Path(stage.questions)).questions) if stage.questions else spec.questions
    return min(have, stage.limit or have)


def _list(looks: tuple[int, ...]) -> str:
    return ", ".join(map(str, looks)) + (" repeat" if looks == (1,) else " repeats")


@dataclass(frozen=True)
class Total:
    """Of the whole plan at most; None where the plan does not say how fast or how dear."""

    requests: int
    tokens: float
    launches: int
    hours: float | None
    dollars: float | None


def total(plan: PlanFile) -> Total:
    """Sums, hours by the speed of one server and the launches, dollars by the GPUs that are held meanwhile."""
    rows, b = costs(plan), plan.budget
    tokens, launches = sum(r.tokens for r in rows), sum(r.launches for r in rows)
    both = 2 if plan.order == "side-by-side" else 1
    hours = tokens / both / b.tokens_per_second / 3600 + launches / both * b.launch_minutes / 60 if b.tokens_per_second else None
    dollars = None if hours is None or not b.dollars_per_gpu_hour else hours * b.gpus * both * b.dollars_per_gpu_hour
    return Total(sum(r.requests for r in rows), tokens, launches, hours, dollars)


def lines(plan: PlanFile) -> list[str]:
    """The plan for a terminal."""
    found = [f"{plan.name}: {plan.title}", f"order {plan.order}" + (", A/A" if plan.aa else "")]
    for leg in LEGS:
        s = plan.leg(leg)
        what = ", ".join(s.base_url) or (f"recipe {s.recipe}" if s.recipe else " ".join(plan.decided()[leg]["command"]))
        found.append(f"{leg:<10} {what}" + (f", MoE backend {s.backend}" if s.backend else ""))
    found.append(f"{'stage':<14} {'requests':>9} {'tokens':>10} {'launches':>8}  can detect")
    for row in costs(plan):
        found.append(f"{row.name:<14} {row.requests:>9} {_tokens(row.tokens):>10} {row.launches:>8}  {row.shows}")
    sum_ = total(plan)
    found.append(f"{'at most':<14} {sum_.requests:>9} {_tokens(sum_.tokens):>10} {sum_.launches:>8}  both legs together, every look taken")
    hours = "unknown, [budget] gives no tokens_per_second" if sum_.hours is None else f"{sum_.hours:.1f}"
    dollars = "unknown, [budget] gives no price" if sum_.dollars is None else f"{sum_.dollars:.0f} dollars"
    return [*found, f"hours: {hours}; cost: {dollars}", "order of stages is the order of cost; the first failure ends the run"]


def _tokens(tokens: float) -> str:
    return f"{tokens / 1e6:.2f} M" if tokens >= 1e5 else f"{tokens:.0f}"


def within_budget(plan: PlanFile) -> None:
    """`UsageError` if the estimate is over what the plan may cost, naming both."""
    sum_, b = total(plan), plan.budget
    for name, most, found in (("hours", b.hours, sum_.hours), ("tokens", b.tokens, sum_.tokens), ("dollars", b.dollars, sum_.dollars)):
        if most and found is not None and found > most:
            raise UsageError(
                f"plan {plan.name} may cost {found:.4g} {name}, its budget is {most:g}; raise [budget] {name}, ask less, or give --yes"
            )
