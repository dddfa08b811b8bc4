"""The results of a plan's stages, and the records they left, as one judgement and one report."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from mxfp4_validate.plans.divergence import DivergenceStage
from mxfp4_validate.plans.execute import Run
from mxfp4_validate.plans.kernel import KernelStage
from mxfp4_validate.plans.outcome import Result
from mxfp4_validate.plans.spec import LEGS
from mxfp4_validate.records.evals import run_file
from mxfp4_validate.reporting import html, junit, markdown
from mxfp4_validate.reporting.gates import Judgement, judge
from mxfp4_validate.reporting.inputs import Inputs, StageRow
from mxfp4_validate.serving.comparison import CompareOptions
from mxfp4_validate.serving.report import gather, write


def judged(run: Run) -> tuple[Inputs, Judgement]:
    """What the report is made of, and what it comes to."""
    paths = [path for stage in run.stages if isinstance(stage, KernelStage) for path in [stage.record()] if path is not None]
    have_kernel = bool(paths)
    for name in run.plan.eval_names():
        paths += [path for leg in LEGS for path in [run.out / "evals" / name / leg] if run_file(path).exists()]
    options = CompareOptions(aa=run.plan.aa, expect=run.plan.expect)
    found = gather(paths, options, planned=len(run.plan.eval_names()))
    # A stage that was analysed is shown by its records; one that was refused, or is cut, as a row with the reason.
    judged_stages = {result.name for result in run.results if result.details}
    divergences = [r for s in run.stages if isinstance(s, DivergenceStage) and s.name in judged_stages for r in s.records()]
    shown = {"kernel"} if have_kernel else set()
    shown |= {"divergence"} if divergences else set()
    rows = [_row(result) for result in run.results if "verdict" not in result.details and result.name not in shown]
    reached = {result.name for result in run.results}
    last = run.results[-1].name if run.results else "nothing"
    rows += [
        StageRow(name, "INCOMPLETE", f"not run: the plan ended with {last}", decides=False)
        for name in run.plan.stages
        if name not in reached
    ]
    inputs = replace(found, stages=tuple(rows), divergences=tuple(divergences), plan=run.plan.name)
    return inputs, judge(inputs)


def _row(result: Result) -> StageRow:
    return StageRow(result.name, result.outcome, result.measured, result.limit, result.needs, result.reasons, result.decides)


def write_reports(run: Run, inputs: Inputs, judgement: Judgement, answers: bool = True) -> list[Path]:
    """report.html, report.md and junit.xml in the run's folder."""
    pages: dict[Path, Any] = {
        run.out / "report.html": html.render(inputs, judgement, answers),
        run.out / "report.md": markdown.render(inputs, judgement),
        run.out / "junit.xml": junit.render(inputs, judgement),
    }
    for path, text in pages.items():
        write(path, text)
    return list(pages)
