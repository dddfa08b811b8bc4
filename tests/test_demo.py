"""README's first command: the whole instrument on the embedded model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from mxfp4_validate import cli


def test_the_demo(tmp_path: Path) -> None:
    """Exit 0, a PASS for the healthy pair, a FAIL for the faulty one, two reports, and no server left behind."""
    out = tmp_path / "demo"
    command = [sys.executable, "-m", "mxfp4_validate", "demo", "--out", str(out), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    said = json.loads(done.stdout)
    assert (said["kernel"], said["healthy"], said["faulty"]) == (0, 0, 1)
    assert "PASS" in (out / "report.html").read_text(encoding="utf-8")[:2000]
    assert "FAIL" in (out / "report-faulty.html").read_text(encoding="utf-8")[:2000]
    assert "what to run next" in done.stderr
    logs = [path.read_text(encoding="utf-8") for path in sorted(out.glob("*.log"))]
    assert len(logs) == 3


def test_an_old_result_is_not_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "something").write_text("of the user's")
    assert cli.main(["demo", "--out", str(tmp_path)]) == 2
    assert "is not empty" in capsys.readouterr().err
