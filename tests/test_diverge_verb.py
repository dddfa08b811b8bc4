"""`corpus` and `diverge` from end to end against tiny servers: the same bits go on, a broken layer fails, and nothing is ever passed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mxfp4_validate import cli
from mxfp4_validate.cli_tiny import CHECKPOINT
from mxfp4_validate.divergence import corpus as corpora
from mxfp4_validate.tiny.background import in_thread
from mxfp4_validate.tiny.model import load
from mxfp4_validate.tiny.scoring import own_corpus, score
from mxfp4_validate.tiny.server import Settings
from tests.fault_server import FaultServer, answer


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made by the verb, of the healthy server's own answers."""
    path = tmp_path_factory.mktemp("corpus") / "corpus.json"
    with in_thread(Settings(CHECKPOINT)) as root:
        argv = ["corpus", root, "--eval", "arith", "--sequences", "24", "--max-tokens", "40", "--score-prompts", "-o", str(path)]
        assert cli.main(argv) == 0
        assert cli.main(argv) == 2, "a corpus was overwritten"
    return path


def diverge(corpus: Path, out: Path, candidate: Settings, capsys: pytest.CaptureFixture[str]) -> tuple[int, dict[str, Any]]:
    with in_thread(Settings(CHECKPOINT)) as baseline, in_thread(candidate) as other:
        capsys.readouterr()
        code = cli.main(["diverge", baseline, other, "--corpus", str(corpus), "--out", str(out), "--json"])
    return code, json.loads(capsys.readouterr().out)


def test_the_corpus_is_the_models_own(corpus: Path) -> None:
    made = corpora.load(corpus)
    assert len(made.sequences) >= 20
    assert made.scored > 500
    assert all(sequence.start == 1 for sequence in made.sequences)
    assert "arith" in made.made_by


def test_the_same_bits_go_on_and_pass_nothing(corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, found = diverge(corpus, tmp_path, Settings(CHECKPOINT), capsys)
    assert (code, found["outcome"]) == (0, "GO ON")
    assert found["columns"]["mean_kld"] <= 1e-7
    assert found["columns"]["same_top_p_%"] == 100


@pytest.mark.parametrize("fault", ["no-clamp", "halves-swapped", "wrong-limit"])
def test_a_fault_fails(fault: str, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The arith eval passes the last of them (docs/sensitivity.md)."""
    code, found = diverge(corpus, tmp_path, Settings(CHECKPOINT, fault=fault), capsys)
    assert (code, found["outcome"]) == (1, "FAIL"), found["reasons"]


def test_another_backend_is_not_waved_through_by_a_silent_floor(corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The tiny server repeats its own bits, so its A/A says nothing of what rounding does; that is said, and the run does not go on."""
    code, found = diverge(corpus, tmp_path, Settings(CHECKPOINT, "emulate:marlin"), capsys)
    assert found["assumed"] is True
    assert code in (1, 3), "it went on without a floor"
    assert "repeats its own bits" in found["reasons"][0] or "an assumed floor" in found["reasons"][0]


def test_a_resumed_run_asks_only_what_is_missing(corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same command again scores nothing and decides the same; another corpus is refused."""
    with in_thread(Settings(CHECKPOINT)) as root:
        argv = ["diverge", root, root, "--corpus", str(corpus), "--out", str(tmp_path), "--json"]
        assert cli.main(argv) == 0
        first = json.loads(capsys.readouterr().out)
        assert cli.main(argv) == 0
        assert json.loads(capsys.readouterr().out) == first
        other = corpora.load(corpus)
        corpora.save(corpora.build([(s.tokens, s.start) for s in other.sequences[1:]]), tmp_path / "other.json")
        assert cli.main([*argv[:4], str(tmp_path / "other.json"), *argv[5:]]) == 2
    assert "another corpus" in capsys.readouterr().err


def test_in_this_process_and_over_http_the_numbers_are_the_same(corpus: Path, tmp_path: Path) -> None:
    from mxfp4_validate.divergence.record import DivergenceStore

    made = corpora.load(corpus)
    with in_thread(Settings(CHECKPOINT)) as root:
        assert cli.main(["diverge", root, root, "--corpus", str(corpus), "--out", str(tmp_path)]) == 0
    mine = score(load(CHECKPOINT), made)
    with DivergenceStore.open(tmp_path / "divergence.sqlite") as store:
        theirs = store.scores("baseline")
    for place, here in enumerate(mine):
        there = theirs[place].scores
        assert there is not None
        assert abs(here.chosen - there.chosen).max() < 1e-5
        assert abs(here.top - there.top).max() < 1e-5


def test_own_corpus_is_one_for_a_seed() -> None:
    model = load(CHECKPOINT)
    assert own_corpus(model, CHECKPOINT, 8, seed=3).sha256 == own_corpus(model, CHECKPOINT, 8, seed=3).sha256
    assert own_corpus(model, CHECKPOINT, 8, seed=3).sha256 != own_corpus(model, CHECKPOINT, 8, seed=4).sha256


def test_a_server_without_generate_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with FaultServer(lambda n, r: answer()) as server:
        assert cli.main(["corpus", server.url, "--eval", "arith", "--sequences", "1", "-o", str(tmp_path / "c.json")]) == 2
    assert "make the corpus on a server that has it" in capsys.readouterr().err
