"""`calibrate`: a server against itself at least three times, and what the rule's limits must be so that it never fails itself."""

from __future__ import annotations

import argparse
import asyncio

from mxfp4_validate.divergence import calibrate
from mxfp4_validate.divergence import corpus as corpora
from mxfp4_validate.divergence import limits as table
from mxfp4_validate.divergence.analyse import sound_arms
from mxfp4_validate.errors import UsageError
from mxfp4_validate.serving.diverge import announce, opened, score_arms, sound_arms_of, tell


def calibrate_verb(args: argparse.Namespace) -> int:
    """Score the corpus on the baseline, three or more times again and on the declared backends, or go on with that; write the limits."""
    if args.output.exists():
        raise UsageError(f"-o {args.output} exists; a calibration is never overwritten, name a new file")
    least = int(table.LEAST_RUNS.value)
    floors = args.floor or [args.baseline] * least
    if len(floors) < least:
        raise UsageError(f"--floor is given {len(floors)} times, a calibration needs {least} A/A runs; give other boots, or leave it out")
    corpus = corpora.load(args.corpus)
    with opened(args.out / "calibration.sqlite", corpus, args.width, args.protocol) as store:
        announce(corpus, store.width, args.protocol)
        asyncio.run(score_arms(args, store, sound_arms_of(args.baseline, floors, args.declared), args.concurrency))
        runs, declared = sound_arms(store)
        identity = store.arms()["baseline"].identity
        made = calibrate.calibrate(runs, identity, corpus.sha256, store.width, declared)
    calibrate.save(made, args.output)
    limits = {name: getattr(made, name) for name in ("ratio", "tail_factor", "flip_ratio", "typical", "drift")}
    seen = {name: list(getattr(made, name)) for name in ("ratios", "tails", "flips", "typicals", "drifts")}
    said = {"verb": "calibrate", "exit_status": 0, "file": str(args.output), "limits": limits, "observed": seen, "declared": made.declared}
    what = "declared backends against each other, A/A repeats its own bits" if made.declared else f"{len(runs)} A/A runs"
    text = [f"{args.output}: limits from {what} on {len(corpus.sequences)} sequences"]
    tell(args, said, text + [f"  {name:<12} {value:.3g}" for name, value in limits.items()])
    return 0
