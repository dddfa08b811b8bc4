"""The records of GPU runs in `reports/`: what docs/kernel.md and docs/findings.md say of them is in them, and they agree with each other."""

from __future__ import annotations

from collections import Counter
from functools import cache
from pathlib import Path

import pytest

from mxfp4_validate.records.store import Result, Store

ROOT = Path(__file__).resolve().parent.parent
REPORTS = ROOT / "reports"
#: Record -> what its items came to. 4 out of memory: docs/kernel.md, "The same on an H100".
OUTCOMES = {
    "h100-flashinfer-0.6.11.post1": {"passed": 351},
    "h100-openai-torch": {"passed": 85, "unavailable": 14},
    "h100-sglang-dsv4-bytes": {"passed": 1, "unavailable": 1},
    "h100-sglang-dsv4-twin": {"passed": 4, "unavailable": 4},
    "h100-triton-kernels": {"passed": 241, "unavailable": 106, "oom": 4},
    "h200-flashinfer-0.6.11.post1": {"passed": 314},
    "h200-flashinfer-0.6.18.post1": {"passed": 314},
    "h200-flashinfer-0.6.18.post1-thorough": {"passed": 290},
    "h200-marlin": {"passed": 147, "unavailable": 204},
    "h200-marlin-gemm": {"passed": 167, "unavailable": 3},
    "h200-sglang-bytes": {"passed": 3, "unavailable": 1},
    "h200-sglang-gpt-oss-marlin": {"passed": 3},
    "h200-sglang-twin": {"passed": 8, "unavailable": 8},
    "h200-sm90-cutlass-class-a": {"passed": 31},
    "h200-triton-kernels": {"passed": 241, "unavailable": 110},
}
#: Records that hold probe A1: where nothing rounds, every sum is exact in any order.
CLASS_A = {
    "h100-flashinfer-0.6.11.post1": 28,
    "h100-openai-torch": 13,
    "h100-triton-kernels": 28,
    "h200-marlin": 28,
    "h200-marlin-gemm": 14,
    "h200-sm90-cutlass-class-a": 28,
    "h200-triton-kernels": 28,
}
#: Metrics that are not of outputs: added since, of the certificate's own float64, or of how thorough a run was.
NOT_OF_OUTPUTS = {"exact_limit", "probe", "full_strength", "unrounded_share"}


@cache
def results(name: str) -> tuple[Result, ...]:
    with Store.open(REPORTS / f"{name}.sqlite") as store:
        return tuple(store.results())


def passed(name: str, check: str = "") -> dict[tuple[str, str], Result]:
    """(backend, item) -> its result."""
    return {(r.backend, r.item_id): r for r in results(name) if r.outcome == "passed" and check in ("", r.check)}


def test_every_kernel_record_is_named_here_and_in_the_table() -> None:
    kept = {path.stem for path in REPORTS.glob("h*00-*.sqlite")} - {"h200-bench-dsv4-flash"}
    assert kept == set(OUTCOMES)
    table = (REPORTS / "README.md").read_text(encoding="utf-8")
    assert all(f"`{path.name}`" in table for path in REPORTS.glob("h*00-*")), "a record is not in reports/README.md"


@pytest.mark.parametrize("name", OUTCOMES)
def test_outcomes(name: str) -> None:
    """As told; a waived failure is stored as passed and says so; everything refused has a reason, and nothing passed with a bit unexplained."""
    found = results(name)
    assert Counter(result.outcome for result in found) == OUTCOMES[name]
    assert all(result.message for result in found if result.outcome != "passed")
    waived = [result for result in found if "waiver" in result.metrics]
    assert len(waived) == (3 if name == "h200-sglang-gpt-oss-marlin" else 0)
    assert not [r.item_id for r in found if r.outcome == "passed" and r not in waived and r.metrics.get("unexplained", 0)]


def test_where_nothing_rounds_every_backend_returns_the_same_bits() -> None:
    """FlashInfer, Marlin, triton_kernels and OpenAI's reference, on both GPUs."""
    outputs: dict[str, dict[str, str]] = {}
    for name, count in CLASS_A.items():
        mine = {item: r.metrics["sha256"] for (_, item), r in passed(name, "probe-a1").items()}
        assert len(mine) == count, name
        for item, digest in mine.items():
            outputs.setdefault(item, {})[name] = str(digest)
    assert len(outputs) == 28
    assert not {item: found for item, found in outputs.items() if len(set(found.values())) != 1}
    assert len({next(iter(found.values())) for found in outputs.values()}) == 28, "each case has bits of its own"


@pytest.mark.parametrize(
    ("one", "other", "shared"),
    [
        ("h100-flashinfer-0.6.11.post1", "h200-flashinfer-0.6.11.post1", 314),
        ("h100-triton-kernels", "h200-triton-kernels", 241),
        ("h100-sglang-dsv4-twin", "h200-sglang-twin", 4),
        ("h100-sglang-dsv4-bytes", "h200-sglang-bytes", 1),
    ],
)
def test_both_gpus_count_the_same(one: str, other: str, shared: int) -> None:
    mine, theirs = passed(one), passed(other)
    both = mine.keys() & theirs.keys()
    assert len(both) == shared
    for item in both:
        found, known = ({k: v for k, v in r.metrics.items() if k not in NOT_OF_OUTPUTS} for r in (mine[item], theirs[item]))
        assert found == known, item


@pytest.mark.parametrize(
    ("name", "check", "cases", "elements", "different"),
    [
        ("h100-flashinfer-0.6.11.post1", "twin", 70, 141_364_224, 11_379),
        ("h200-marlin", "twin", 35, 84_433_920, 37_044),
        ("h200-marlin-gemm", "twin", 31, 53_557_824, 25_465),
        ("h200-triton-kernels", "twin", 32, 53_601_024, 72_335),
        ("h200-marlin", "probe-a1", 28, 14_767_424, 0),
        ("h200-triton-kernels", "probe-a1", 28, 14_767_424, 0),
    ],
)
def test_figures_of_the_page(name: str, check: str, cases: int, elements: int, different: int) -> None:
    """What docs/kernel.md tells of a check is the sum of its items."""
    found = [r.metrics for r in passed(name, check).values()]
    assert (len(found), sum(m["elements"] for m in found), sum(m["different"] for m in found)) == (cases, elements, different)
    page = (ROOT / "docs" / "kernel.md").read_text(encoding="utf-8")
    assert f"{elements:,}" in page
    assert not different or f"{elements - different:,}" in page


def test_marlin_on_deepseek_v4_flash_is_its_twin() -> None:
    """With the clamp, at least 99.5 % of the bits in every case."""
    shares = [r.metrics["bit_equal"] for (_, i), r in passed("h200-marlin", "twin").items() if i.startswith("twin-dsv4-flash/")]
    assert len(shares) == 25
    assert min(shares) >= 0.995
