"""What a backend is. Anyone's own backend implements `Backend` and is named on the command line as `pkg.module:factory`."""

from __future__ import annotations

from collections.abc import Callable
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


@runtime_checkable
class Timed(Protocol):
    """Optional, for `bench`: the call a server makes, with nothing around it. Without it the bench times `run` and says so."""

    def timed(self, prepared: Any, inputs: MoeInputs, activation: Activation, *, tactic: Tactic = DEFAULT_TACTIC) -> Callable[[], Tensor]:
        """A closure over everything made beforehand (padded input, constants, output); calling it is the kernel call alone.

        It returns [M, Hp] bfloat16 whose first H columns are the output. What a server computes at every call and the closure does
        not (routing data, say) the backend names in an attribute `timed_excludes`, a sentence that stands beside its numbers.
        """
        ...


@runtime_checkable
class Tunes(Protocol):
    """Optional: a backend that can look for its fastest configuration for a given input."""

    def tune(self, prepared: Any, inputs: MoeInputs, activation: Activation) -> Tactic:
        """Tune for this number of tokens; the tactic to force from then on."""
        ...


@runtime_checkable
class Refuses(Protocol):
    """Optional: a backend that has only some activations, and says so before gigabytes of weights are prepared for nothing."""

    def require(self, activation: Activation) -> None:
        """Raise `NotSupported`, with the reason, for an activation that this backend computes for no weights."""
        ...


def require(backend: Backend, activation: Activation) -> None:
    """What `backend.require` says, if it has one."""
    if isinstance(backend, Refuses):
        backend.require(activation)
