"""One bench from its plan to its record: asks a child for group after group, keeps each, and goes on without a backend that broke."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from mxfp4_validate.bench.record import BenchStore
from mxfp4_validate.bench.spec import Plan, Row, row_of
from mxfp4_validate.cases import MoeShape
from mxfp4_validate.worker.parent import Child, ChildLost
from mxfp4_validate.worker.protocol import Answer, Request

#: A group's deadline: its first call may compile kernels for half an hour.
DEADLINE_S = 3600.0
Say = Callable[[Row], None]


class Bench:
    """The child and what is asked of it. `backends` are those that can run here; `facts` holds the others' reasons."""

    def __init__(self, plan: Plan, store: BenchStore) -> None:
        self.plan = plan
        self.store = store
        self.facts: dict[str, dict[str, Any]] = {}
        self._child: Child | None = None

    def probe(self) -> tuple[str, ...]:
        """Note the device and every backend's facts; returns the backends that can run."""
        for spec in self.plan.backends:
            answer = self._ask({"what": "backend", "backend": spec})
            found = (
                answer.metrics
                if answer.outcome == "passed"
                else {"available": False, "reason": _first(answer.message), "log": answer.message}
            )
            self.facts[spec] = found
        device = self._ask({"what": "device", "device": self.plan.device})
        self.facts["device"] = device.metrics or {"name": self.plan.device, "clock": f"unknown: {device.message}"}
        for name, value in self.facts.items():
            self.store.note(name, value)
        return tuple(spec for spec in self.plan.backends if self.facts[spec]["available"])

    def run(self, say: Say) -> None:
        """Measure what the record lacks. Each group's rows are kept before they are said."""
        backends, done = self.probe(), self.store.done()
        place = 0
        for shape, bias in self.plan.sides():
            places = list(range(place, place + len(self.plan.tokens)))
            place += len(places)
            left = [p for p in places if backends and (p, "") not in done and not all((p, spec) in done for spec in backends)]
            left = self._together(shape, bias, backends, left, places[0], say)
            for spec in backends if left else ():
                self._alone(shape, bias, spec, [p for p in left if (p, spec) not in done], places[0], say)

    def _together(self, shape: MoeShape, bias: bool, backends: tuple[str, ...], left: list[int], first: int, say: Say) -> list[int]:
        """All backends in turn, M after M; returns the places from the first one at which they did not get through together."""
        for at, place in enumerate(left):
            answer = self._group(shape, bias, backends, place - first)
            if answer.outcome != "passed":
                return left[at:]
            self._keep(place, "", answer, say)
        return []

    def _alone(self, shape: MoeShape, bias: bool, spec: str, left: list[int], first: int, say: Say) -> None:
        """One backend by itself: its neighbour broke the device, or both together do not fit. After its own failure it is not tried again."""
        failed: Row | None = None
        for place in left:
            tokens = self.plan.tokens[place - first]
            if failed is None:
                answer = self._group(shape, bias, (spec,), place - first)
                if answer.outcome == "passed":
                    self._keep(place, spec, answer, say)
                    continue
                outcome = "oom" if answer.outcome == "oom" else "error"
                failed = row = Row(shape.name, bias, tokens, spec, False, outcome, why=answer.message.strip()[:2000])
            else:
                row = replace(failed, tokens=tokens, why=f"not tried after M = {failed.tokens}: {_first(failed.why)}")
            self.store.add(place, spec, [row])
            say(row)

    def _keep(self, place: int, part: str, answer: Answer, say: Say) -> None:
        rows = [row_of(data) for data in answer.metrics["rows"]]
        self.store.add(place, part, rows)
        for row in rows:
            say(row)

    def _group(self, shape: MoeShape, bias: bool, backends: tuple[str, ...], at: int) -> Answer:
        options = {name: getattr(self.plan, name) for name in ("device", "graph", "tuned", "repeats", "warmup", "seed")}
        what = {"what": "group", "shape": shape.name, "bias": bias, "tokens": self.plan.tokens[at], "backends": list(backends)}
        return self._ask(options | what)

    def _ask(self, options: dict[str, Any]) -> Answer:
        """The child's answer; a fresh child follows a dead or broken one."""
        if self._child is None:
            self._child = Child(dict(os.environ))
        try:
            answer = self._child.ask(Request("bench", "", options=options), DEADLINE_S)
        except ChildLost as error:
            self._child = None
            return Answer("failed", str(error))
        if answer.discard:
            self.close()
        return answer

    def close(self) -> None:
        if self._child is not None:
            self._child.kill()
            self._child = None


def _first(message: str) -> str:
    """The line of a message that says what happened; the rest is a trace or a log."""
    return (message.strip().splitlines() or ["it did not say why"])[0][:300]
