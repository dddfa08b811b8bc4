"""The command line: from an empty folder, past whatever configuration lies there, with exit codes as `errors` lists them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mxfp4_validate import catalogue, manifest
from mxfp4_validate.records.store import Store

ROOT = Path(__file__).parents[1]
FAKE = ("kernel", "--backend=tests.fakes:factory")


def cli(*args: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "mxfp4_validate", *args]
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=300, check=False)


def test_kernel_runs_from_a_folder_with_hostile_configuration(tmp_path: Path) -> None:
    (tmp_path / "pytest.ini").write_text("[pytest]\naddopts = --no-such-option\n")
    (tmp_path / "conftest.py").write_text("raise RuntimeError('not mine')\n")
    done = cli(*FAKE, "--json", "--catalogue=tests.fakes:GOOD", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    summary = json.loads(done.stdout)
    assert (summary["exit_status"], summary["counts"]) == (0, {"passed": 2})
    assert Path(summary["record"]).parent == tmp_path / "mxfp4-runs"
    with Store.open(Path(summary["record"])) as store:
        assert [r.check for r in store.results()] == ["good", "good-too"]
        assert store.run().exit_status == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["conftest.py", "mxfp4-runs", "pytest.ini"]


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        ((*FAKE, "--catalogue=tests.fakes:CHECKS", "--check=wrong"), 1, "three bits are wrong"),
        (("kernel", "--backend=emulate:sm90-cutlas"), 2, "did you mean emulate:sm90-cutlass"),
        (("kernel", "--backend=tests.fakes:Absent", "--catalogue=tests.fakes:GOOD"), 5, "NOTHING WAS TESTED"),
        (("kernel", "--backend=tests.fakes:Absent", "--catalogue=tests.fakes:GOOD", "--require-hardware"), 1, "no such card"),
        ((*FAKE, "--catalogue=tests.fakes:GOOD", "-p", "tests.liar"), 4, "no result"),
        (("kernel", "-m", "kernal"), 2, "did you mean 'kernel'"),
        (("doctor", "--what"), 2, "unrecognized"),
    ],
)
def test_exit_codes(args: tuple[str, ...], code: int, says: str, tmp_path: Path) -> None:
    done = cli(*args, cwd=tmp_path)
    assert done.returncode == code, done.stdout + done.stderr
    assert says in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_list_needs_no_torch_and_parses(tmp_path: Path) -> None:
    block = "import sys; sys.modules['torch'] = None; from mxfp4_validate.cli import main; sys.exit(main(['list', '--json', '--no-probe']))"
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", block], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert {check["name"] for check in found["checks"]} == {check.name for check in catalogue.CHECKS}
    assert "sm90-cutlass" in found["backends"]


def test_the_manifest_is_what_the_catalogue_holds(tmp_path: Path) -> None:
    assert cli("list", "--manifest", cwd=tmp_path).stdout == manifest.PATH.read_text()


def test_doctor_says_what_is_missing(tmp_path: Path) -> None:
    done = cli("doctor", "--json", "--backend=tests.fakes:Absent", "--require-hardware", cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    found = json.loads(done.stdout)
    assert found["backends"]["tests.fakes:Absent"]["reason"] == "no such card; buy one"
    assert found["backends"]["emulate:sm90-cutlass"]["available"]
    assert cli("doctor", "--backend=tests.fakes:Absent", cwd=tmp_path).returncode == 0
