"""What a bench measures, as data: shapes, token counts, options, and the rows that come of them. No torch here."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from mxfp4_validate.cases import DEEPSEEK_V4, MoeShape, shape_named
from mxfp4_validate.errors import UsageError

#: From a decode step of a few requests to a prefill chunk; the numbers this is compared with were measured at these.
TOKENS = (4, 16, 64, 256, 1024, 2048, 4096, 8192)
#: Serving engines replay graphs for decode batches up to a few hundred tokens and launch longer steps while earlier ones still run;
#: `--graph auto` does as they do.
GRAPH_TOKENS = 512
GRAPHS, TUNED, BIASES = ("auto", "on", "off"), ("both", "on", "off"), ("model", "on", "off", "both")
#: Names models go by, beside those of `cases.SHAPES`.
ALIASES = {"deepseek-v4-flash": "dsv4-flash", "deepseek-v4-pro": "dsv4-pro"}
_CUSTOM = re.compile(r"e(\d+)-h(\d+)-i(\d+)-k(\d+)")


def parse_shape(text: str) -> MoeShape:
    """The shape a name of `cases.SHAPES`, a model's long name or four numbers `E,H,I,k` stand for; a custom one clamps as DeepSeek-V4 does."""
    text = text.strip()
    custom = _CUSTOM.fullmatch(text)
    parts = list(custom.groups()) if custom else text.split(",")
    if len(parts) == 1:
        return shape_named(ALIASES.get(text, text))
    if len(parts) != 4 or not all(part.strip().isdecimal() for part in parts):
        raise UsageError(f"--shape {text!r} is neither a name nor four whole numbers E,H,I,k such as 256,4096,2048,6; see `list --json`")
    E, H, I, k = map(int, parts)  # noqa: E741
    if E < 1:
        raise UsageError(f"--shape {text!r}: E={E} must be at least 1")
    return MoeShape(f"e{E}-h{H}-i{I}-k{k}", H, I, E, k, DEEPSEEK_V4, has_bias=False)


def parse_tokens(text: str) -> tuple[int, ...]:
    """Token counts of a comma list, each once, smallest first."""
    found = set()
    for part in text.split(","):
        if not part.strip().isdecimal() or int(part) < 1:
            raise UsageError(f"--tokens {text!r}: {part.strip()!r} is not a whole number of at least 1; write 4,16,64")
        found.add(int(part))
    return tuple(sorted(found))


@dataclass(frozen=True)
class Plan:
    """One bench. A group is one (shape, bias, tokens): its backends are measured in turn, so that their ratios come from the same minute."""

    backends: tuple[str, ...]
    device: str
    shapes: tuple[MoeShape, ...]
    tokens: tuple[int, ...]
    graph: str = "auto"
    tuned: str = "both"
    bias: str = "model"
    repeats: int = 30
    warmup: int = 5
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("repeats", 1), ("warmup", 0), ("seed", 0)):
            if getattr(self, name) < least:
                raise UsageError(f"--{name} {getattr(self, name)} must be at least {least}")
        for name, choices in (("graph", GRAPHS), ("tuned", TUNED), ("bias", BIASES)):
            if getattr(self, name) not in choices:
                raise UsageError(f"--{name} {getattr(self, name)!r} is none of {', '.join(choices)}")
        if not (self.backends and self.shapes and self.tokens):
            raise UsageError("a bench needs a backend, a shape and a token count at least")
        heavy = [shape.name for shape in self.shapes if shape.production]
        if self.device == "cpu" and heavy:
            raise UsageError(f"--shape {heavy[0]}: emulating backends would need hours for a production layer; use --shape dsv4-tiny")
        if self.device == "cpu" and self.graph == "on":
            raise UsageError("--graph on: CUDA graphs need a GPU, and these backends run on a CPU; leave --graph out")

    def sides(self) -> list[tuple[MoeShape, bool]]:
        """Every (shape, bias) in order; weights are made once for each."""
        both = {"both": (False, True), "on": (True,), "off": (False,)}
        return [(replace(s, has_bias=b), b) for s in self.shapes for b in both.get(self.bias, (s.has_bias,))]

    def settings(self) -> dict[str, Any]:
        """The plan as JSON for the record; `from_settings` is the inverse."""
        return asdict(self) | {"shapes": {s.name: [s.num_experts, s.hidden_size, s.intermediate_size, s.top_k] for s in self.shapes}}

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> Plan:
        """The plan of a record. Raises `UsageError` for a shape that this version knows otherwise."""
        shapes = []
        for name, size in settings["shapes"].items():
            shape = parse_shape(name)
            if [shape.num_experts, shape.hidden_size, shape.intermediate_size, shape.top_k] != size:
                raise UsageError(f"shape {name!r} is E,H,I,k = {size} in the record and another one in this version")
            shapes.append(shape)
        plain = {name: settings[name] for name in ("device", "graph", "tuned", "bias", "repeats", "warmup", "seed")}
        return cls(tuple(settings["backends"]), shapes=tuple(shapes), tokens=tuple(settings["tokens"]), **plain)


#: How a row is timed: a replayed graph; a call launched while the GPU was still busy (`ahead`); a call launched to an idle GPU, which
#: therefore contains the host's time (`eager`). The first two are GPU time alone.
MODES = ("graph", "ahead", "eager")
#: How a row can end. `unavailable` says that the backend cannot do this (a bias, a shape) and why; it is no fault of the run.
OUTCOMES = ("measured", "unavailable", "error", "oom", "wrong")


@dataclass(frozen=True)
class Row:
    """One backend, as it comes or tuned, at one point. Times are milliseconds between two events on the GPU (of wall clock on a CPU).

    Attributes:
        mode: one of `MODES`; `why` says why it is not a graph, or why there is no time.
        median_ms, q1_ms, q3_ms: of `samples_ms`; None without a measurement. eager_ms: the median of `eager` beside another mode.
        host_ms: what the host takes to launch the call, eagerly; on a GPU it runs beside the device.
        experts_hit: experts that at least one token was routed to, whose weights must be read.
        beside: rows measured in turn with this one, as labels; alone means that its ratios come from different minutes.
    """

    shape: str
    bias: bool
    tokens: int
    backend: str
    tuned: bool
    outcome: str
    mode: str = "eager"
    why: str = ""
    tactic: str = "default"
    median_ms: float | None = None
    q1_ms: float | None = None
    q3_ms: float | None = None
    eager_ms: float | None = None
    host_ms: float | None = None
    experts_hit: int = 0
    tune_s: float | None = None
    beside: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    samples_ms: tuple[float, ...] = field(default=(), repr=False)

    @property
    def label(self) -> str:
        """The column this row stands in."""
        return f"{self.backend} tuned" if self.tuned else self.backend

    @property
    def group(self) -> tuple[str, bool, int]:
        return self.shape, self.bias, self.tokens


def row_of(data: Mapping[str, Any]) -> Row:
    """A row from JSON; raises `ValueError` for what is none."""
    values: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in data.items()}
    try:
        row = Row(**values)
    except TypeError as error:
        raise ValueError(f"not a bench row: {error}") from error
    timed = isinstance(row.median_ms, float) and row.median_ms > 0 and len(row.samples_ms) > 0
    if row.outcome not in OUTCOMES or row.mode not in MODES or timed != (row.outcome == "measured"):
        raise ValueError(f"not a bench row: outcome {row.outcome!r}, mode {row.mode!r}, median {row.median_ms!r}")
    return row


def measured(rows: Sequence[Row]) -> list[Row]:
    """The rows with a time."""
    return [row for row in rows if row.outcome == "measured"]
