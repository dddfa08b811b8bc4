"""The synthetic set: right answers, one set for one seed, and nothing of it where a model could have been trained on it."""

from __future__ import annotations

import random
import re
from dataclasses import replace
from pathlib import Path

import pytest

from mxfp4_validate import evalspec
from mxfp4_validate.errors import UsageError
from mxfp4_validate.grading.grade import grade
from mxfp4_validate.questions import arith, load

SPEC = evalspec.load("arith")


def solved(text: str) -> int:
    """The answer from the words alone, without the generator's own steps."""
    a, b, c = map(int, re.findall(r"\d+", text))
    if "gets" in text:
        return a + b * c
    if "boxes" in text:
        return a * b - c
    if "finds" in text:
        return a + b - c
    assert "in each of" in text
    return (a + b) * c


def test_the_set_is_pinned_and_whole() -> None:
    questions = load(SPEC)
    assert len(questions.questions) == 200
    assert questions.sha256 == SPEC.sha256
    assert not questions.notes
    assert {q.text: int(q.gold) for q in questions.questions} == {q.text: solved(q.text) for q in questions.questions}


def test_another_seed_is_another_set_and_is_refused() -> None:
    other = replace(SPEC, source={**SPEC.source, "seed": 26})
    with pytest.raises(UsageError, match="sha256"):
        load(other)


def test_held_out_is_held_out() -> None:
    """No problem drawn for training shares its kind and numbers with one of the eval, whatever the names in it."""
    kept = {p.key for p in arith.questions()}
    rng = random.Random(3)
    trained = {arith.draw(rng, kept=False).key for _ in range(20_000)}
    assert len(kept) == 200
    assert not kept & trained
    assert all(arith.held_out(key) for key in kept)
    assert len(trained) > 2_000, "training saw hardly anything"


def test_worked_answers_are_right_step_by_step() -> None:
    """Every step holds, the last one is boxed, and our grader reads it."""
    rng = random.Random(4)
    for _ in range(2_000):
        p = arith.draw(rng, kept=False)
        steps = re.findall(r"(\d+)([+*-])(\d+)=(\d+)\.", p.worked)
        assert len(steps) == 2
        for x, sign, y, result in steps:
            assert {"+": int(x) + int(y), "-": int(x) - int(y), "*": int(x) * int(y)}[sign] == int(result)
        assert p.answer == solved(p.question) == int(steps[-1][3])
        assert p.answer > 0
        assert p.worked.endswith(rf"\boxed{{{p.answer}}}")
    assert grade("gsm8k", p.worked, str(p.answer)).correct


def test_a_local_file_serves_as_well(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text('{"question": "What is 2 plus 2?", "answer": "4"}\n')
    assert load(SPEC, path).questions[0].gold == "4"
