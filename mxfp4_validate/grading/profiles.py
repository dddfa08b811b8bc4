"""Other tools' graders, answer for answer, so that a published number can be met before ours is trusted."""

from __future__ import annotations

import ast
import re

from mxfp4_validate.errors import UsageError
from mxfp4_validate.grading.base import Grade
from mxfp4_validate.grading.sandbox import Failed, ask

PROFILES = ("sgl-eval", "run_eval", "gpt-oss")

_EASTERN = dict(zip("أبجدঅবডঢＡＢＣＤ", (f" {letter}" for letter in "ABCD" * 3), strict=True))
_CAPITAL = re.compile(r"\b[A-Z]\b")
_LETTER_LINE = re.compile(r"Answer[*_]{0,2}\s*:[\s*_]{0,2}\s*([A-Z])(?![a-zA-Z0-9])", re.IGNORECASE)
_PHRASE = "The final answer is "
_SIMPLE = re.compile(r"-?(?:0|[1-9][0-9]{0,11})")
_DIGITS = re.compile(r"\d+")
_FIRST_LETTER = re.compile(r"(?i)Answer\s*:\s*([A-D])")
_FIRST_LINE = re.compile(r"(?i)Answer\s*:\s*([^\n]+)")
_FIGURE = re.compile(r"-?\d+\.?\d*")
_BOX = re.compile(r"boxed\{|framebox\{")


def grade(profile: str, suite: str, text: str, gold: str) -> Grade:
    """The grade that the tool of that profile gives; the rules here are ours, the results its own (docs/grading.md)."""
    rules = {
        ("sgl-eval", "gpqa"): _sgl_letter,
        ("sgl-eval", "gsm8k"): _sgl_number,
        ("sgl-eval", "aime25"): _sgl_number,
        ("run_eval", "gpqa"): _run_eval_letter,
        ("run_eval", "gsm8k"): _run_eval_gsm8k,
        ("run_eval", "aime25"): _run_eval_aime,
        ("gpt-oss", "gpqa"): _gpt_oss_letter,
        ("gpt-oss", "aime25"): _gpt_oss_aime,
    }
    if (profile, suite) not in rules:
        raise UsageError(f"profile {profile!r} has no {suite!r}: the tool has no such eval; use mode 'lenient' or 'strict'")
    return rules[profile, suite](text, gold)


# sgl-eval 0.1.3 -------------------------------------------------------------------------------------------------------------------------


def _sgl_box(text: str) -> str | None:
    """The last `\\boxed{...}`; None if the last one is written otherwise or never closed, whatever stands before it."""
    start = text.rfind("\\boxed")
    if start < 0 or not text.startswith("\\boxed{", start):
        return None
    depth = 0
    for match in re.finditer(r"[{}]", text[start:]):
        depth += 1 if match[0] == "{" else -1
        if depth == 0:
            return text[start + len("\\boxed{") : start + match.start()]
    return None


def _sgl_number(text: str, gold: str) -> Grade:
    answer = _sgl_box(text)
    if answer is None:
        return Grade(False, None, "nothing")
    if answer.rstrip(".\\") == gold:
        return Grade(True, answer, "boxed")
    if _SIMPLE.fullmatch(answer) and _SIMPLE.fullmatch(gold):
        return Grade(answer == gold, answer, "boxed")
    try:
        return Grade(bool(ask("equal", gold=gold, answer=answer)), answer, "boxed")
    except Failed:
        return Grade(False, answer, "boxed", flags=("grader-error",))


def _sgl_letter(text: str, gold: str) -> Grade:
    last = text.removesuffix("\n").rpartition("\n")[2]
    answer: str | None = last.partition(_PHRASE)[2]
    rule = "final-answer-phrase" if answer else "boxed"
    answer = answer or _sgl_box(text)
    letter = None
    if answer is not None:
        answer = "".join(_EASTERN.get(char, char) for char in answer).strip()
        capitals = _CAPITAL.findall(answer)
        letter = answer.upper() if len(answer) == 1 else capitals[-1] if capitals else None
    if letter is None:
        lines = _LETTER_LINE.findall(text)
        letter, rule = (lines[-1].strip().upper(), "answer-phrase") if lines else (None, "nothing")
    return Grade(letter == gold, letter, rule)


# sglang 0.5.12 run_eval -----------------------------------------------------------------------------------------------------------------


def _run_eval_letter(text: str, gold: str) -> Grade:
    match = _FIRST_LETTER.search(text)
    return Grade(match[1] == gold, match[1], "first-answer") if match else Grade(False, None, "nothing")


def _figure(text: str) -> float | int | None:
    """The last number, as a Python literal: `018` and other scripts' digits are none."""
    found = _FIGURE.findall(text.replace(",", ""))
    try:
        value = ast.literal_eval(found[-1]) if found else None
    except (SyntaxError, ValueError):
        return None
    return value if isinstance(value, int | float) else None


def _run_eval_gsm8k(text: str, gold: str) -> Grade:
    value = _figure(text)
    if value is None:
        return Grade(False, None, "nothing")
    return Grade(value == _figure(gold), _FIGURE.findall(text.replace(",", ""))[-1][:80], "last-number")


def _run_eval_aime(text: str, gold: str) -> Grade:
    match = _FIRST_LINE.search(text)
    if not match:
        return Grade(False, None, "nothing")
    answer = match[1].strip()
    try:
        return Grade(_aime(answer) == _aime(gold), _aime(answer), "first-answer")
    except OverflowError:  # an infinity: the tool itself dies of it
        return Grade(False, answer, "first-answer", flags=("grader-error",))


def _aime(answer: str) -> str:
    try:
        value = int(float(answer))
    except ValueError:
        return answer
    return str(value) if 0 <= value <= 999 else answer


# openai/gpt-oss evals -------------------------------------------------------------------------------------------------------------------


def _gpt_oss_aime(text: str, gold: str) -> Grade:
    boxes, place = [], 0
    while match := _BOX.search(text, place):
        end = text.find("}", match.end())
        if end < 0:
            break
        boxes.append(text[match.end() : end])
        place = end + 1
    filled = [box for box in boxes if box]
    figures = [] if filled else _DIGITS.findall(text)
    answer, rule = (filled[-1].split(",")[-1].strip(), "boxed") if filled else (figures[-1], "last-number") if figures else ("", "nothing")
    try:
        return Grade(int(answer) == int(gold), str(int(answer)), rule)
    except ValueError:
        return Grade(False, None, "nothing")


def _gpt_oss_letter(text: str, gold: str) -> Grade:
    try:
        letter = ask("gpt-oss", text=text)
    except Failed:
        return Grade(False, None, "abcd", flags=("grader-error",))
    return Grade(letter == gold, str(letter) if letter else None, "abcd" if letter else "nothing")
