"""A plan from its first server to its verdict: stage after stage, the cheapest first, until one fails. Everything it needs to go on is on the disk."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from mxfp4_validate.endpoint.address import Secret
from mxfp4_validate.endpoint.identity import CRITICAL
from mxfp4_validate.errors import InvalidRun, UsageError
from mxfp4_validate.plans.canary import CanaryStage
from mxfp4_validate.plans.divergence import DivergenceStage
from mxfp4_validate.plans.evals import EvalStep
from mxfp4_validate.plans.fleet import Fleet, Up
from mxfp4_validate.plans.journal import Journal
from mxfp4_validate.plans.kernel import KernelStage
from mxfp4_validate.plans.outcome import FAIL, INVALID, PASS, Result, Turn
from mxfp4_validate.plans.spec import LEGS, PlanFile
from mxfp4_validate.serving.lock import FolderLock
from mxfp4_validate.verdicts import Outcome, combine


class Stage(Protocol):
    """What every stage can: say what is to be done next, from what is on the disk."""

    name: str

    def step(self, up: Sequence[str]) -> Turn | Result:
        """The next turn, legs in `up` having a server that runs already; or the result."""


@dataclass(frozen=True)
class Sitting:
    """How this sitting is done; nothing here changes what comes out. `shard` (i, n) asks a part of the questions and judges nothing."""

    key: Secret
    say: Callable[[str], None] = print
    shard: tuple[int, int] = (1, 1)
    until: int | None = None
    grace: float = 30.0

    @property
    def sharded(self) -> bool:
        return self.shard != (1, 1)


@dataclass
class Run:
    """One run of a plan in its folder."""

    plan: PlanFile
    out: Path
    sitting: Sitting
    journal: Journal
    stages: list[Stage]
    canary: CanaryStage | None
    results: list[Result] = field(default_factory=list)

    @classmethod
    def prepare(cls, plan: PlanFile, out: Path, sitting: Sitting) -> Run:
        """Questions loaded, everything checked that needs no server; `UsageError` for what is wrong with the plan or the folder."""
        journal = Journal(out)
        canary = CanaryStage(plan, journal, sitting.key) if "canary" in plan.stages else None
        made: dict[str, Callable[[], Stage]] = {
            "kernel": lambda: KernelStage(plan, out, journal, sitting.say),
            "divergence": lambda: DivergenceStage(plan, out, sitting.key),
        }
        stages: list[Stage] = []
        for name in plan.stages:
            if name == "canary" and canary is not None:
                stages.append(canary)
            elif name in made:
                stages += [made[name]()] if sitting.shard[0] == 1 else []  # the first shard does them for all
            else:
                stages.append(EvalStep(plan, name, out, sitting.key, sitting.shard, sitting.until))
        return cls(plan, out, sitting, journal, stages, canary)

    def go(self) -> list[Result]:
        """Every stage that is due. `InvalidRun` of a server or record becomes a result; whatever else is raised can be resumed."""
        with FolderLock(self.out):
            self.journal.begin(self.plan)
            with Fleet(self.plan, self.out, self.sitting.say, self.sitting.key, grace=self.sitting.grace) as fleet:
                for stage in self.stages:
                    result = self._through(stage, fleet)
                    self.results = [*(r for r in self.results if r.name != result.name), result]  # a canary may fail on a later boot
                    self.sitting.say(f"== {result.name}: {result.outcome}: {result.measured}")
                    if self._over(result):
                        break
        return self.results

    def _through(self, stage: Stage, fleet: Fleet) -> Result:
        """The stage's turns, one after the other, until it has a result or a boot's canary has one."""
        try:
            while True:
                step = stage.step(fleet.up())
                if isinstance(step, Result):
                    return step
                up = {leg: self._ready(fleet, leg, step) for leg in step.legs}
                failed = self.canary.result() if self.canary is not None and step.legs else None
                if failed is not None and failed.outcome != PASS:
                    return failed
                self.sitting.say(f"-- {stage.name}: {' and '.join(step.legs) or 'no server needed'}")
                step.run(up)
        except InvalidRun as error:
            return Result(stage.name, INVALID, "cannot be judged", "", str(error).splitlines()[0], (str(error),), stops=True)

    def _ready(self, fleet: Fleet, leg: str, turn: Turn) -> Up:
        """The leg's server, proved to be what the plan says, its canary looked at."""
        up = fleet.use(leg, scoring=turn.scoring, fresh=turn.fresh)
        self._identify(up)
        if self.canary is not None:
            self.canary.look(up)
        return up

    def _identify(self, up: Up) -> None:
        """Take the boot down; refuse it where it is not what this leg, or the other, was before."""
        mine = {name: up.identity.values[name] for name in CRITICAL if name in up.identity.values} | {"backend": up.backend}
        key = f"boot-{up.leg}-{up.identity.boot}"
        for other in LEGS:
            for known, fact in self.journal.all(f"boot-{other}-"):
                names = [*CRITICAL, "backend"] if other == up.leg else ["model", "model_path", "version"]
                names = ["backend", *names] if self.plan.aa else names
                wrong = [
                    n for n in names if n in mine and n in fact and mine[n] != fact[n] and (other == up.leg or n not in self.plan.expect)
                ]
                if wrong:
                    told = "; ".join(f"{n} is {mine[n]!r}, of the {other} {fact[n]!r}" for n in wrong)
                    raise InvalidRun(
                        f"the {up.leg} is not what it should be: {told}; only the MoE backend and `expect` of the plan may differ"
                    )
                if other != up.leg and known == f"boot-{other}-{up.identity.boot}" and not self.plan.aa:
                    raise UsageError("both legs are the same boot of the same server; give two, or set aa = true if that is meant")
        if self.journal.get(key) is None:
            self.journal.add(key, mine | {"address": up.addresses[0].root})

    def _over(self, result: Result) -> bool:
        """Whether no dearer stage may begin: an eval's failure must survive the correction for all evals of the plan."""
        if result.stops or "verdict" not in result.details or result.outcome != FAIL:
            return result.stops
        verdicts = [r.details["verdict"] for r in self.results if "verdict" in r.details]
        return combine(verdicts, len(self.plan.eval_names())).outcome is Outcome.FAIL
