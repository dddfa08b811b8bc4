"""The child of `sandbox`: reads JSON lines, writes one JSON line each. Runs as a script and imports nothing of this package."""

from __future__ import annotations

import importlib
import json
import logging
import os
import re
import sys
from collections.abc import Callable
from typing import Any

_NEEDS = {"equal": ("math_verify", "latex2sympy2_extended"), "gpt-oss": ("gpt_oss.evals.abcd_grader",)}
_MARKED = re.compile(r"\$.*\$|\\\(.*\\\)|\\\[.*\\\]|\\boxed\{", re.DOTALL)
_PERCENT = re.compile(r"(\d+\.?\d*)\\?%")
_WORDS = re.compile(r"[a-zA-Z ,]+")


def equal(gold: str, answer: str) -> bool:
    """Whether two expressions are equal by sgl-eval 0.1.3: as normalised LaTeX, else, unless both are words, by `math_verify`."""
    latex, math = importlib.import_module("latex2sympy2_extended"), importlib.import_module("math_verify")
    pair = [_trimmed(gold), _trimmed(answer)]
    left, right = (latex.normalize_latex(text, latex.NormalizationConfig) for text in pair)
    if left.replace(" ", "") == right.replace(" ", ""):
        return True
    if _WORDS.fullmatch(left) and _WORDS.fullmatch(right):
        return False
    # Both without `$`: the parser looks for LaTeX only between marks.
    marked = [text if _MARKED.search(text) else f"${text}$" for text in pair]
    wanted, given = (math.parse(text, [math.LatexExtractionConfig()]) for text in marked)
    return bool(math.verify(wanted, given, numeric_precision=15, timeout_seconds=10))


def _trimmed(text: str) -> str:
    percent = _PERCENT.fullmatch(text)
    return (percent[1] if percent else text).rstrip(".\\")


def gpt_oss(text: str) -> str | None:
    """The letter that the installed gpt-oss finds."""
    found = importlib.import_module("gpt_oss.evals.abcd_grader").extract_abcd(text)
    return str(found) if found else None


_OPERATIONS: dict[str, Callable[..., Any]] = {"equal": equal, "gpt-oss": gpt_oss}


def reply(request: dict[str, Any]) -> dict[str, Any]:
    """One answer; whatever goes wrong is part of it."""
    try:
        for module in _NEEDS.get(request.get("prepare", ""), ()):
            importlib.import_module(module)
        if "prepare" in request:
            return {"result": True}
        return {"result": _OPERATIONS[request["operation"]](**request["arguments"])}
    except ModuleNotFoundError as error:
        return {"missing": error.name}
    except BaseException as error:  # a parser on arbitrary text: recursion, memory and its own exceptions included
        return {"error": f"{type(error).__name__}: {str(error)[:200]}"}


def main() -> None:
    # Imported packages may print; the pipe is for replies only.
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    logging.disable(logging.CRITICAL)
    for line in sys.stdin:
        out.write(json.dumps(reply(json.loads(line))) + "\n")
        out.flush()


if __name__ == "__main__":
    main()
