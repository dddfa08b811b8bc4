"""A plan as data: which servers, which stages in which order, and every number that is fixed before the first request."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from mxfp4_validate import evalspec
from mxfp4_validate.endpoint.redaction import Redactor
from mxfp4_validate.evalspec import EvalSpec, Sampling

#: How the legs share GPUs and time.
ORDERS = ("interleaved", "sequence", "side-by-side")
LEGS = ("baseline", "candidate")
#: Stages that are no evals, cheapest first.
CHEAP = ("kernel", "canary", "divergence")
#: Sampling that a plan may set; the rest is the eval's.
SAMPLING = tuple(f.name for f in fields(Sampling))


@dataclass(frozen=True)
class LegSpec:
    """One leg's server: a `recipe`, a `command` of one's own, or addresses that are up already (`base_url`); exactly one of the three.

    Attributes:
        backend: of the recipe; otherwise the MoE backend that the server must report.
        model: of the recipe, a folder for instance; otherwise the served name. python: interpreter of the server's environment.
        port: 0 takes a free one. gpus: CUDA_VISIBLE_DEVICES, for legs side by side.
        extra: last on a recipe's command line. evidence: text that a command's log must hold.
    """

    recipe: str = ""
    command: tuple[str, ...] = ()
    base_url: tuple[str, ...] = ()
    backend: str = ""
    model: str = ""
    python: str = ""
    port: int = 0
    tp: int = 0
    context_length: int = 0
    thinking: bool = True
    speculative: bool = True
    gpus: str = ""
    env: Mapping[str, str] = field(default_factory=dict)
    extra: tuple[str, ...] = ()
    health: str = "/health"
    load_deadline: float = 1800.0
    evidence: str = ""


@dataclass(frozen=True)
class CanarySpec:
    """Generations after every launch, all at once: `eval` whose questions are asked ("" for four plain ones), `tokens` each at most."""

    generations: int = 80
    concurrency: int = 64
    tokens: int = 1024
    eval: str = ""
    deadline: float = 900.0


@dataclass(frozen=True)
class KernelSpec:
    """The kernel suite in a process of its own; `args` go to pytest as with the verb `kernel`."""

    backend: str = "sm90-cutlass"
    args: tuple[str, ...] = ()


@dataclass(frozen=True)
class DivergenceSpec:
    """The token-level stage. `widths`: positions a request, one record and one decision each; `floors`: A/A arms; see docs/divergence.md."""

    eval: str = "aime25"
    questions: str = ""
    corpus: str = ""
    sequences: int = 256
    max_tokens: int = 512
    score_prompts: bool = False
    widths: tuple[int, ...] = (512,)
    floors: int = 1
    protocol: str = "sglang"
    concurrency: int = 8
    deadline: float = 600.0
    calibration: str = ""


@dataclass(frozen=True)
class EvalStage:
    """What a plan changes of an eval; None and "" leave it the eval's own. `margin` in points; `anchor` as `compare --anchor` takes it.

    Attributes:
        boot_sd: how far one boot of a server moves its score, a standard deviation in points, from A/A pairs; None is "not measured".
        tokens_per_answer, accuracy: for the estimate alone; 0 is what `serving.costs` assumes. outage: seconds to wait for a server that went away.
    """

    margin: float | None = None
    limit: int | None = None
    repeats: int | None = None
    looks: tuple[int, ...] = ()
    concurrency: int = 64
    temperature: float | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    max_tokens: int | None = None
    seed: int | None = None
    thinking: bool | None = None
    effort: str | None = None
    profile: str = "default"
    questions: str = ""
    anchor: str = ""
    boot_sd: float | None = None
    tokens_per_answer: float = 0.0
    accuracy: float = 0.0
    outage: float = 120.0
    retry_budget: float = 600.0


@dataclass(frozen=True)
class Budget:
    """What a run may cost at most (0: no limit), and what the estimate is made from: speed of one leg's server, GPUs, price, launch time."""

    hours: float = 0.0
    tokens: float = 0.0
    dollars: float = 0.0
    tokens_per_second: float = 0.0
    gpus: int = 0
    dollars_per_gpu_hour: float = 0.0
    launch_minutes: float = 5.0


@dataclass(frozen=True)
class PlanFile:
    """One plan.

    Attributes:
        order: `interleaved` (B C B C, a boot for every block of repeats), `sequence` (a boot for every stage) or `side-by-side`.
        stages: names of `CHEAP` and of evals, in the order they run; the cheap ones first.
        fresh_boots: a new boot for every block of repeats, also where the leg is up and its turn; dear, and the best at telling bad boots.
        aa: both legs are one configuration; expect: identity names that are meant to differ beside the MoE backend.
    """

    name: str
    title: str
    stages: tuple[str, ...]
    baseline: LegSpec
    candidate: LegSpec
    order: str = "interleaved"
    fresh_boots: bool = False
    aa: bool = False
    expect: tuple[str, ...] = ()
    canary: CanarySpec = field(default_factory=CanarySpec)
    kernel: KernelSpec = field(default_factory=KernelSpec)
    divergence: DivergenceSpec = field(default_factory=DivergenceSpec)
    evals: Mapping[str, EvalStage] = field(default_factory=dict)
    budget: Budget = field(default_factory=Budget)

    def leg(self, name: str) -> LegSpec:
        return self.baseline if name == "baseline" else self.candidate

    def eval_names(self) -> tuple[str, ...]:
        return tuple(name for name in self.stages if name not in CHEAP)

    def eval_spec(self, name: str) -> EvalSpec:
        """The eval with what the plan changes of it; sampling still the eval's own."""
        spec, stage = evalspec.load(name), self.evals.get(name, EvalStage())
        repeats = stage.repeats or (stage.looks[-1] if stage.looks else spec.repeats)
        looks = stage.looks or (spec.looks if repeats == spec.looks[-1] else (repeats,))
        margin = spec.margin if stage.margin is None else stage.margin / 100
        return replace(spec, repeats=repeats, looks=looks, margin=margin)

    def decided(self) -> dict[str, Any]:
        """Everything that a verdict depends on, as JSON without keys: no address, port, interpreter or price, which may change between sittings."""
        found: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        del found["budget"], found["title"]
        for stage in found["evals"].values():
            for key in ("tokens_per_answer", "accuracy", "outage", "retry_budget"):
                del stage[key]
        for leg in LEGS:
            found[leg] = {k: v for k, v in found[leg].items() if k not in ("base_url", "port", "python", "gpus", "load_deadline")}
            found[leg]["launched"] = not self.leg(leg).base_url
            spec = self.leg(leg)
            found[leg] = _redacted(found[leg], Redactor(spec.env, (*spec.command, *spec.extra)))
        return found

    @property
    def sha256(self) -> str:
        return hashlib.sha256(json.dumps(self.decided(), sort_keys=True).encode()).hexdigest()


def _redacted(value: Any, redact: Redactor) -> Any:
    """The value with every text in it redacted."""
    if isinstance(value, dict):
        return {name: _redacted(part, redact) for name, part in value.items()}
    if isinstance(value, list):
        return [_redacted(part, redact) for part in value]
    return redact(value) if isinstance(value, str) else value


def sampling_of(stage: EvalStage) -> dict[str, Any]:
    """What a stage says of sampling, by name."""
    return {name: getattr(stage, name) for name in SAMPLING if getattr(stage, name) is not None}
