"""`diverge` over a real port with several floors and four widths: a record each, the worst outcome's exit status, and declared backends."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mxfp4_validate import cli
from mxfp4_validate.divergence import corpus as corpora
from mxfp4_validate.divergence.analyse import Result
from mxfp4_validate.divergence.record import DivergenceStore
from mxfp4_validate.divergence.rule import FAIL, decide
from mxfp4_validate.divergence.statistic import Arm
from mxfp4_validate.serving import diverge as verb
from tests.divergence_rig import LogprobServer

REGIMES = {"m8": (8, 1), "m64": (64, 1), "m512": (512, 1), "m4096": (512, 8)}
OTHER = {"model_path": "toy", "version": "1", "moe_runner_backend": "triton", "boot_id": "b"}


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """20 sequences of 20 scored positions: three requests each at a width of 8, one at the others."""
    rng, path = np.random.default_rng(0), tmp_path / "corpus.json"
    corpora.save(corpora.build([([int(t) for t in rng.integers(0, 50, 24)], 4) for _ in range(20)], "toy"), path)
    return path


def ask(argv: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, dict[str, Any], str]:
    """Exit status, the one JSON object on stdout, stderr."""
    capsys.readouterr()
    code = cli.main([*argv, "--json"])
    said = capsys.readouterr()
    return code, json.loads(said.out) if said.out else {}, said.err


def narrow(kind: str) -> Any:
    """An answer of at most 8 positions is another one: no number, or every token named is 2 % less likely."""

    def change(path: str, document: Any) -> Any:
        meta = document["meta_info"]
        entries, tops = meta["input_token_logprobs"], meta["input_top_logprobs"]
        if len(entries) <= 9:  # with the boundary
            for entry in entries[1:]:
                entry[0] = None if kind == "null" else entry[0] - 0.02
            for entry in (entry for row in tops[1:] for entry in row):
                entry[0] -= 0.02
        return document

    return change


def test_four_widths_are_four_records_and_asked_once(corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    with LogprobServer() as server:
        argv = ["diverge", server.url, server.url, "--corpus", str(corpus), "--out", str(out), "--regimes"]
        code, found, err = ask(argv, capsys)
        asked = len(server.bodies)
        assert (code, found["exit_status"], list(found["regimes"])) == (0, 0, list(REGIMES))
        assert err.count("400 positions an arm") == err.count("0.00 % of the tokens of an AIME25 run") == 4, "the cost was not told"
        assert asked == 3 * 20 * (3 + 1 + 1 + 1)
        for body in server.bodies[:180]:
            assert len(body["input_ids"]) - 1 - body["logprob_start_len"] <= 8
        assert ask(argv, capsys)[1] == found
        assert len(server.bodies) == asked, "what was scored was asked again"
        assert cli.main(argv) == 0
    table = capsys.readouterr().out.splitlines()
    assert [row.split()[0] for row in table] == ["regime", *REGIMES]
    assert all("GO ON" in row for row in table[1:])
    for name, (width, _) in REGIMES.items():
        assert found["regimes"][name]["outcome"] == "GO ON"
        with DivergenceStore.open(Path(found["regimes"][name]["record"])) as store:
            assert (store.width, store.missing("candidate"), store.path) == (width, [], out / name / "divergence.sqlite")


def test_only_the_last_regime_has_several_requests_in_flight(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One regime at a time, so that what is in flight is its own."""
    most = {}
    for regime in verb.REGIMES:
        monkeypatch.setattr(verb, "REGIMES", (regime,))
        with LogprobServer() as server:
            argv = ["diverge", server.url, server.url, "--corpus", str(corpus), "--out", str(tmp_path / regime.name), "--regimes"]
            assert ask(argv, capsys)[0] == 0
        most[regime.name] = server.most_in_flight
    assert 1 < most.pop("m4096") <= 8
    assert most == {"m8": 1, "m64": 1, "m512": 1}


@pytest.mark.parametrize(
    ("noise", "kind", "want", "outcomes"),
    [
        (0.0, "null", 1, ["FAIL", "GO ON", "GO ON", "GO ON"]),
        (0.0, "less", 3, ["UNDECIDED", "GO ON", "GO ON", "GO ON"]),
        (0.02, "null", 1, ["FAIL", "UNDECIDED", "UNDECIDED", "UNDECIDED"]),
    ],
)
def test_the_worst_regime_is_the_exit_status(
    noise: float, kind: str, want: int, outcomes: list[str], corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A fault of the kernels for few tokens alone, which one width of 512 would never run."""
    with LogprobServer() as server, LogprobServer(noise, 1, change=narrow(kind), info=OTHER) as other:
        code, found, err = ask(
            ["diverge", server.url, other.url, "--corpus", str(corpus), "--out", str(tmp_path / "out"), "--regimes"], capsys
        )
    assert [row["outcome"] for row in found["regimes"].values()] == outcomes, err
    assert (code, found["exit_status"]) == (want, want)
    assert all(f"{name}: {outcome}" in err for name, outcome in zip(REGIMES, outcomes, strict=True))
    assert err.count("because") >= sum(outcome != "GO ON" for outcome in outcomes)


@pytest.mark.parametrize(
    ("more", "message"),
    [(["--calibration", "c.json"], "belongs to one width"), (["--protocol", "vllm"], "there are no regimes; leave --regimes out")],
)
def test_what_has_no_regimes_is_refused_before_anything_is_asked(
    more: list[str], message: str, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with LogprobServer() as server:
        argv = ["diverge", server.url, server.url, "--corpus", str(corpus), "--out", str(tmp_path / "out"), "--regimes", *more]
        code, _, err = ask(argv, capsys)
        assert (code, server.bodies) == (2, [])
    assert message in err
    assert not (tmp_path / "out").exists()


def test_a_record_of_another_width_or_protocol_is_not_gone_on_with(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with LogprobServer() as server:
        argv = ["diverge", server.url, server.url, "--corpus", str(corpus), "--out", str(tmp_path / "out")]
        assert ask([*argv, "--width", "64"], capsys)[0] == 0
        for more in ([], ["--width", "64", "--protocol", "vllm"]):
            code, _, err = ask([*argv, *more], capsys)
            assert code == 2, more
            assert "was begun with --width 64 --protocol sglang" in err


def declared(
    corpus: Path, out: Path, candidate: LogprobServer, capsys: pytest.CaptureFixture[str], info: dict[str, Any] = OTHER
) -> tuple[int, dict[str, Any], str]:
    with LogprobServer() as baseline, LogprobServer(0.05, 1, info=info) as accepted, candidate:
        argv = ["diverge", baseline.url, candidate.url, "--declared", accepted.url, "--corpus", str(corpus), "--out", str(out)]
        return ask(argv, capsys)


def test_a_declared_backend_is_the_floor_of_a_silent_baseline(corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, found, err = declared(corpus, tmp_path / "a", LogprobServer(0.05, 2), capsys)
    assert (found["declared"], found["assumed"]) == (True, False)
    assert code in (0, 3), found["reasons"]
    assert "floor (declared backends, A/A repeats its own bits)" in err
    assert 0.5 < found["floor_columns"]["mean_kld"] / found["columns"]["mean_kld"] < 2
    code, found, err = declared(corpus, tmp_path / "b", LogprobServer(0.25, 2), capsys)
    assert (code, found["outcome"], found["declared"]) == (1, "FAIL", True)
    assert "times the declared backends" in found["reasons"][0]


def test_a_declared_backend_with_another_model_is_refused(corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, found, err = declared(corpus, tmp_path / "a", LogprobServer(0.05, 2), capsys, {**OTHER, "model_path": "toy-2"})
    assert (code, found) == (4, {})
    assert "declared arm 'declared1' serves another model: model_path differ" in err


def test_several_floors_and_declared_backends_are_arms_each(corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with ExitStack() as stack:
        servers = [stack.enter_context(LogprobServer(0.05, seed)) for seed in range(5)]
        base, *floors, other = (server.url for server in servers)
        more = [word for url in floors for word in ("--floor", url)]
        argv = ["diverge", base, other, *more, "--declared", other, "--corpus", str(corpus), "--out", str(tmp_path / "out")]
        code, found, _ = ask(argv, capsys)
    assert (code != 1, found["declared"], found["assumed"]) == (True, False, False), found["reasons"]
    with DivergenceStore.open(Path(found["record"])) as store:
        roles = {name: row.role for name, row in store.arms().items()}
    assert roles == {
        "baseline": "baseline", "floor1": "floor", "floor2": "floor", "floor3": "floor", "declared1": "declared", "candidate": "candidate",
    }  # fmt: skip


def test_a_bound_without_end_is_null_in_json() -> None:
    """All of A/A's flips lie in two sequences of 64, which one resample in eight does not draw."""
    kl, positions = np.full(64, 1e-3), np.full(64, 72.0)
    floor, candidate = Arm(kl, np.where(np.arange(64) < 2, 4.0, 0.0), positions), Arm(kl, np.ones(64), positions)
    decision = decide(candidate, [floor])
    assert decision.outcome == FAIL
    plain = verb._plain(Result(decision, {}, {}, (), ()))
    assert plain["flips"] == {"estimate": 8.0, "lower": pytest.approx(2.17, abs=0.01), "upper": None}
    json.dumps(plain, allow_nan=False)
