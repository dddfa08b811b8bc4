"""The command line: `kernel` runs the suites, `list` says what there is, `doctor` says what is missing. One short function a verb."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mxfp4_validate import __version__, catalogue, manifest, provenance
from mxfp4_validate import cli_serving as serving
from mxfp4_validate import cli_tiny as tiny
from mxfp4_validate.backends import registry
from mxfp4_validate.cli_bench import add_bench
from mxfp4_validate.cli_checkpoint import add_checkpoint
from mxfp4_validate.errors import InvalidRun, MxfpError
from mxfp4_validate.records.store import Store, new_run_id
from mxfp4_validate.selection import DEFAULT_BACKEND, split_specs
from mxfp4_validate.worker.parent import Worker
from mxfp4_validate.worker.protocol import Answer

DEVICES = ("cpu", "cuda")
#: pytest's exit statuses as ours; 4 is told apart by whether the run had begun.
_STATUS = {0: 0, 1: 1, 2: 130, 3: 1, 4: 2, 5: 5}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; returns its exit status, as `errors` lists them."""
    parser = _parser()
    args, rest = parser.parse_known_args(argv)
    if rest and args.verb is not _kernel:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    try:
        return int(args.verb(args, rest))
    except MxfpError as error:
        print(f"mxfp4-validate: error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "mxfp4-validate",
        description="Checks of MXFP4 MoE backends: bit by bit on a GPU, and by evals against a server.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"mxfp4-validate {__version__}")
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    for name, verb, about in (
        ("kernel", _kernel, "run the kernel suite; all other options go to pytest: --backend, --case, --check, -k, -m, -n, ..."),
        ("list", _list, "checks, cases, backends and faults"),
        ("doctor", _doctor, "what runs here, what does not, and what to install"),
    ):
        sub = verbs.add_parser(name, help=about, description=about, allow_abbrev=False)
        sub.set_defaults(verb=verb)
        sub.add_argument("--json", action="store_true", help="one object on stdout, messages on stderr")
        if verb is _kernel:
            sub.add_argument("--record", type=Path, default=Path("mxfp4-runs"), metavar="DIR", help="folder of the record (%(default)s)")
        else:
            sub.add_argument("--backend", action="append", default=[], metavar="NAME|pkg.mod:factory", help="also ask this one")
        if verb is _list:
            sub.add_argument("--no-probe", action="store_true", help="do not ask backends whether they can run here")
            sub.add_argument("--manifest", action="store_true", help="print manifest.toml as the catalogue is now")
        if verb is _doctor:
            sub.add_argument("--require-hardware", action="store_true", help="exit with 1 if the candidate cannot run here")
    serving.add_verbs(verbs)
    tiny.add_verbs(verbs)
    add_checkpoint(verbs)
    add_bench(verbs)
    return parser


def suites() -> Path:
    """The folder of the suites: inside the package when it is installed, beside it in a checkout."""
    package = Path(__file__).parent
    return next((folder for folder in (package / "suites", package.parent / "suites") if (folder / "kernel").is_dir()), package / "suites")


def _kernel(args: argparse.Namespace, rest: list[str]) -> int:
    """Run pytest on the suites in a process of its own, away from whatever configuration lies in the current folder."""
    _require_manifest()
    folder, record = suites(), args.record.absolute() / f"{new_run_id()}.sqlite"
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-c",
        os.devnull,
        "--rootdir",
        str(folder),
        "--confcutdir",
        str(folder),
        "--strict-markers",
        "-ra",
        "-p",
        "mxfp4_validate.pytest_plugin",
        "-p",
        "no:cacheprovider",
        "-m",
        "kernel",
        f"--record={record}",
        *rest,
        str(folder),
    ]
    # The current folder comes last, so that a checkout of ours there cannot hide the installed package, and a user's backend is still found.
    path = os.pathsep.join(filter(None, (str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH"), str(Path.cwd()))))
    env = {**os.environ, "PYTHONPATH": path, "PYTHONSAFEPATH": "1"}
    status = _wait(subprocess.Popen(command, env=env, stdout=sys.stderr if args.json else None))
    # A usage error ends pytest with 4 before there is a record; with one, something planned went missing.
    code = InvalidRun.exit_code if status == 4 and record.exists() else _STATUS.get(status, 1)
    if args.json:
        _print(_run_summary(code, record))
    return code


def _wait(process: subprocess.Popen[bytes]) -> int:
    """pytest's status. Ctrl-C reaches it by itself; SIGTERM is passed on as an interrupt, so that it says what it has."""
    signal.signal(signal.SIGTERM, lambda *_: process.send_signal(signal.SIGINT))
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:
            continue


def _run_summary(code: int, record: Path) -> dict[str, Any]:
    summary: dict[str, Any] = {"verb": "kernel", "exit_status": code, "record": None, "counts": {}, "results": []}
    if record.exists():
        with closing(Store.open(record)) as store:
            results = store.results()
            run = asdict(store.run())
        counts = Counter(result.outcome for result in results)
        summary |= {"record": str(record), "run": run, "counts": counts, "results": [asdict(result) for result in results]}
    return summary


def _require_manifest() -> None:
    expected = manifest.load()
    wrong: list[str] = []
    for device in DEVICES:
        wrong += manifest.differences(expected.get(device, {}), manifest.count(catalogue.items(device)), f"catalogue for {device}")
    if wrong:
        raise InvalidRun("; ".join(wrong))


def _ask(specs: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Whether each backend can run here, asked in a child of its own; as many at once as there are cores, since each imports torch."""

    def ask(spec: str) -> dict[str, Any]:
        device = registry.device_of(spec)
        with closing(Worker(spec)) as worker:
            answer: Answer = worker.availability()
        about = registry.BACKENDS[spec].about if spec in registry.BACKENDS else "anyone's own"
        available = answer.outcome == "passed"
        return {"device": device, "about": about, "available": available, "reason": answer.message, "facts": answer.metrics}

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        return dict(zip(specs, pool.map(ask, specs), strict=True))


def _specs(args: argparse.Namespace) -> list[str]:
    return [*registry.BACKENDS, *(spec for spec in (split_specs(args.backend) if args.backend else ()) if spec not in registry.BACKENDS)]


def _faults() -> list[str]:
    """Names of the deliberate faults, found without importing what injects them."""
    folder = Path(__file__).with_name("faults")
    if importlib.util.find_spec("mxfp4_validate.faults") is None and not folder.is_dir():
        return []
    from mxfp4_validate import faults  # type: ignore[attr-defined,unused-ignore]

    return sorted(getattr(faults, "NAMES", ()))


def _list(args: argparse.Namespace, _rest: list[str]) -> int:
    """Everything that can be named on the command line."""
    if args.manifest:
        print(manifest.render({device: catalogue.items(device) for device in DEVICES}), end="")
        return 0
    known = {spec: {"device": e.device, "about": e.about} for spec, e in registry.BACKENDS.items()}
    checks = [
        {"name": c.name, "family": c.family, "proves": c.proves, "cpu": len(c.cpu_cases), "cuda": len(c.cuda_cases)}
        for c in catalogue.CHECKS
    ]
    cases = {device: sorted({item.case.case_id for item in catalogue.items(device)}) for device in DEVICES}
    found = {"checks": checks, "cases": cases, "backends": known if args.no_probe else _ask(_specs(args)), "faults": _faults()}
    if args.json:
        _print(found)
        return 0
    for check in checks:
        print(f"{check['family']:<12} {check['name']:<20} cpu {check['cpu']:>3}  cuda {check['cuda']:>3}  {check['proves']}")
    print(f"\n{len(cases['cpu'])} cases on cpu, {len(cases['cuda'])} on cuda (all of them with --json)\n")
    _print_backends(found["backends"])
    print("".join(f"fault {name}\n" for name in found["faults"]), end="")
    return 0


def _print_backends(backends: Any) -> None:
    for spec, entry in backends.items():
        state = ""
        if "available" in entry:
            facts = "".join(f", {name} {value}" for name, value in entry["facts"].items())
            state = f"available{facts}" if entry["available"] else f"unavailable: {entry['reason']}"
        print(f"{spec:<24} {entry['device']:<5} {entry['about']}" + (f"\n{'':<24} {state}" if state else ""))


def _doctor(args: argparse.Namespace, _rest: list[str]) -> int:
    """Provenance and the availability of every backend; 1 only if hardware is required and the candidate cannot run."""
    candidates = split_specs(args.backend) if args.backend else (DEFAULT_BACKEND,)
    facts, backends = provenance.collect(), _ask(_specs(args))
    notices = provenance.notices(os.environ, provenance.versions())
    missing = [spec for spec in candidates if not backends[spec]["available"]]
    code = int(bool(args.require_hardware and missing))
    if args.json:
        _print({"provenance": facts, "notices": notices, "backends": backends, "candidates": list(candidates), "exit_status": code})
        return code
    for name, value in facts.items():
        print(f"{name:<12} {json.dumps(value) if isinstance(value, dict | list) else value}")
    print("".join(f"NOTICE       {notice}\n" for notice in notices))
    _print_backends(backends)
    if missing:
        print(f"\n{', '.join(missing)} cannot run here; the twins can: mxfp4-validate kernel --backend emulate:sm90-cutlass")
    return code


def _print(value: object) -> None:
    print(json.dumps(value, allow_nan=False))
