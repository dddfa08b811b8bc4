"""Whether a launched server runs the MoE backend that was asked: what its info says, and what its log names."""

from __future__ import annotations

import re
from collections.abc import Iterable

from mxfp4_validate.endpoint.identity import Identity
from mxfp4_validate.errors import InvalidRun
from mxfp4_validate.serverspec import Launch

#: Log lines in which SGLang (0.5.12.post1) and vLLM name the backend. "" means: the pattern's group is the name.
#: The info repeats arguments, at best after the server's own overrides; the lines about weights come from the code that prepares them.
NAMED = (
    (re.compile(r"(?<![a-z_])moe_runner_backend='([a-z0-9_]+)'"), ""),
    (re.compile(r"MXFP4 experts for FlashInfer SM90 cutlass"), "flashinfer_mxfp4"),
    (re.compile(r"FP4 expert weights for TRT-LLM MxFP4 kernel"), "flashinfer_mxfp4"),
    (re.compile(r"enabling FlashInfer MXFP4 MOE kernel"), "flashinfer_mxfp4"),
    (re.compile(r"MXFP4 experts for Marlin backend"), "marlin"),
    (re.compile(r"enabling triton_kernels? MOE kernel"), "triton_kernel"),
    (re.compile(r"using triton MOE kernel"), "triton"),
    (re.compile(r"Using '?([A-Za-z0-9_]+)'? Mxfp4 MoE backend"), ""),
)


def named_in(lines: Iterable[str], evidence: str) -> tuple[dict[str, str], bool]:
    """Backends that the lines name -> the last line that does, and whether `evidence` stands in one of them."""
    found: dict[str, str] = {}
    proved = not evidence
    for line in lines:
        proved = proved or evidence in line
        for pattern, name in NAMED:
            if match := pattern.search(line):
                found[name or match[1]] = match[0]
    return {name: line for name, line in found.items() if name != "auto"}, proved


def check_backend(launch: Launch, identity: Identity, lines: Iterable[str], log: object) -> str:
    """The backend that runs; `InvalidRun` naming the one asked and what was found. Nothing asked: "", nothing is checked."""
    asked = launch.backend
    if not asked:
        return ""
    named, proved = named_in(lines, launch.evidence)
    reported = identity.values.get("moe_backend", "")
    head = f"server {launch.name} was asked for MoE backend {asked!r}"
    wrong = [f"{line!r} in its log" for name, line in named.items() if name.casefold() != asked.casefold()]
    if reported and reported.casefold() != asked.casefold():
        raise InvalidRun(f"{head} and reports {reported!r}: it overrode the flag; see why in its log {log}, and mend the recipe")
    if wrong:
        raise InvalidRun(
            f"{head}, which its info {'repeats' if reported else 'does not name'}, but {' and '.join(wrong)} says otherwise ({log})"
        )
    if not reported and not named:
        raise InvalidRun(
            f"{head}; neither its info nor its log {log} names the one it runs, so that nothing shows which kernel is measured"
        )
    if not proved:
        raise InvalidRun(f"{head}; its log {log} lacks {launch.evidence!r}, which it prints when it prepares the weights for that backend")
    return asked
