"""Divergence records in the report: each decision keeps its word and its exit status, GO ON passes nothing, hostile texts stay text."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import html5lib
import numpy as np
import pytest

from mxfp4_validate import cli
from mxfp4_validate.divergence.collect import AIME25_TOKENS
from mxfp4_validate.divergence.record import ArmRow, DivergenceStore
from mxfp4_validate.reporting import html, junit, markdown, plain
from mxfp4_validate.reporting.context_view import commands, ladder, not_tested
from mxfp4_validate.reporting.divergence_view import divergence_view
from mxfp4_validate.reporting.gates import Judgement, judge
from mxfp4_validate.reporting.inputs import Inputs, StageRow
from mxfp4_validate.serving.comparison import CompareOptions
from mxfp4_validate.serving.report import gather
from mxfp4_validate.serving.report_divergence import expand
from tests.report_divergence_rig import QUIET, SOUND, Arms, make_record
from tests.report_rig import make_eval, make_kernel, twin
from tests.test_report_hostile import PAYLOADS

NAMES = {"h": "http://www.w3.org/1999/xhtml", "s": "http://www.w3.org/2000/svg"}


def judged(*paths: Path) -> tuple[Inputs, Judgement]:
    inputs = gather(paths, CompareOptions())
    return inputs, judge(inputs)


def section(inputs: Inputs, judgement: Judgement) -> tuple[Any, str, str]:
    """The section as an element, its text, and the whole page."""
    page = html.render(inputs, judgement)
    assert page == html.render(inputs, judgement), "the same record gives the same bytes"
    (found,) = html5lib.parse(page).findall(".//h:section[@id='divergence']", NAMES)
    return found, " ".join("".join(found.itertext()).split()), page


def island(page: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(page.split('id="records">')[1].split("</script>")[0])["divergences"][0]
    return found


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_record(tmp_path_factory.mktemp("sound") / "divergence.sqlite")


@pytest.fixture(scope="module")
def failing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    arms = {**SOUND, "candidate": ("candidate", 0.4)}
    return make_record(tmp_path_factory.mktemp("failing") / "divergence.sqlite", arms)


def test_go_on_is_no_pass(sound: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Alone it leaves the report undecided; in JUnit it is skipped; beside a passing kernel it neither helps nor harms."""
    inputs, judgement = judged(sound)
    (gate,) = judgement.gates
    assert (gate.outcome, gate.decides, gate.wing) == ("GO ON", False, "divergence")
    assert "passes nothing by itself" in gate.measured
    assert (judgement.outcome, judgement.exit_code) == ("INCOMPLETE", 5)
    assert "nothing was given that decides" in judgement.sentence
    assert "passes nothing by itself" in judgement.sentence
    for text in (html.render(inputs, judgement).split("<script type")[0], markdown.render(inputs, judgement), *plain.lines(judgement)):
        assert "GO ON" in text or text == judgement.sentence
        assert "PASS:" not in text
        assert "\u2713" not in text
    suite = ET.fromstring(junit.render(inputs, judgement)).find("testsuite")
    assert suite is not None
    assert (suite.get("tests"), suite.get("skipped"), suite.get("errors")) == ("1", "1", "0")
    assert plain.github(judgement)[0].startswith("::notice title=divergence::GO ON")
    command = ["report", str(sound), "-o", str(tmp_path / "r.html")]
    assert cli.main(command) == 5
    kernel = make_kernel(tmp_path / "k.sqlite", [twin("gpt-oss-20b/m1/random/s0", 0)])
    together = judged(kernel, sound)[1]
    assert (together.outcome, [g.outcome for g in together.gates]) == ("PASS", ["GO ON", "PASS"])
    assert "the one gate holds" in together.sentence


def test_fail_makes_the_exit_status_a_failing_gate_s(failing: Path, tmp_path: Path) -> None:
    inputs, judgement = judged(failing)
    (gate,) = judgement.gates
    assert (gate.outcome, gate.decides, judgement.exit_code) == ("FAIL", True, 1)
    assert gate.measured.startswith("FAIL-A: mean KL")
    assert gate.reasons == inputs.divergences[0].found.decision.reasons if inputs.divergences[0].found else False
    assert judgement.sentence.startswith("\u2717 REGRESSION in 1 of 1 gate")
    assert cli.main(["report", str(failing), "-o", str(tmp_path / "r.html"), "--junit", str(tmp_path / "j.xml")]) == 1
    assert "<failure" in (tmp_path / "j.xml").read_text()
    pair = [make_eval(tmp_path / name, name, lambda i: 1.0, seed=1) for name in ("marlin", "cutlass")]
    assert judged(*pair)[1].outcome == "PASS"
    assert judged(*pair, failing)[1].outcome == "FAIL", "no correction for several evals may swallow it"
    assert next(r for r in ladder(inputs) if r.name == "served log-probabilities").outcome == "FAIL"


def test_what_a_reader_needs_stands_in_the_section(failing: Path) -> None:
    inputs, judgement = judged(failing)
    (record,) = inputs.divergences
    assert record.found is not None
    found, text, page = section(inputs, judgement)
    d = record.found.decision
    assert d.kl is not None
    assert d.drift is not None
    for said in (
        *d.reasons,
        f"mean KL over the floor{d.kl.estimate:.4g}",
        "argmax flips over the floor",
        "typical KL over the floor",
        "worst sequence over the floor's largest",
        f"t {d.drift.t:.4g}".replace("-", "\u2212"),
        "A/A, mean KL",
        "1 more run of the baseline, 2 boots in all",
        record.corpus.sha256,
        "8 positions a request at most, protocol sglang",
        f"768 positions scored an arm in 96 requests, {100 * 768 / AIME25_TOKENS:.2g} % of the tokens of an AIME25 run; 2880 tokens sent",
        f"must touch {100 * d.seen_share:.2g} % of sequences",
        "boot-candidate",
        "bounds are one-sided, 99.7 % each",
    ):
        assert said in text, said
    cells = [["".join(cell.itertext()) for cell in row] for row in found.findall(".//h:tr", NAMES)]
    one, other = record.found.columns["mean_kld"], record.found.floor_columns["mean_kld"]
    assert ["mean_kld", f"{one:.4g}", f"{other:.4g}"] in cells
    worst = [row for row in cells if len(row) == 6 and row[0].isdigit()]
    assert [int(row[0]) for row in worst] == list(record.found.worst)
    first = next(row for row in record.rows if row.place == record.found.worst[0])
    assert worst[0] == [str(first.place), "16", *(f"{v:.4g}" for v in (first.kl, first.floor, first.kl / first.floor)), str(first.flips)]
    assert np.mean([row.floor for row in record.rows]) == pytest.approx(d.floor), "the rows' floor is the decision's"
    said = island(page)
    assert (said["outcome"], len(said["rows"]), said["decision"]["kl"]["estimate"]) == ("FAIL", 48, d.kl.estimate)
    assert "secret-host" not in page, "an address belongs to a machine"
    assert '<a href="#divergence">Token by token</a>' in page


def test_the_plot_has_every_sequence_in_its_place(failing: Path) -> None:
    inputs, judgement = judged(failing)
    found, _, _ = section(inputs, judgement)
    (plot,) = found.findall(".//s:svg", NAMES)
    title = plot.find("s:title", NAMES)
    assert plot.get("role") == "img"
    assert plot.get("aria-labelledby") == title.get("id")
    rows = inputs.divergences[0].rows
    assert f"{sum(r.kl > r.floor for r in rows)} of 48 lie above the diagonal" in title.text
    (cloud,) = [path.get("d") for path in plot.findall("s:path", NAMES) if path.get("class") == "cloud"]
    dots = [tuple(map(float, dot.removesuffix("h0").split())) for dot in cloud.split("M")[1:]]
    assert len(dots) == 48
    assert all(0 <= x <= 360 and 0 <= y <= 360 for x, y in dots)
    for row, (x, y) in zip(rows, dots, strict=True):
        assert (row.kl > row.floor) == (x + y < 360), "above the diagonal on the page exactly where it is larger"
    named = ["".join(t.itertext()) for t in plot.findall("s:g/s:title", NAMES)]
    assert len(named) == 10
    assert named[0].startswith(f"sequence {inputs.divergences[0].found.worst[0]}:") if inputs.divergences[0].found else False


def test_the_line_of_the_plot_is_where_it_was_judged(failing: Path) -> None:
    """A calibration's tail factor, not the rule's own."""
    (record,) = judged(failing)[0].divergences
    assert record.found
    calibrated = replace(record, found=replace(record.found, limits=replace(record.found.limits, tail_factor=7.5)))
    usual, moved = (divergence_view(r, 0).plot for r in (record, calibrated))
    assert usual
    assert moved
    assert (usual.limit_text, moved.limit_text) == ("3 times the floor's largest", "7.5 times the floor's largest")


def test_an_incomplete_record_says_what_it_lacks(tmp_path: Path) -> None:
    path = make_record(tmp_path / "divergence.sqlite", count=20, drop={"candidate": 3})
    inputs, judgement = judged(path)
    assert (judgement.outcome, judgement.exit_code) == ("INCOMPLETE", 5)
    assert "arm 'candidate' lacks 3 sequences" in judgement.gates[0].needs
    _, text, page = section(inputs, judgement)
    assert "INCOMPLETE: Not everything was scored" in text
    assert "17 of 20" in text
    assert '<p class="banner INCOMPLETE"><b>divergence: INCOMPLETE.</b>' in page
    assert island(page)["outcome"] == "INCOMPLETE"
    name = f"divergence {tmp_path.name}"
    assert (f"{name}: 3 of 20 sequences of arm candidate", "not scored yet") in not_tested(inputs)
    assert cli.main(["report", str(path), "-o", str(tmp_path / "r.html")]) == 5


@pytest.mark.parametrize("role", ["baseline", "floor", "candidate"])
def test_a_record_without_an_arm_is_incomplete(tmp_path: Path, role: str) -> None:
    """Where `diverge` was cut before an arm, `analyse` alone calls it misuse; a report does not."""
    arms = {name: arm for name, arm in SOUND.items() if arm[0] != role}
    inputs, judgement = judged(make_record(tmp_path / "divergence.sqlite", arms, count=2))
    assert judgement.exit_code == 5
    assert f"no {role} arm was begun" in judgement.gates[0].needs
    assert str(tmp_path) not in html.render(inputs, judgement)


def test_an_unsound_record_is_invalid(tmp_path: Path) -> None:
    """NaN of the baseline, a floor that is another model, and two baselines."""
    arms = {**SOUND, "again": ("baseline", QUIET)}
    broken = {
        "nan": (make_record(tmp_path / "nan/divergence.sqlite", count=4, nan={"baseline": {2}}), "answered no number for sequence 2"),
        "model": (
            make_record(
                tmp_path / "model/divergence.sqlite", count=4, identity=lambda name: {"model": "other"} if name == "floor1" else {}
            ),
            "model differ",
        ),
        "two": (make_record(tmp_path / "two/divergence.sqlite", arms, count=4), "more than one baseline"),
    }
    for path, reason in broken.values():
        inputs, judgement = judged(path)
        assert (judgement.outcome, judgement.exit_code) == ("INVALID", 4)
        _, text, page = section(inputs, judgement)
        assert reason in text
        assert "INVALID: The record cannot be judged" in text
        assert str(tmp_path) not in page


def test_a_candidate_that_says_nan_fails(tmp_path: Path) -> None:
    """In some sequences, which are named, and in all, where nothing was compared; the page's JSON holds no NaN."""
    some = make_record(tmp_path / "some/divergence.sqlite", count=20, nan={"candidate": {3, 7}})
    inputs, judgement = judged(some)
    assert judgement.exit_code == 1
    _, text, page = section(inputs, judgement)
    assert "NaN: 2 sequences" in text
    assert "candidate, sequences 3, 7" in text
    assert island(page)["not_finite"] == [3, 7]
    assert [row[0] for row in island(page)["rows"]] == [p for p in range(20) if p not in (3, 7)]
    inputs, judgement = judged(make_record(tmp_path / "all/divergence.sqlite", count=4, nan={"candidate": set(range(4))}))
    assert judgement.exit_code == 1
    found, text, page = section(inputs, judgement)
    assert "NaN: all 4 sequences" in text
    assert not found.findall(".//s:svg", NAMES)
    assert island(page)["decision"]["tail"] is None
    assert not [what for what, _ in not_tested(inputs) if "faults in fewer" in what], "nothing was compared"


def test_undecided_is_inconclusive_unless_the_evals_decide(tmp_path: Path) -> None:
    path = make_record(tmp_path / "divergence.sqlite", {**SOUND, "floor1": ("floor", QUIET)}, count=8)
    inputs, judgement = judged(path)
    assert (judgement.outcome, judgement.exit_code, judgement.gates[0].decides) == ("INCONCLUSIVE", 3, True)
    assert judgement.gates[0].needs == "about 256 scored positions", "16 positions a sequence, and 16 sequences are the least"
    assert "to decideabout 256 scored positions" in section(inputs, judgement)[1]
    pair = [make_eval(tmp_path / name, name, lambda i: 1.0, seed=1) for name in ("marlin", "cutlass")]
    with_evals = judged(*pair, path)[1]
    assert (with_evals.outcome, with_evals.gates[0].needs) == ("PASS", "the evals decide")


def test_what_the_floor_was(tmp_path: Path) -> None:
    """An A/A that repeats its bits is no floor: assumed, without a plot, or the declared backends'."""
    quiet: Arms = {"baseline": ("baseline", 0.0), "floor1": ("floor", 0.0), "candidate": ("candidate", QUIET)}
    inputs, judgement = judged(make_record(tmp_path / "a/divergence.sqlite", quiet, count=20))
    found, text, _ = section(inputs, judgement)
    assert "floorassumed, mean KL" in text
    assert not found.findall(".//s:svg", NAMES)
    assert any("the floor is assumed" in why for _, why in not_tested(inputs))
    declared = {**quiet, "declared1": ("declared", QUIET), "declared2": ("declared", QUIET)}
    inputs, judgement = judged(make_record(tmp_path / "d/divergence.sqlite", declared, count=20))
    found, text, _ = section(inputs, judgement)
    assert "floordeclared backends (declared1, declared2), mean KL" in text
    assert "columncandidatedeclared" in text
    assert "3 sequences above 3" in text, "among backends one large sequence is nothing yet"
    assert len(found.findall(".//s:svg", NAMES)) == 1
    assert commands(inputs)[0].line.endswith("--declared DECLARED_URL --declared DECLARED_URL")


@pytest.mark.parametrize("payload", PAYLOADS.values(), ids=PAYLOADS)
def test_hostile_texts_of_servers_stay_text(tmp_path: Path, payload: str) -> None:
    evil = payload.encode("utf-8", "replace").decode()
    path = make_record(
        tmp_path / "divergence.sqlite",
        count=2,
        identity=lambda name: {"moe_backend": evil, "flags": evil + name, evil[:50]: evil},
        settings={"protocol": evil},
    )
    with DivergenceStore.resume(path) as store:
        store.add_arm(ArmRow("x" + evil[:80], "declared", evil, evil, {"model": evil}))
    inputs, judgement = judged(path)
    page = html.render(inputs, judgement)
    tree = html5lib.parse(page)
    assert [len(tree.findall(f".//h:{tag}", NAMES)) for tag in ("script", "style", "img", "h1", "iframe")] == [2, 1, 0, 1, 0]
    assert not [e for e in tree.iter() if isinstance(e.tag, str) for name in e.attrib if str(name).startswith("on")]
    assert {a.get("href", "#")[0] for a in tree.findall(".//h:a", NAMES)} == {"#"}
    text = "".join(tree.itertext())
    assert not set(text) & set("\u202e\u2066\x1b\x00\x9f")
    assert island(page)["arms"][0]["identity"]["flags"] == evil + "baseline"
    assert "lacks 2 sequences" in judgement.gates[0].needs
    ET.fromstring(junit.render(inputs, judgement))
    outside = re.sub(r"(`{3,})text\n.*?\n\1\n", "", markdown.render(inputs, judgement), flags=re.DOTALL)
    assert not re.search(r"<(?!/?(?:details|summary)>)", outside)
    assert "fault matrix" in outside


def test_the_folder_of_diverge_regimes_is_read_in_order(tmp_path: Path) -> None:
    """One after the other, each named after its folder; a folder of one record is that record; another candidate has its own gate."""
    for name in ("m512", "m8", "m64"):
        make_record(tmp_path / name / "divergence.sqlite", count=2, width=int(name[1:]))
    assert [p.parent.name for p in expand(tmp_path)] == ["m8", "m64", "m512"]
    assert expand(tmp_path / "m8") == [tmp_path / "m8" / "divergence.sqlite"]
    assert expand(tmp_path / "nothing") == [tmp_path / "nothing"]
    inputs, judgement = judged(tmp_path)
    assert [r.source.name for r in inputs.divergences] == ["m8", "m64", "m512"]
    assert [g.name for g in judgement.gates] == ["divergence m8", "divergence m64", "divergence m512"]
    found, _, page = section(inputs, judgement)
    ids = [h.get("id") for h in found.findall(".//h:h3", NAMES)]
    assert ids == ["divergence-0", "divergence-1", "divergence-2"]
    assert all(f'href="#{anchor}"' in page for anchor in ids)
    every = [e.get("id") for e in html5lib.parse(page).iter() if e.get("id")]
    assert len(every) == len(set(every))
    two = make_record(tmp_path / "two" / "divergence.sqlite", {**SOUND, "other": ("candidate", QUIET)}, count=2)
    assert [g.name for g in judged(two)[1].gates] == ["divergence two", "divergence two other"]
    same = judged(two, tmp_path / "m8", tmp_path / "m8")[1]
    assert [g.name for g in same.gates if "m8" in g.name] == ["divergence m8 (3)", "divergence m8 (4)"], (
        "by their place among all, as pairs of evals are"
    )


def test_a_stage_without_its_records_is_a_row(tmp_path: Path) -> None:
    """A run's folder alone does not give its plan's records, divergence/width-W.sqlite; `run` hands them on. What it could not judge is a row."""
    make_record(tmp_path / "plan" / "divergence" / "width-8.sqlite", count=2)
    make_eval(tmp_path / "plan", "marlin", lambda i: 1.0)
    inputs, _ = judged(tmp_path / "plan")
    assert (len(inputs.divergences), len(inputs.pairs)) == (0, 1)
    stage = StageRow("divergence", "GO ON", "this passes nothing by itself", decides=False)
    told = replace(inputs, pairs=(), stages=(stage,))
    (gate,) = judge(told).gates
    assert (gate.outcome, gate.wing) == ("GO ON", "stage")
    assert 'id="divergence"' not in html.render(told, judge(told))
    assert next(r for r in ladder(told) if r.name == "served log-probabilities").outcome == "GO ON"


def test_undecided_is_left_to_the_evals_that_a_plan_names(sound: Path) -> None:
    """Also where none of them has been reached: then nothing has decided."""
    inputs, _ = judged(sound)
    record = inputs.divergences[0]
    assert record.found is not None
    open_ = replace(record, found=replace(record.found, decision=replace(record.found.decision, outcome="UNDECIDED")))
    alone, planned = (replace(inputs, divergences=(open_,), planned=count) for count in (0, 1))
    assert [g.decides for g in judge(alone).gates] == [True]
    assert judge(alone).outcome == "INCONCLUSIVE"
    assert [g.decides for g in judge(planned).gates] == [False]
    assert judge(planned).outcome == "INCOMPLETE"


def test_a_plans_report_says_how_to_run_it_again(sound: Path) -> None:
    inputs, _ = judged(sound)
    first = commands(replace(inputs, plan="aa-tiny"))[0]
    assert (first.what, first.line) == ("plan aa-tiny", "mxfp4-validate run aa-tiny.toml")


def test_not_tested_and_reproduce(sound: Path) -> None:
    inputs, judgement = judged(sound)
    gaps = dict(not_tested(inputs))
    assert "served log-probabilities" not in gaps
    assert any(what.endswith("% of sequences") for what in gaps)
    (command,) = commands(inputs)
    assert command.line == (
        "mxfp4-validate diverge BASELINE_URL CANDIDATE_URL --corpus CORPUS.json --width 8 --protocol sglang --floor FLOOR_URL"
    )
    facts = dict(command.facts)
    assert facts["corpus"] == inputs.divergences[0].corpus.sha256
    assert facts["sha256"] == inputs.divergences[0].source.sha256
    text = " ".join("".join(html5lib.parse(html.render(inputs, judgement)).find(".//h:header", NAMES).itertext()).split())
    assert "candidatemarlin" in text
    assert inputs.divergences[0].run_id in text
