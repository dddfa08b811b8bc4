"""The canary stage: many generations at production concurrency after every launch, looked at one by one."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from mxfp4_validate import evalspec
from mxfp4_validate.endpoint.address import Secret
from mxfp4_validate.endpoint.attempt import Attempt
from mxfp4_validate.endpoint.client import Client
from mxfp4_validate.errors import IncompleteRun
from mxfp4_validate.evalspec import Sampling
from mxfp4_validate.plans.fleet import Up
from mxfp4_validate.plans.journal import Journal
from mxfp4_validate.plans.outcome import FAIL, INVALID, PASS, Result, Turn
from mxfp4_validate.plans.spec import LEGS, EvalStage, PlanFile, sampling_of
from mxfp4_validate.prompts.profiles import profile
from mxfp4_validate.prompts.render import render
from mxfp4_validate.questions import load
from mxfp4_validate.serving.canary import Messages, generate, plain_prompts, wrong


class CanaryStage:
    """Facts `canary-LEG-BOOT` in the journal, one a boot. A boot that generated rubbish stays on record: another boot does not undo it."""

    name = "canary"

    def __init__(self, plan: PlanFile, journal: Journal, key: Secret) -> None:
        self._plan, self._journal, self._key = plan, journal, key
        self._prompts = _prompts(plan)
        self._sampling = _sampling(plan)

    def step(self, up: Sequence[str]) -> Turn | Result:
        """The first boot of each leg; the candidate's before the baseline's, because it is the likelier one to end the run."""
        waiting = [leg for leg in (*up, "candidate", "baseline") if not any(self._journal.all(f"canary-{leg}-"))]
        found = self.result()
        return Turn((waiting[0],), lambda servers: None) if waiting and found.outcome == PASS else found

    def look(self, up: Up) -> None:
        """This boot's canary, unless it is on record."""
        key = f"canary-{up.leg}-{up.identity.boot}"
        if up.scoring or self._journal.get(key) is not None:
            return
        attempts = asyncio.run(self._ask(up))
        if not any(attempt.reply for attempt in attempts) and not any("nan-output" in a.flags for a in attempts):
            why = up.gone() or attempts[0].error
            raise IncompleteRun(f"canary of the {up.leg}: none of {len(attempts)} generations came back: {why}; run the same command again")
        self._journal.add(key, judged(attempts, self._sampling) | {"backend": up.backend})

    async def _ask(self, up: Up) -> list[Attempt]:
        async with AsyncExitStack() as stack:
            clients = [
                await stack.enter_async_context(Client(address, self._key, concurrency=self._plan.canary.concurrency))
                for address in up.addresses
            ]
            model, spec = up.identity.values["model"], self._plan.canary
            return await generate(clients, model, self._sampling, self._prompts, spec.concurrency, spec.deadline)

    def result(self) -> Result:
        """Over all boots so far: rubbish of the candidate fails it, rubbish of the baseline leaves nothing to compare with."""
        bad = {leg: [(key, fact) for key, fact in self._journal.all(f"canary-{leg}-") if fact["wrong"]] for leg in LEGS}
        boots = sum(1 for leg in LEGS for _ in self._journal.all(f"canary-{leg}-"))
        n, failed = self._plan.canary.generations, sum(fact["failed"] for leg in LEGS for _, fact in self._journal.all(f"canary-{leg}-"))
        reasons = tuple(
            f"{key.removeprefix('canary-').replace('-', ' boot ', 1)}: {len(fact['wrong'])} of {fact['asked']}: {'; '.join(fact['wrong'][:3])}"
            for leg in LEGS
            for key, fact in bad[leg]
        )
        outcome = INVALID if bad["baseline"] else FAIL if bad["candidate"] else PASS
        measured = f"{n} generations on each of {boots} boots" + (f", rubbish on {len(reasons)}" if reasons else ", none of them rubbish")
        measured += f"; {failed} requests failed" if failed else ""
        needs = "the baseline's server is broken; mend it, and begin in another folder" if outcome == INVALID else ""
        return Result(self.name, outcome, measured, "none", needs, reasons, decides=outcome != PASS, stops=outcome != PASS)


def judged(attempts: Sequence[Attempt], sampling: Sampling) -> dict[str, Any]:
    """What is wrong with the generations of one boot, a line each; failing requests are counted and are no rubbish."""
    lines = []
    for place, attempt in enumerate(attempts):
        why = wrong(attempt)
        reply = attempt.reply
        if not why and reply is not None and reply.finish_reason == "stop" and not reply.content.strip():
            why = "an answer without content"
        lines += [f"generation {place}: {why}"] if why else []
    replies = [attempt.reply for attempt in attempts if attempt.reply is not None]
    reasoned = sum(bool(r.reasoning or r.reasoning_tokens or "</think>" in r.content) for r in replies)
    asked = bool(sampling.thinking) or sampling.effort not in (None, "none")
    if asked and replies and not reasoned:
        lines.append(f"thinking was asked for, and none of {len(replies)} answers holds reasoning")
    tokens = [r.completion_tokens for r in replies if r.completion_tokens]
    return {"asked": len(attempts), "failed": len(attempts) - len(replies), "wrong": lines, "reasoned": reasoned, "tokens": sum(tokens)}


def _sampling(plan: PlanFile) -> Sampling:
    """That of the plan's dearest eval, cut short: what the eval will ask is what the canary must survive."""
    names = plan.eval_names()
    base = evalspec.load(names[-1]).with_sampling(**sampling_of(plan.evals.get(names[-1], EvalStage()))).sampling if names else Sampling()
    return replace(base, max_tokens=min(base.max_tokens, plan.canary.tokens))


def _prompts(plan: PlanFile) -> list[Messages]:
    count = plan.canary.generations
    if not plan.canary.eval:
        return plain_prompts(count)
    spec = evalspec.load(plan.canary.eval)
    own = plan.evals.get(plan.canary.eval, EvalStage()).questions
    questions = load(spec, Path(own) if own else None).questions
    return [render(questions[i % len(questions)], profile("default"), spec).messages for i in range(count)]
