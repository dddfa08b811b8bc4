"""The verbs `run PLAN.toml` and `plan PLAN.toml`."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from mxfp4_validate.errors import MxfpError, UsageError
from mxfp4_validate.plans import estimate
from mxfp4_validate.plans.execute import Run, Sitting
from mxfp4_validate.plans.files import load, with_addresses
from mxfp4_validate.plans.fleet import api_key
from mxfp4_validate.plans.judge import judged, write_reports
from mxfp4_validate.plans.shards import join, shard_folder
from mxfp4_validate.plans.spec import PlanFile
from mxfp4_validate.reporting import plain
from mxfp4_validate.serving.names import shown
from mxfp4_validate.serving.options import shard_of
from mxfp4_validate.serving.verbs import plan_verb as plan_eval_verb


def plan_verb(args: argparse.Namespace) -> int:
    """Of an eval, or of a plan file: what it costs and what it can detect."""
    if not str(args.eval).endswith(".toml"):
        return plan_eval_verb(args)
    plan = load(Path(args.eval))
    if args.json:
        rows = [vars(row) for row in estimate.costs(plan)]
        print(json.dumps({"verb": "plan", "exit_status": 0, "plan": plan.name, "stages": rows, "total": vars(estimate.total(plan))}))
    print("\n".join(estimate.lines(plan)), file=sys.stderr if args.json else sys.stdout)
    return 0


def run_verb(args: argparse.Namespace) -> int:
    """Run a plan, or go on with it; the exit status is the verdict's."""
    plan = with_addresses(load(args.plan), args.baseline_url, args.candidate_url)
    out = args.out or Path("mxfp4-runs") / plan.name
    sitting = Sitting(api_key(), _say, shard_of(args.shard), args.until, args.grace)
    if args.join and sitting.sharded:
        raise UsageError(f"--join judges all shards, and --shard {args.shard} asks one; give one of the two")
    if args.until is not None and not sitting.sharded:
        raise UsageError(f"--until {args.until} is for shards, which cannot look; without --shard the plan's looks decide")
    for line in [] if args.join else estimate.lines(plan):
        _say(line)
    if not args.yes and not args.join:
        estimate.within_budget(plan)
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        return _sharded(plan, out, sitting, args) if sitting.sharded else _whole(plan, out, sitting, args)
    except MxfpError as error:
        if args.json:
            _print({"verb": "run", "exit_status": error.exit_code, "plan": plan.name, "out": str(out), "error": str(error)})
        raise


def _whole(plan: PlanFile, out: Path, sitting: Sitting, args: argparse.Namespace) -> int:
    if args.join:
        run = join(plan, out, sitting)
    else:
        run = Run.prepare(plan, out, sitting)
        run.go()
    inputs, judgement = judged(run)
    written = write_reports(run, inputs, judgement, not args.no_answers)
    stages = [{"stage": r.name, "outcome": r.outcome, "measured": r.measured, "reasons": list(r.reasons)} for r in run.results]
    if args.json:
        said = {"verb": "run", "exit_status": judgement.exit_code, "plan": plan.name, "out": str(out), "outcome": judgement.outcome}
        _print(said | {"sentence": judgement.sentence, "stages": stages, "written": [str(path) for path in written]})
    stream = sys.stderr if args.json else sys.stdout
    text = [line for r in run.results for line in r.details.get("lines", ())] + plain.lines(judgement)
    print(shown("\n".join([*text, *(f"wrote {path}" for path in written)]), 1 << 20), file=stream)
    if os.environ.get("GITHUB_ACTIONS") == "true":
        print("\n".join(plain.github(judgement)), file=stream)
    return judgement.exit_code


def _sharded(plan: PlanFile, out: Path, sitting: Sitting, args: argparse.Namespace) -> int:
    i, n = sitting.shard
    run = Run.prepare(plan, shard_folder(out, sitting.shard), sitting)
    results = run.go()
    bad = [r for r in results if r.stops]
    code = {"FAIL": 1, "INVALID": 4}[bad[0].outcome] if bad else 0
    if args.json:
        _print({"verb": "run", "exit_status": code, "plan": plan.name, "out": str(run.out), "shard": [i, n]})
    told = (
        f"{bad[0].name}: {bad[0].outcome}: {bad[0].needs or bad[0].measured}"
        if bad
        else "complete; when all are, the same command with --join"
    )
    print(shown(f"shard {i} of {n} {told}"), file=sys.stderr if args.json else sys.stdout)
    return code


def _say(text: str) -> None:
    print(shown(text), file=sys.stderr, flush=True)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _print(value: Any) -> None:
    print(json.dumps(value, allow_nan=False))
