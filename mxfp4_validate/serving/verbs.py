"""The serving verbs: `eval`, `compare`, `regrade`, `merge`, `export`, `import`, `plan`; one short function each."""

from __future__ import annotations

import argparse
import io
import json
import os
import signal
import sqlite3
import sys
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

from mxfp4_validate import evalspec, states
from mxfp4_validate.endpoint.address import Secret, parse_address
from mxfp4_validate.endpoint.client import Limits
from mxfp4_validate.endpoint.collect import Options
from mxfp4_validate.endpoint.flow import RetryPolicy
from mxfp4_validate.errors import IncompleteRun, MxfpError, UsageError
from mxfp4_validate.prompts.profiles import profile as profile_named
from mxfp4_validate.questions import examples, first, load
from mxfp4_validate.reporting.verdict import score_lines, verdict_lines
from mxfp4_validate.serving.comparison import CompareOptions, compare_runs
from mxfp4_validate.serving.legs import read_leg
from mxfp4_validate.serving.names import shown
from mxfp4_validate.serving.options import settle, shard_of
from mxfp4_validate.serving.planned import plan_run
from mxfp4_validate.serving.run import Servers, run_eval
from mxfp4_validate.verdicts import Verdict, combine
from mxfp4_validate.verdicts.summary import summarise


def eval_verb(args: argparse.Namespace) -> int:
    """Ask a server, or go on with a run."""
    profile = profile_named(args.profile)
    spec, settings = settle(args, profile.apply(evalspec.load(args.eval)))
    whole = load(spec, args.questions, revision=args.revision)
    questions = whole if args.limit is None else first(whole, args.limit)
    shots = profile.shots.get(spec.grader, 0)
    worked = examples(spec, shots, args.questions, revision=args.revision) if shots else ()
    for note in questions.notes:
        print(f"note: {note}", file=sys.stderr)
    planned = plan_run(
        spec,
        profile,
        questions,
        spec.repeats if args.repeats is None else args.repeats,
        settings,
        shard_of(args.shard),
        [q.id for q in whole.questions],
        worked,
    )
    options = Options(
        model="",
        sampling=spec.sampling,
        concurrency=_between("--concurrency", args.concurrency, 1, 2048),
        stream=args.stream,
        deadline=args.deadline,
        outage=args.outage,
        poll=args.poll,
        retry=RetryPolicy(budget=args.retry_budget),
    )
    out = args.out or Path("mxfp4-runs") / f"{spec.name}-{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{os.getpid()}"
    signal.signal(signal.SIGTERM, _interrupt)  # before and after the requests, which have handlers of their own
    done = run_eval(planned, _servers(args), options, out)
    _report_run(args, done.path, done.status, dict(done.counts), done.ending.kind, done.ending.reason)
    return done.status


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _between(name: str, value: int, low: int, high: int) -> int:
    if not low <= value <= high:
        raise UsageError(f"{name} is {value}, it must be between {low} and {high}")
    return value


def _servers(args: argparse.Namespace) -> Servers:
    urls = args.base_url or list(filter(None, [os.environ.get("OPENAI_BASE_URL")]))
    if not urls:
        raise UsageError("no server: give --base-url http://HOST:PORT/v1, or set OPENAI_BASE_URL")
    addresses = tuple(parse_address(url, allow_link_local=args.allow_link_local) for url in urls)
    key = Secret(os.environ.get("OPENAI_API_KEY") or "EMPTY")
    for address in addresses:
        if not address.encrypted and not address.loopback and key.reveal() != "EMPTY":
            print(f"warning: the API key goes to {address.root} unencrypted", file=sys.stderr)
    limits = Limits(connect=args.connect_timeout, idle=args.idle)
    return Servers(addresses, key, args.model, args.expect_backend, args.ca_file, limits, args.canaries, args.show_accuracy)


def _report_run(args: argparse.Namespace, path: Path, status: int, counts: dict[str, int], kind: str, reason: str) -> None:
    missing = sum(counts.get(state, 0) for state in states.MISSING_STATES)
    lines = [f"run: {path}", "samples: " + ", ".join(f"{state} {count}" for state, count in counts.items())]
    if kind != "done":
        lines.append(f"{kind}: {shown(reason, 600)}")
    summary = None
    if missing:
        lines.append(f"no score: {missing} samples are missing; the same command with --out {path.parent} asks them again")
    elif status == 0 and args.shard == "1/1":
        summary = summarise(read_leg(path))
        lines += score_lines("score", summary)
    if args.json:
        _print(
            {
                "verb": "eval",
                "exit_status": status,
                "run": str(path),
                "samples": counts,
                "ended": kind,
                "reason": reason,
                "summary": _plain(summary),
            }
        )
    print("\n".join(lines), file=_stream(args))


def compare_verb(args: argparse.Namespace) -> int:
    """The verdict on a candidate's run against a baseline's; of several evals, one after the other and then all together."""
    paths = args.runs
    if len(paths) < 2 or len(paths) % 2:
        raise UsageError(f"compare takes pairs BASELINE CANDIDATE, {len(paths)} runs are given")
    verdicts = [_compared(args, *paths[at : at + 2]) for at in range(0, len(paths), 2)]
    overall = combine(verdicts) if len(verdicts) > 1 else None
    code = overall.exit_code if overall else verdicts[0].exit_code
    outcome = str(overall.outcome if overall else verdicts[0].outcome)
    if args.json:
        plain = [_plain(verdict) for verdict in verdicts]
        _print(
            {"verb": "compare", "exit_status": code, "outcome": outcome, "verdict": plain[0], "verdicts": plain, "overall": _plain(overall)}
        )
    if overall:
        print(f"\nall together: {outcome}" + "".join(f"\n  because {reason}" for reason in overall.reasons), file=_stream(args))
    return code


def _compared(args: argparse.Namespace, baseline: Path, candidate: Path) -> Verdict:
    """One pair's verdict, told on the terminal."""
    options = CompareOptions(args.margin, args.aa, args.allow_missing, args.anchor, tuple(args.expect), args.grader)
    verdict = compare_runs(baseline, candidate, options)
    print(shown("\n".join(verdict_lines(verdict)), 1 << 20), file=_stream(args))
    return verdict


def _stream(args: argparse.Namespace) -> TextIO:
    """Where text goes: standard output, unless that is for JSON."""
    return sys.stderr if args.json else sys.stdout


def regrade_verb(args: argparse.Namespace) -> int:
    """Grade stored texts again with the grader of this version, and list what changed."""
    from mxfp4_validate.serving.regrade import regrade

    changed = regrade(args.run, write=not args.dry_run)
    if args.json:
        _print({"verb": "regrade", "exit_status": 0, "changed": changed})
    for row in changed:
        before, after = row["before"], row["after"]
        print(
            shown(f"{row['question_id']} repeat {row['repeat']} {row['mode']}: {before} -> {after}"),
            file=sys.stderr if args.json else sys.stdout,
        )
    print(f"{len(changed)} grades changed{' (not written)' if args.dry_run else ''}", file=_stream(args))
    return 0


def merge_verb(args: argparse.Namespace) -> int:
    """Join the shards of one run into a new one."""
    from mxfp4_validate.serving.merge import merge

    counts = merge(args.runs, args.out)
    missing = sum(counts.get(state, 0) for state in states.MISSING_STATES)
    print(f"merged into {args.out}: " + ", ".join(f"{state} {count}" for state, count in counts.items()))
    return 5 if missing else 0


def export_verb(args: argparse.Namespace) -> int:
    """A run as JSON lines: the run, then a line a sample."""
    from mxfp4_validate.serving.merge import export_jsonl

    with sys.stdout if args.jsonl == "-" else open(args.jsonl, "x", encoding="utf-8", newline="\n") as stream:
        export_jsonl(args.run, stream)
    return 0


def import_verb(args: argparse.Namespace) -> int:
    """A run folder of another tool as a run of ours."""
    from mxfp4_validate.serving.importer import import_sgl_eval

    path = import_sgl_eval(args.folder, args.out, args.eval, args.max_tokens)
    print(f"imported into {path}")
    return 0


def plan_verb(args: argparse.Namespace) -> int:
    """What a run would cost and which loss it could show, before anything is asked."""
    from mxfp4_validate.serving.costs import plan_lines

    for line in plan_lines(evalspec.load(args.eval), args.repeats, args.detect, args.tokens, args.speed):
        print(line)
    return 0


def _plain(value: Any) -> Any:
    """A dataclass as JSON: NaN becomes null, tuples become lists."""
    return json.loads(json.dumps(asdict(value) if value is not None else None, default=str), parse_constant=lambda _: None)


def _print(value: object) -> None:
    print(json.dumps(value, allow_nan=False))


def run(verb: Any, args: argparse.Namespace) -> int:
    """A verb with its errors told in one line; no traceback shows what a server or a key said."""
    for stream in (sys.stdout, sys.stderr):  # a terminal of another alphabet must not end a run
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        return int(verb(args))
    except MxfpError as error:
        return _told(str(error), error.exit_code)
    except (sqlite3.Error, OSError) as error:  # a disk that is full or broken: what was committed is kept, the same command goes on
        return _told(f"{type(error).__name__}: {error}; mend that, then run the same command again", IncompleteRun.exit_code)


def _told(text: str, code: int) -> int:
    key = Secret(os.environ.get("OPENAI_API_KEY") or "EMPTY")
    print(f"mxfp4-validate: error: {shown(key.redact(text))}", file=sys.stderr)
    return code
