"""The plugin: what is selected, what must be there, and what a failure and JUnit say."""

from __future__ import annotations

import os
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from mxfp4_validate import catalogue, manifest
from mxfp4_validate.backends import registry
from mxfp4_validate.cases import SHAPES
from mxfp4_validate.errors import UnknownName, UsageError
from mxfp4_validate.records.store import Result
from mxfp4_validate.reporting import terminal
from mxfp4_validate.selection import SUITES, Selection, any_of, marker_names, reaches_suites, wrong_markers

ROOT = Path(__file__).parents[1]
FAKE = ("-m", "kernel", "--backend=tests.fakes:factory")


def run(*args: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "pytest", *args]
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300, check=False)


def test_kernel_collects_the_whole_catalogue_in_its_order() -> None:
    done = run("-m", "kernel", "--collect-only", "-q", "--backend=emulate:sm90-cutlass")
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [line for line in done.stdout.splitlines() if "::" in line]
    assert [line.partition("[")[2].rstrip("]") for line in lines] == [f"emulate:sm90-cutlass-{i.item_id}" for i in catalogue.items("cpu")]
    assert all(line.startswith("suites/") for line in lines)


def test_a_shrunken_catalogue_is_a_usage_error(tmp_path: Path) -> None:
    text = manifest.PATH.read_text().replace("[cpu]\nlayout = 2", "[cpu]\nlayout = 3")
    (tmp_path / "m.toml").write_text(text)
    done = run("-m", "kernel", "--backend=emulate:sm90-cutlass", f"--manifest={tmp_path}/m.toml", "--collect-only", "-q")
    assert done.returncode == 4, done.stdout
    assert "family layout has 2 items, the manifest says 3" in done.stdout + done.stderr


def test_a_suite_that_is_gone_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "gone.py").write_text(
        "def pytest_ignore_collect(collection_path):\n    return True if collection_path.name == 'test_layout.py' else None\n"
    )
    env = {**os.environ, "PYTHONPATH": f"{ROOT}:{tmp_path}"}
    command = [sys.executable, "-m", "pytest", "-m", "kernel", "--backend=emulate:sm90-cutlass", "-p", "gone", "--collect-only", "-q"]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 4, done.stdout + done.stderr
    assert "family layout has 0 items" in done.stdout + done.stderr


def test_junit_and_failure_say_what_and_how_to_repeat_it(tmp_path: Path) -> None:
    done = run(*FAKE, "--catalogue=tests.fakes:CHECKS", "--check=wrong", f"--junitxml={tmp_path}/j.xml")
    assert done.returncode == 1
    shape = SHAPES["dsv4-mini"]
    assert f"E=16 H={shape.hidden_size} I={shape.intermediate_size} top_k=6 M=1, routing random, seed 0" in done.stdout
    assert "slowest: wrong-dsv4-mini" in done.stdout
    found = {p.get("name"): p.get("value") for p in ET.parse(tmp_path / "j.xml").getroot().iter("property")}
    assert found["case_id"] == "dsv4-mini/m1/random/s0"
    assert (found["check"], found["seed"], found["tactic"], found["unexplained"]) == ("wrong", "0", "t7", "3")


def test_stopping_early_is_not_an_invalid_run() -> None:
    done = run(*FAKE, "--catalogue=tests.fakes:CHECKS", "--check=[gw]*", "-x")
    assert done.returncode == 1
    assert "INVALID" not in done.stdout


@pytest.mark.parametrize(
    ("expression", "names"),
    [
        ("kernel", ["kernel"]),
        ("kernel and not (layout or slow)", ["kernel", "layout", "slow"]),
        ("family(name='x') or not kernal", ["family", "kernal"]),
    ],
)
def test_marker_expressions_are_read(expression: str, names: list[str]) -> None:
    assert marker_names(expression) == names
    assert len(wrong_markers(expression, ["kernel", "layout", "slow", "family"])) == sum(name == "kernal" for name in names)


def test_what_reaches_the_suites() -> None:
    suites = next(folder for folder in SUITES if folder.is_dir())
    assert reaches_suites([suites.parent], whole=True)
    assert reaches_suites([suites], whole=True)
    assert reaches_suites([suites / "kernel"], whole=False)
    assert not reaches_suites([suites / "kernel"], whole=True)
    assert not reaches_suites([suites.parent / "tests"], whole=False)


def test_globs_that_keep_nothing_name_what_is_near() -> None:
    with pytest.raises(UsageError, match="near: probe-b1"):
        Selection.build({"emulate:marlin": "cpu"}, catalogue.CHECKS, None, "probe-b1x")


def test_globs_are_repeatable_comma_lists_and_each_must_match() -> None:
    def kept(check: list[str] | None) -> set[str]:
        found = Selection.build({"emulate:marlin": "cpu"}, catalogue.CHECKS, None, any_of(check))
        return {item.check.name for item in found.planned["emulate:marlin"] if found.keeps(item)}

    assert kept(["tuned", "tactics, readout-*"]) == {"tuned", "tactics", "readout-fc1", "readout-fc2"}
    assert len(kept(None)) > 20
    with pytest.raises(UsageError, match="--check 'twins' matches none"):
        kept(["tuned,twins"])


@pytest.mark.parametrize("spec", ["sm90-cutlas", "emulate:sm90", "nonsense", "a:", ":b"])
def test_unknown_backends(spec: str) -> None:
    with pytest.raises(UnknownName, match="unknown backend"):
        registry.device_of(spec)


def test_registered_devices_need_no_import() -> None:
    assert {spec: registry.device_of(spec) for spec in registry.BACKENDS} == {
        spec: "cpu" if spec.startswith("emulate:") else "cuda" for spec in registry.BACKENDS
    }
    assert {"sm90-cutlass", "marlin", "triton-kernels", "sglang:dsv4-sm90", "emulate:marlin"} <= set(registry.BACKENDS)


def test_an_incomplete_backend_is_told_what_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    with pytest.raises(UsageError, match=r"lacks name, device, availability\(\), rounding\(\)"):
        registry.resolve("builtins:object")
    with pytest.raises(UsageError, match="no_such"):
        registry.resolve("tests.fakes:no_such")


def test_the_summary_is_a_function_of_results() -> None:
    def result(name: str, outcome: str, **metrics: object) -> Result:
        return Result(f"{name}-c", name, "random", "c", "b", outcome, "reason", dict(metrics), 1.5)

    results = [
        result("x", "passed", bit_equal=0.999, unexplained=0),
        result("y", "failed", bit_equal=0.5, unexplained=7),
        result("z", "oom"),
        result("u", "unavailable"),
    ]
    text = "\n".join(terminal.summary(results, {("b", "random"): 6}, {"b": "available"}))
    assert "b        random       1       2        1        2      6.0  bit_equal 0.5, unexplained 7" in text
    assert "of the failed: 1 failed" not in text
    assert "of the failed: 1 oom" in text
    assert "not tested: b: random 3 of 6\n  1: reason" in text
