"""The built wheel works from an empty folder: suites inside, verbs run, torch not needed to collect, typos are errors."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from the tree and unpacked by pip into a folder of its own."""
    base = tmp_path_factory.mktemp("wheel")
    # From a copy: setuptools builds inside the tree, and two xdist workers would trip over each other's build folder.
    tree = base / "tree"
    for name in ("mxfp4_validate", "suites", "evals", "reports"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree / name)
    build = [sys.executable, "-m", "build", "--wheel", "--outdir", str(base / "dist"), str(tree)]
    made = subprocess.run(build, capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stdout[-3000:] + made.stderr[-3000:]
    (wheel,) = (base / "dist").glob("*.whl")
    target = base / "site"
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(target), str(wheel)]
    subprocess.run(pip, capture_output=True, check=True)
    return target


def test_every_module_and_its_data_are_in_the_wheel(installed: Path) -> None:
    """A package missing from pyproject's list would go unnoticed beside an editable install, which serves it from the checkout."""
    for source, place in (("mxfp4_validate", "."), ("suites", "suites"), ("evals", "evals"), ("reports", "reports")):
        kinds = (".py", ".toml", ".txt", ".j2", ".css", ".js", ".json", ".safetensors")
        wanted = {p.relative_to(ROOT / source) for p in (ROOT / source).rglob("*") if p.suffix in kinds and "__pycache__" not in p.parts}
        wanted -= {
            p for p in wanted if source == "reports" and p.parts[0] != "templates" and p.suffix != ".py"
        }  # records stay in the repository
        there = {p.relative_to(installed / "mxfp4_validate" / place) for p in (installed / "mxfp4_validate" / place).rglob("*")}
        assert wanted <= there, f"{source}: {sorted(map(str, wanted - there))} are not in the wheel; add their package in pyproject.toml"


def run(installed: Path, cwd: Path, *args: str, **env: str) -> subprocess.CompletedProcess[str]:
    """`python -m mxfp4_validate ARGS` with the wheel ahead of any checkout."""
    full = {**os.environ, "PYTHONPATH": str(installed), **env}
    return subprocess.run(
        [sys.executable, "-m", "mxfp4_validate", *args], cwd=cwd, env=full, capture_output=True, text=True, check=False, timeout=300
    )


def test_verbs_from_an_empty_folder(installed: Path, tmp_path: Path) -> None:
    """`list`, `doctor` and a slice of the kernel suite, all from the wheel's own files."""
    where = [sys.executable, "-c", "import mxfp4_validate; print(mxfp4_validate.__file__)"]
    found = subprocess.run(
        where, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(installed)}, capture_output=True, text=True, check=True
    )
    assert str(installed) in found.stdout, "the checkout was imported instead of the wheel"
    listed = run(installed, tmp_path, "list", "--json")
    assert listed.returncode == 0, listed.stderr
    assert len(json.loads(listed.stdout)["checks"]) > 20
    doctor = run(installed, tmp_path, "doctor", "--json")
    assert doctor.returncode == 0, doctor.stderr
    plan = run(installed, tmp_path, "plan", "gsm8k")
    assert plan.returncode == 0, plan.stderr
    assert "1319 questions" in plan.stdout
    kernel = run(installed, tmp_path, "kernel", "--backend", "emulate:sm90-cutlass", "-k", "probe", "--case", "*-mini/m3/*")
    assert kernel.returncode == 0, kernel.stdout[-3000:] + kernel.stderr[-2000:]
    assert "12 passed" in kernel.stdout, kernel.stdout[-2000:]


def test_the_suites_run_from_a_checkout_of_ours(installed: Path, tmp_path: Path) -> None:
    """README's first command runs beside the sources: the folder's `mxfp4_validate`, which has no suites in it, must not hide the installed one."""
    (tmp_path / "mxfp4_validate").mkdir()
    (tmp_path / "mxfp4_validate" / "__init__.py").write_text("raise ImportError('the checkout hides the installed package')\n")
    command = "import sys; sys.path.remove(''); sys.argv[0] = 'mxfp4-validate'; from mxfp4_validate.cli import main; sys.exit(main())"
    arguments = ("kernel", "--backend", "emulate:sm90-cutlass", "--check", "probe-b1", "--case", "*-mini/m3/*")
    env = {**os.environ, "PYTHONPATH": str(installed)}
    kernel = subprocess.run([sys.executable, "-c", command, *arguments], cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert kernel.returncode == 0, kernel.stdout[-3000:] + kernel.stderr[-2000:]
    assert "2 passed" in kernel.stdout, kernel.stdout[-2000:]


def test_an_unknown_marker_is_an_error(installed: Path, tmp_path: Path) -> None:
    """`-m kernal` must not select nothing and look fine."""
    typo = run(installed, tmp_path, "kernel", "--backend", "emulate:sm90-cutlass", "-m", "kernal")
    assert typo.returncode == 2, typo.stdout + typo.stderr
    assert "kernal" in typo.stdout + typo.stderr
