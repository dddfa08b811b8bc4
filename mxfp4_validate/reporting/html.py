"""The report as one HTML file: no network, no clock, the same bytes for the same records."""

from __future__ import annotations

import base64
import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from mxfp4_validate.reporting import context_view, divergence_view
from mxfp4_validate.reporting.bench_view import DETAILS, bench_view
from mxfp4_validate.reporting.clean import clean, script_json
from mxfp4_validate.reporting.evals_view import GRADES, eval_view, grade_of
from mxfp4_validate.reporting.gates import SYMBOLS, Judgement, names
from mxfp4_validate.reporting.history_view import history
from mxfp4_validate.reporting.inputs import BenchRecord, EvalLeg, Inputs, KernelRecord
from mxfp4_validate.reporting.kernel_view import kernel_view
from mxfp4_validate.reporting.masthead_view import masthead

_HERE = Path(__file__).resolve().parent.parent
#: Where the templates may be: inside the installed package, or beside it in a checkout.
TEMPLATES = next(
    (f for f in (_HERE / "reports" / "templates", _HERE.parent / "reports" / "templates") if f.is_dir()), _HERE / "reports" / "templates"
)


def environment() -> Environment:
    """Autoescaping, and an error for any name a template gets wrong."""
    env = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=False, lstrip_blocks=True)
    env.filters |= {"clean": lambda value: clean(str(value)), "tally": _tally}
    return env


def render(inputs: Inputs, judgement: Judgement, answers: bool = True) -> str:
    """The whole page. `answers` says whether answers were read in; if not, the page says that they were left out."""
    style, script = (Markup((TEMPLATES / name).read_text(encoding="utf-8")) for name in ("report.css", "report.js"))
    called = names(inputs.pairs)
    evals = [eval_view(pair, at, called[at]) for at, pair in enumerate(inputs.pairs)]
    kernels = [kernel_view(record, at) for at, record in enumerate(inputs.kernels)]
    series = history(inputs)
    page = environment().get_template("report.html.j2")
    return page.render(
        judgement=judgement,
        overall=inputs.overall,
        symbols=SYMBOLS,
        grades=GRADES,
        words={kind: word for kind, word, _ in GRADES},
        grade_of=grade_of,
        style=style,
        script=script,
        style_hash=_hash(style),
        script_hash=_hash(script),
        masthead=masthead(inputs),
        contents=_contents(inputs, bool(series)),
        compared=[context_view.compared(pair, name) for pair, name in zip(inputs.pairs, called, strict=True) if pair.candidate is not None],
        evals=evals,
        kernels=kernels,
        benches=[bench_view(record, at) for at, record in enumerate(inputs.benches)],
        bench_details=DETAILS,
        divergences=[divergence_view.divergence_view(record, at) for at, record in enumerate(inputs.divergences)],
        ladder=context_view.ladder(inputs),
        faults=inputs.faults,
        fault_survivors=[name for name, (_, caught) in inputs.faults.rows.items() if not caught] if inputs.faults else [],
        gaps=context_view.not_tested(inputs, answers),
        history=series,
        commands=context_view.commands(inputs),
        version=inputs.version,
        records=Markup(script_json(records(inputs))),
    )


def _tally(kinds: Sequence[str]) -> str:
    words = {kind: word for kind, word, _ in GRADES}
    return ", ".join(f"{count} {words[kind]}" for kind, count in Counter(kinds).items()) or "not asked"


def _hash(text: str) -> str:
    """A source expression of the content security policy."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _contents(inputs: Inputs, history: bool) -> list[tuple[str, str]]:
    kernels = bool(inputs.kernels)
    rows = [
        ("gates", "Gates", True),
        ("compared", "What was compared", True),
        ("evals", "End to end", bool(inputs.pairs)),
        ("divergence", "Token by token", bool(inputs.divergences)),
        ("kernel", "Kernel", kernels),
        ("bench", "Speed", bool(inputs.benches)),
    ]
    rows += [("layouts", "Layouts", kernels), ("ladder", "Where it breaks", True), ("seen", "Would we have seen it?", True)]
    rows += [
        ("untested", "Not tested", True),
        ("history", "History", history),
        ("reproduce", "Reproduce", True),
        ("appendix", "Appendix", True),
    ]
    return [(anchor, name) for anchor, name, shown in rows if shown]


def records(inputs: Inputs) -> dict[str, Any]:
    """What the page embeds: kernel items and samples as rows under column names; texts of answers are not repeated."""
    pairs = [
        {"suite": p.suite, "refused": p.refused, "baseline": _leg(p.baseline), "candidate": _leg(p.candidate) if p.candidate else None}
        for p in inputs.pairs
    ]
    faults = {name: list(caught) for name, (_, caught) in inputs.faults.rows.items()} if inputs.faults else None
    found = {"version": inputs.version, "kernels": [_kernel(record) for record in inputs.kernels], "evals": pairs, "faults": faults}
    found |= {"benches": [_bench(record) for record in inputs.benches]}
    return found | {"divergences": [divergence_view.embedded(record) for record in inputs.divergences]}


def _bench(record: BenchRecord) -> dict[str, Any]:
    run = record.run
    about = {"id": run.id, "created": run.created, "version": run.version, "settings": run.settings, "facts": run.facts}
    return {"source": asdict(record.source), "run": about | {"exit_status": run.exit_status}, "rows": [asdict(row) for row in run.rows]}


def _kernel(record: KernelRecord) -> dict[str, Any]:
    columns = ["check", "case_id", "backend", "outcome", "message", "metrics", "seconds"]
    rows = [[r.check, r.case_id, r.backend, r.outcome, r.message, r.metrics, round(r.seconds, 3)] for r in record.results]
    return {"source": asdict(record.source), "run": asdict(record.run), "columns": columns, "rows": rows}


def _leg(leg: EvalLeg) -> dict[str, Any]:
    columns = ["question_id", "repeat", "state", "correct", "answer", "rule", "tokens"]
    rows = [[a.question_id, a.repeat, a.state, int(a.correct), a.answer, a.rule, a.tokens] for a in leg.answers]
    return {"source": asdict(leg.source), "run": asdict(leg.run), "golds": dict(leg.golds), "columns": columns, "rows": rows}
