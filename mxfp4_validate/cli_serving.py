"""The serving wing's verbs on the command line; what they do is imported only when one of them runs."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mxfp4_validate.serving.options import add_eval_options

_VERBS = {
    "eval": "ask a server an eval's questions, or go on with an unfinished run",
    "compare": "the verdict on a candidate's run against a baseline's",
    "regrade": "grade a run's stored answers again and list what changed",
    "plan": "what a run costs and which loss it can show, before it starts",
    "merge": "join the shards of a run",
    "export": "a run as JSON lines",
    "import": "a run of another tool as a run of ours",
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
        return int(module.run(getattr(module, f"{name}_verb"), args))

    return verb


def _compare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "runs", nargs="+", type=Path, metavar="BASELINE CANDIDATE", help="two runs of one eval; several pairs for several evals"
    )
    parser.add_argument("--margin", type=float, metavar="PP", help="percentage points (the one the candidate's run was made with)")
    parser.add_argument("--aa", action="store_true", help="both runs are of one configuration: nothing may differ")
    parser.add_argument(
        "--allow-missing", type=int, default=0, metavar="N", help="missing samples a run may have; they become bounds (%(default)s)"
    )
    parser.add_argument("--anchor", metavar="LOW:HIGH", help="percent; the band in which the baseline's score is known to lie")
    parser.add_argument("--expect", action="append", default=[], metavar="NAME", help="identity value that is meant to differ")
    parser.add_argument("--grader", help="another of the stored grades: strict, lenient, ...")


def _regrade(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path)
    parser.add_argument("--dry-run", action="store_true", help="list what would change")


def _plan(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("eval")
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
}
