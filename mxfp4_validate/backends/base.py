"""What a backend is. Anyone's own backend implements `Backend` and is named on the command line as `pkg.module:factory`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from mxfp4_validate.cases import SINGLE, Activation, Parallel

if TYPE_CHECKING:
    from torch import Tensor

    from mxfp4_validate.formats.moe_weights import MoeInputs, MoeWeights
    from mxfp4_validate.reference.rounding import RoundingModel


@dataclass(frozen=True)
class Available:
    """The backend can run here. `facts` (versions, layout, known-bad notices) go into the header and into every record."""

    facts: dict[str, str]


@dataclass(frozen=True)
class Unavailable:
    """The backend cannot run here; `reason` says what is missing and what to install."""

    reason: str


@dataclass(frozen=True)
class Tactic:
    """One kernel configuration of a backend: `name` for people, `value` for the backend; `group` names tactics whose bits must agree."""

    name: str
    value: Any = None
    group: str = "all"


DEFAULT_TACTIC = Tactic("default")


@runtime_checkable
class Backend(Protocol):
    """A candidate. Everything is called inside the worker process, after `availability` said yes."""

    name: str
    #: "cpu" or "cuda": where tensors live. CPU backends are given the small shapes only.
    device: str

    def availability(self) -> Available | Unavailable:
        """Whether this backend can run on this machine; must not raise and must not need a GPU to answer."""
        ...

    def rounding(self, tactic: Tactic = DEFAULT_TACTIC) -> RoundingModel:
        """The declared arithmetic of a tactic."""
        ...

    def tactics(self, prepared: Any, num_tokens: int) -> list[Tactic]:
        """Every configuration that can be forced for this shape, the default first."""
        ...

    def prepare(self, weights: MoeWeights) -> Any:
        """Canonical bytes -> whatever `run` needs (its layout, padding and row order)."""
        ...

    def run(
        self,
        prepared: Any,
        inputs: MoeInputs,
        activation: Activation,
        *,
        parallel: Parallel = SINGLE,
        tactic: Tactic = DEFAULT_TACTIC,
        out: Tensor | None = None,
    ) -> Tensor:
        """One MoE call -> [M, H] bfloat16. `out`, if given, is [M, H] bfloat16 and is written whole and returned."""
        ...
