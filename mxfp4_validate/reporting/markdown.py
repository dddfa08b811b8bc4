"""The judgement as Markdown for a pull request or a step summary: verdict first, gates, what was not tested."""

from __future__ import annotations

from collections.abc import Iterable

from mxfp4_validate.reporting import context_view
from mxfp4_validate.reporting.clean import clean
from mxfp4_validate.reporting.gates import SYMBOLS, Judgement
from mxfp4_validate.reporting.inputs import Inputs

#: GitHub drops a step summary larger than this.
LIMIT = 1 << 20
_COLUMNS = ("outcome", "gate", "measured", "lower", "upper", "limit", "what would decide or mend it")
_CUT = "\n\n*Cut at GitHub's limit of 1 MiB; the HTML report holds everything.*\n"


def render(inputs: Inputs, judgement: Judgement, limit: int = LIMIT) -> str:
    """At most `limit` bytes of UTF-8."""
    parts = [f"## {_text(judgement.sentence)}\n", _table(_COLUMNS, [_gate(judgement, i) for i in range(len(judgement.gates))])]
    for gate in judgement.gates:
        if gate.reasons and gate.outcome != "PASS":
            reasons = "\n".join(_text(r[:600]) for r in gate.reasons[:20])
            parts.append(
                f"<details><summary>Why {_text(gate.name)} is {gate.outcome} ({len(gate.reasons)})</summary>\n\n{_fenced(reasons)}\n</details>\n"
            )
    gaps = context_view.not_tested(inputs)
    parts.append(f"<details><summary>Not tested ({len(gaps)})</summary>\n\n{_table(('what', 'why'), gaps)}</details>\n")
    lines = "\n".join(f"{c.line}  # {c.what}" for c in context_view.commands(inputs))
    parts.append(f"<details><summary>Reproduce</summary>\n\n{_fenced(clean(lines))}\n</details>\n")
    return _limited("\n".join(parts), limit)


def _gate(judgement: Judgement, at: int) -> tuple[str, ...]:
    g = judgement.gates[at]
    return f"{SYMBOLS[g.outcome]} {g.outcome}", g.name, g.measured, g.lower, g.upper, g.limit, g.needs[:400]


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    names = tuple(head)
    lines = [f"| {' | '.join(names)} |", "|" + "---|" * len(names)]
    return "\n".join([*lines, *(f"| {' | '.join(_text(cell) for cell in row)} |" for row in rows)]) + "\n"


def _text(text: str) -> str:
    """One line in which nothing is markup: no HTML, no link, no mention, no table cell's end."""
    flat = " ".join(clean(text).split())
    for mark, code in (
        ("&", "&amp;"),
        ("<", "&lt;"),
        (">", "&gt;"),
        ("|", "&#124;"),
        ("[", "&#91;"),
        ("`", "&#96;"),
        ("@", "&#64;"),
        ("\\", "&#92;"),
    ):
        flat = flat.replace(mark, code)
    return flat.replace("*", "&#42;").replace("_", "&#95;")


def _fenced(text: str) -> str:
    """A block in which text stands as it is: its fence is longer than any run of backticks inside."""
    longest, run = 0, 0
    for c in text:
        run = run + 1 if c == "`" else 0
        longest = max(longest, run)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{text}\n{fence}\n"


def _limited(text: str, limit: int) -> str:
    data = text.encode("utf-8")
    if len(data) <= limit:
        return text
    return data[: limit - len(_CUT.encode())].decode("utf-8", "ignore") + _CUT
