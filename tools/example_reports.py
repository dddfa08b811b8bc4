"""Makes `reports/examples/` again from the records in `reports/`: python tools/example_reports.py (tests hold the files to it)."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from mxfp4_validate.reporting import html
from mxfp4_validate.reporting.gates import judge
from mxfp4_validate.serving.comparison import CompareOptions
from mxfp4_validate.serving.report import gather

ROOT = Path(__file__).resolve().parent.parent
#: Report -> (the runs it is made of, fault matrix).
EXAMPLES = {
    "h200.html": (("h200-flashinfer-0.6.11.post1.sqlite", "h200-flashinfer-0.6.18.post1.sqlite"), "faults-emulated.json"),
    "demo.html": (("demo/kernel.sqlite", "demo/baseline", "demo/candidate", "demo/baseline", "demo/faulty"), "faults-emulated.json"),
}


def render(name: str) -> str:
    """The text of one example."""
    runs, faults = EXAMPLES[name]
    folder = ROOT / "reports"
    inputs = gather([folder / run for run in runs], CompareOptions(), folder / faults)
    return html.render(inputs, judge(inputs))


if __name__ == "__main__":
    for name in EXAMPLES:
        (ROOT / "reports" / "examples" / name).write_text(render(name), encoding="utf-8", newline="\n")
