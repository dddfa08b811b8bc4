"""The shards of a plan, asked on several machines into one folder, as one run: joined, judged, and told what to ask next."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from mxfp4_validate.errors import IncompleteRun, UsageError
from mxfp4_validate.plans.evals import EvalStep
from mxfp4_validate.plans.execute import Run, Sitting
from mxfp4_validate.plans.journal import Journal
from mxfp4_validate.plans.outcome import PASS, Result, Turn
from mxfp4_validate.plans.spec import LEGS, PlanFile
from mxfp4_validate.records.evals import EvalStore, run_file
from mxfp4_validate.serving.merge import merge

_SHARD = re.compile(r"shard-(\d+)-of-(\d+)")


def shard_folder(out: Path, shard: tuple[int, int]) -> Path:
    return out / f"shard-{shard[0]}-of-{shard[1]}"


def join(plan: PlanFile, out: Path, sitting: Sitting) -> Run:
    """Every shard in `out` as one run with its results; nothing is asked. `IncompleteRun` names what is still to be done."""
    folders = _folders(out)
    for folder in folders:
        Journal(folder).begin(plan)
    head = Run.prepare(plan, folders[0], sitting)
    whole = _merged(plan, out, folders)
    run = Run(plan, whole, sitting, head.journal, [s for s in head.stages if not isinstance(s, EvalStep)], None)
    for stage in run.stages:
        run.results.append(_result(stage.step(()), stage.name, folders[0]))
    if head.canary is not None:
        for folder in folders[1:]:
            other = Run.prepare(plan, folder, sitting).canary
            assert other is not None
            found = _result(other.step(()), "canary", folder)
            run.results = [found if r.name == "canary" and r.outcome == PASS and found.outcome != PASS else r for r in run.results]
    if any(result.stops for result in run.results):
        return run
    for name in plan.eval_names():
        if not all(run_file(whole / "evals" / name / leg).exists() for leg in LEGS):
            raise IncompleteRun(f"--join: no shard in {out} has asked {name}; run them, then join again")
        stage = EvalStep(plan, name, whole, sitting.key)
        step = stage.step(())
        run.stages.append(stage)
        if isinstance(step, Turn):  # the report's own look at the pair says how it stands and what it needs
            step = Result(name, "INCONCLUSIVE", "undecided: another look is due, or samples are missing", details={"verdict": None})
        run.results.append(step)
    return run


def _folders(out: Path) -> list[Path]:
    """The shards' folders in order, all of them, of one division."""
    found = {(int(m[1]), int(m[2])): path for path in out.glob("shard-*") if (m := _SHARD.fullmatch(path.name))}
    counts = {n for _, n in found}
    if len(counts) != 1:
        raise UsageError(f"--join: {out} holds shards of {len(counts)} divisions; it needs all of one, shard-1-of-N to shard-N-of-N")
    (n,) = counts
    if missing := [i for i in range(1, n + 1) if (i, n) not in found]:
        raise IncompleteRun(f"--join: {out} lacks shard {', '.join(map(str, missing))} of {n}; run them, then join again")
    return [found[i, n] for i in range(1, n + 1)]


def _result(step: Turn | Result, name: str, folder: Path) -> Result:
    if isinstance(step, Turn):
        raise IncompleteRun(f"--join: {folder.name} has not finished {name}; run it again, then join")
    return step


def _merged(plan: PlanFile, out: Path, folders: list[Path]) -> Path:
    """A folder of its own for exactly these samples: the same shards give the same one, longer shards another."""
    groups = {(name, leg): [folder / "evals" / name / leg for folder in folders] for name in plan.eval_names() for leg in LEGS}
    groups = {key: [path for path in paths if run_file(path).exists()] for key, paths in groups.items()}
    count = sum(_samples(path) for paths in groups.values() for path in paths)
    whole = out / f"joined-{count}"
    if whole.exists():
        return whole
    new = out / "joined.new"
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    for (name, leg), paths in groups.items():
        if len(paths) > 1:
            merge(paths, new / "evals" / name / leg)
    new.rename(whole)
    return whole


def _samples(path: Path) -> int:
    with EvalStore.open(path) as store:
        return len(store.states())
