"""`report`: reads kernel, bench and divergence records and eval runs, judges them and writes HTML, Markdown and JUnit from one judgement."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sqlite3
import sys
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import mxfp4_validate
from mxfp4_validate import manifest
from mxfp4_validate.bench import record as bench
from mxfp4_validate.divergence import record as divergence
from mxfp4_validate.errors import IncompleteRun, InvalidRun, UsageError
from mxfp4_validate.records import evals
from mxfp4_validate.records.evals import EvalStore
from mxfp4_validate.records.store import Run, Store
from mxfp4_validate.reporting import html, junit, markdown, plain
from mxfp4_validate.reporting.clean import head_tail
from mxfp4_validate.reporting.gates import judge
from mxfp4_validate.reporting.inputs import (
    AnswerRow,
    BenchRecord,
    DivergenceRecord,
    EvalLeg,
    EvalPair,
    FaultMatrix,
    Inputs,
    KernelRecord,
    Source,
)
from mxfp4_validate.serving.comparison import CompareOptions, compare_runs, published_lines
from mxfp4_validate.serving.legs import read_leg
from mxfp4_validate.serving.names import shown
from mxfp4_validate.serving.report_divergence import expand, natural, read_divergence
from mxfp4_validate.verdicts import combine


def report_verb(args: argparse.Namespace) -> int:
    """Write the report; the exit status is the judgement's, unless --exit-zero."""
    options = CompareOptions(args.margin, args.aa, args.allow_missing, args.anchor, tuple(args.expect), args.grader)
    inputs = gather(args.runs, options, faults=args.faults, answers=not args.no_answers)
    judgement = judge(inputs)
    outputs = {args.output: html.render(inputs, judgement, not args.no_answers)}
    outputs |= {args.markdown: markdown.render(inputs, judgement)} if args.markdown else {}
    outputs |= {args.junit: junit.render(inputs, judgement)} if args.junit else {}
    for path, text in outputs.items():
        write(path, text)
    summary = os.environ.get("GITHUB_STEP_SUMMARY")
    if summary:
        with open(summary, "a", encoding="utf-8") as step:
            step.write(markdown.render(inputs, judgement))
    stream = sys.stderr if args.json else sys.stdout
    print("\n".join(shown(line) for line in plain.lines(judgement)), file=stream)
    if os.environ.get("GITHUB_ACTIONS") == "true":
        print("\n".join(plain.github(judgement)), file=stream)
    print("\n".join(f"wrote {path}" for path in outputs), file=stream)
    code = 0 if args.exit_zero else judgement.exit_code
    if args.json:
        gates = [{"gate": g.name, "outcome": g.outcome, "measured": g.measured, "needs": g.needs} for g in judgement.gates]
        said = {"verb": "report", "exit_status": code, "outcome": judgement.outcome, "sentence": judgement.sentence, "gates": gates}
        print(json.dumps(said | {"written": [str(path) for path in outputs]}))
    return code


def write(path: Path, text: str) -> None:
    """The file whole or not at all: a reader never meets half a report."""
    try:
        temporary = path.with_name(path.name + ".new")
        temporary.write_text(text, encoding="utf-8", newline="\n")
        temporary.replace(path)
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}; name another file with -o") from error


def gather(paths: Sequence[Path], options: CompareOptions, faults: Path | None = None, answers: bool = True, planned: int = 0) -> Inputs:
    """Everything that is in `paths`: kernel, bench and divergence records, and eval runs paired baseline, candidate in the order given, eval by eval.

    `planned` is how many evals there were to be, for the correction of failures and for what an undecided divergence is left to.
    """
    kernels, benches, runs = [], list[BenchRecord](), dict[str, list[Path]]()
    divergences: list[DivergenceRecord] = []
    for path in (one for given in paths for one in expand(given)):
        found = schema(path)
        if found >= bench.SCHEMA_VERSION:
            benches.append(BenchRecord(source_of(path), bench.read_bench(path)))
        elif found >= divergence.SCHEMA_VERSION:
            divergences += read_divergence(path, source_of(path))
        elif found >= evals.SCHEMA_VERSION:
            with EvalStore.open(path) as store:
                runs.setdefault(store.run().suite, []).append(path)
        else:
            kernels.append(read_kernel(path))
    pairs = [pair for suite, given in runs.items() for pair in _pairs(suite, given, options, answers)]
    verdicts = [pair.verdict for pair in pairs if pair.verdict is not None]
    overall = combine(verdicts, planned) if verdicts and max(planned, len(verdicts)) > 1 else None
    matrix = read_faults(faults) if faults else None
    return Inputs(
        mxfp4_validate.__version__, tuple(kernels), tuple(pairs), overall, matrix,
        benches=tuple(benches), divergences=tuple(divergences), planned=planned,
    )  # fmt: skip


def _pairs(suite: str, paths: Sequence[Path], options: CompareOptions, answers: bool) -> list[EvalPair]:
    legs = [read_eval(path, options.grader, answers) for path in paths]
    found = []
    for at in range(0, len(paths) - 1, 2):
        try:
            verdict, refused, incomplete = compare_runs(paths[at], paths[at + 1], options), "", False
        except (IncompleteRun, InvalidRun, UsageError) as error:
            verdict, refused, incomplete = None, str(error), isinstance(error, IncompleteRun)
        found.append(EvalPair(suite, legs[at], legs[at + 1], verdict, refused, incomplete, _published(legs[at + 1], options)))
    if len(paths) % 2:
        found.append(EvalPair(suite, legs[-1], None, None))
    return found


def _published(leg: EvalLeg, options: CompareOptions) -> tuple[str, ...]:
    """What others have published of the model that the leg ran."""
    anchor = options.anchor if options.anchor is not None else leg.run.settings.get("anchor", "")
    identity = leg.leg.identity
    return tuple(published_lines(anchor, identity.get("model_path", identity.get("model", "")), leg.run.suite))


def schema(path: Path) -> int:
    """The schema version of the record at `path`, a file or an eval run's folder."""
    file = evals.run_file(path)
    if not file.is_file():
        raise UsageError(f"no run at {path}; give kernel, bench and divergence records (*.sqlite) and eval runs (their folders)")
    try:
        with closing(sqlite3.connect(file.resolve().as_uri() + "?mode=ro", uri=True)) as db:
            return int(db.execute("PRAGMA user_version").fetchone()[0])
    except sqlite3.Error as error:
        raise UsageError(f"{path} is not a record of mxfp4-validate: {error}") from error


def source_of(path: Path) -> Source:
    """A record's sha256 and its name: the folder's if that is what names it."""
    file = evals.run_file(path)
    name = file.resolve().parent.name if file.name in ("run.sqlite", "divergence.sqlite") else file.name
    with open(file, "rb") as stream:
        return Source(name, hashlib.file_digest(stream, "sha256").hexdigest())


def read_kernel(path: Path) -> KernelRecord:
    """A kernel record, and what a whole run of its backends would hold."""
    with Store.open(path) as store:
        run, results = store.run(), tuple(store.results())
    return KernelRecord(source_of(path), run, results, _expected(run))


def _expected(run: Run) -> dict[str, dict[str, int]]:
    """The manifest's counts for each backend of a run that was not narrowed down, and for another version's none: its manifest was another."""
    narrowed = any(run.settings.get(name) for name in ("case", "check", "keywords", "fault", "checkpoint"))
    if narrowed or run.settings.get("markers") != "kernel" or run.version != mxfp4_validate.__version__:
        return {}
    counts = manifest.load()
    return {spec: counts.get(device, {}) for spec, device in run.settings.get("backends", {}).items()}


def read_eval(path: Path, grader: str | None, answers: bool) -> EvalLeg:
    """One eval run with every sample's grade, and of each answer its head and tail."""
    leg = read_leg(path, grader)
    with EvalStore.open(path) as store:
        run = store.run()
        grades = store.grades(grader or run.fingerprint["grader"])
        rows = []
        for s in store.samples():
            grade = grades.get((s.question_id, s.repeat))
            text = (f"{s.reasoning}\n\n" if s.reasoning else "") + s.content
            head, tail = head_tail(text) if answers else ("", "")
            correct, answer, rule = (grade.correct and s.state == "answered", grade.answer, grade.rule) if grade else (False, None, "")
            rows.append(
                AnswerRow(s.question_id, s.repeat, s.state, correct, answer, rule, s.completion_tokens, head, tail, len(text), s.error)
            )
        golds = {row[0]: _gold(row[2]) for row in store.questions()}
        attempts = Counter(row.outcome for row in store.attempts())
        return EvalLeg(source_of(path), run, leg, tuple(rows), golds, attempts, tuple(store.events()))


def _gold(text: str) -> str:
    """Gold answers as stored, a JSON list, for people."""
    try:
        values = json.loads(text)
    except ValueError:
        return text
    return " or ".join(map(str, values)) if isinstance(values, list) else text


def read_faults(path: Path) -> FaultMatrix:
    """What `pytest -m faults --fault-matrix FILE` wrote."""
    try:
        data = path.read_bytes()
        found = json.loads(data)
        named = sorted(found["faults"].items(), key=lambda item: natural(item[0]))
        rows = {str(name): (str(row["what"]), tuple(map(str, row["caught_by"]))) for name, row in named}
        digest = hashlib.sha256(data).hexdigest()
        return FaultMatrix(Source(path.name, digest), str(found["backend"]), tuple(map(str, found["checks"])), rows)
    except OSError as error:
        raise UsageError(f"--faults {path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"--faults {path} is not a fault matrix; pytest -m faults --fault-matrix FILE writes one") from error
