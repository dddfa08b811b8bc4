"""What a report is made of: kernel, bench and divergence records, pairs of eval runs with their verdicts, a fault matrix. Plain data, already read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mxfp4_validate.bench.record import BenchRun
from mxfp4_validate.divergence.analyse import Result as Found
from mxfp4_validate.divergence.record import ArmRow
from mxfp4_validate.divergence.rule import Floor
from mxfp4_validate.records.evals import EvalRun
from mxfp4_validate.records.store import Result, Run
from mxfp4_validate.verdicts import Leg, Overall, Verdict


@dataclass(frozen=True)
class Source:
    """The file something was read from: its name (never its folder, which belongs to a machine) and the sha256 of its bytes."""

    name: str
    sha256: str


@dataclass(frozen=True)
class KernelRecord:
    """One run of the kernel suite. `expected` is backend -> family -> how many items a whole run has, empty for a selected one."""

    source: Source
    run: Run
    results: tuple[Result, ...]
    expected: Mapping[str, Mapping[str, int]] = field(default_factory=dict)


@dataclass(frozen=True)
class AnswerRow:
    """One sample as a report shows it; `head` and `tail` are cut from the raw answer, `length` is all of it in characters."""

    question_id: str
    repeat: int
    state: str
    correct: bool
    answer: str | None
    rule: str
    tokens: int | None
    head: str = ""
    tail: str = ""
    length: int = 0
    error: str = ""


@dataclass(frozen=True)
class EvalLeg:
    """One eval run; `answers` in the order of the plan; `attempts` counts requests by outcome; `golds` by question."""

    source: Source
    run: EvalRun
    leg: Leg
    answers: tuple[AnswerRow, ...]
    golds: Mapping[str, str]
    attempts: Mapping[str, int]
    events: tuple[tuple[str, str, str], ...]

    @property
    def cap(self) -> int | None:
        """The token cap every answer was asked with."""
        value = self.run.fingerprint.get("max_tokens", "")
        return int(value) if value.isdigit() else None


@dataclass(frozen=True)
class EvalPair:
    """Two runs of one eval and what came of comparing them. `refused` says why there is no verdict; a lone run has no candidate.

    `published` are the scores that others have published of this model, a line each.
    """

    suite: str
    baseline: EvalLeg
    candidate: EvalLeg | None
    verdict: Verdict | None
    refused: str = ""
    incomplete: bool = False
    published: tuple[str, ...] = ()


@dataclass(frozen=True)
class StageRow:
    """A stage of a plan that is neither kernel record nor eval: launch, canary, divergence. Only if it `decides` does it count for the whole."""

    name: str
    outcome: str
    measured: str
    limit: str = ""
    needs: str = ""
    reasons: tuple[str, ...] = ()
    decides: bool = True


@dataclass(frozen=True)
class BenchRecord:
    """One bench."""

    source: Source
    run: BenchRun


def moe_backend(identity: Mapping[str, str]) -> str:
    """What a server said it runs its experts with, empty if it said nothing."""
    return str(identity.get("moe_backend") or identity.get("moe_runner_backend") or "")


@dataclass(frozen=True)
class ArmScored:
    """One arm of a divergence record and how far it came: sequences answered, places of those that were no number, tokens sent."""

    row: ArmRow
    answered: int
    not_finite: tuple[int, ...]
    sent: int


@dataclass(frozen=True)
class SequenceRow:
    """One sequence against the baseline: the candidate's mean KL and flips, the mean KL of the floor's runs."""

    place: int
    positions: int
    kl: float
    flips: int
    floor: float


@dataclass(frozen=True)
class CorpusFacts:
    """What was scored, and what that costs an arm; `requests` is None where the protocol is unknown."""

    sha256: str
    made_by: str
    sequences: int
    scored: int
    width: int
    protocol: str
    requests: int | None
    aime_share: float


@dataclass(frozen=True, eq=False)
class DivergenceRecord:
    """One candidate arm of a divergence record. `refused` says why there is no decision: an arm lacks sequences (`incomplete`) or is unsound.

    Without a decision, and where every sequence of the candidate was no number, there is no `floor` and no row.
    """

    source: Source
    run_id: str
    created: str
    version: str
    candidate: str
    corpus: CorpusFacts
    arms: tuple[ArmScored, ...]
    found: Found | None
    refused: str = ""
    incomplete: bool = False
    floor: Floor | None = None
    rows: tuple[SequenceRow, ...] = ()

    @property
    def outcome(self) -> str:
        """GO ON, FAIL, UNDECIDED, INCOMPLETE or INVALID."""
        return self.found.decision.outcome if self.found else "INCOMPLETE" if self.incomplete else "INVALID"


@dataclass(frozen=True)
class FaultMatrix:
    """A measured run of the deliberate faults: fault -> (what it is, checks that caught it)."""

    source: Source
    backend: str
    checks: tuple[str, ...]
    rows: Mapping[str, tuple[str, tuple[str, ...]]]


@dataclass(frozen=True)
class Inputs:
    """Everything one report shows. `planned`: how many evals there were to be, 0 if no plan said so; `plan`: its name."""

    version: str
    kernels: Sequence[KernelRecord] = ()
    pairs: Sequence[EvalPair] = ()
    overall: Overall | None = None
    faults: FaultMatrix | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    stages: Sequence[StageRow] = ()
    benches: Sequence[BenchRecord] = ()
    divergences: Sequence[DivergenceRecord] = ()
    planned: int = 0
    plan: str = ""
