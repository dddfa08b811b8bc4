"""An eval as a stage: blocks of whole repeats for both legs, a look after each, and nothing more asked once a look has decided."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from mxfp4_validate.endpoint.address import Secret
from mxfp4_validate.endpoint.collect import Options
from mxfp4_validate.endpoint.flow import RetryPolicy
from mxfp4_validate.errors import IncompleteRun, InvalidRun
from mxfp4_validate.plans.fleet import Up
from mxfp4_validate.plans.outcome import FAIL, INCONCLUSIVE, INVALID, PASS, Result, Turn
from mxfp4_validate.plans.spec import LEGS, SAMPLING, EvalStage, PlanFile, sampling_of
from mxfp4_validate.prompts.profiles import profile as profile_named
from mxfp4_validate.questions import examples, first, load
from mxfp4_validate.records.evals import EvalStore, run_file
from mxfp4_validate.reporting.verdict import verdict_lines
from mxfp4_validate.serving.comparison import CompareOptions, anchor_band, compare_runs
from mxfp4_validate.serving.legs import read_leg
from mxfp4_validate.serving.planned import Planned, plan_run
from mxfp4_validate.serving.run import Job, Servers, run_evals
from mxfp4_validate.states import MODEL_STATES
from mxfp4_validate.verdicts import Plan, Verdict
from mxfp4_validate.verdicts.preconditions import trustworthy
from mxfp4_validate.verdicts.summary import summarise


class EvalStep:
    """One eval of a plan. Its state is its two records and nothing else: the same records always give the same next step."""

    def __init__(
        self, plan: PlanFile, name: str, out: Path, key: Secret, shard: tuple[int, int] = (1, 1), until: int | None = None
    ) -> None:
        self.name, self._plan, self._out, self._key, self._shard = name, plan, out, key, shard
        self._stage = plan.evals.get(name, EvalStage())
        self.planned = plan_eval(plan, name, shard)
        self.looks = tuple(look for look in self.planned.looks if until is None or look <= until) or self.planned.looks[:1]

    def path(self, leg: str) -> Path:
        """The leg's folder, as `compare` and `report` take it."""
        return self._out / "evals" / self.name / leg

    def step(self, up: Sequence[str]) -> Turn | Result:
        """What is asked next, or how it ended."""
        done = {leg: self._done(leg) for leg in LEGS}
        cut = {leg: self._due(leg) for leg in LEGS if self._due(leg) > done[leg]}
        if cut:  # a block that was cut is finished first, whatever comes next
            leg = next((leg for leg in up if leg in cut), next(iter(cut)))
            return self._turn((leg,), cut[leg])
        if self._shard == (1, 1):
            found = self._broken_baseline(done) or self._decided(done)
            if found is not None:
                return found
        return self._next(done, up) or Result(self.name, PASS, f"shard {self._shard[0]} of {self._shard[1]} is complete", decides=False)

    def _next(self, done: Mapping[str, int], up: Sequence[str]) -> Turn | None:
        """The next block by the plan's order; None if every look's samples are there."""
        look = next((look for look in self.looks if min(done.values()) < look), None)
        if look is None:
            return None
        waiting = [leg for leg in LEGS if done[leg] < look]
        if self._plan.order == "side-by-side":
            return self._turn(tuple(waiting), look)
        leg = next((leg for leg in up if leg in waiting), waiting[0])
        whole = self._plan.order == "sequence" and max(done.values()) < self.looks[-1] and len(waiting) == 2
        return self._turn((leg,), self.looks[-1] if whole else look)

    def _turn(self, legs: tuple[str, ...], upto: int) -> Turn:
        return Turn(legs, partial(self._ask, upto=upto), fresh=self._plan.fresh_boots)

    def _ask(self, up: Mapping[str, Up], upto: int) -> None:
        """Both legs' blocks, at one time where both are up. What was kept stays kept, whatever is raised."""
        planned = replace(self.planned, tasks=tuple(task for task in self.planned.tasks if task.repeat < upto))
        jobs = [self._job(up[leg], planned) for leg in up]
        for server in up.values():
            server.used = True
        for leg, done in zip(up, run_evals(jobs), strict=True):
            reason = f"{self.name} of the {leg}: {done.ending.reason or 'samples are missing'}"
            if done.status == 130:
                raise KeyboardInterrupt
            if done.status == InvalidRun.exit_code:
                raise InvalidRun(reason)
            if done.status:
                raise IncompleteRun(f"{reason}{'' if up[leg].gone() in reason else chr(10) + up[leg].gone()}; run the same command again")

    def _job(self, up: Up, planned: Planned) -> Job:
        s = self._stage
        options = Options(
            model="", sampling=planned.spec.sampling, concurrency=s.concurrency, outage=s.outage, retry=RetryPolicy(budget=s.retry_budget)
        )
        return Job(planned, Servers(up.addresses, self._key, up.model, canaries=0, gone=up.gone), options, self.path(up.leg))

    def _states(self, leg: str) -> dict[tuple[str, int], str]:
        if not run_file(self.path(leg)).exists():
            return {}
        with EvalStore.open(self.path(leg)) as store:
            return store.states()

    def _done(self, leg: str) -> int:
        """Complete repeats of this leg, from the first on."""
        states = self._states(leg)
        missing = [t.repeat for t in self.planned.tasks if states.get((t.question_id, t.repeat)) not in MODEL_STATES]
        return min(missing, default=self.planned.repeats)

    def _due(self, leg: str) -> int:
        """The look that the last repeat asked of this leg belongs to, 0 if nothing was asked."""
        last = max((repeat for _, repeat in self._states(leg)), default=-1)
        return next((look for look in self.looks if look > last), self.looks[-1]) if last >= 0 else 0

    def _compare(self) -> Verdict:
        options = CompareOptions(aa=self._plan.aa, expect=self._plan.expect)
        return compare_runs(self.path("baseline"), self.path("candidate"), options)

    def _broken_baseline(self, done: Mapping[str, int]) -> Result | None:
        """A baseline that misses its band or hits the cap is known before the candidate costs anything."""
        if done["baseline"] < self.looks[0] or done["candidate"] >= self.looks[0]:
            return None
        leg = read_leg(self.path("baseline")).first(self.looks[0])
        spec = self.planned.spec
        plan = Plan(spec.margin, spec.looks, anchor=anchor_band(self._stage.anchor, spec.name, len(self.planned.rows)))
        reasons = tuple(trustworthy(leg, summarise(leg), plan))
        if not reasons:
            return None
        return Result(self.name, INVALID, "the baseline cannot serve as one", "", reasons[0], reasons, stops=True)

    def _decided(self, done: Mapping[str, int]) -> Result | None:
        """The verdict if a look has given one, or if there is no look left."""
        if min(done.values()) < self.looks[0]:
            return None
        verdict = self._compare()
        outcome = FAIL if verdict.exit_code == 1 else str(verdict.outcome)
        if outcome == INCONCLUSIVE and min(done.values()) < self.looks[-1]:
            return None
        return Result(
            self.name, outcome, verdict.headline, "", verdict.needs, tuple(verdict.reasons), stops=outcome == INVALID,
            details={"verdict": verdict, "lines": verdict_lines(verdict)},
        )  # fmt: skip


def plan_eval(plan: PlanFile, name: str, shard: tuple[int, int] = (1, 1)) -> Planned:
    """Questions loaded and rendered, sampling and looks fixed; nothing is asked."""
    stage = plan.evals.get(name, EvalStage())
    profile = profile_named(stage.profile)
    spec = profile.apply(plan.eval_spec(name)).with_sampling(**sampling_of(stage))
    source = Path(stage.questions) if stage.questions else None
    whole = load(spec, source)
    asked = whole if stage.limit is None else first(whole, stage.limit)
    anchor_band(stage.anchor, spec.name, len(asked.questions))  # refused before anything is launched
    shots = profile.shots.get(spec.grader, 0)
    worked = examples(spec, shots, source) if shots else ()
    origins = {
        key: {"value": getattr(spec.sampling, key), "origin": "eval" if getattr(stage, key) is None else f"plan {plan.name}"}
        for key in SAMPLING
    }
    tau2 = None if stage.boot_sd is None else (stage.boot_sd / 100) ** 2
    settings = {"sampling": origins, "plan": plan.name, "plan_sha256": plan.sha256, "anchor": stage.anchor, "boot_variance": tau2}
    return plan_run(spec, profile, asked, spec.repeats, settings, shard, [q.id for q in whole.questions], worked)
