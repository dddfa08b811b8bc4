"""What a box or a phrase says as an exact number: LaTeX dressing off, then simple arithmetic on fractions. Nothing is rounded."""

from __future__ import annotations

import re
from fractions import Fraction
from math import isqrt

_LONGEST = 400  # characters of a box that are read at all; a longer one is a derivation and no answer
_BITS = 512  # size of any number on the way
_DIGITS = 40

_NO_SENSE = re.compile(r"\\(?:displaystyle|textstyle|left|right|quad|qquad|[,;:!> ])|[~$*`]")
_WRAPPER = re.compile(
    r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mathit|mathsf|boldsymbol|bm|mbox|operatorname|emph|boxed|fbox)\s*\{([^{}]*)\}"
)
_LABEL = re.compile(r"^\s*(?:\(?[A-Ea-e]\)[.:]?|[^\W\d_][^\d=:\\]{0,60}:)\s*(?=\S)")
_MODULO = re.compile(r"\\[pb]?mod\b.*$|\((?:mod)\b.*$", re.DOTALL)
_DEGREE = re.compile(r"\^\s*(?:\\circ\b|\{\s*\\circ\s*\})|\\degree\b|°|º")
_EQUAL = re.compile(r"=|\\(?:equiv|approx|Rightarrow|implies|to)\b|≈|≡")
_COMMA = re.compile(r"(?<=\d)(?:\{,\}|\\,)(?=\d{3}(?!\d))")
#: Words after a number; one letter right behind a digit is a variable and stays.
_UNIT = re.compile(r"(?<=[\d)}%])(?:\s+[^\W\d_]|[^\W\d_]{2})[^\d=<>+*^\\{}()]*(?:\^\s*(?:[23]|\{[23]\}))?$")
_TWO = re.compile(r"\b(?:or|and)\b|\\(?:text)?(?:or|and)\b")
_THOUSANDS = re.compile(r"(?<![\d.,])\d{1,3}(?:,\d{3})+(?![\d,])")
_TOKEN = re.compile(r"\s*(?:(\d+(?:\.\d*)?|\.\d+)|\\([dtc]?frac|sqrt|cdot|times|div)\b|(\*\*|[-+*/^(){}×·÷]))")


def number(text: str) -> Fraction | None:
    r"""The exact value of a box's content, or None if it is not one number.

    Read: an integer or decimal with thousands separators, currency and percent signs, a unit in words, a label in front, the last member
    of an equation, `a/b`, `\frac`, products, sums, small powers and exact square roots. Refused: factorials, times of day, lists, units
    inside units, anything longer than 400 characters. A percent sign is dropped: `5\%` is 5, and never equal to 0.05.
    """
    if len(text) > _LONGEST:
        return None
    text = _undress(text)
    if not text or _TWO.search(text) or re.search(r"\d\s+\d", text):
        return None
    text = _THOUSANDS.sub(lambda match: match[0].replace(",", ""), text)
    try:
        return _Sum(text).value()
    except (ValueError, ZeroDivisionError):
        return None


def _undress(text: str) -> str:
    text = _MODULO.sub("", _COMMA.sub(",", text.replace("\\$", "").replace("\\%", "%").replace("\\ ", " ")))
    text = _DEGREE.sub("", _NO_SENSE.sub(" ", text))
    for _ in range(4):  # one layer of wrapping a turn
        opened = _WRAPPER.sub(r" \1 ", text)
        if opened == text:
            break
        text = opened
    text = _LABEL.sub("", _EQUAL.split(text)[-1])
    text = text.strip().strip("€£¥ \t\n").removesuffix(".").removesuffix("%").rstrip()
    text = _UNIT.sub("", text).strip().removesuffix(".").removesuffix("%").rstrip()
    return text if len(text) < _LONGEST else ""


def integer(text: str) -> Fraction | None:
    """The value of a plain number as found in prose: digits, a sign, thousands separators, a decimal part."""
    plain = text.replace(",", "").replace("$", "").rstrip(".")
    return Fraction(plain) if re.fullmatch(r"-?\d{1,40}(?:\.\d{1,40})?", plain) else None


def shown(value: Fraction) -> str:
    """An integer as such, a short decimal as one, else `a/b`."""
    if value.denominator == 1:
        return str(value.numerator)
    decimal = f"{float(value):.12g}" if abs(value.numerator) < 1 << 200 and value.denominator < 1 << 200 else ""
    if decimal and "e" not in decimal and Fraction(decimal) == value:
        return decimal
    return f"{value.numerator}/{value.denominator}"


class _Sum:
    """A recursive reader of sums, products and powers over exact fractions; `ValueError` for anything else."""

    def __init__(self, text: str) -> None:
        self.tokens: list[str] = []
        place = 0
        while place < len(text) and text[place:].strip():
            match = _TOKEN.match(text, place)
            if not match:
                raise ValueError(text[place])
            self.tokens.append(match[1] or match[2] or match[3])
            place = match.end()
        self.place = 0

    def value(self) -> Fraction:
        total = self._sum(0)
        if self.place != len(self.tokens):
            raise ValueError(self.tokens[self.place])
        return total

    def _peek(self) -> str:
        return self.tokens[self.place] if self.place < len(self.tokens) else ""

    def _take(self, *wanted: str) -> str:
        token = self._peek()
        if token not in wanted:
            return ""
        self.place += 1
        return token

    def _sum(self, depth: int) -> Fraction:
        if depth > 20:
            raise ValueError("too deep")
        total = self._product(depth)
        while sign := self._take("+", "-"):
            term = self._product(depth)
            total = _bounded(total + term if sign == "+" else total - term)
        return total

    def _product(self, depth: int) -> Fraction:
        total = self._power(depth)
        while sign := self._take("*", "cdot", "times", "×", "·", "/", "div", "÷"):
            factor = self._power(depth)
            total = _bounded(total / factor if sign in ("/", "div", "÷") else total * factor)
        return total

    def _power(self, depth: int) -> Fraction:
        if self._take("-"):
            return -self._power(depth + 1) if depth < 20 else _bounded(Fraction(1 << (_BITS + 1)))
        self._take("+")
        base = self._atom(depth)
        if not self._take("^", "**"):
            return base
        power = -self._atom(depth) if self._take("-") else self._atom(depth)
        if power.denominator != 1 or abs(power) > 64:
            raise ValueError(power)
        return _bounded(base ** int(power))

    def _atom(self, depth: int) -> Fraction:
        if opening := self._take("(", "{"):
            inner = self._sum(depth + 1)
            if not self._take(")" if opening == "(" else "}"):
                raise ValueError("unclosed")
            return inner
        if self._take("frac", "dfrac", "tfrac", "cfrac"):
            return _bounded(self._argument(depth) / self._argument(depth))
        if self._take("sqrt"):
            return _root(self._argument(depth))
        token = self._peek()
        if (not token[:1].isdigit() and not token.startswith(".")) or len(token) > _DIGITS:
            raise ValueError(token)
        self.place += 1
        return Fraction(token.removesuffix("."))

    def _argument(self, depth: int) -> Fraction:
        if self._peek() != "{":
            raise ValueError("an argument without braces")
        return self._atom(depth)


def _root(value: Fraction) -> Fraction:
    if value < 0:
        raise ValueError(value)
    root = Fraction(isqrt(value.numerator), isqrt(value.denominator))
    if root * root != value:
        raise ValueError("not a square")
    return root


def _bounded(value: Fraction) -> Fraction:
    if max(abs(value.numerator), value.denominator).bit_length() > _BITS:
        raise ValueError("too large")
    return value
