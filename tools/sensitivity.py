"""Which stage sees which fault: every fault of the model through probes, the ordered twin, the token-level comparison and the arith eval.

    python tools/sensitivity.py [--limit 200] [--sequences 512] [--only no-clamp ...]      # writes docs/sensitivity.md
    python tools/sensitivity.py --null 20                                                  # sound pairs on 20 corpora: false alarms

The kernel stages get a backend that is broken as the served model's is; the eval asks the served model itself. `tests/test_sensitivity.py` measures a
part of the table again in CI.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from mxfp4_validate import cli
from mxfp4_validate.backends.registry import resolve
from mxfp4_validate.cases import MoeCase
from mxfp4_validate.checks import probes, random, readout
from mxfp4_validate.checks.context import Context
from mxfp4_validate.cli_tiny import CHECKPOINT
from mxfp4_validate.divergence.rule import Decision
from mxfp4_validate.divergence.yardstick import Yardstick
from mxfp4_validate.errors import CheckFailed
from mxfp4_validate.faults import inject
from mxfp4_validate.serving.comparison import CompareOptions, compare_runs
from mxfp4_validate.tiny.background import in_thread
from mxfp4_validate.tiny.faults import BY_NAME, Fault
from mxfp4_validate.tiny.model import load
from mxfp4_validate.tiny.scoring import BASELINE, score, yardstick
from mxfp4_validate.tiny.server import Settings
from mxfp4_validate.verdicts import Verdict, points

ROOT = Path(__file__).resolve().parent.parent
BACKEND = "emulate:sm90-cutlass"
#: Those of the model that the table shows; the first twelve are what the project promises to measure.
NAMES = (
    "no-clamp", "alpha-one", "no-beta", "halves-swapped", "no-bias", "scale-one-layer", "not-renormalised", "expert-off-by-one", "weights-permuted",
    "x-fp8", "wrong-limit", "k-tail-lost", "layer-1-percent", "scales-1-in-1000", "slot-dropped", "bias-interleaved", "nibbles-swapped", "six-as-four",
)  # fmt: skip
#: Sequences of the token-level stage.
SEQUENCES = 512
#: Stage -> checks with the case each is run on.
STAGES: dict[str, tuple[tuple[Callable[[Context, MoeCase], Any], str], ...]] = {
    "read-out": ((readout.fc1, "gpt-oss-tiny/m1/random/s0"), (readout.fc2, "gpt-oss-tiny/m1/random/s0")),
    "probes": tuple((check, "gpt-oss-tiny/m7/random/s0") for check in (probes.b1, probes.b2, probes.s1, probes.s2)),
    "twin": ((random.twin, "gpt-oss-tiny/m17/random/s0"),),
}


@dataclass
class Broken:
    """A backend with a fault of the tiny model; everything else is the inner one's."""

    inner: Any
    fault: Fault

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def prepare(self, weights: Any) -> Any:
        return self.inner.prepare(weights if self.fault.weights is None else self.fault.weights(weights, 2))

    def run(self, prepared: Any, inputs: Any, activation: Any, **more: Any) -> Any:
        inputs = inputs if self.fault.inputs is None else self.fault.inputs(inputs, prepared.num_experts)
        return self.inner.run(prepared, inputs, activation if self.fault.activation is None else self.fault.activation(activation), **more)


def broken(fault: Fault | None) -> Any:
    """The emulated kernel, broken where the served model is: a fault of the model's router leaves it whole."""
    backend = resolve(BACKEND)
    if fault is None:
        return backend
    return inject(backend, fault.kernel) if fault.kernel else Broken(backend, fault)


def kernel_stages(fault: Fault | None) -> dict[str, bool]:
    """Stage -> whether one of its checks failed."""
    context = Context(broken(fault))
    return {stage: any(_fails(check, context, case) for check, case in checks) for stage, checks in STAGES.items()}


def _fails(check: Callable[[Context, MoeCase], Any], context: Context, case: str) -> bool:
    try:
        check(context, MoeCase.parse(case))
    except CheckFailed:
        return True
    return False


def evaluate(fault: str | None, out: Path, limit: int, backend: str = BACKEND) -> Path:
    """A run of the arith eval against a server with the fault."""
    with in_thread(Settings(CHECKPOINT, backend, fault)) as root:
        argv = ["eval", "arith", "--base-url", f"{root}/v1", "--out", str(out), "--concurrency", "32", "--canaries", "0", "--json"]
        status = cli.main([*argv, "--limit", str(limit)])
    if status:
        raise SystemExit(f"the eval with fault {fault} ended with status {status}")
    return out


def diverged(ruler: Yardstick, fault: str | None, backend: str = BACKEND) -> Decision:
    """The token-level decision on a backend with the fault, in this process."""
    return ruler.judge(score(load(CHECKPOINT, backend, fault), ruler.corpus))


def token_cell(found: Decision) -> str:
    """Outcome with the rules that failed, ratio of mean KLs, typical ratio, drift in 1e-3 nat a position with its t."""
    rules = "".join(sorted(reason[5] for reason in found.reasons if reason.startswith("FAIL-")))
    if found.kl is None or found.typical is None or found.drift is None:
        raise SystemExit("too few sequences for the ratios; use more")
    numbers = f"{found.kl.estimate:.3g} | {found.typical.estimate:.3g} | {1e3 * found.drift.estimate:+.2f} ({found.drift.t:+.1f})"
    return f"{found.outcome}{' ' + rules if rules else ''} | {numbers}"


def null(corpora: int, sequences: int) -> None:
    """Sound pairs in both directions, and the baseline again, on so many corpora: how often each outcome came."""
    tally: dict[str, Counter[str]] = {}
    for seed in range(corpora):
        ruler = yardstick(CHECKPOINT, sequences, seed)
        other, again = (score(load(CHECKPOINT, BACKEND, exact=exact), ruler.corpus) for exact in (True, False))
        turned = Yardstick(ruler.corpus, other, [again], ruler.declared)
        pairs = {f"{BASELINE} / {BACKEND}": (ruler, other), f"{BACKEND} / {BASELINE}": (turned, ruler.baseline)}
        pairs |= {f"{BASELINE} / again": (ruler, ruler.floors[0]), f"{BACKEND} / again": (turned, again)}
        for name, (held, scores) in pairs.items():
            found = held.judge(scores)
            tally.setdefault(name, Counter())[found.outcome] += 1
            print(f"seed {seed}: {name}: {token_cell(found)} {' '.join(found.reasons)}", flush=True)
    for name, count in tally.items():
        print(f"{name}: {dict(count)}")


def verdict(base: Path, run: Path) -> Verdict:
    return compare_runs(base, run, CompareOptions())


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    fault: str
    what: str
    stages: dict[str, bool]
    score: float
    verdict: Verdict
    tokens: Decision | None = None


def measure(names: Sequence[str], limit: int, folder: Path, ruler: Yardstick | None = None) -> tuple[Verdict, list[Row]]:
    """The healthy pair (Marlin's twin against the SM90 one), and every fault against the healthy baseline; tokens with a `ruler` alone."""
    base = evaluate(None, folder / "base", limit, "emulate:marlin")
    healthy = verdict(base, evaluate(None, folder / "healthy", limit))
    rows = []
    for name in names:
        began = time.monotonic()
        found = verdict(base, evaluate(name, folder / name, limit))
        tokens = None if ruler is None else diverged(ruler, name)
        rows.append(Row(name, BY_NAME[name].what, kernel_stages(BY_NAME[name]), found.candidate.score, found, tokens))
        print(
            f"{name}: {100 * found.candidate.score:.1f} %, {found.outcome}, {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True
        )
    return healthy, rows


def table(healthy: Verdict, rows: Sequence[Row], sound: Decision) -> list[str]:
    tokens = ("tokens", "mean KL ratio", "typical ratio", "drift, 1e-3 nat (t)")
    head = "| fault | what | " + " | ".join((*STAGES, *tokens)) + " | arith | difference | arith verdict |"
    lines = [head, "|" + "---|" * (len(STAGES) + len(tokens) + 5)]
    calm = [f"| none | {BACKEND} against emulate:marlin", *("-" for _ in STAGES), token_cell(sound)]
    lines.append(" | ".join([*calm, f"{100 * healthy.candidate.score:.1f} %", points(healthy.estimate), f"{healthy.outcome} |"]))
    for row in rows:
        assert row.tokens is not None
        cells = [f"| `{row.fault}`", row.what, *("seen" if row.stages[s] else "-" for s in STAGES), token_cell(row.tokens)]
        lines.append(" | ".join([*cells, f"{100 * row.score:.1f} %", points(row.verdict.estimate), f"{row.verdict.outcome} |"]))
    return lines


def by_layer(ruler: Yardstick) -> list[str]:
    """The second table: faults in one layer, layer by layer, tokens only."""
    lines = ["| fault in one layer | tokens | mean KL ratio | typical ratio | drift, 1e-3 nat (t) |", "|---|---|---|---|---|"]
    names = [f"{name}@{layer}" for name in ("layer-1-percent", "scale-one-layer") for layer in range(4)]
    return lines + [f"| {name} | {token_cell(diverged(ruler, name))} |" for name in names]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--limit", type=int, default=200)
    parser.add_argument("--sequences", type=int, default=SEQUENCES)
    parser.add_argument("--null", type=int, default=0, metavar="CORPORA")
    parser.add_argument("--only", nargs="*", default=NAMES)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.null:
        null(args.null, args.sequences)
        return
    ruler = yardstick(CHECKPOINT, args.sequences)
    with tempfile.TemporaryDirectory() as folder:
        healthy, rows = measure(args.only, args.limit, Path(folder), ruler)
    lines = [*table(healthy, rows, diverged(ruler, None)), "", *by_layer(ruler)]
    print("\n".join(lines))
    if args.only is NAMES:
        page = ROOT / "docs" / "sensitivity.md"
        head, _, _ = page.read_text(encoding="utf-8").partition("| fault |")
        page.write_text(head + "\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
