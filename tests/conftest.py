"""Fixtures of more than one module."""

from __future__ import annotations

from pathlib import Path

import pytest

from mxfp4_validate import provenance
from tests.store_rig import write_questions


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    """A local file of sums whose right answers are known."""
    return write_questions(tmp_path / "sums.jsonl")


@pytest.fixture
def bare_surroundings(monkeypatch: pytest.MonkeyPatch) -> None:
    """No second of nvidia-smi and git a run, and no server or key of the environment."""
    monkeypatch.setattr(provenance, "collect", lambda: {"of": "a test"})
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
