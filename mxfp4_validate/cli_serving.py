"""The serving wing's verbs on the command line; what they do is imported only when one of them runs."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mxfp4_validate.serving.diverge_options import (
    add_calibrate_options,
    add_corpus_options,
    add_diverge_options,
    add_first_divergence_options,
)
from mxfp4_validate.serving.options import add_eval_options

_VERBS = {
    "eval": "ask a server an eval's questions, or go on with an unfinished run",
    "compare": "the verdict on a candidate's run against a baseline's",
    "regrade": "grade a run's stored answers again and list what changed",
    "plan": "what a run costs and which loss it can show, before it starts",
    "merge": "join the shards of a run",
    "export": "a run as JSON lines",
    "import": "a run of another tool as a run of ours",
    "report": "one HTML file of kernel, bench and divergence records and eval runs, with a verdict",
    "corpus": "token sequences of a baseline's own answers, for `diverge`",
    "diverge": "token by token: how far a candidate's distributions lie from the baseline's",
    "calibrate": "the limits of `diverge` from a server against itself, three times or more",
    "first-divergence": "greedy answers: whether the candidate leaves the baseline's earlier than the baseline leaves its own",
    "run": "a plan from its servers to its verdict: launch, canary, divergence, evals, report; the same command goes on with it",
    "demo": "the whole instrument on an embedded model: no GPU, no network, no endpoint",
}
#: Verbs that have a module of their own.
_HOMES = {
    "report": "serving.report",
    "demo": "serving.demo",
    "corpus": "serving.diverge",
    "diverge": "serving.diverge",
    "calibrate": "serving.calibrate",
    "first-divergence": "serving.first_divergence",
    "plan": "plans.verbs",
    "run": "plans.verbs",
}


def add_verbs(verbs: Any) -> None:
    """Add the parsers to argparse's subparsers."""
    for name, about in _VERBS.items():
        sub = verbs.add_parser(name, help=about, description=about, allow_abbrev=False)
        sub.set_defaults(verb=_lazily(name))
        sub.add_argument("--json", action="store_true", help="one object on stdout, messages on stderr")
        _OPTIONS[name](sub)


def _lazily(name: str) -> Callable[[argparse.Namespace, list[str]], int]:
    def verb(args: argparse.Namespace, _rest: list[str]) -> int:
        module = importlib.import_module("mxfp4_validate.serving.verbs")
        home = importlib.import_module(f"mxfp4_validate.{_HOMES.get(name, 'serving.verbs')}")
        return int(module.run(getattr(home, f"{name.replace('-', '_')}_verb"), args))

    return verb


def _compare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "runs", nargs="+", type=Path, metavar="BASELINE CANDIDATE", help="two runs of one eval; several pairs for several evals"
    )
    _judging(parser)


def _judging(parser: argparse.ArgumentParser) -> None:
    """What `compare` and `report` both ask."""
    parser.add_argument("--margin", type=float, metavar="PP", help="percentage points (the one the candidate's run was made with)")
    parser.add_argument("--aa", action="store_true", help="both runs are of one configuration: nothing may differ")
    parser.add_argument(
        "--allow-missing", type=int, default=0, metavar="N", help="missing samples a run may have; they become bounds (%(default)s)"
    )
    parser.add_argument(
        "--anchor",
        metavar="LOW:HIGH|MODEL@EFFORT",
        help="the band in which the baseline's score is known to lie: percent, or published scores (the one the candidate's run was made with)",
    )
    parser.add_argument("--expect", action="append", default=[], metavar="NAME", help="identity value that is meant to differ")
    parser.add_argument("--grader", help="another of the stored grades: strict, lenient, ...")


def _report(parser: argparse.ArgumentParser) -> None:
    about = "kernel, bench and divergence records and eval runs; runs of one eval are paired in the order given, baseline first"
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help=about)
    parser.add_argument("-o", "--output", type=Path, default=Path("report.html"), metavar="FILE", help="(%(default)s)")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="also as Markdown; GITHUB_STEP_SUMMARY gets it as well")
    parser.add_argument("--junit", type=Path, metavar="FILE", help="also as JUnit XML")
    parser.add_argument("--faults", type=Path, metavar="FILE", help="what pytest -m faults --fault-matrix FILE wrote")
    parser.add_argument("--no-answers", action="store_true", help="leave the answers' texts out, for a report that is passed on")
    parser.add_argument("--exit-zero", action="store_true", help="exit with 0 whatever the verdict")
    _judging(parser)


def _run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("plan", type=Path, metavar="PLAN.toml", help="a plan file, or one of ours by its name")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder of the run; what was begun there goes on (mxfp4-runs/PLAN)")
    for leg in ("baseline", "candidate"):
        about = f"the {leg} is up there already; repeat it to share the load"
        parser.add_argument(f"--{leg}-url", action="append", default=[], metavar="URL", help=about)
    parser.add_argument("--shard", default="1/1", metavar="I/N", help="ask only every N-th question, into DIR/shard-I-of-N; no verdict")
    parser.add_argument("--until", type=int, metavar="K", help="with --shard: ask up to the plan's look at K repeats (the last look)")
    parser.add_argument("--join", action="store_true", help="the verdict on the shards in DIR; nothing is asked")
    parser.add_argument("--grace", type=float, default=30.0, metavar="S", help="seconds a server may take to end by itself (%(default)s)")
    parser.add_argument("--no-answers", action="store_true", help="leave the answers' texts out of the report")
    parser.add_argument("--yes", action="store_true", help="go on where the estimate is over the plan's budget")


def _demo(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, default=Path("mxfp4-demo"), metavar="DIR", help="a new folder (%(default)s)")
    parser.add_argument("--limit", type=int, metavar="N", help="ask only N of the 200 questions")


def _regrade(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path)
    parser.add_argument("--dry-run", action="store_true", help="list what would change")


def _plan(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("eval", metavar="EVAL|PLAN.toml")
    parser.add_argument("--repeats", type=int)
    parser.add_argument("--detect", metavar="PP", help="a loss to detect, as in 3pp: prints the repeats that takes")
    parser.add_argument("--tokens", type=float, default=None, help="tokens an answer takes")
    parser.add_argument("--speed", type=float, default=None, help="tokens a second of the whole server")


def _merge(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")


def _export(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path)
    parser.add_argument("--jsonl", default="-", metavar="FILE", help="a new file, or - for standard output (%(default)s)")


def _import(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("tool", choices=("sgl-eval",))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--eval", help="which eval it was (from the folder's metrics.json)")
    parser.add_argument("--max-tokens", type=int, help="the cap, if the folder does not say")


_OPTIONS: dict[str, Callable[[argparse.ArgumentParser], None]] = {
    "eval": add_eval_options,
    "compare": _compare,
    "regrade": _regrade,
    "plan": _plan,
    "merge": _merge,
    "export": _export,
    "import": _import,
    "report": _report,
    "run": _run,
    "demo": _demo,
    "corpus": add_corpus_options,
    "diverge": add_diverge_options,
    "calibrate": add_calibrate_options,
    "first-divergence": add_first_divergence_options,
}
