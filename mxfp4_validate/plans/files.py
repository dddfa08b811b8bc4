"""Plan files: found, read and checked; what is wrong is said with the file, the key, its value and the way out."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from mxfp4_validate import evalspec, serverspec, tomldata
from mxfp4_validate.endpoint.logprob_bodies import PROTOCOLS
from mxfp4_validate.errors import UnknownName, UsageError
from mxfp4_validate.evalspec import EVALS
from mxfp4_validate.plans.spec import (
    CHEAP,
    LEGS,
    ORDERS,
    Budget,
    CanarySpec,
    DivergenceSpec,
    EvalStage,
    KernelSpec,
    LegSpec,
    PlanFile,
    sampling_of,
)  # fmt: skip


def names() -> list[str]:
    """The plans that come with the package."""
    return sorted({path.stem for root in EVALS for path in root.glob("plans/*.toml")})


def load(path: Path) -> PlanFile:
    """A plan from its file, or one of ours by its bare name; `UsageError` or `UnknownName` if it is none."""
    if not path.is_file():
        ours = next((root / "plans" / path.name for root in EVALS if (root / "plans" / path.name).is_file()), None)
        if ours is None:
            raise UnknownName("plan file", str(path), [f"{name}.toml" for name in names()])
        path = ours
    return parse(path.read_text(encoding="utf-8"), path)


def parse(text: str, where: Path) -> PlanFile:
    """A plan from the text of its file."""
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{where}: {error}") from error
    found = tomldata.table(data, PlanFile, str(where))
    kinds = {"baseline": LegSpec, "candidate": LegSpec, "canary": CanarySpec, "kernel": KernelSpec, "divergence": DivergenceSpec}
    for key, kind in (kinds | {"budget": Budget}).items():
        if key in found:
            found[key] = kind(**tomldata.table(found[key], kind, f"{where}: [{key}]"))
    if "evals" in found:
        found["evals"] = {
            name: EvalStage(**tomldata.table(part, EvalStage, f"{where}: [evals.{name}]")) for name, part in found["evals"].items()
        }
    plan = PlanFile(**found)
    if plan.name != where.stem:
        raise UsageError(f"{where}: name is {plan.name!r}, it must be the file's, {where.stem!r}")
    check(plan, str(where))
    return plan


def check(plan: PlanFile, where: str) -> None:
    """What no type says: `UsageError` names the key, its value and the way out."""
    if plan.order not in ORDERS:
        raise UnknownName(f"order of {where}:", plan.order, ORDERS)
    _check_stages(plan, where)
    for name in LEGS:
        _check_leg(plan.leg(name), f"{where}: [{name}]")
    if plan.order == "side-by-side":
        b, c = plan.baseline, plan.candidate
        if b.port and b.port == c.port:
            raise UsageError(f"{where}: both legs have port {b.port}; side by side each needs its own")
    for key, value in (("canary.generations", plan.canary.generations), ("divergence.floors", plan.divergence.floors)):
        if value < 1:
            raise UsageError(f"{where}: {key} is {value}, it must be at least 1")
    if plan.divergence.protocol not in PROTOCOLS:
        raise UnknownName(f"divergence protocol of {where}:", plan.divergence.protocol, PROTOCOLS)
    for name in plan.eval_names():
        _check_eval(plan, name, f"{where}: [evals.{name}]")


def _check_stages(plan: PlanFile, where: str) -> None:
    known = [*CHEAP, *evalspec.names()]
    if not plan.stages or len(set(plan.stages)) < len(plan.stages):
        raise UsageError(f"{where}: stages is {list(plan.stages)}, it must name at least one, and none twice")
    for name in plan.stages:
        if name not in known:
            raise UnknownName(f"stage of {where}:", name, known)
    ranks = [CHEAP.index(name) if name in CHEAP else len(CHEAP) for name in plan.stages]
    if ranks != sorted(ranks):
        raise UsageError(f"{where}: stages is {list(plan.stages)}; the cheap ones come first, as {', '.join(CHEAP)}, then the evals")
    if not any(name not in ("canary", "divergence") for name in plan.stages):
        raise UsageError(f"{where}: stages is {list(plan.stages)}; these pass nothing by themselves, add kernel or an eval")
    for name in plan.evals:
        if name not in plan.stages:
            raise UsageError(f"{where}: [evals.{name}] is no stage; add it to stages, or leave it out")


def _check_leg(leg: LegSpec, where: str) -> None:
    ways = [name for name in ("recipe", "command", "base_url") if getattr(leg, name)]
    if len(ways) != 1:
        raise UsageError(f"{where} has {' and '.join(ways) or 'none'} of recipe, command and base_url; it must have exactly one")
    if leg.recipe:
        if not leg.backend:
            raise UsageError(f"{where}: backend is empty; a recipe needs one of {', '.join(serverspec.load(leg.recipe).backends)}")
        serverspec.load(leg.recipe).launch(leg.backend, leg.port or 1)  # names an unknown or unsupported backend
    if leg.command:
        serverspec.check_templates(leg.command, f"{where}: command")
        if not any("{port}" in part for part in leg.command):
            raise UsageError(f"{where}: command has no {{port}}; the server must be told where to listen")


def _check_eval(plan: PlanFile, name: str, where: str) -> None:
    stage, spec = plan.evals.get(name, EvalStage()), plan.eval_spec(name)
    if stage.margin is not None and not 0 < stage.margin < 100:
        raise UsageError(f"{where}: margin is {stage.margin}, it must be percentage points between 0 and 100")
    if any(b <= a for a, b in zip((0, *spec.looks), spec.looks, strict=False)) or spec.looks[-1] != spec.repeats:
        raise UsageError(f"{where}: looks {list(spec.looks)} must increase and end with the repeats, {spec.repeats}")
    if stage.boot_sd is not None and not 0 <= stage.boot_sd < 50:
        raise UsageError(f"{where}: boot_sd is {stage.boot_sd}, it must be percentage points from 0 to 50")
    if not 0 <= stage.accuracy < 1:
        raise UsageError(f"{where}: accuracy is {stage.accuracy}, it must be a fraction below 1")
    for key in ("limit", "concurrency"):
        value = getattr(stage, key)
        if value is not None and value < 1:
            raise UsageError(f"{where}: {key} is {value}, it must be at least 1")
    spec.with_sampling(**sampling_of(stage))


def with_addresses(plan: PlanFile, baseline: Sequence[str], candidate: Sequence[str]) -> PlanFile:
    """The plan against endpoints that are up already, where addresses are given; what the legs must run stays asked for."""
    return replace(plan, baseline=_at(plan.baseline, baseline), candidate=_at(plan.candidate, candidate))


def _at(leg: LegSpec, urls: Sequence[str]) -> LegSpec:
    if not urls:
        return leg
    asked = serverspec.load(leg.recipe).backends[leg.backend].reports if leg.recipe else leg.backend
    return replace(leg, recipe="", command=(), base_url=tuple(urls), backend=asked, model="" if leg.recipe else leg.model)
