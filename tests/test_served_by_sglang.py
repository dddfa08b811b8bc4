"""What sglang 0.5.12.post1 made of the embedded model on an H200, held to our model: two whole servers that share no code with it.

The record is of the plan `sglang-tiny`: the same tokens given to a server with triton_kernels and to one with FlashInfer's SM90 kernel.
"""

from __future__ import annotations

import json
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mxfp4_validate.divergence.corpus import build
from mxfp4_validate.divergence.scores import Floats
from mxfp4_validate.tiny import model, scoring
from mxfp4_validate.tolerances import SERVED_LOGPROB

ROOT = Path(__file__).resolve().parent.parent
CHECKPOINT = ROOT / "mxfp4_validate" / "tiny" / "checkpoint"
LIMIT = 2.0


@cache
def record() -> Any:
    return json.loads((ROOT / "reports" / "h200-sglang-tiny.json").read_text(encoding="utf-8"))


def served(arm: str, backend: str) -> Floats:
    found = record()["arms"][arm]
    assert (found["identity"]["version"], found["identity"]["moe_backend"]) == ("0.5.12.post1", backend)
    return np.concatenate([np.array(row) for row in found["logprobs"]])


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """(backend, limit of the clamp) -> log-probabilities [positions] of the corpus's tokens by the embedded model."""
    corpus = build([(tokens, start) for start, tokens in record()["sequences"]])

    @cache
    def score(backend: str, limit: float) -> Floats:
        folder = tmp_path_factory.mktemp("model") / "checkpoint"
        shutil.copytree(CHECKPOINT, folder)
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        assert config["swiglu_limit"] == LIMIT
        (folder / "config.json").write_text(json.dumps(config | {"swiglu_limit": limit}), encoding="utf-8")
        return np.concatenate([s.chosen for s in scoring.score(model.load(folder, backend), corpus)])

    return score


def apart(a: Floats, b: Floats) -> float:
    return float(np.abs(a - b).mean())


def test_sglang_with_triton_kernels_is_our_model(ours: Any) -> None:
    theirs = served("baseline", "triton_kernel")
    assert apart(theirs, ours("emulate:triton-kernels", LIMIT)) <= SERVED_LOGPROB.value
    assert apart(theirs, ours("emulate:sm90-cutlass", LIMIT)) <= SERVED_LOGPROB.value


def test_sglangs_sm90_class_serves_our_model_with_a_limit_of_seven(ours: Any) -> None:
    """Its clamp is a constant: what `diverge` failed is exactly that, and nothing else is different."""
    theirs = served("candidate", "flashinfer_mxfp4")
    assert apart(theirs, ours("emulate:sm90-cutlass", 7.0)) <= SERVED_LOGPROB.value
    assert apart(theirs, ours("emulate:sm90-cutlass", LIMIT)) > 30 * SERVED_LOGPROB.value
    assert apart(theirs, ours("emulate:sm90-cutlass", LIMIT * 10 / 7)) > 10 * SERVED_LOGPROB.value  # any other limit is told from it
