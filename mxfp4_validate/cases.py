"""What is tested: frozen shapes and cases with stable ids. No torch here, so that collecting tests costs nothing.

A case id reads `SHAPE/mTOKENS/ROUTING/sSEED`, for example `gpt-oss-20b/m17/random/s0`, and `MoeCase.parse` is its inverse.
Combinations that make no sense cannot be built, so nothing has to be skipped later.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from enum import StrEnum

from mxfp4_validate.errors import UnknownName, UsageError

#: Token counts every full sweep visits: tile edges, odd sizes, and the buckets serving engines meet.
TOKEN_COUNTS = (1, 2, 3, 7, 16, 17, 64, 65, 129, 256, 1024, 4096, 8192)


class Routing(StrEnum):
    """How tokens are spread over experts."""

    RANDOM = "random"  # distinct experts a token, drawn uniformly
    EMPTY = "empty"  # only every third expert is ever chosen: most experts have no token
    ONE = "one"  # slot 0 of every token is expert 0
    ZERO_WEIGHT = "zero-weight"  # a third of the routing weights is exactly 0
    FOREIGN = "foreign"  # some ids are -1 or belong to another rank and must be ignored


@dataclass(frozen=True)
class Activation:
    """SwiGLU as both models use it: `min(g, L) * sigmoid(alpha * min(g, L)) * (clamp(u, -L, L) + beta)`.

    `limit=None` means no clamp. GPT-OSS: alpha 1.702, beta 1, limit 7. DeepSeek-V4: alpha 1, beta 0, limit 10.
    """

    alpha: float = 1.0
    beta: float = 0.0
    limit: float | None = None


GPT_OSS = Activation(alpha=1.702, beta=1.0, limit=7.0)
DEEPSEEK_V4 = Activation(alpha=1.0, beta=0.0, limit=10.0)


@dataclass(frozen=True)
class Parallel:
    """The rank a call plays in tensor (TP) and expert (EP) parallelism."""

    tp_size: int = 1
    tp_rank: int = 0
    ep_size: int = 1
    ep_rank: int = 0

    def __post_init__(self) -> None:
        for kind, size, rank in (("tp", self.tp_size, self.tp_rank), ("ep", self.ep_size, self.ep_rank)):
            if size < 1 or not 0 <= rank < size:
                raise UsageError(f"{kind}_rank={rank} is not a rank of {kind}_size={size}; ranks are 0..{kind}_size-1")


SINGLE = Parallel()


@dataclass(frozen=True)
class MoeShape:
    """The MoE layer of a model: E experts of H x I, top_k of them a token, and the constants of its activation."""

    name: str
    hidden_size: int
    intermediate_size: int
    num_experts: int
    top_k: int
    activation: Activation
    has_bias: bool
    production: bool = False

    def __post_init__(self) -> None:
        for field in ("hidden_size", "intermediate_size"):
            value = getattr(self, field)
            if value < 32 or value % 32:
                raise UsageError(f"{field}={value} of shape {self.name!r} is not a positive multiple of 32, MXFP4's block size")
        if not 1 <= self.top_k <= self.num_experts:
            raise UsageError(f"top_k={self.top_k} of shape {self.name!r} must lie in 1..num_experts={self.num_experts}")


def _gpt_oss(name: str, experts: int, hidden: int = 2880, inter: int = 2880, production: bool = True) -> MoeShape:
    return MoeShape(name, hidden, inter, experts, 4, GPT_OSS, True, production)


def _dsv4(name: str, hidden: int, inter: int, experts: int, production: bool = True) -> MoeShape:
    return MoeShape(name, hidden, inter, experts, 6, DEEPSEEK_V4, False, production)


_ALL = (
    _gpt_oss("gpt-oss-20b", 32),
    _gpt_oss("gpt-oss-120b", 128),
    _dsv4("dsv4-flash", 4096, 2048, 256),
    _dsv4("dsv4-pro", 7168, 3072, 384),
    # Small relatives, cheap enough for a CPU: three or more 128-wide K tiles in both GEMMs, so that a missing scale
    # interleave (the identity at K = 128) and the chunk order of middle tiles both show; the first needs padding as 2880 does.
    _gpt_oss("gpt-oss-mini", 8, 544, 480, production=False),
    _dsv4("dsv4-mini", 512, 512, 16, production=False),
    # GPT-OSS's call on sizes that no backend has to pad, for those that refuse to.
    _gpt_oss("gpt-oss-even", 8, 512, 512, production=False),
    # A plain silu: backends that clamp may take another path, with other rounding points, where there is no limit.
    MoeShape("silu-mini", 512, 512, 16, 6, Activation(), False),
    # The least that shows every fault of the catalogue, for the fault matrix.
    _gpt_oss("gpt-oss-tiny", 4, 416, 352, production=False),
    _dsv4("dsv4-tiny", 384, 384, 8, production=False),
    # The shape on which flashinfer issue #5438 reproduces its race: many experts, many tokens, a narrow second GEMM.
    _dsv4("dsv4-race", 4096, 256, 256, production=False),
)
SHAPES: dict[str, MoeShape] = {shape.name: shape for shape in _ALL}


def shape_named(name: str) -> MoeShape:
    """The shape registered under `name`; `UnknownName` lists the nearest ones."""
    if name not in SHAPES:
        raise UnknownName("shape", name, SHAPES)
    return SHAPES[name]


@dataclass(frozen=True)
class MoeCase:
    """One input of one layer. Weights depend on (shape, seed) alone, so that cases of a shape share them."""

    shape: MoeShape
    num_tokens: int
    routing: Routing = Routing.RANDOM
    seed: int = 0

    def __post_init__(self) -> None:
        if self.num_tokens < 1:
            raise UsageError(f"num_tokens={self.num_tokens} must be at least 1")
        if self.seed < 0:
            raise UsageError(f"seed={self.seed} must not be negative")
        if self.routing is Routing.EMPTY and (self.shape.num_experts + 2) // 3 < self.shape.top_k:
            raise UsageError(f"routing 'empty' needs num_experts >= 3 * top_k - 2; {self.shape.name} has {self.shape.num_experts}")

    @property
    def case_id(self) -> str:
        return f"{self.shape.name}/m{self.num_tokens}/{self.routing}/s{self.seed}"

    @classmethod
    def parse(cls, case_id: str) -> MoeCase:
        """The case a `case_id` names; raises `UsageError` with the grammar, or `UnknownName` for its shape or routing."""
        match = re.fullmatch(r"([^/]+)/m(\d+)/([a-z-]+)/s(\d+)", case_id)
        if not match:
            raise UsageError(f"case id {case_id!r} does not read SHAPE/mTOKENS/ROUTING/sSEED, e.g. gpt-oss-20b/m17/random/s0")
        shape, tokens, routing, seed = match.groups()
        if routing not in [r.value for r in Routing]:
            raise UnknownName("routing", routing, [r.value for r in Routing])
        return cls(shape_named(shape), int(tokens), Routing(routing), int(seed))

    def stream(self, purpose: str) -> int:
        """A 63-bit seed for one purpose ("x", "ids", ...), independent of every other purpose and case."""
        return derive_seed(self.case_id, purpose)

    def weight_stream(self, purpose: str) -> int:
        """As `stream`, but shared by all cases of the same shape and seed."""
        return derive_seed(f"{self.shape.name}/s{self.seed}", purpose)


def derive_seed(*parts: str) -> int:
    """63 bits of SHA-256 over the parts: stable across Python versions and platforms, unlike `hash`."""
    digest = hashlib.sha256("\0".join(parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
