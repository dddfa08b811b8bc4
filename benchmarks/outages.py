"""What an outage does to a score: the same two faults through sgl-eval's command and through ours, side by side.

    python benchmarks/outages.py        # about five minutes, nearly all of it sgl-eval's back-off

The stub knows every right answer, so the true score is 100 %. Fault 1: every request gets HTTP 500. Fault 2: the server dies after 60 %
of the 480 samples of an AIME25 x 16 run.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from mxfp4_validate import evalspec  # noqa: E402
from mxfp4_validate.questions import load  # noqa: E402
from tests.fault_server import Act, FaultServer, Request, answer, status  # noqa: E402

GOLD = {"".join(q.text.split())[:150]: q.gold for q in load(evalspec.load("aime25")).questions}


def right(request: Request) -> Act:
    """The right answer, boxed."""
    text = "".join(request.text.split())
    gold = next((gold for problem, gold in GOLD.items() if problem in text), None)
    return answer(f"\\boxed{{{gold}}}" if gold else "A plain sentence about something else.")


def commands(url: str, repeats: int, folder: Path) -> dict[str, list[str]]:
    sgl = [
        "run",
        "aime25",
        "--base-url",
        url,
        "--n-repeats",
        str(repeats),
        "--temperature",
        "1",
        "--max-tokens",
        "1000",
        "--out-dir",
        str(folder / "sgl"),
    ]
    mine = [
        "eval",
        "aime25",
        "--base-url",
        url,
        "--repeats",
        str(repeats),
        "--max-tokens",
        "1000",
        "--out",
        str(folder / "run"),
        "--outage",
        "5",
    ]
    return {
        "sgl-eval": [sys.executable, "-c", "import sys; from sgl_eval.cli import main; sys.exit(main())", *sgl],
        "mxfp4-validate": [sys.executable, "-m", "mxfp4_validate", *mine],
    }


def run(name: str, command: list[str], folder: Path) -> None:
    """Run and print exit status, seconds and what it says of the score."""
    begun = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}, cwd=folder, check=False)
    said = [line for line in done.stdout.splitlines() if re.search(r"score|pass@1|samples:|gave-up|error_rate|no_answer", line)]
    print(f"{name}: exit {done.returncode} after {time.monotonic() - begun:.0f} s", *said, sep="\n    ", flush=True)
    metrics = list(folder.glob("sgl/*/metrics.json"))
    if metrics:
        print("    aggregate:", json.dumps(json.loads(metrics[0].read_text())["aggregate"]))


def main() -> None:
    print("every request gets HTTP 500 (30 samples)")
    for name in ("mxfp4-validate", "sgl-eval"):
        with tempfile.TemporaryDirectory() as text, FaultServer(lambda number, request: status(500, "out of order")) as server:
            run(name, commands(server.url, 1, Path(text))[name], Path(text))
    print("the server dies after 288 of 480 samples")
    for name in ("mxfp4-validate", "sgl-eval"):
        with tempfile.TemporaryDirectory() as text, FaultServer(lambda number, request: right(request)) as server:

            def killer(server: FaultServer = server) -> None:
                while len(server.requests) < 288:
                    time.sleep(0.005)
                server.stop()

            threading.Thread(target=killer, daemon=True).start()
            run(name, commands(server.url, 16, Path(text))[name], Path(text))


if __name__ == "__main__":
    main()
