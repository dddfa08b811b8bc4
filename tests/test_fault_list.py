"""The fault list of docs/reliability.md: every row is there, and every test it names exists."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ROWS = [f"{letter}{n}" for letter, count in (("T", 27), ("P", 19), ("I", 12), ("C", 18), ("S", 17)) for n in range(1, count + 1)]


def test_every_fault_has_its_test_or_says_why_not() -> None:
    page = (ROOT / "docs" / "reliability.md").read_text()
    table = {m[1]: (m[2].strip(), m[3].strip()) for m in re.finditer(r"^\| ([TPICS]\d+) \|[^|]*\|([^|]*)\|([^|]*)\|$", page, re.MULTILINE)}
    assert sorted(table) == sorted(ROWS)
    known = {name for path in (ROOT / "tests").glob("test_*.py") for name in re.findall(r"^def test_(\w+)", path.read_text(), re.MULTILINE)}
    for row, (tests, why) in table.items():
        named = re.findall(r"`(\w+)`", tests)
        assert set(named) <= known, f"{row} names tests that do not exist: {set(named) - known}"
        assert named or (tests == "-" and why), f"{row} has neither a test nor a reason"
