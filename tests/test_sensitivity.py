"""What docs/sensitivity.md says is measured again: the kernel stages and the tokens for every fault, the eval for the first twelve."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from mxfp4_validate.divergence.yardstick import Yardstick
from mxfp4_validate.tiny.faults import BY_NAME
from mxfp4_validate.tiny.scoring import yardstick
from tools import sensitivity

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def page() -> dict[str, list[str]]:
    """The table's cells by fault."""
    text = (ROOT / "docs" / "sensitivity.md").read_text(encoding="utf-8")
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("| `")]
    return {row[0].strip("`"): row for row in rows}


def test_the_table_holds_every_fault(page: dict[str, list[str]]) -> None:
    assert list(page) == list(sensitivity.NAMES)
    assert len(page) >= 12


@pytest.mark.parametrize("name", sensitivity.NAMES)
def test_kernel_stages_see_what_the_table_says(page: dict[str, list[str]], name: str) -> None:
    seen = sensitivity.kernel_stages(BY_NAME[name])
    assert ["seen" if seen[stage] else "-" for stage in sensitivity.STAGES] == page[name][2 : 2 + len(sensitivity.STAGES)]


def test_the_healthy_backend_is_seen_by_none() -> None:
    assert not any(sensitivity.kernel_stages(None).values())


def test_the_eval_sees_what_the_table_says(page: dict[str, list[str]], tmp_path: Path) -> None:
    """Every fault that the table calls FAIL fails again, and the healthy pair passes; 200 questions each, served over HTTP."""
    names = [name for name in sensitivity.NAMES[:12] if page[name][-1] == "FAIL"]
    assert len(names) >= 6, "an eval that sees hardly anything is no positive control"
    healthy, rows = sensitivity.measure(names, 200, tmp_path)
    assert str(healthy.outcome) == "PASS"
    assert {row.fault: str(row.verdict.outcome) for row in rows} == dict.fromkeys(names, "FAIL")


@pytest.fixture(scope="module")
def ruler() -> Yardstick:
    """A quarter of the page's corpus."""
    return yardstick(sensitivity.CHECKPOINT, 128)


@pytest.mark.parametrize("name", sensitivity.NAMES)
def test_the_tokens_see_what_the_table_says(page: dict[str, list[str]], ruler: Yardstick, name: str) -> None:
    """Every fault fails on the smaller corpus too, the 1 % of one layer by its drift alone."""
    assert page[name][5].startswith("FAIL"), "listed as undetected: say so here"
    found = sensitivity.diverged(ruler, name)
    assert found.outcome == "FAIL", found.reasons
    if name == "layer-1-percent":
        assert [reason[:6] for reason in found.reasons] == ["FAIL-E"]


def test_sound_backends_go_on(ruler: Yardstick) -> None:
    """The SM90 twin, Marlin's twin with torch's own sums around the experts, and a second seed; twenty seeds stand on the page."""
    assert sensitivity.diverged(ruler, None).outcome == "GO ON"
    assert ruler.judge(ruler.floors[0]).outcome == "GO ON"
    other = yardstick(sensitivity.CHECKPOINT, 128, seed=1)
    assert sensitivity.diverged(other, None).outcome == "GO ON"


def test_scores_are_percentages(page: dict[str, list[str]]) -> None:
    assert all(re.fullmatch(r"\d+\.\d %", row[-3]) for row in page.values())
