"""From an eval and a source to a checked set of questions; the first thing a run does."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from mxfp4_validate.errors import UsageError
from mxfp4_validate.evalspec import EvalSpec
from mxfp4_validate.questions.base import Question, QuestionSet
from mxfp4_validate.questions.canonical import ANSWER, TEXT, column, question
from mxfp4_validate.questions.files import Row, rows
from mxfp4_validate.questions.sources import from_hub, from_package, generated, ways


def load(
    spec: EvalSpec, path: Path | None = None, *, package: str | None = None, limit: int | None = None, revision: str = ""
) -> QuestionSet:
    """The questions of an eval, in the order of their source.

    Args:
        path: a local file with any number of rows of this eval's shape. It may be a part or a set of the user's own: a count or hash
            other than the eval's is then a note in the result; from the Hub or a package it is an error.
        package: take the copy inside this installed package; without it and without `path`, the eval's package if it has one, else the Hub.
        limit: keep only so many, see `first`.
        revision: a commit of the Hub dataset other than the pinned one.

    Raises:
        UsageError: no source at hand (the message lists all ways), a wrong count or hash, duplicate rows, an empty or impossible gold answer.
    """
    found, origin, commit = _rows(spec, path, package, revision)
    questions = _questions(found, spec.grader)
    whole = QuestionSet(spec.name, questions, origin, commit, tuple(_option_notes(questions)))
    notes = _differences(whole, spec, pinned=not revision)
    if notes and path is None:
        raise UsageError(f"{origin}: {'; '.join(notes)}; {ways(spec)}")
    whole = replace(whole, notes=whole.notes + tuple(notes))
    return whole if limit is None else first(whole, limit)


def first(whole: QuestionSet, limit: int) -> QuestionSet:
    """A part that is the same from every source: the `limit` questions with the smallest ids, which are hashes, in the set's own order."""
    if limit < 1:
        raise UsageError(f"limit is {limit}, it must be at least 1")
    if limit >= len(whole.questions):
        return whole
    kept = {item.id for item in sorted(whole.questions, key=lambda item: item.id)[:limit]}
    note = f"{limit} of {len(whole.questions)} questions, those with the smallest ids"
    return replace(whole, questions=tuple(item for item in whole.questions if item.id in kept), notes=(*whole.notes, note))


def examples(
    spec: EvalSpec, count: int, path: Path | None = None, *, package: str | None = None, revision: str = ""
) -> tuple[tuple[str, str], ...]:
    """Question and whole answer, solution included, of the first `count` rows; for prompts with worked examples."""
    found, origin, _ = _rows(spec, path, package, revision)
    if len(found) < count:
        raise UsageError(f"{origin}: {len(found)} rows, and {count} are wanted as examples")
    return tuple((column(row, TEXT, where), column(row, ANSWER, where)) for where, row in found[:count])


def _rows(spec: EvalSpec, path: Path | None, package: str | None, revision: str) -> tuple[list[Row], str, str]:
    """The rows, where they are from, and the commit if that is the Hub."""
    package = package or (None if path or revision else spec.source.get("package"))
    commit = ""
    if path is not None:
        found, origin = rows(Path(path)), str(path)
    elif "generator" in spec.source:
        found, origin = generated(spec), f"{spec.source['generator']}, seed {spec.source['seed']}"
    elif package:
        found, release = from_package(spec, package)
        origin = f"{package} {release}"
    else:
        commit = revision or str(spec.source.get("revision", ""))
        found, origin = from_hub(spec, commit), str(spec.source.get("hub"))
    if not found:
        raise UsageError(f"{origin}: no rows; {ways(spec)}")
    return found, origin, commit


def _questions(found: list[Row], grader: str) -> tuple[Question, ...]:
    places: dict[str, str] = {}
    texts: dict[tuple[str, frozenset[str]], str] = {}
    questions = []
    for where, row in found:
        item = question(row, grader, where)
        # The same question with other gold has the same id, too: whichever is right, both cannot stay.
        earlier = places.get(item.id) or texts.get((item.text, frozenset(item.options)))
        if earlier:
            raise UsageError(f"{where}: the same question as {earlier} (id {item.id!r}); remove one of the two rows")
        places[item.id] = texts[item.text, frozenset(item.options)] = where
        questions.append(item)
    return tuple(questions)


def _option_notes(questions: tuple[Question, ...]) -> list[str]:
    same = [item.id for item in questions if len(set(item.options)) < len(item.options)]
    return (
        [f"options of the same text in {len(same)} questions ({', '.join(same[:5])}): the gold one is known by its place"] if same else []
    )


def _differences(whole: QuestionSet, spec: EvalSpec, *, pinned: bool) -> list[str]:
    count = len(whole.questions)
    notes = [f"{count} questions where {spec.name} has {spec.questions}"] if count != spec.questions else []
    if not notes and pinned and spec.sha256 and whole.sha256 != spec.sha256:
        notes.append(f"sha256 {whole.sha256} of the questions where {spec.name} pins {spec.sha256}")
    return notes
