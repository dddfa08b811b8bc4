"""sglang's own MoE classes (0.5.12.post1) and its Marlin function (that release's and 0.5.23's), over emulated kernels: bytes, plumbing, defects.

triton_kernels likewise: its layouts, routing metadata and torch reference under the product's own backend.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from mxfp4_validate.backends import sglang_layers
from mxfp4_validate.backends.base import Available, Unavailable
from mxfp4_validate.backends.emulate import emulate_sm90
from mxfp4_validate.backends.marlin import Marlin
from mxfp4_validate.backends.marlin_gemm import MarlinGemm
from mxfp4_validate.backends.sglang_layers import DeepSeekV4Sm90, GptOssSm90
from mxfp4_validate.backends.sglang_marlin import GptOssMarlin
from mxfp4_validate.errors import UsageError
from mxfp4_validate.records.store import Store
from mxfp4_validate.tolerances import UNORDERED_BIT_EQUAL_SHARE
from mxfp4_validate.waivers import Waiver, load, waiver_for

ROOT = Path(__file__).resolve().parent.parent
WHEELS = [ROOT / ".vendor" / name for name in ("sglang-0.5.12.post1", "sglang-0.5.23", "triton-kernels-0.4.2.post2")]


@pytest.fixture(scope="module", autouse=True)
def wheels() -> None:
    if missing := [str(wheel) for wheel in WHEELS if not wheel.is_dir()]:
        pytest.fail(f"{missing} not fetched: run `python tools/vendor.py`")


def kernel(tmp_path: Path, backend: str, *arguments: str) -> tuple[int, str, list[Any]]:
    """`pytest -m kernel` with a backend of the rig: exit status, output, results."""
    record = tmp_path / "run.sqlite"
    command = [sys.executable, "-m", "pytest", "-q", "-m", "kernel", "-p", "no:cacheprovider", f"--record={record}"]
    done = subprocess.run([*command, f"--backend=tests.{backend}", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=600)
    if not record.exists():
        return done.returncode, done.stdout, []
    with Store.open(record) as store:
        return done.returncode, done.stdout, store.results()


@pytest.mark.parametrize(
    ("backend", "case", "least"),
    [
        (
            "sglang_rig:gpt_oss_sm90",
            "gpt-oss-mini/m[179]*",
            {"layout": 1, "probe": 8, "random": 4, "parallel": 5, "metamorphic": 3, "poison": 1},
        ),
        ("sglang_rig:dsv4_sm90", "dsv4-mini/m[179]*", {"layout": 1, "probe": 8, "random": 4, "parallel": 4, "metamorphic": 5, "poison": 1}),
        ("sglang_rig:marlin", "dsv4-mini/m[179]*", {"probe": 10, "random": 4, "parallel": 4, "metamorphic": 5, "poison": 1}),
        ("sglang_rig_23:marlin", "dsv4-mini/m[179]*", {"probe": 10, "random": 4, "parallel": 4, "metamorphic": 5, "poison": 1}),
        ("sglang_rig_23:marlin", "gpt-oss-mini/m[179]*", {"probe": 24, "random": 4, "parallel": 7, "metamorphic": 5, "poison": 1}),
        (
            "triton_rig:triton_kernels",
            "gpt-oss-mini/m[179]*",
            {"probe": 16, "random": 4, "parallel": 3, "metamorphic": 5, "poison": 1, "bit_equal": UNORDERED_BIT_EQUAL_SHARE.value},
        ),
    ],
)
def test_the_classes_a_server_runs(tmp_path: Path, backend: str, case: str, least: dict[str, float]) -> None:
    """Processed bytes are our layout's, outputs are the twin's bits; what the classes cannot be asked says why."""
    status, text, results = kernel(tmp_path, backend, f"--case={case}")
    assert status == 0, text
    outcomes = Counter(r.outcome for r in results)
    assert set(outcomes) == {"passed", "unavailable"}, text
    passed = Counter(r.family for r in results if r.outcome == "passed")
    assert all(passed[family] >= count for family, count in least.items() if family != "bit_equal"), passed
    assert all(r.message for r in results if r.outcome == "unavailable")
    equal = [r.metrics["bit_equal"] for r in results if "bit_equal" in r.metrics and r.outcome == "passed"]
    assert equal
    assert min(equal) >= least.get("bit_equal", 1.0)


def test_the_marlin_kernel_with_biases(tmp_path: Path) -> None:
    """`marlin-gemm`: sglang's own function with biases and GPT-OSS's activation supplied gives the twin's bits, under TP and EP too."""
    status, text, results = kernel(tmp_path, "sglang_rig:marlin_gemm", "--case=gpt-oss-mini/m7*,gpt-oss-mini/m9*,gpt-oss-mini/m17/*")
    assert status == 0, text
    least = {"probe": 12, "random": 3, "determinism": 2, "metamorphic": 6, "parallel": 7, "poison": 1}
    assert {r.outcome for r in results} == {"passed"}, text
    passed = Counter(r.family for r in results)
    assert all(passed[family] >= count for family, count in least.items()), passed
    assert {r.metrics["bit_equal"] for r in results if "bit_equal" in r.metrics} == {1.0}


def test_marlin_gemm_stands_back_where_marlin_takes_biases(monkeypatch: pytest.MonkeyPatch) -> None:
    has: set[str] = {"w1_bias", "gemm1_alpha"}
    monkeypatch.setattr(Marlin, "availability", lambda self: Available({"sglang": "0.5.23"}))
    monkeypatch.setattr(Marlin, "parameters", property(lambda self: frozenset(has)))
    found = MarlinGemm().availability()
    assert isinstance(found, Unavailable)
    assert "use the backend marlin" in found.reason
    has.clear()
    assert isinstance(MarlinGemm().availability(), Available)


def test_releases_whose_classes_are_loaded_otherwise_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """0.5.23's sources have the module that tells them from those that are driven; 0.5.12.post1's do not."""
    module = "sglang/srt/runtime_context.py"
    assert [(wheel / module).is_file() for wheel in WHEELS] == [False, True, False]
    monkeypatch.setattr(sglang_layers.util, "find_spec", lambda name: None if name == "sglang.srt.runtime_context" else object())
    assert sglang_layers.not_driven() == ""
    monkeypatch.setattr(Marlin, "availability", lambda self: Available({"sglang": "0.5.23"}))
    assert isinstance(GptOssMarlin().availability(), Available)
    monkeypatch.setattr(sglang_layers.util, "find_spec", lambda name: object())
    found = GptOssMarlin().availability()
    assert isinstance(found, Unavailable)
    assert "sglang 0.5.23 loads and configures its MoE classes in another way" in found.reason
    monkeypatch.setattr(sglang_layers.metadata, "version", lambda name: "0.5.23")
    monkeypatch.setattr(sglang_layers, "import_module", lambda name: None)
    for backend in (GptOssSm90(), DeepSeekV4Sm90()):
        backend._kernel = emulate_sm90()  # type: ignore[assignment]
        assert "driven up to the release before" in getattr(backend.availability(), "reason", "available")


def test_gpt_oss_on_marlin_fails_and_is_waived(tmp_path: Path) -> None:
    """The known failure is recorded with its upstream issue; without waivers it fails like any other."""
    arguments = ("--case=gpt-oss-even/m17/*", "--check=twin")
    status, text, results = kernel(tmp_path, "sglang_rig:gpt_oss_marlin", *arguments)
    assert status == 0, text
    assert [r.outcome for r in results] == ["passed"]
    assert "sglang/pull/28231" in results[0].metrics["waiver"]
    assert "unexplained" in results[0].metrics["waiver"]
    assert "waiver: tests.sglang_rig:gpt_oss_marlin twin-gpt-oss-even" in text
    (tmp_path / "run.sqlite").unlink()
    status, text, results = kernel(tmp_path, "sglang_rig:gpt_oss_marlin", *arguments, "--no-waivers")
    assert (status, [r.outcome for r in results]) == (1, ["failed"]), text


FACTS = {"sglang": "0.5.12.post1"}


@pytest.mark.parametrize(
    ("backend", "case", "facts", "covered"),
    [
        ("sglang:gpt-oss-marlin", "gpt-oss-20b/m1/random/s0", FACTS, True),
        ("mine:marlin", "gpt-oss-20b/m1/random/s0", FACTS | {"backend": "sglang:gpt-oss-marlin"}, True),
        ("sglang:gpt-oss-marlin", "gpt-oss-20b/m1/random/s0", {"sglang": "0.5.22.post2"}, True),
        ("sglang:gpt-oss-marlin", "gpt-oss-20b/m1/random/s0", {"sglang": "0.5.23"}, False),
        ("sglang:gpt-oss-marlin", "gpt-oss-20b/m1/random/s0", {"sglang": "0.5.11"}, False),
        ("sglang:gpt-oss-marlin", "gpt-oss-20b/m1/random/s0", {}, False),
        ("sglang:gpt-oss-marlin", "dsv4-flash/m1/random/s0", FACTS, False),
        ("sglang_rig:marlin", "gpt-oss-20b/m1/random/s0", FACTS, False),
    ],
)
def test_a_waiver_holds_for_its_versions_only(backend: str, case: str, facts: dict[str, str], covered: bool) -> None:
    assert (waiver_for(backend, "twin", case, facts) is not None) is covered


def test_a_waiver_needs_an_issue(tmp_path: Path) -> None:
    file = tmp_path / "waivers.toml"
    fields = dict.fromkeys(Waiver.__dataclass_fields__, "x")
    file.write_text("[[waiver]]\n" + "".join(f'{k} = "{v}"\n' for k, v in fields.items()), encoding="utf-8")
    with pytest.raises(UsageError, match="is no address; a waiver is bound to an issue"):
        load(file)
    file.write_text('[[waiver]]\nbackend = "x"\n', encoding="utf-8")
    with pytest.raises(UsageError, match="has exactly backend, check, case"):
        load(file)


@pytest.fixture(scope="module")
def defects() -> dict[str, Any]:
    done = subprocess.run([sys.executable, "-m", "tests.sglang_defects"], cwd=ROOT, capture_output=True, text=True, timeout=300, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize(
    ("name", "evidence"),
    [
        ("gpt-oss-on-marlin", "values unexplained"),
        ("gpt-oss-2880-on-marlin", "not supported by Marlin"),
        ("gpt-oss-load-tp4", "size of tensor a (1440) must match the size of tensor b (1472)"),
        ("gpt-oss-load-tp8", "size of tensor a (720) must match the size of tensor b (768)"),
        ("padding-id-under-ep", "ids [-1, 5] of the last rank become [3, 1]"),
        ("expert-zero", "written to experts [0, 1, 2, 3]"),
        ("scale-sign", "scales times -1.25 give the same bytes"),
        ("routed-scale-ignored", "changes no bit"),
        ("constants-of-the-config", "used [1.702, 7.0]"),
        ("default-hash-table", "[[0, 1, 2], [1, 2, 3], [2, 3, 0]]"),
    ],
)
def test_a_defect_of_the_sources_shows(defects: dict[str, Any], name: str, evidence: str) -> None:
    """docs/findings.md lists them; a newer wheel in which one is mended fails here and takes it off the list."""
    assert defects[name]["shown"], defects[name]
    assert evidence in defects[name]["evidence"]


@pytest.mark.parametrize("tp", [1, 2])
def test_the_loader_of_gpt_oss_is_right_where_shards_are_whole_blocks(defects: dict[str, Any], tp: int) -> None:
    """The control of the two shapes above: TP=1 and TP=2 load."""
    assert not defects[f"gpt-oss-load-tp{tp}"]["shown"], defects[f"gpt-oss-load-tp{tp}"]
