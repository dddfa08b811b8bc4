"""What the report's tests share: divergence records of the toy model, with any noise in any arm."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mxfp4_validate.divergence.corpus import Corpus, build
from mxfp4_validate.divergence.record import ArmRow, DivergenceStore, ScoreRow
from tests.divergence_rig import scores_of, toy_logprobs

QUIET = 0.05
Arms = Mapping[str, tuple[str, float]]  # name -> (role, noise)
SOUND: Arms = {"baseline": ("baseline", QUIET), "floor1": ("floor", QUIET), "candidate": ("candidate", QUIET)}


def corpus(count: int) -> Corpus:
    rng = np.random.default_rng(0)
    return build([([int(t) for t in rng.integers(0, 50, 20)], 4) for _ in range(count)], "toy")


def make_record(
    path: Path,
    arms: Arms = SOUND,
    count: int = 48,
    identity: Callable[[str], Mapping[str, str]] = lambda name: {},
    drop: Mapping[str, int] | None = None,
    nan: Mapping[str, set[int]] | None = None,
    width: int = 8,
    settings: Mapping[str, Any] | None = None,
) -> Path:
    """A record in `path`: each arm the toy model with its noise; `drop` sequences are left out at its end, `nan` places are no number."""
    made = corpus(count)
    path.parent.mkdir(parents=True, exist_ok=True)
    with DivergenceStore.create(path, made, 20, width, {"protocol": "sglang"} if settings is None else settings) as store:
        for seed, (name, (role, noise)) in enumerate(arms.items()):
            about = {"model": "toy", "moe_backend": "marlin", **identity(name)}
            store.add_arm(ArmRow(name, role, f"boot-{name}", "http://secret-host:30000", about))
            for place in range(count - (drop or {}).get(name, 0)):
                if place in (nan or {}).get(name, set()):
                    store.add(name, ScoreRow(place, None, "NaN at position 3", 20))
                    continue
                sequence = made.sequences[place]
                rows = toy_logprobs(sequence.tokens, noise, seed + 1)[sequence.start :]
                store.add(name, ScoreRow(place, scores_of(rows, sequence.targets, 20), "", 20))
    return path
