"""Backends that are named and cannot be judged here, each with the reason; asking for one says so instead of not knowing the name."""

from __future__ import annotations

from typing import Any, NoReturn

from mxfp4_validate.backends.base import DEFAULT_TACTIC, Tactic, Unavailable
from mxfp4_validate.errors import BackendUnavailable
from mxfp4_validate.reference.rounding import SM90_CUTLASS, RoundingModel


class Declared:
    """A name and a reason. Nothing of it runs."""

    device = "cuda"

    def __init__(self, name: str, reason: str) -> None:
        self.name, self.reason = name, reason

    def availability(self) -> Unavailable:
        return Unavailable(self.reason)

    def rounding(self, tactic: Tactic = DEFAULT_TACTIC) -> RoundingModel:
        return SM90_CUTLASS

    def tactics(self, prepared: Any, num_tokens: int) -> list[Tactic]:
        return []

    def prepare(self, weights: Any) -> NoReturn:
        raise BackendUnavailable(f"backend {self.name}: {self.reason}")

    def run(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise BackendUnavailable(f"backend {self.name}: {self.reason}")


def humming() -> Declared:
    """FlashInfer's `fp4_fp8` path."""
    return Declared(
        "humming",
        "it rounds activations to FP8 (W4A8): another arithmetic, against which a W4A16 oracle would fail every case; not judged yet",
    )


def trtllm_gen() -> Declared:
    """FlashInfer's trtllm-gen MoE."""
    return Declared(
        "trtllm-gen", "its kernels are SM100 (Blackwell) only and take MXFP8 or bf16 activations in another layout; not judged yet"
    )
