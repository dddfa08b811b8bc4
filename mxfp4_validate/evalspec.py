"""An eval as data: `evals/NAME/eval.toml` holds source, prompt, sampling, repeats, margin and looks; this reads and checks it."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from mxfp4_validate.errors import UnknownName, UsageError

_HERE = Path(__file__).resolve().parent
#: Where the eval folders may be: inside the installed package, or beside it in a checkout.
EVALS = (_HERE / "evals", _HERE.parent / "evals")


@dataclass(frozen=True)
class Sampling:
    """Every parameter of a request; all of them are sent, so that a server's generation_config cannot fill one in.

    Attributes:
        max_tokens: cap on completion tokens, reasoning included.
        seed: base seed; a request's own is derived from it, the question id and the repeat.
        thinking: sent as `chat_template_kwargs: {thinking, enable_thinking}`; None sends nothing.
        effort: sent as `reasoning_effort`; None sends nothing.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    max_tokens: int = 2048
    seed: int = 0
    thinking: bool | None = None
    effort: str | None = None

    def __post_init__(self) -> None:
        for name, low, high in (("temperature", 0, 2), ("top_p", 0, 1), ("min_p", 0, 1), ("repetition_penalty", 0.01, 10)):
            value = getattr(self, name)
            if not low <= value <= high:
                raise UsageError(f"{name} is {value}, it must be between {low} and {high}")
        if self.max_tokens < 1:
            raise UsageError(f"max_tokens is {self.max_tokens}, it must be at least 1")

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class EvalSpec:
    """One eval.

    Attributes:
        name: `gsm8k`, `gpqa_diamond`, `aime25`, `arith`; also the folder's name.
        grader: `gsm8k`, `gpqa` or `aime25`: which grading rules apply.
        questions: how many there must be.
        sha256: of the canonical question set, or "" where its text is gated and cannot be pinned here.
        repeats: samples a question in a fixed plan; looks: complete repeat blocks after which an adaptive plan may decide.
        margin: largest loss, as a fraction, that is still called no loss.
        source: where the questions come from (`hub`, `config`, `split`, `revision`; `package`; or `generator` and `seed`).
    """

    name: str
    title: str
    grader: str
    questions: int
    sha256: str
    repeats: int
    looks: tuple[int, ...]
    margin: float
    sampling: Sampling
    source: Mapping[str, Any]
    folder: Path

    @property
    def prompt(self) -> str:
        """Our own wording, a template with the fields of `prompts.render`."""
        return (self.folder / "prompt.txt").read_text(encoding="utf-8")

    def with_sampling(self, **changes: Any) -> EvalSpec:
        """The same eval with some sampling parameters changed; None leaves one as it is."""
        return replace(self, sampling=replace(self.sampling, **{name: value for name, value in changes.items() if value is not None}))


def names() -> list[str]:
    """The evals there are."""
    return sorted({path.parent.name for root in EVALS for path in root.glob("*/eval.toml")})


def load(name: str) -> EvalSpec:
    """The eval of that name; `UnknownName` with the nearest ones."""
    for root in EVALS:
        if (root / name / "eval.toml").is_file() and name in names():
            return parse((root / name / "eval.toml").read_text(encoding="utf-8"), root / name)
    raise UnknownName("eval", name, names())


def parse(text: str, folder: Path) -> EvalSpec:
    """An eval from the text of its file; `UsageError` names the key that is missing, unknown or wrong."""
    where = folder / "eval.toml"
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{where}: {error}") from error
    known = {field.name for field in fields(EvalSpec)} - {"folder"}
    if set(data) != known:
        raise UsageError(f"{where}: missing keys {sorted(known - set(data))}, unknown keys {sorted(set(data) - known)}")
    unknown = set(data["sampling"]) - {field.name for field in fields(Sampling)}
    if unknown:
        raise UsageError(f"{where}: unknown sampling keys {sorted(unknown)}")
    values = data | {"sampling": Sampling(**data["sampling"]), "looks": tuple(data["looks"]), "folder": folder}
    return EvalSpec(**values)
