"""`first-divergence` from end to end: greedy answers over a real port, and who leaves the baseline's earlier than its own floor."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mxfp4_validate import cli
from mxfp4_validate.cli_tiny import CHECKPOINT
from mxfp4_validate.divergence import corpus as corpora
from mxfp4_validate.divergence.corpus import TokenSequence
from mxfp4_validate.errors import UsageError
from mxfp4_validate.serving.first_divergence import prompt
from mxfp4_validate.tiny.background import in_thread
from mxfp4_validate.tiny.model import load
from mxfp4_validate.tiny.scoring import own_corpus
from mxfp4_validate.tiny.server import Settings
from tests.divergence_rig import LogprobServer, greedy

MOST = 24


def write_corpus(path: Path, count: int = 90, start: int = 6) -> Path:
    rng = np.random.default_rng(0)
    corpora.save(corpora.build([([int(t) for t in rng.integers(1, 50, 10)], start) for _ in range(count)], "toy"), path)
    return path


def ask(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    candidate: LogprobServer,
    floor: LogprobServer | None = None,
    count: int = 90,
    *more: str,
) -> tuple[int, dict[str, Any], str]:
    """Against a baseline without noise; the one JSON object on stdout, the text on stderr."""
    with ExitStack() as stack:
        base, other = stack.enter_context(LogprobServer()), stack.enter_context(candidate)
        again = ["--floor", stack.enter_context(floor).url] if floor else []
        path = tmp_path / "corpus.json"
        path.unlink(missing_ok=True)
        write_corpus(path, count)
        capsys.readouterr()
        argv = ["first-divergence", base.url, other.url, *again, "--corpus", str(path), "--max-tokens", str(MOST), "--json", *more]
        code = cli.main(argv)
    said = capsys.readouterr()
    return code, json.loads(said.out) if said.out else {}, said.err


def test_a_server_does_not_leave_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, found, err = ask(tmp_path, capsys, LogprobServer())
    assert (code, found["exit_status"], found["outcome"], found["events"]) == (0, 0, "GO ON", 0)
    assert found["candidate"] == found["floor"]
    assert (found["candidate"]["pairs"], found["candidate"]["differ"], found["p"]) == (90, 0, 1.0)
    assert "GO ON: this passes nothing by itself" in err
    assert "0 of 90 answers leave the baseline's" in err


def test_a_candidate_with_the_floors_noise_leaves_when_the_floor_does(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, found, err = ask(tmp_path, capsys, LogprobServer(0.3, 2), LogprobServer(0.3, 1))
    assert (code, found["outcome"], found["reasons"]) == (0, "GO ON", []), err
    assert found["events"] >= found["needed"] > 100
    assert found["events"] == found["candidate"]["differ"] + found["floor"]["differ"]
    assert 0.5 < found["hazard_ratio"] < 2


def test_a_candidate_with_a_fault_leaves_earlier(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, found, err = ask(tmp_path, capsys, LogprobServer(1.5, 2), LogprobServer(0.3, 1))
    assert (code, found["exit_status"], found["outcome"]) == (1, 1, "FAIL"), err
    assert found["p"] < 0.003
    assert min(found["z"], found["hazard_ratio"]) > 1.5
    assert found["candidate"]["median_common"] < found["floor"]["median_common"]


def test_the_floors_and_the_candidates_parts_are_not_exchanged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A candidate closer than the floor fails nothing: the test has one side."""
    code, found, _ = ask(tmp_path, capsys, LogprobServer(0.3, 2), LogprobServer(1.5, 1))
    assert (code, found["z"] < -2) == (0, True)
    assert found["candidate"]["median_common"] > found["floor"]["median_common"]


def test_few_first_differences_are_undecided(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, found, err = ask(tmp_path, capsys, LogprobServer(0.3, 2), LogprobServer(0.3, 1), 20)
    assert (code, found["exit_status"], found["outcome"], found["reasons"]) == (3, 3, "UNDECIDED", [])
    assert found["events"] < found["needed"]
    assert f"{found['events']} first differences; a hazard ratio of 2 shows with {found['needed']}" in err


def test_beside_a_floor_that_never_leaves_no_sound_backend_can_fail(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By the test alone every other backend is a fault; one that is declared shows that it is none, unless it never leaves either."""
    code, found, err = ask(tmp_path, capsys, LogprobServer(0.3, 2))
    assert found["p"] < 1e-6
    assert (code, found["outcome"], found["declared"]) == (3, "UNDECIDED", False)
    assert "declare an accepted backend" in found["reasons"][0]
    assert f"because {found['reasons'][0]}" in err
    for noise, candidate, want, reasons in ((0.3, 0.3, 0, 0), (0.3, 1.5, 1, 0), (0.0, 1.5, 3, 1)):
        with LogprobServer(noise, 1) as accepted:
            code, found, err = ask(tmp_path, capsys, LogprobServer(candidate, 2), None, 90, "--declared", accepted.url)
        assert (code, len(found["reasons"]), found["declared"]) == (want, reasons, noise > 0), err
        assert ("declared   " in err) == (noise > 0)


def test_a_declared_backend_takes_no_part_where_a_and_a_differs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Far off as it is, it would let anything go on."""
    with LogprobServer(3.0, 5) as accepted:
        code, found, _ = ask(tmp_path, capsys, LogprobServer(1.5, 2), LogprobServer(0.3, 1), 90, "--declared", accepted.url)
    assert (code, found["declared"]) == (1, False)


def test_what_is_asked_is_the_part_that_is_not_scored(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Greedily, as many tokens as were asked for, three times; answers as the model's own."""
    path = write_corpus(tmp_path / "corpus.json", 4)
    prompts = [list(sequence.tokens[:6]) for sequence in corpora.load(path).sequences]
    with LogprobServer() as server:
        argv = ["first-divergence", server.url, server.url, "--corpus", str(path), "--max-tokens", "5"]
        assert cli.main(argv) == 0
        assert sorted(body["input_ids"] for body in server.bodies) == sorted(prompts * 3)
        assert {(b["sampling_params"]["temperature"], b["sampling_params"]["max_new_tokens"]) for b in server.bodies} == {(0.0, 5)}
        server.bodies.clear()
        assert cli.main([*argv, "--prompt-tokens", "3"]) == 0
        assert sorted(body["input_ids"] for body in server.bodies) == sorted([row[:3] for row in prompts] * 3)
    assert len(greedy(prompts[0], 5)) <= 5
    assert "tokens in common, median" in capsys.readouterr().out


def test_an_answer_that_ends_early_differs_from_one_that_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The candidate stops after three tokens that agree: it left there. An answer cut by the cap would have left nowhere."""

    def short(path: str, document: Any) -> Any:
        del document["meta_info"]["output_token_logprobs"][3:]
        return document

    _, found, _ = ask(tmp_path, capsys, LogprobServer(change=short), None, 30)
    assert found["candidate"]["differ"] > 20
    assert found["candidate"]["median_common"] == 3


def test_a_prompt_must_be_told_from_the_answer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = TokenSequence((7, 8, 9, 10), 1)
    assert prompt(TokenSequence((7, 8, 9, 10), 2), None) == (7, 8)
    assert prompt(whole, 1) == (7,)
    assert prompt(whole, 3) == (7, 8, 9)
    with pytest.raises(UsageError, match="does not say where they end; give --prompt-tokens N"):
        prompt(whole, None)
    for length in (0, 4):
        with pytest.raises(UsageError, match=f"--prompt-tokens {length}: a sequence of the corpus has 4 tokens"):
            prompt(whole, length)


def test_a_server_that_cannot_answer_or_speculates_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    speculates = LogprobServer(info={"model_path": "toy", "speculative_algorithm": "EAGLE"})
    code, found, err = ask(tmp_path, capsys, speculates, None, 4)
    assert (code, found, speculates.bodies) == (2, {}, [])
    assert "EAGLE" in err
    code, found, err = ask(tmp_path, capsys, LogprobServer(change=lambda path, document: (404, "no")), None, 4)
    assert (code, found) == (2, {})
    assert "no /generate" in err
    assert cli.main(["first-divergence", "http://127.0.0.1:9", "http://127.0.0.1:9", "--corpus", str(tmp_path / "corpus.json")]) == 5


def test_on_the_tiny_model_a_fault_leaves_before_another_kernel(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The accepted backend is the floor, as the server repeats its own bits."""
    path = tmp_path / "corpus.json"
    corpora.save(own_corpus(load(CHECKPOINT), CHECKPOINT, 24), path)
    settings = [Settings(CHECKPOINT), Settings(CHECKPOINT, "emulate:marlin"), Settings(CHECKPOINT, fault="no-clamp")]
    with ExitStack() as stack:
        base, accepted, broken = (stack.enter_context(in_thread(each)) for each in settings)
        common = ["--corpus", str(path), "--prompt-tokens", "12", "--max-tokens", "16", "--json"]
        capsys.readouterr()
        code = cli.main(["first-divergence", base, broken, "--declared", accepted, *common])
        found = json.loads(capsys.readouterr().out)
        assert (code, found["declared"], found["candidate"]["pairs"]) == (1, True, 24), found
        assert found["candidate"]["differ"] > 3 * found["floor"]["differ"]
        assert cli.main(["first-divergence", base, base, *common]) == 0
    assert json.loads(capsys.readouterr().out)["events"] == 0
