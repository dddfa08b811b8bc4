"""One judgement, four formats: terminal, Markdown, JUnit and HTML say the same of every gate; the same records give the same bytes."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html import unescape
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import html5lib
import pytest

from mxfp4_validate import cli, manifest
from mxfp4_validate.records.store import Result
from mxfp4_validate.reporting import html, junit, markdown, plain
from mxfp4_validate.reporting.gates import EXIT_CODES, judge
from mxfp4_validate.reporting.inputs import Inputs
from mxfp4_validate.serving.comparison import CompareOptions
from mxfp4_validate.serving.report import gather
from tests.report_rig import make_eval, make_kernel, twin

ROOT = Path(__file__).resolve().parent.parent
SPACE = {"h": "http://www.w3.org/1999/xhtml"}
GOOD = [twin("gpt-oss-20b/m17/random/s0", 3), twin("dsv4-flash/m64/random/s0")]
BAD = [*GOOD, twin("dsv4-flash/m65/random/s0", 900, 4, "failed", "first mismatch at row 3, column 17")]


def healthy(i: int) -> float:
    return 0.95 if i % 5 else 0.7


def harmed(i: int) -> float:
    return 0.6


def evals(tmp: Path, candidate: Any = healthy, **more: Any) -> list[Path]:
    return [
        make_eval(tmp / "base", "marlin", healthy),
        make_eval(tmp / "cand", "flashinfer_mxfp4", candidate, settings={"margin": 0.06}, **more),
    ]


def scenario(tmp: Path, name: str) -> list[Path]:
    """Runs that end in each of the outcomes."""
    kernel = tmp / "kernel.sqlite"
    if name == "PASS":
        return [make_kernel(kernel, GOOD), *evals(tmp)]
    if name == "FAIL":
        return [make_kernel(kernel, GOOD), *evals(tmp, harmed)]
    if name == "FAIL-kernel":
        return [make_kernel(kernel, BAD, 1), *evals(tmp)]
    if name == "INVALID":
        return [make_kernel(kernel, GOOD, 4), *evals(tmp)]
    if name == "INCOMPLETE":
        return [make_kernel(kernel, GOOD, None), *evals(tmp, missing=3)]
    if name == "INCONCLUSIVE":
        return evals(tmp)[:1]
    small = {"questions": 6, "repeats": 1}
    return [make_eval(tmp / "base", "marlin", healthy, **small), make_eval(tmp / "cand", "other", healthy, seed=3, **small)]


SCENARIOS = ("PASS", "FAIL", "FAIL-kernel", "INVALID", "INCOMPLETE", "INCONCLUSIVE", "INCONCLUSIVE-pair")


@pytest.mark.parametrize("name", SCENARIOS)
def test_four_formats_agree(tmp_path: Path, name: str) -> None:
    inputs = gather(scenario(tmp_path, name), CompareOptions())
    judgement = judge(inputs)
    wanted = {gate.name: gate.outcome for gate in judgement.gates}
    assert judgement.outcome == name.split("-")[0]
    assert judgement.exit_code == EXIT_CODES[judgement.outcome]

    page = html5lib.parse(html.render(inputs, judgement))
    rows = page.findall(".//h:section[@id='gates']//h:tbody/h:tr", SPACE)
    assert {"".join(r[1].itertext()): "".join(r[0].itertext()).split()[1] for r in rows} == wanted
    (sentence,) = (p for p in page.iter(f"{{{SPACE['h']}}}p") if p.get("class") == "sentence")
    assert "".join(sentence.itertext()) == judgement.sentence

    lines = plain.lines(judgement)
    assert lines[0] == judgement.sentence
    assert {gate: line.split()[0] for line in lines[1:] for gate in wanted if f" {gate} " in line} == wanted

    text = markdown.render(inputs, judgement)
    cells = [[cell.strip() for cell in line.split("|")[1:3]] for line in text.splitlines() if line.startswith("| ") and "gate" not in line]
    found = {unescape(gate): outcome.split()[1] for outcome, gate in cells if outcome.split()[-1] in EXIT_CODES}
    assert found == wanted
    assert unescape(text.splitlines()[0].removeprefix("## ")) == judgement.sentence

    suite = ET.fromstring(junit.render(inputs, judgement)).find("testsuite")
    assert suite is not None
    tags = {"PASS": None, "FAIL": "failure", "INVALID": "error", "INCOMPLETE": "error", "INCONCLUSIVE": "skipped"}
    for case in suite.findall("testcase"):
        gate = case.get("name", "")
        if gate in wanted:
            have = {child.tag for child in case} - {"properties"}
            assert have == {tags[wanted[gate]]} - {None}
            outcome = case.find("properties/property[@name='outcome']")
            assert outcome is not None
            assert outcome.get("value") == wanted[gate]
    assert {case.get("name") for case in suite} >= set(wanted)
    failing = sum(case.find("failure") is not None for case in suite)
    assert (int(suite.get("tests", 0)), int(suite.get("failures", 0))) == (len(suite), failing)


@pytest.mark.parametrize("name", ["PASS", "FAIL"])
def test_the_verb(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """All files, the step summary, annotations, and the verdict's exit status."""
    runs = [str(path) for path in scenario(tmp_path, name)]
    step = tmp_path / "step.md"
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(step))
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    out = [str(tmp_path / file) for file in ("r.html", "r.md", "r.xml")]
    command = ["report", *runs, "-o", out[0], "--markdown", out[1], "--junit", out[2]]
    assert cli.main(command) == EXIT_CODES[name]
    said = capsys.readouterr().out
    assert ("::error title=AIME25::FAIL" in said) == (name == "FAIL")
    assert step.read_text() == Path(out[1]).read_text()
    assert cli.main([*command, "--exit-zero", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["outcome"] == name
    assert told["written"] == out


def test_the_same_records_give_the_same_bytes(tmp_path: Path) -> None:
    runs = scenario(tmp_path, "FAIL")
    pages = []
    for order in (0, 1):
        inputs = gather(runs, CompareOptions())
        pages.append(
            (html.render(inputs, judge(inputs)), markdown.render(inputs, judge(inputs)), junit.render(inputs, judge(inputs)), order)[:3]
        )
    assert pages[0] == pages[1]


def many(count: int) -> list[Result]:
    return [replace(twin(f"gpt-oss-20b/m{m}/random/s{s}", m % 7), seconds=0.25) for s in range(count // 100) for m in range(1, 101)]


def test_size_of_a_large_report(tmp_path: Path) -> None:
    """10,000 kernel rows and 480 samples a leg fit into 5 MiB; all rows are in the page and in its records."""
    runs = [make_kernel(tmp_path / "k.sqlite", many(10_000)), *evals(tmp_path)]
    inputs = gather(runs, CompareOptions())
    text = html.render(inputs, judge(inputs))
    assert len(text.encode()) < 5 << 20
    assert text.count("<tr data-o=") == 10_000
    found = re.search(r'<script type="application/json" id="records">(.*?)</script>', text, re.DOTALL)
    assert found is not None
    records = json.loads(found[1])
    assert len(records["kernels"][0]["rows"]) == 10_000
    assert len(records["evals"][0]["candidate"]["rows"]) == 480


def test_markdown_stays_below_the_limit(tmp_path: Path) -> None:
    long = [twin(f"gpt-oss-20b/m{m}/random/s0", 9, 9, "failed", "x" * 5000) for m in range(1, 60)]
    inputs = gather([make_kernel(tmp_path / "k.sqlite", long, 1)], CompareOptions())
    text = markdown.render(inputs, judge(inputs), limit=4000)
    assert len(text.encode()) <= 4000
    assert text.startswith("## \u2717 REGRESSION")
    assert "Cut at GitHub's limit" in text


def test_a_failure_among_several_evals_must_survive_holm(tmp_path: Path) -> None:
    """The page says what `compare` says of several evals together."""
    inputs = gather(scenario(tmp_path, "FAIL")[1:], CompareOptions())
    assert judge(inputs).outcome == "FAIL"
    from mxfp4_validate.verdicts import Outcome, Overall

    weak = replace(inputs, overall=Overall(Outcome.INCONCLUSIVE, ("adjusted",), {"aime25": 0.09}))
    assert judge(weak).outcome == "INCONCLUSIVE"
    kernel = gather([make_kernel(tmp_path / "k.sqlite", BAD, 1)], CompareOptions()).kernels
    assert judge(replace(weak, kernels=kernel)).outcome == "FAIL", "a wrong bit needs no correction"


def test_a_whole_run_must_hold_what_the_manifest_says(tmp_path: Path) -> None:
    """A record of a run that was not narrowed down and lacks items is incomplete, however green its items are."""
    path = make_kernel(tmp_path / "k.sqlite", GOOD, 0, {"keywords": ""})
    judgement = judge(gather([path], CompareOptions()))
    assert judgement.outcome == "INCOMPLETE"
    asked = manifest.load()["cpu"]["random"]
    assert asked > len(GOOD)
    assert any(f"of {asked} passed" in gate.measured for gate in judgement.gates)


def test_nothing_given_is_not_a_pass() -> None:
    assert judge(Inputs("0")).outcome == "INCOMPLETE"


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["report", "nowhere"], "no run at nowhere"),
        (["report", "{page}"], "is not a record of mxfp4-validate"),
        (["report", "{run}", "--faults", "{page}"], "is not a fault matrix"),
        (["report", "{run}", "-o", "{run}/no/such/r.html"], "cannot write"),
    ],
)
def test_bad_input(tmp_path: Path, argv: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    page, run = tmp_path / "page.html", make_eval(tmp_path / "run", "marlin", healthy, questions=3, repeats=1)
    page.write_text("<p>no record</p>" * 100)
    assert cli.main([arg.format(page=page, run=run) for arg in argv]) == 2
    assert says in capsys.readouterr().err


def test_answers_can_be_left_out(tmp_path: Path) -> None:
    runs = evals(tmp_path, harmed, text=lambda i, r: "secret words")
    out = tmp_path / "r.html"
    assert cli.main(["report", *map(str, runs), "-o", str(out)]) == 1
    assert "secret words" in out.read_text()
    assert cli.main(["report", *map(str, runs), "-o", str(out), "--no-answers"]) == 1
    assert "secret words" not in out.read_text()
    assert "left out on request" in out.read_text()


def test_what_was_not_tested_is_said(tmp_path: Path) -> None:
    """Unavailable backends, missing samples, retries, waivers and what was never given each have a row."""
    gone = Result("twin-x", "twin", "random", "x", "sm90-cutlass", "unavailable", "no Hopper GPU")
    waived = replace(GOOD[0], metrics={**GOOD[0].metrics, "waiver": "upstream issue 1"})
    runs = [make_kernel(tmp_path / "k.sqlite", [waived, gone]), *evals(tmp_path, missing=2)]
    inputs = gather(runs, CompareOptions())
    rows = dict(html.context_view.not_tested(inputs))
    assert rows["sm90-cutlass: 1 items unavailable"] == "no Hopper GPU"
    assert rows["waiver: emulate:sm90-cutlass twin-gpt-oss-20b/m17/random/s0"] == "upstream issue 1"
    assert "AIME25 candidate: 2 samples timeout" in rows
    assert "AIME25 candidate: 2 attempts ended in timeout" in rows
    assert "fault matrix" in rows


def test_the_examples_are_what_the_records_give() -> None:
    """A changed template shows in the example: `python tools/example_reports.py` makes them again."""
    from tools import example_reports

    for name in example_reports.EXAMPLES:
        assert (ROOT / "reports" / "examples" / name).read_text(encoding="utf-8") == example_reports.render(name), name


def test_two_comparisons_of_one_eval_have_two_names(tmp_path: Path) -> None:
    """Gates, headings and sentences name the runs when the eval alone would not tell them apart."""
    pair = evals(tmp_path, harmed)
    inputs = gather([*pair, pair[0], make_eval(tmp_path / "third", "other", healthy)], CompareOptions())
    judgement = judge(inputs)
    names = {gate.name for gate in judgement.gates}
    assert names == {"AIME25: cand against base", "AIME25: third against base"}
    page = html5lib.parse(html.render(inputs, judgement))
    headings = ["".join(h.itertext()) for h in page.iter(f"{{{SPACE['h']}}}h3")]
    assert all(headings.count(name) == 2 for name in names), headings
