"""Synthetic word problems with worked answers: the questions of the `arith` eval, and what the embedded tiny model was trained on.

A problem is a template and three numbers. Which numbers belong to the eval is decided by a hash of both, so training can leave
them out without a list: `held_out` says so for any problem.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from dataclasses import dataclass

NAMES = ("Ada", "Ben", "Cleo", "Dan", "Eva", "Finn", "Gus", "Hana", "Ivo", "June", "Kim", "Leo", "Mia", "Noor", "Otto", "Pia")
THINGS = ("figs", "pens", "coins", "shells", "cards", "beads", "stamps", "nuts", "keys", "bolts", "plums", "books")
#: One problem in this many is kept for the eval.
_KEPT = 8


@dataclass(frozen=True)
class Template:
    """One kind of problem: its words, the ranges of its numbers, and its steps as (left, sign, right) of numbers, `s` being the step before."""

    text: str
    a: range
    b: range
    c: range
    steps: tuple[tuple[str, str, str], ...]
    sensible: Callable[[int, int, int], bool]


def _always(a: int, b: int, c: int) -> bool:
    return True


TEMPLATES = (
    Template(
        "{name} has {a} {thing} and gets {b} bags of {c} {thing}. How many {thing} has {name} now?",
        range(2, 40),
        range(2, 10),
        range(2, 10),
        (("b", "*", "c"), ("a", "+", "s")),
        _always,
    ),
    Template(
        "{name} buys {b} boxes of {c} {thing} and loses {a} of them. How many {thing} are left?",
        range(2, 40),
        range(2, 10),
        range(2, 10),
        (("b", "*", "c"), ("s", "-", "a")),
        lambda a, b, c: b * c > a,
    ),
    Template(
        "{name} has {a} {thing}, finds {b} more and gives {c} away. How many {thing} does {name} keep?",
        range(10, 50),
        range(10, 50),
        range(2, 40),
        (("a", "+", "b"), ("s", "-", "c")),
        lambda a, b, c: a + b > c,
    ),
    Template(
        "There are {a} red and {b} blue {thing} in each of {c} tins. How many {thing} are there?",
        range(2, 10),
        range(2, 10),
        range(2, 7),
        (("a", "+", "b"), ("s", "*", "c")),
        _always,
    ),
)
_SIGNS: dict[str, Callable[[int, int], int]] = {"+": lambda x, y: x + y, "-": lambda x, y: x - y, "*": lambda x, y: x * y}


@dataclass(frozen=True)
class Problem:
    """A question, its answer, and the worked answer that ends in a box."""

    question: str
    answer: int
    worked: str
    key: str


def held_out(key: str) -> bool:
    """Whether a problem belongs to the eval; nobody may train on it."""
    return hashlib.sha256(f"arith {key}".encode()).digest()[0] % _KEPT == 0


def draw(rng: random.Random, kept: bool) -> Problem:
    """A random problem of the eval (`kept`) or of all others."""
    while True:
        kind = rng.randrange(len(TEMPLATES))
        t = TEMPLATES[kind]
        a, b, c = rng.choice(t.a), rng.choice(t.b), rng.choice(t.c)
        key = f"{kind} {a} {b} {c}"
        if t.sensible(a, b, c) and held_out(key) is kept:
            return problem(kind, a, b, c, rng.choice(NAMES), rng.choice(THINGS))


def problem(kind: int, a: int, b: int, c: int, name: str, thing: str) -> Problem:
    """One problem from its parts."""
    t, values = TEMPLATES[kind], {"a": a, "b": b, "c": c}
    lines = []
    for left, sign, right in t.steps:
        values["s"] = _SIGNS[sign](x := values[left], y := values[right])
        lines.append(f"{x}{sign}{y}={values['s']}.")
    worked = " ".join([*lines, rf"\boxed{{{values['s']}}}"])
    return Problem(t.text.format(name=name, thing=thing, a=a, b=b, c=c), values["s"], worked, f"{kind} {a} {b} {c}")


def questions(count: int = 200, seed: int = 25) -> list[Problem]:
    """The eval's problems, no two with the same numbers."""
    rng, found = random.Random(seed), dict[str, Problem]()
    while len(found) < count:
        p = draw(rng, kept=True)
        found.setdefault(p.key, p)
    return list(found.values())
