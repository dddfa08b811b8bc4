"""The token-level stage of a plan: the arms of `diverge`, each on the boot that is up, and its decision."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import io
import os
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from mxfp4_validate.divergence import corpus as corpora
from mxfp4_validate.divergence import limits as table
from mxfp4_validate.divergence.analyse import Result as Found
from mxfp4_validate.divergence.analyse import analyse
from mxfp4_validate.divergence.calibrate import limits_of
from mxfp4_validate.divergence.collect import Asking, begin_arm, score_arm
from mxfp4_validate.divergence.corpus import Corpus
from mxfp4_validate.divergence.record import DivergenceStore
from mxfp4_validate.divergence.rule import FAIL as FAILED
from mxfp4_validate.divergence.rule import GO_ON, UNDECIDED
from mxfp4_validate.endpoint.address import Secret
from mxfp4_validate.endpoint.logprobs import ScoringClient
from mxfp4_validate.errors import IncompleteRun
from mxfp4_validate.plans.fleet import Up
from mxfp4_validate.plans.outcome import FAIL, INCONCLUSIVE, Result, Turn
from mxfp4_validate.plans.spec import PlanFile
from mxfp4_validate.records.durable import publish
from mxfp4_validate.reporting.inputs import DivergenceRecord
from mxfp4_validate.serving.diverge import corpus_verb, lines
from mxfp4_validate.serving.diverge_options import add_corpus_options
from mxfp4_validate.serving.report import source_of
from mxfp4_validate.serving.report_divergence import read_divergence


class DivergenceStage:
    """Records `width-W.sqlite`, one a width; an arm belongs to one boot and is begun again where it was cut with its boot."""

    name = "divergence"

    def __init__(self, plan: PlanFile, out: Path, key: Secret) -> None:
        self._plan, self._spec, self._key = plan, plan.divergence, key
        self._folder = out / "divergence"
        self._calibration = Path(plan.divergence.calibration) if plan.divergence.calibration else None

    def step(self, up: Sequence[str]) -> Turn | Result:
        """Baseline and floors, then the candidate; interleaved, the floors come last, on another boot of the baseline."""
        for name, role, order in self._arms():
            leg = "candidate" if role == "candidate" else "baseline"
            if any(self._left(width, name) for width in self._spec.widths):
                return Turn((leg,), partial(self._score, name=name, role=role, order=order), scoring=True)
        return self._result()

    def _arms(self) -> list[tuple[str, str, int]]:
        """(name, role, seed of the order asked in), in the order they are scored."""
        floors = [(f"floor{i}", "floor", i) for i in range(1, self._spec.floors + 1)]
        candidate = ("candidate", "candidate", self._spec.floors + 1)
        rest = [candidate, *floors] if self._plan.order == "interleaved" else [*floors, candidate]
        return [("baseline", "baseline", 0), *rest]

    def _record(self, width: int) -> Path:
        return self._folder / f"width-{width}.sqlite"

    def records(self) -> list[DivergenceRecord]:
        """Every width's record with its decision, for the report: judged by the plan's calibration where it names one."""
        paths = [self._record(width) for width in self._spec.widths]
        return [found for path in paths if path.exists() for found in read_divergence(path, source_of(path), self._calibration)]

    def _left(self, width: int, arm: str) -> bool:
        """Whether anything of this arm is still to be scored."""
        if not self._record(width).exists():
            return True
        with DivergenceStore.open(self._record(width)) as store:
            return arm not in store.arms() or bool(store.missing(arm))

    def _score(self, up: Mapping[str, Up], name: str, role: str, order: int) -> None:
        (server,) = up.values()
        try:
            corpus = self._corpus(server)
            for width in self._spec.widths:
                if self._left(width, name):
                    with self._opened(width, corpus, server, name) as store:
                        asyncio.run(self._arm(store, server, name, role, order))
        except IncompleteRun as error:
            raise IncompleteRun(f"{error}\n{server.gone()}".rstrip()) from error

    async def _arm(self, store: DivergenceStore, up: Up, name: str, role: str, order: int) -> None:
        asking = Asking(self._spec.protocol, max(1, self._spec.concurrency // (2 if role == "floor" else 1)), order, self._spec.deadline)
        async with ScoringClient(up.addresses[0], self._key) as client:
            identity = await begin_arm(client, store, name, role, up.model)
            await score_arm(client, store, name, identity, asking)

    def _corpus(self, up: Up) -> Corpus:
        """The one that is given, or the baseline's own answers, made once."""
        if self._spec.corpus:
            return corpora.load(Path(self._spec.corpus))
        path = self._folder / "corpus.json"
        if not path.exists():
            self._folder.mkdir(parents=True, exist_ok=True)
            temporary = path.with_name("corpus.json.new")
            temporary.unlink(missing_ok=True)
            _make(up, self._spec.eval, temporary, self._options())
            publish(temporary, path)
        return corpora.load(path)

    def _options(self) -> list[str]:
        s = self._spec
        given = ["--sequences", str(s.sequences), "--max-tokens", str(s.max_tokens), "--concurrency", str(s.concurrency)]
        given += ["--deadline", str(s.deadline)]
        return given + (["--questions", s.questions] if s.questions else []) + (["--score-prompts"] if s.score_prompts else [])

    @contextlib.contextmanager
    def _opened(self, width: int, corpus: Corpus, up: Up, arm: str) -> Iterator[DivergenceStore]:
        """The record, without what another boot has left of this arm."""
        path = self._record(width)
        if path.exists():
            with DivergenceStore.open(path) as store:
                cut = arm in store.arms() and store.arms()[arm].boot != up.identity.boot
            if cut:
                _without(path, arm)
        top, settings = int(table.TOP.value), {"protocol": self._spec.protocol}
        with DivergenceStore.resume(path, corpus) if path.exists() else DivergenceStore.create(path, corpus, top, width, settings) as store:
            yield store

    def _result(self) -> Result:
        """The worst of all widths. Undecided is left to the evals where there are any: they cost more and decide."""
        found = {width: self._analysed(width) for width in self._spec.widths}
        outcomes = [f.decision.outcome for f in found.values()]
        said = tuple(f"width {width}: {line}" for width, f in found.items() for line in lines(f))
        worst = FAILED if FAILED in outcomes else UNDECIDED if UNDECIDED in outcomes else outcomes[0]
        measured = "; ".join(f"width {width}: {_ratio(f)}" for width, f in found.items())
        details = {str(width): {"outcome": f.decision.outcome, **f.columns} for width, f in found.items()}
        if worst == FAILED:
            return Result(self.name, FAIL, measured, "within the baseline's own", "", said, stops=True, details=details)
        if worst == UNDECIDED:
            alone = not self._plan.eval_names()
            return Result(
                self.name, INCONCLUSIVE, measured, "within the baseline's own", "the evals decide" if not alone else "a larger corpus",
                said, decides=alone, details=details,
            )  # fmt: skip
        return Result(self.name, GO_ON, f"{measured}; this passes nothing by itself", "", "", said, decides=False, details=details)

    def _analysed(self, width: int) -> Found:
        with DivergenceStore.open(self._record(width)) as store:
            return analyse(store, "candidate", limits_of(store, self._calibration))


def _ratio(found: Found) -> str:
    d = found.decision
    return f"{d.outcome}, mean KL {d.kl.estimate:.3g} times the floor" if d.kl else f"{d.outcome}, no ratio"


def _make(up: Up, eval_name: str, output: Path, options: Sequence[str]) -> None:
    """`corpus` as typed on the command line; what it prints goes to standard error."""
    parser = argparse.ArgumentParser()
    add_corpus_options(parser)
    parser.add_argument("--json", action="store_true")
    argv = [up.addresses[0].root, "-o", str(output), "--eval", eval_name, *options, *(["--model", up.model] if up.model else [])]
    with contextlib.redirect_stdout(io.StringIO()):  # it would name a file that is about to be renamed
        corpus_verb(parser.parse_args(argv))


def _without(path: Path, arm: str) -> None:
    """The record as if the arm had not been begun: its boot is gone, and half an arm of one boot is none of another."""
    new = path.with_name(path.name + ".kept")
    new.unlink(missing_ok=True)
    with DivergenceStore.open(path) as old, DivergenceStore.create(new, old.corpus, old.top, old.width, old.settings) as kept:
        for name, row in old.arms().items():
            if name != arm:
                kept.add_arm(row)
                for score in old.scores(name).values():
                    kept.add(name, score)
    new.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
