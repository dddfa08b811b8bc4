"""The tiny model served through a real kernel beside its twin: arith scores, and how many greedy tokens are the same. Writes one JSON record.

    python tools/tiny_gpu.py OUT.json sm90-cutlass emulate:sm90-cutlass [marlin emulate:marlin ...]

Backends come in pairs, the kernel and its twin. Each is a server process of its own; each pair's twin runs on the CPU.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path
from typing import Any

from mxfp4_validate import provenance
from mxfp4_validate.questions.arith import questions

PROMPTS, TOKENS = 50, 64


def serve(backend: str) -> tuple[subprocess.Popen[str], str]:
    """A server of the tiny model; its process and its address."""
    command = [sys.executable, "-m", "mxfp4_validate", "serve", "tiny", "--backend", backend, "--threads", "4"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if "listening on " in line:
            return process, line.split("listening on ")[1].split()[0]
    raise SystemExit(f"{backend}: the server ended with {process.wait()}")


def ask(base: str, path: str, body: dict[str, Any]) -> Any:
    request = urllib.request.Request(base + path, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=300) as answer:
        return json.load(answer)


def measure(backend: str, folder: Path) -> dict[str, Any]:
    """The arith run's own summary, and greedy tokens of `PROMPTS` prompts by /generate."""
    process, base = serve(backend)
    try:
        out = folder / backend.replace(":", "-")
        command = [sys.executable, "-m", "mxfp4_validate", "eval", "arith", "--base-url", f"{base}/v1", "--out", str(out), "--json"]
        done = subprocess.run([*command, "--show-accuracy"], stdout=subprocess.PIPE, text=True, check=False)
        greedy = [greedy_tokens(base, problem.question) for problem in questions(PROMPTS)]
        return {"exit": done.returncode, "eval": json.loads(done.stdout), "greedy": greedy}
    finally:
        process.terminate()
        process.wait()


def greedy_tokens(base: str, text: str) -> list[int]:
    """Token ids of the likeliest answer to one problem, asked as the eval asks it."""
    ids = ask(base, "/tokenize", {"messages": [{"role": "user", "content": text}]})["tokens"]
    found: list[int] = ask(base, "/generate", {"input_ids": ids, "sampling_params": {"temperature": 0, "max_new_tokens": TOKENS}})[
        "output_ids"
    ]
    return found


def agreement(a: list[list[int]], b: list[list[int]]) -> dict[str, int]:
    """Sequences that are the same, and tokens before the first difference of each pair, of how many."""
    prefix = [
        next((i for i, (p, q) in enumerate(zip(x, y, strict=False)) if p != q), min(len(x), len(y))) for x, y in zip(a, b, strict=True)
    ]
    return {
        "sequences": len(a),
        "same_sequences": sum(x == y for x, y in zip(a, b, strict=True)),
        "tokens": sum(map(len, a)),
        "tokens_before_first_difference": sum(prefix),
    }


def main(target: str, *backends: str) -> None:
    record: dict[str, Any] = {"provenance": provenance.collect(), "pairs": []}
    with tempfile.TemporaryDirectory() as folder:
        for kernel, twin in zip(backends[::2], backends[1::2], strict=True):
            found = {name: measure(name, Path(folder)) for name in (kernel, twin)}
            row = {"kernel": kernel, "twin": twin, "agreement": agreement(found[kernel]["greedy"], found[twin]["greedy"])}
            for name, legs in found.items():
                row[f"eval {name}"] = legs["eval"]
            record["pairs"].append(row)
            print(json.dumps(row)[:3000], flush=True)
            Path(target).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
