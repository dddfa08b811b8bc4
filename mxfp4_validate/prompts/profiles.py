"""Whose protocol a run follows: our own, or one of an installed tool, with its sampling, option order, wording and grader."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mxfp4_validate.errors import UnknownName
from mxfp4_validate.evalspec import EvalSpec


@dataclass(frozen=True)
class Profile:
    """One protocol.

    Attributes:
        name: goes into a run's fingerprint, together with the hashes of what was rendered.
        grader: the mode of `grading.grade` that reads its answers.
        sampling: by suite, the parameters that differ from the eval's own; what the tool leaves to the server stays the eval's.
        order: how options are shown: `id` (from the question's id), `file-42` (one stream of Random(42) over the file's rows), `file-0` (the
            same of Random(0)) or `repeat-0` (one stream of Random(0) over all rows of all repeats).
        package: whose installed wording is used, "" for ours; `install`: how to get it.
        shots: by suite, how many rows at the head of the file are worked examples in every prompt and are not asked.
    """

    name: str
    grader: str
    sampling: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    order: str = "id"
    package: str = ""
    install: str = ""
    shots: Mapping[str, int] = field(default_factory=dict)

    def apply(self, spec: EvalSpec) -> EvalSpec:
        """The eval with this profile's sampling."""
        return spec.with_sampling(**self.sampling.get(spec.grader, {}))


_GREEDY = {"temperature": 0.0, "top_p": 0.95}
_SHORT = {"temperature": 0.0, "top_p": 1.0, "max_tokens": 2048}
_LONG = {"temperature": 1.0, "top_p": 1.0, "max_tokens": 131072}

PROFILES = {
    profile.name: profile
    for profile in (
        Profile("default", "lenient"),
        Profile(
            "sgl-eval",
            "sgl-eval",
            {"gsm8k": _GREEDY, "gpqa": {**_GREEDY, "thinking": True}, "aime25": {**_GREEDY, "thinking": True}},
            "file-42",
            "sgl_eval",
            "pip install sgl-eval",
        ),
        Profile(
            "run_eval",
            "run_eval",
            {"gsm8k": _SHORT, "gpqa": _SHORT, "aime25": _SHORT},
            "file-0",
            "sglang",
            "pip install sglang",
            {"gsm8k": 5},
        ),
        Profile("gpt-oss", "gpt-oss", {"gpqa": _LONG, "aime25": _LONG}, "repeat-0", "gpt_oss", "pip install gpt-oss"),
    )
}


def profile(name: str) -> Profile:
    """The profile of that name; `UnknownName` with the nearest ones."""
    if name not in PROFILES:
        raise UnknownName("profile", name, PROFILES)
    return PROFILES[name]
