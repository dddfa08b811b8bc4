"""The verb `bench` on the command line; torch is imported only in the child that measures."""

from __future__ import annotations

import argparse
import json
import signal
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

from mxfp4_validate import provenance
from mxfp4_validate.backends import registry
from mxfp4_validate.bench import spec
from mxfp4_validate.bench.crossover import advice, pairs
from mxfp4_validate.bench.record import BenchRun, BenchStore, read_bench
from mxfp4_validate.bench.run import Bench
from mxfp4_validate.bench.seed import markdown
from mxfp4_validate.bench.table import row_line, summary
from mxfp4_validate.errors import BackendUnavailable, UsageError
from mxfp4_validate.records.store import new_run_id
from mxfp4_validate.selection import split_specs

_ABOUT = "how fast backends are: tokens 4 to 8192, graphs, tuning, biases; who overtakes whom, and how far from the roofline"


def add_bench(verbs: Any) -> None:
    """Add the verb's parser to argparse's subparsers."""
    sub = verbs.add_parser("bench", help=_ABOUT, description=_ABOUT, allow_abbrev=False)
    sub.set_defaults(verb=_bench)
    sub.add_argument(
        "--backend", action="append", default=[], metavar="NAME", help="also a comma list or pkg.mod:factory (all that need a GPU)"
    )
    sub.add_argument("--shape", action="append", default=[], metavar="NAME|E,H,I,k", help="(deepseek-v4-flash; on a CPU dsv4-tiny)")
    tokens = ",".join(map(str, spec.TOKENS))
    sub.add_argument("--tokens", metavar="M,M,...", help=f"tokens a call ({tokens}; on a CPU 4,16)")
    sub.add_argument(
        "--graph", choices=spec.GRAPHS, default="auto", help=f"auto: CUDA graphs up to {spec.GRAPH_TOKENS} tokens (%(default)s)"
    )
    sub.add_argument(
        "--tuned", choices=spec.TUNED, default="both", help="backends with a tuner: tuned, as they come, or both (%(default)s)"
    )
    sub.add_argument(
        "--bias", choices=spec.BIASES, default="model", help="expert biases; model: as the shape's model has them (%(default)s)"
    )
    sub.add_argument("--repeats", type=int, metavar="N", help="timed calls (30; on a CPU 5)")
    sub.add_argument("--warmup", type=int, metavar="N", help="calls before them (5; on a CPU 1)")
    sub.add_argument("--seed", type=int, default=0, metavar="N", help="of weights, inputs and routing (%(default)s)")
    sub.add_argument("--out", type=Path, metavar="FILE", help="the record; an unfinished one is gone on with (mxfp4-runs/bench-ID.sqlite)")
    sub.add_argument("--markdown", type=Path, metavar="RECORD", help="measure nothing: print a record as the table of docs/bench.md")
    sub.add_argument("--json", action="store_true", help="one object on stdout, messages on stderr")


def plan_of(args: argparse.Namespace) -> spec.Plan:
    """The plan that the options describe. Raises `UsageError` for backends of different devices and for whatever `Plan` refuses."""
    gpu = [name for name, entry in registry.BACKENDS.items() if entry.device == "cuda"]
    backends = split_specs(args.backend) if args.backend else tuple(gpu)
    devices = {name: registry.device_of(name) for name in backends}
    if len(set(devices.values())) > 1:
        said = ", ".join(f"{name} on {device}" for name, device in devices.items())
        raise UsageError(f"--backend: {said}: times of different devices cannot be compared; bench them one by one")
    on_cpu = "cpu" in devices.values()
    shapes = {s.name: s for s in map(spec.parse_shape, args.shape or ["dsv4-tiny" if on_cpu else "deepseek-v4-flash"])}
    tokens = spec.parse_tokens(args.tokens) if args.tokens is not None else (4, 16) if on_cpu else spec.TOKENS
    repeats = args.repeats if args.repeats is not None else 5 if on_cpu else 30
    warmup = args.warmup if args.warmup is not None else 1 if on_cpu else 5
    device = "cpu" if on_cpu else "cuda"
    return spec.Plan(backends, device, tuple(shapes.values()), tokens, args.graph, args.tuned, args.bias, repeats, warmup, args.seed)


def _bench(args: argparse.Namespace, _rest: list[str]) -> int:
    """0 if every row was measured or is one the backend refuses, 1 for a wrong output, 5 if something planned is missing, 2 if nothing can run."""
    if args.markdown is not None:
        print(markdown(read_bench(args.markdown)))
        return 0
    plan = plan_of(args)
    path = args.out if args.out is not None else Path("mxfp4-runs") / f"bench-{new_run_id()}.sqlite"
    settings, facts = plan.settings(), provenance.collect()
    stream = sys.stderr if args.json else sys.stdout
    print(f"bench of {', '.join(plan.backends)}; record {path}", file=stream, flush=True)
    before = signal.signal(signal.SIGTERM, _interrupt)  # a time limit ends with a table of what there is
    with BenchStore.resume(path, settings, facts) if path.exists() else BenchStore.create(path, settings, facts) as store:
        bench = Bench(plan, store)
        try:
            bench.run(lambda row: print(row_line(row), file=stream, flush=True))
            code = exit_status(read_bench(path), plan)
            store.finish(code)
        except KeyboardInterrupt:
            code = 130
        finally:
            bench.close()
            signal.signal(signal.SIGTERM, before)
    run = read_bench(path)
    if args.json:
        print(json.dumps(as_json(run, code, path), allow_nan=False))
    else:
        print(summary(run))
    if code == 130:
        print(f"stopped; what was measured is in {path}: repeat the command with --out {path} to go on", file=sys.stderr)
    if code == 2:
        raise BackendUnavailable("; ".join(f"{name}: {reason}" for name, reason in run.absent()))
    return code


def _interrupt(_signal: int, _frame: object) -> NoReturn:
    raise KeyboardInterrupt


def exit_status(run: BenchRun, plan: spec.Plan) -> int:
    """What a bench that came to its end exits with."""
    absent = run.absent()
    if len(absent) == len(plan.backends):
        return 2
    outcomes = {row.outcome for row in run.rows}
    return 1 if "wrong" in outcomes else 5 if absent or outcomes & {"error", "oom"} else 0


def as_json(run: BenchRun, code: int, path: Path) -> dict[str, Any]:
    """The record and what follows from it as one object."""
    rows = []
    for row in run.rows:
        floor = run.floor(row)
        times = None if floor is None else {"ms": floor.ms, "bound": floor.bound}
        over = row.median_ms / floor.ms if floor is not None and row.median_ms is not None else None
        rows.append(asdict(row) | {"label": row.label, "floor": times, "over_floor": over})
    follows = []
    for side in run.sides():
        found = [asdict(pair) | {"verdict": pair.verdict} for pair in pairs(run.of(side))]
        told = [asdict(a) | {"sentence": a.sentence} for a in advice(run.of(side))]
        follows.append({"shape": side[0], "bias": side[1], "pairs": found, "advice": told})
    about = {"verb": "bench", "exit_status": code, "record": str(path), "run": run.id, "device": run.device}
    return about | {"settings": run.settings, "provenance": run.provenance, "facts": run.facts, "rows": rows, "conclusions": follows}
