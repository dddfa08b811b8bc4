"""Provenance: versions compared as versions, GPUs as the caller sees them, and nothing private."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mxfp4_validate import provenance

BAD = ("0.6.10", "0.6.11", "0.6.11.post1", "0.6.11.post1+cu130", "0.6.12rc1", "0.6.15", "0.6.15.post1")
GOOD = ("0.6.9", "0.6.9.post9", "0.6.10rc1", "0.6.15.post2", "0.6.16", "0.7.2.post1", "1.0", "unknown")


@pytest.mark.parametrize("version", BAD)
def test_bad_versions_are_known(version: str) -> None:
    notice = provenance.known_bad("flashinfer-python", version)
    assert notice is not None
    assert "issues/5438" in notice


@pytest.mark.parametrize("version", GOOD)
def test_other_versions_are_not(version: str) -> None:
    assert provenance.known_bad("flashinfer-python", version) is None
    assert provenance.known_bad("torch", "0.6.11") is None


@pytest.mark.parametrize(
    ("value", "entries"),
    [("", []), ("-1", []), ("3", ["3"]), (" 1 , 0 ", ["1", "0"]), ("0,-1,2", ["0"]), ("GPU-a,MIG-b", ["GPU-a", "MIG-b"])],
)
def test_the_callers_choice_is_what_is_visible(value: str, entries: list[str]) -> None:
    assert provenance.visible_gpus({"CUDA_VISIBLE_DEVICES": value}) == entries


@pytest.mark.parametrize(
    ("listing", "entries"),
    [
        ("", []),
        ("GPU 0: NVIDIA H200 (UUID: GPU-x)\nGPU 1: NVIDIA H200 (UUID: GPU-y)\n", ["0", "1"]),
        ("GPU 0: NVIDIA H200 (UUID: GPU-x)\n  MIG 1g.18gb     Device  0: (UUID: MIG-p)\n  MIG 1g.18gb     Device  1: (UUID: MIG-q)\n",
         ["MIG-p", "MIG-q"]),
    ],
)  # fmt: skip
def test_without_a_choice_all_devices_are(listing: str, entries: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "_command", lambda *argv: listing if argv == ("nvidia-smi", "-L") else "")
    assert provenance.visible_gpus({}) == entries


def test_missing_tools_leave_empty_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    found = provenance.collect()
    assert (found["gpus"], found["commit"]) == ([], None)


def test_nothing_private_is_collected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MXFP4_API_KEY", "hush-hush")
    monkeypatch.setenv("HF_TOKEN", "hush-hush")
    monkeypatch.setenv("MXFP4_CACHE", f"{Path.home()}/cache")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-x")
    found = provenance.collect()
    assert found["environment"]["CUDA_VISIBLE_DEVICES"] == "GPU-x"  # type: ignore[index]
    assert "hush-hush" not in json.dumps(found)
    assert str(Path.home()) not in json.dumps(found)


def test_a_switched_off_check_is_said_loudly() -> None:
    assert provenance.notices({}, {"flashinfer-python": "0.6.16"}) == []
    both = provenance.notices({"FLASHINFER_DISABLE_VERSION_CHECK": "1"}, {"flashinfer-python": "0.6.11"})
    assert len(both) == 2
