"""`calibrate` from end to end: limits of a server from itself or from declared backends, for that server, corpus and width alone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mxfp4_validate import cli
from mxfp4_validate.divergence import corpus as corpora
from mxfp4_validate.serving.comparison import CompareOptions
from mxfp4_validate.serving.report import gather
from tests.divergence_rig import LogprobServer

INFO = {"model_path": "toy", "version": "1", "moe_runner_backend": "marlin", "boot_id": "a"}
LIMITS = {"ratio": 1.5, "tail_factor": 3.0, "flip_ratio": 1.5, "typical": 1.5, "drift": 4.0}


def write_corpus(path: Path, count: int = 20, seed: int = 0) -> Path:
    rng = np.random.default_rng(seed)
    corpora.save(corpora.build([([int(t) for t in rng.integers(0, 50, 24)], 4) for _ in range(count)], "toy"), path)
    return path


@pytest.fixture
def rig() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def start(rig: ExitStack, noise: float = 0.0, seed: int = 0, **info: str) -> LogprobServer:
    return rig.enter_context(LogprobServer(noise, seed, info={**INFO, **info}))


def ask(argv: list[Any], capsys: pytest.CaptureFixture[str]) -> tuple[int, dict[str, Any], str]:
    capsys.readouterr()
    code = cli.main([*map(str, argv), "--json"])
    said = capsys.readouterr()
    return code, json.loads(said.out) if said.out else {}, said.err


def floors(servers: list[LogprobServer], option: str = "--floor") -> list[str]:
    return [word for server in servers for word in (option, server.url)]


def test_limits_of_a_noisy_server_are_written_taken_and_refused_elsewhere(
    rig: ExitStack, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One of the A/A boots lies three times as far off as the others, so a candidate at twice their noise is no FAIL for this server."""
    path, made = write_corpus(tmp_path / "corpus.json"), tmp_path / "limits.json"
    base, again = start(rig), [start(rig, noise, seed) for seed, noise in enumerate((0.05, 0.05, 0.15), 1)]
    argv = ["calibrate", base.url, "--corpus", path, *floors(again), "-o", made, "--out", tmp_path / "calibration"]
    code, found, err = ask(argv, capsys)
    assert (code, found["exit_status"], found["declared"], found["file"]) == (0, 0, False, str(made))
    assert all(found["limits"][name] >= least for name, least in LIMITS.items()), found
    assert found["limits"]["ratio"] >= max(found["observed"]["ratios"]) > 6, "a boot at nine times the KL raised nothing"
    assert "limits from 3 A/A runs on 20 sequences" in err
    assert json.loads(made.read_text())["ratio"] == found["limits"]["ratio"]

    other = start(rig, 0.1, 9, moe_runner_backend="triton")
    ordinary = ["diverge", base.url, other.url, *floors(again[:2]), "--corpus", path]
    assert ask([*ordinary, "--out", tmp_path / "a"], capsys)[0] == 1, "the default limits pass it, the case shows nothing"
    code, found, err = ask([*ordinary, "--out", tmp_path / "a", "--calibration", made], capsys)
    assert (code in (0, 3), found["outcome"] != "FAIL") == (True, True), err

    assert found["limits"]["ratio"] == json.loads(made.read_text())["ratio"]
    code, again_found, _ = ask([*ordinary, "--out", tmp_path / "a"], capsys)
    assert (code, again_found["outcome"]) == (code, found["outcome"]), "gone on with, a record keeps its calibration"
    (record,) = gather([tmp_path / "a"], CompareOptions(), None).divergences
    assert record.found is not None
    assert (record.found.decision.outcome, record.found.limits.ratio) == (found["outcome"], found["limits"]["ratio"])

    second = write_corpus(tmp_path / "second.json", seed=1)
    moved = start(rig, moe_runner_backend="triton")
    for name, arguments, message in (
        ("b", [base.url, other.url, "--corpus", second], "the corpus is"),
        ("c", [base.url, other.url, "--corpus", path, "--width", 64], "positions a request are 64, were 512"),
        ("d", [moved.url, other.url, "--corpus", path], "moe_backend is 'triton', was 'marlin'"),
    ):
        code, found, err = ask(["diverge", *arguments, "--out", tmp_path / name, "--calibration", made], capsys)
        assert (code, found) == (2, {}), name
        assert "belongs to something else" in err
        assert message in err
    asked = len(base.bodies)
    assert ask(["diverge", base.url, other.url, "--corpus", second, "--out", tmp_path / "b", "--calibration", made], capsys)[0] == 2
    assert len(base.bodies) == asked, "another corpus is refused before a server is asked"
    elsewhere = tmp_path / "elsewhere.json"
    elsewhere.write_text(made.read_text() + "\n")
    code, _, err = ask([*ordinary, "--out", tmp_path / "a", "--calibration", elsewhere], capsys)
    assert (code, "is another; name another --out" in err) == (2, True)
    made.write_text(made.read_text().replace('"typical": ', '"typical": 9'))
    code, _, err = ask([*ordinary, "--out", tmp_path / "a", "--calibration", made], capsys)
    assert code == 4
    assert "checksum" in err


def test_a_silent_server_asks_for_declared_backends_and_goes_on_with_them(
    rig: ExitStack, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The default is the baseline three times more. What it said is kept: the second command asks the declared ones alone."""
    path, made, base = write_corpus(tmp_path / "corpus.json"), tmp_path / "limits.json", start(rig)
    argv = ["calibrate", base.url, "--corpus", path, "-o", made, "--out", tmp_path / "calibration"]
    code, found, err = ask(argv, capsys)
    assert (code, found, made.exists(), len(base.bodies)) == (2, {}, False, 4 * 20)
    assert "repeat each other's bits" in err
    assert "or declare 3 other accepted backends, of which there are 0" in err
    others = [start(rig, 0.05, seed, moe_runner_backend=f"other{seed}") for seed in (1, 2, 3)]
    code, found, err = ask([*argv, *floors(others[:2], "--declared")], capsys)
    assert (code, "of which there are 2" in err) == (2, True)
    code, found, err = ask([*argv, *floors(others, "--declared")], capsys)
    assert (code, found["declared"], len(found["observed"]["ratios"])) == (0, True, 3), err
    assert "declared backends against each other" in err
    assert len(base.bodies) == 4 * 20, "the baseline was asked again"
    code, found, _ = ask(
        ["diverge", base.url, others[2].url, *floors(others[:2], "--declared"), "--corpus", path, "--out", tmp_path / "run", "--calibration", made],
        capsys,
    )  # fmt: skip
    assert (code, found["declared"]) == (0, True), found["reasons"]


def test_nothing_is_asked_for_a_file_that_exists_or_with_too_few_boots(
    rig: ExitStack, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, made, base = write_corpus(tmp_path / "corpus.json"), tmp_path / "limits.json", start(rig)
    argv = ["calibrate", base.url, "--corpus", path, "-o", made, "--out", tmp_path / "calibration"]
    code, _, err = ask([*argv, *floors([base, base])], capsys)
    assert (code, "--floor is given 2 times, a calibration needs 3 A/A runs" in err) == (2, True)
    made.write_text("mine")
    code, _, err = ask([*argv, *floors([base] * 3)], capsys)
    assert (code, "a calibration is never overwritten" in err) == (2, True)
    assert (made.read_text(), base.bodies, (tmp_path / "calibration").exists()) == ("mine", [], False)


def test_what_cannot_be_calibrated_writes_nothing(rig: ExitStack, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A corpus too small, a floor with another backend, a declared backend with another model."""
    small, path, made = write_corpus(tmp_path / "small.json", 8), write_corpus(tmp_path / "corpus.json"), tmp_path / "limits.json"
    base, again = start(rig), [start(rig, 0.05, seed) for seed in (1, 2, 3)]
    foreign, stranger = start(rig, 0.05, 4, moe_runner_backend="triton"), start(rig, 0.05, 5, model_path="toy-2")
    for name, want, arguments, message in (
        ("a", 2, ["--corpus", small, *floors(again)], "hold 8 sequences, a calibration needs 16"),
        ("b", 4, ["--corpus", path, *floors([*again[:2], foreign])], "floor arm 'floor3' is not the baseline's configuration"),
        ("c", 4, ["--corpus", path, *floors(again), *floors([stranger], "--declared")], "declared arm 'declared1' serves another model"),
    ):
        code, found, err = ask(["calibrate", base.url, *arguments, "-o", made, "--out", tmp_path / name], capsys)
        assert (code, found, made.exists()) == (want, {}, False), name
        assert message in err


def test_the_limits_are_printed_for_a_reader(rig: ExitStack, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, base, again = write_corpus(tmp_path / "corpus.json"), start(rig), [start(rig, 0.05, seed) for seed in (1, 2, 3)]
    argv = ["calibrate", base.url, "--corpus", path, *floors(again), "-o", tmp_path / "l.json", "--out", tmp_path / "c", "--width", 64]
    assert cli.main([*map(str, argv)]) == 0
    head, *rows = capsys.readouterr().out.splitlines()
    assert "limits from 3 A/A runs on 20 sequences" in head
    assert [row.split()[0] for row in rows] == list(LIMITS)
    assert all(float(row.split()[1]) >= LIMITS[row.split()[0]] for row in rows)
    assert json.loads((tmp_path / "l.json").read_text())["width"] == 64
