"""Seconds and bytes of a large report: 10,000 kernel rows and a pair of 480 samples; limits 3 s and 5 MiB.

python benchmarks/report.py [--rows 10000] [--repeat 5]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from mxfp4_validate.reporting import html
from mxfp4_validate.reporting.gates import judge
from mxfp4_validate.serving.comparison import CompareOptions
from mxfp4_validate.serving.report import gather
from tests.report_rig import make_eval, make_kernel, twin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--repeat", type=int, default=5)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        tmp = Path(folder)
        rows = [twin(f"gpt-oss-20b/m{i % 100 + 1}/random/s{i // 100}", i % 7) for i in range(args.rows)]
        text = "So the answer follows. " * 400
        runs = [make_kernel(tmp / "k.sqlite", rows)]
        runs += [make_eval(tmp / n, n, lambda i: 0.9, seed=s, text=lambda i, r: text) for s, n in enumerate(("marlin", "flashinfer_mxfp4"))]
        for _ in range(args.repeat):
            began = time.perf_counter()
            inputs = gather(runs, CompareOptions())
            read = time.perf_counter()
            page = html.render(inputs, judge(inputs))
            done = time.perf_counter()
            print(f"read and judged {read - began:.2f} s, drawn {done - read:.2f} s, {len(page.encode()) / 2**20:.2f} MiB")


if __name__ == "__main__":
    main()
