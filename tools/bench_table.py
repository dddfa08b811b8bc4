"""Write a bench record into docs/bench.md, between its two marks, beside the numbers this project started from.

python tools/bench_table.py [RECORD]        without a record: the first numbers alone
"""

from __future__ import annotations

import sys
from pathlib import Path

from mxfp4_validate.bench.record import read_bench
from mxfp4_validate.bench.seed import markdown

PAGE = Path(__file__).resolve().parent.parent / "docs" / "bench.md"
BEGIN, END = "<!-- table: tools/bench_table.py -->\n", "<!-- end of table -->\n"


def main() -> None:
    run = read_bench(Path(sys.argv[1])) if len(sys.argv) > 1 else None
    head, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    _, _, tail = rest.partition(END)
    PAGE.write_text(f"{head}{BEGIN}\n{markdown(run)}\n\n{END}{tail}", encoding="utf-8")


if __name__ == "__main__":
    main()
