"""`demo`: the whole instrument on the embedded model, without GPU, network or endpoint: kernel checks, three servers, verdicts, reports."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mxfp4_validate.endpoint import launch as launching
from mxfp4_validate.errors import InvalidRun, UsageError
from mxfp4_validate.serverspec import Launch

#: Seconds a server may take to load before it is given up.
LOADING = 180.0
#: The third server's fault: one a reviewer would like to see caught.
FAULT = "halves-swapped"
_NEXT = """\
what to run next, on a Hopper GPU:
  pip install 'mxfp4-validate[gpu]'
  mxfp4-validate doctor
  mxfp4-validate kernel --backend sm90-cutlass --require-hardware
and against your own servers:
  mxfp4-validate eval aime25 --base-url http://HOST:PORT/v1 --out runs/base
  mxfp4-validate compare runs/base runs/cand"""


@dataclass(frozen=True)
class Server:
    """A tiny server: its name in the output, the backend of its experts, and its fault if it is broken on purpose."""

    name: str
    backend: str
    fault: str | None = None


SERVERS = (
    Server("baseline", "emulate:marlin"),
    Server("candidate", "emulate:sm90-cutlass"),
    Server("faulty", "emulate:sm90-cutlass", FAULT),
)


def demo_verb(args: argparse.Namespace) -> int:
    """Exit status 0 if the healthy pair passed, the faulty one failed and the kernel checks held; else 1, with what was otherwise."""
    out = args.out
    if out.exists() and any(out.iterdir()):
        raise UsageError(f"--out {out} is not empty; name a new folder, so that an old result is not taken for a new one")
    out.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    kernel = _step("kernel: layouts and exact probes of the emulated SM90 kernel", ["kernel", *_kernel_args(out)])
    for server in SERVERS:
        _evaluate(server, out, args.limit)
    record = next((out / "kernel").glob("*.sqlite"))
    base, cand, faulty = (out / server.name for server in SERVERS)
    healthy = _step("verdict on the candidate", ["report", record, base, cand, "-o", out / "report.html"])
    broken = _step(f"verdict on the candidate with the fault {FAULT!r}", ["report", base, faulty, "-o", out / "report-faulty.html"])
    wanted = {"kernel checks": (kernel, 0), "healthy pair": (healthy, 0), "faulty pair": (broken, 1)}
    wrong = [f"{name}: exit {found} where {code} is right" for name, (found, code) in wanted.items() if found != code]
    said = {"kernel": kernel, "healthy": healthy, "faulty": broken, "report": str(out / "report.html")}
    if args.json:
        print(json.dumps({"verb": "demo", "exit_status": int(bool(wrong)), **said}))
    _say(f"\ndone in {time.monotonic() - began:.0f} s; the reports: {out / 'report.html'} and {out / 'report-faulty.html'}")
    _say("\n".join(f"NOT AS IT SHOULD BE: {line}" for line in wrong) or _NEXT)
    return int(bool(wrong))


def _kernel_args(out: Path) -> list[str]:
    return ["--backend", "emulate:sm90-cutlass", "-k", "bytes or probe", "-n", "2", "-q", "--no-header", "--record", str(out / "kernel")]


def _say(text: str) -> None:
    """To standard error, so that --json leaves standard output to its object."""
    print(text, file=sys.stderr, flush=True)


def _step(title: str, argv: Sequence[object]) -> int:
    """One of our own verbs in a process of its own, as a user would type it."""
    _say(f"\n== {title}\n$ mxfp4-validate {' '.join(map(str, argv))}")
    return subprocess.run([*_us(), *map(str, argv)], stdout=sys.stderr, check=False).returncode


def _us() -> list[str]:
    return [sys.executable, "-m", "mxfp4_validate"]


def _evaluate(server: Server, out: Path, limit: int | None) -> None:
    """Serve, ask the arith eval, stop; nothing of the server is left, however this ends."""
    port = launching.free_port()
    command = (
        *_us(),
        "serve",
        "tiny",
        "--port",
        str(port),
        "--backend",
        server.backend,
        *(("--fault", server.fault) if server.fault else ()),
    )
    launch = Launch(f"tiny-{server.name}", command, port, deadline=LOADING, backend=server.backend)
    _say(f"\n== {server.name}: the tiny model on {server.backend}" + (f", fault {server.fault}" if server.fault else ""))
    with launching.Server(launch, out / f"{server.name}.log", say=_say, grace=10.0) as running:
        running.wait()
        argv: list[object] = [
            "eval",
            "arith",
            "--base-url",
            running.address.api,
            "--out",
            out / server.name,
            "--concurrency",
            32,
            "--canaries",
            0,
        ]
        status = _step("the eval arith", argv + (["--limit", limit] if limit else []))
    if status:
        raise InvalidRun(f"the arith eval of the {server.name} server ended with status {status}; its log is {running.log}")
