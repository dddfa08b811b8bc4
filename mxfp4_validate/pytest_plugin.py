"""The pytest side: options, markers and items; every item runs in a child process, and pytest itself never imports torch."""

from __future__ import annotations

import json
import os
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from mxfp4_validate import catalogue, manifest, provenance
from mxfp4_validate.backends import registry
from mxfp4_validate.catalogue import Item
from mxfp4_validate.errors import MxfpError
from mxfp4_validate.pytest_items import (
    POOL,
    RUN,
    CheckItem,
    check_item,
    fault_bench,
    fault_row,
    pytest_runtest_makereport,
    pytest_terminal_summary,
)
from mxfp4_validate.selection import (
    DEFAULT_BACKEND,
    DEFAULT_CATALOGUE,
    SUITES,
    Selection,
    Source,
    any_of,
    marker_names,
    reaches_suites,
    split_specs,
    wrong_markers,
)
from mxfp4_validate.session import Reporting, Run, header
from mxfp4_validate.worker.pool import Pool, child_environment

#: Fixtures and hooks that pytest finds here.
__all__ = ["CheckItem", "check_item", "fault_bench", "fault_row", "pytest_runtest_makereport", "pytest_terminal_summary"]

MARKERS = {
    "kernel": "the candidate kernel's outputs",
    "layout": "the bytes handed to the kernel",
    "faults": "deliberate faults, each of which must be caught",
    "hardware": "needs a GPU; set on items whose backend runs on one",
    "family(name)": "which checks of the catalogue a suite's test function runs",
    "xdist_group(name)": "items of one backend and shape, kept on one worker so that a layer is built once",
}
KEPT = pytest.StashKey[set[int]]()
_OWN_TESTS = Path(__file__).resolve().parents[1] / "tests"


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("mxfp4", "MXFP4 kernel validation")
    group.addoption(
        "--backend",
        action="append",
        default=[],
        metavar="NAME|pkg.mod:factory",
        help=f"candidates; repeatable or a comma list (default {DEFAULT_BACKEND})",
    )
    group.addoption("--case", action="append", metavar="GLOB", help="only cases whose id matches, e.g. 'gpt-oss-20b/*'; repeatable")
    group.addoption("--check", action="append", metavar="GLOB", help="only checks whose name matches, e.g. 'probe-*'; repeatable")
    group.addoption("--checkpoint", metavar="DIR", help="test this checkpoint's own weights instead; spell it --checkpoint=DIR")
    group.addoption("--layers", metavar="N,N", help="layers of --checkpoint (default 0)")
    group.addoption("--no-waivers", action="store_true", help="known failures fail like any other (mxfp4_validate/waivers.toml)")
    group.addoption("--require-hardware", action="store_true", help="an unavailable backend fails instead of being skipped")
    group.addoption("--record", metavar="DIR", help="write results to DIR/RUN-ID.sqlite; spell it --record=DIR")
    group.addoption("--fault-matrix", metavar="FILE", help="write which check caught which deliberate fault, for `report --faults FILE`")
    group.addoption("--deadline-scale", type=float, default=1.0, metavar="F", help="multiply every deadline by F")
    # Hidden: for the CLI, the faults suite and our own tests.
    hidden = {"--fault": None, "--catalogue": DEFAULT_CATALOGUE, "--manifest": None}
    for name, default in hidden.items():
        group.addoption(name, dest=f"mxfp4_{name[2:].replace('-', '_')}", default=default, help="internal")


def pytest_configure(config: pytest.Config) -> None:
    for name, meaning in MARKERS.items():
        config.addinivalue_line("markers", f"{name}: {meaning}")
    if config.option.deadline_scale <= 0:
        raise pytest.UsageError(f"--deadline-scale {config.option.deadline_scale} must be positive")
    config.stash[POOL] = Pool(child_environment(os.environ), config.option.deadline_scale, config.option.mxfp4_fault)


def pytest_unconfigure(config: pytest.Config) -> None:
    if POOL in config.stash:
        config.stash[POOL].close()
    if RUN in config.stash:
        config.stash[RUN].close()


@pytest.hookimpl(wrapper=True)
def pytest_cmdline_main(config: pytest.Config) -> Generator[None, Any, Any]:
    """Spread over workers by group, unless the caller chose otherwise; a wrapper runs before xdist settles on `load`."""
    if getattr(config.option, "numprocesses", None) and config.option.dist == "no":
        config.option.dist = "loadgroup"
    return (yield)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int | None:
    """`-n auto`: a worker a visible GPU; CPU backends use their threads, so one worker. Our own tests are left to xdist."""
    if not _asked_for(config, all_of_it=False):
        return None
    try:
        on_gpu = any(registry.device_of(spec) != "cpu" for spec in split_specs(config.option.backend))
    except MxfpError:
        return 1  # said properly when the session starts
    return max(1, len(provenance.visible_gpus(os.environ))) if on_gpu else 1


@pytest.hookimpl(tryfirst=True)
def pytest_sessionstart(session: pytest.Session) -> None:
    """Everything that is wrong with the request is said here, before anything is collected."""
    config = session.config
    if config.option.markexpr:
        registered = (line.partition(":")[0].partition("(")[0].strip() for line in config.getini("markers"))
        if wrong := wrong_markers(config.option.markexpr, registered):
            raise pytest.UsageError(*wrong)
    try:
        run = config.stash[RUN] = _build_run(config)
        counts = config.option.mxfp4_manifest or (manifest.PATH if run.selection.checks is catalogue.CHECKS else None)
        if counts and _asked_for(config, all_of_it=False):
            run.check_catalogue(manifest.load(Path(counts)))
    except MxfpError as error:
        raise pytest.UsageError(str(error)) from error
    if not hasattr(config, "workerinput"):
        idle = any(map(config.getoption, ("collectonly", "setuponly", "setupplan")))
        config.pluginmanager.register(Reporting(config.stash[RUN], idle), "mxfp4-reporting")


def _build_run(config: pytest.Config) -> Run:
    options = config.option
    source = Source(options.mxfp4_catalogue, options.checkpoint, options.layers)
    checks = source.checks()
    sent = getattr(config, "workerinput", {}).get("mxfp4_devices")
    devices = json.loads(sent) if sent else {spec: registry.device_of(spec) for spec in split_specs(options.backend)}
    settings = {"backends": devices, "markers": options.markexpr, "keywords": options.keyword, "fault": options.mxfp4_fault}
    settings |= {name: getattr(options, name) for name in ("case", "check", "require_hardware", "deadline_scale")}
    settings |= source.settings()
    selection = Selection.build(devices, checks, any_of(options.case), any_of(options.check), source)
    return Run(selection, Path(options.record) if options.record else None, settings)


def _asked_for(config: pytest.Config, all_of_it: bool) -> bool:
    """Whether the command line's paths (or `testpaths`) reach into the suites, or hold them whole."""
    if all_of_it and (config.option.ignore or config.option.ignore_glob):
        return False
    return reaches_suites([(config.invocation_params.dir / arg.partition("::")[0]).resolve() for arg in config.args], all_of_it)


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    node.workerinput["mxfp4_devices"] = json.dumps(dict(node.config.stash[RUN].selection.devices))


def pytest_report_header(config: pytest.Config) -> list[str]:
    return header()


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Our own tests carry no suite marker and import torch: with `-m kernel` they need not be read."""
    names = marker_names(config.option.markexpr or "")
    only_suites = bool(names) and set(names) <= {"kernel", "layout", "faults", "hardware"} and "not" not in config.option.markexpr.split()
    return True if only_suites and collection_path.is_relative_to(_OWN_TESTS) else None


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    family = metafunc.definition.get_closest_marker("family")
    if "check_item" not in metafunc.fixturenames or family is None:
        return
    run, params = metafunc.config.stash[RUN], []
    for spec, device in run.selection.devices.items():
        for item in run.selection.family(spec, family.args[0]):
            marks = [pytest.mark.xdist_group(f"{spec}/{item.case.shape.name}")] + [pytest.mark.hardware] * (device == "cuda")
            params.append(pytest.param((spec, item), id=f"{spec}-{item.item_id}", marks=marks))
    metafunc.parametrize("check_item", params, indirect=True)


def _param(item: pytest.Item) -> tuple[str, Item] | None:
    value = getattr(item, "callspec", None) and item.callspec.params.get("check_item")  # type: ignore[attr-defined]
    return value if isinstance(value, tuple) else None


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Count against the plan before any filter, apply the globs, and put the items of a shape side by side."""
    run = config.stash[RUN]
    suite = [(item, param) for item in items if (param := _param(item))]
    if not any("::" in arg for arg in config.args):
        run.check_collected(
            [param for item, param in suite if any(folder in item.path.resolve().parents for folder in SUITES)],
            _asked_for(config, all_of_it=True),
        )
    place = run.order()
    keep = sorted((pair for pair in suite if run.selection.keeps(pair[1][1])), key=lambda pair: place[pair[1][0], pair[1][1].item_id])
    config.stash[KEPT] = {id(item) for item, _ in keep}
    if dropped := [item for item, _ in suite if id(item) not in config.stash[KEPT]]:
        config.hook.pytest_deselected(items=dropped)
    # A family without items leaves a placeholder that pytest would show as skipped.
    items[:] = [item for item in items if "check_item" not in getattr(item, "fixturenames", ())] + [item for item, _ in keep]
    _complain(config)


def pytest_deselected(items: list[pytest.Item]) -> None:
    for item in items:
        item.config.stash[KEPT].discard(id(item))


def pytest_collection_finish(session: pytest.Session) -> None:
    """What nobody said to deselect must still be there."""
    eaten = session.config.stash.get(KEPT, set()) - {id(item) for item in session.items}
    if eaten:
        session.config.stash[RUN].problems.append(f"{len(eaten)} items vanished during collection, without being deselected")
        _complain(session.config)


def _complain(config: pytest.Config) -> None:
    problems = config.stash[RUN].problems
    if hasattr(config, "workeroutput"):
        config.workeroutput["mxfp4_problems"] = list(problems)
    elif problems:
        raise pytest.UsageError(*problems)


def pytest_report_collectionfinish(config: pytest.Config, items: list[pytest.Item]) -> list[str]:
    elsewhere = config.option.collectonly or hasattr(config, "workerinput")  # only the controller expects, asks and records
    return [] if elsewhere else _expect(config, [item.nodeid for item in items])


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    node.config.stash[RUN].note_problems(getattr(node, "workeroutput", {}).get("mxfp4_problems", ()))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_node_collection_finished(node: Any, ids: list[str]) -> None:
    if not node.config.stash[RUN].expected:
        lines = _expect(node.config, ids)
        reporter = node.config.pluginmanager.get_plugin("terminalreporter")
        for line in lines if reporter else ():
            reporter.write_line(line)


def _expect(config: pytest.Config, nodeids: list[str]) -> list[str]:
    """Note which items must have a result in the end, and say which backends can run here."""
    run, pool = config.stash[RUN], config.stash[POOL]
    run.expect(nodeids)
    backends = run.expected_backends()
    for spec in reversed(backends):  # the child of the first stays: its checks are the next to run, and importing an engine takes 20 s
        pool.availability(spec)
    for spec in backends:
        run.note_availability(spec, pool.availability(spec))
    if getattr(config.option, "dist", "no") != "no":
        pool.close()  # the controller runs nothing, and its child would hold GPU memory
    return [f"mxfp4 backend {spec}: {line}" for spec, line in run.facts.items()]
