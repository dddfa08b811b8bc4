"""Corpus, record and first divergence: what is written comes back, what cannot be is refused, the log-rank test is scipy's."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from mxfp4_validate.divergence import corpus as corpora
from mxfp4_validate.divergence.analyse import analyse
from mxfp4_validate.divergence.corpus import Corpus, build
from mxfp4_validate.divergence.first_divergence import Greedy, events_needed, first_difference, log_rank, pairs
from mxfp4_validate.divergence.record import ArmRow, DivergenceStore, ScoreRow
from mxfp4_validate.divergence.scores import BadServer, Scores
from mxfp4_validate.errors import IncompleteRun, InvalidRun, UsageError
from tests.divergence_rig import scores_of, toy_logprobs

TOP = 20


def corpus(count: int = 20, length: int = 24, start: int = 4) -> Corpus:
    rng = np.random.default_rng(0)
    return build([([int(t) for t in rng.integers(0, 50, length)], start) for _ in range(count)], "toy")


def said(made: Corpus, place: int, noise: float = 0.0, seed: int = 0) -> Scores:
    sequence = made.sequences[place]
    rows = toy_logprobs(sequence.tokens, noise, seed)[sequence.start :]
    return scores_of(rows, sequence.targets, TOP)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "holds no sequence"),
        ([([1, 2], 1), ([], 1)], "sequence 1 is empty"),
        ([([1, -2, 3], 1)], "sequence 0 holds -2 at position 1"),
        ([([1, True, 3], 1)], "holds True"),
        ([([1, 2**31], 1)], "holds 2147483648"),
        ([([1, 2], 0)], "starts scoring at 0, it must be in 1..1"),
        ([([1, 2], 2)], "starts scoring at 2"),
        ([([1, 2, 3], 1), ([4, 5], 1), ([1, 2, 3], 2)], "sequence 2 holds the same tokens as sequence 0"),
    ],
)
def test_a_corpus_that_cannot_be_scored_is_refused(rows: list[tuple[list[int], int]], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        build(rows)


@given(
    st.lists(st.lists(st.integers(0, 2**31 - 1), min_size=2, max_size=9).map(tuple), min_size=1, max_size=6, unique=True),
    st.text(),
    st.data(),
)
@settings(deadline=None)
def test_a_corpus_comes_back_with_its_hash(rows: list[tuple[int, ...]], made_by: str, data: st.DataObject) -> None:
    made = build([(list(row), data.draw(st.integers(1, len(row) - 1))) for row in rows], made_by)
    again = corpora.parse(made.canonical(), "x")
    assert again == made
    assert again.sha256 == hashlib.sha256(made.canonical()).hexdigest()
    spaced = json.dumps(json.loads(made.canonical()), indent=3).encode()
    assert corpora.parse(spaced, "x").sha256 == made.sha256, "the layout of the file took part in the hash"
    other = build([(list(row), 1) for row in rows[::-1]], made_by + "!")
    assert other.sha256 != made.sha256


def test_a_corpus_file_is_not_written_over_and_is_pinned(tmp_path: Path) -> None:
    path, made = tmp_path / "c.json", corpus()
    corpora.save(made, path)
    assert corpora.load(path, made.sha256) == made
    with pytest.raises(UsageError, match="cannot write"):
        corpora.save(made, path)
    with pytest.raises(UsageError, match="was asked for"):
        corpora.load(path, "0" * 64)
    for text in (
        "{}",
        '{"format": "x", "sequences": []}',
        "[",
        '{"format": "mxfp4-validate divergence corpus 1", "sequences": [[1, "ab"]]}',
    ):
        path.write_text(text)
        with pytest.raises(UsageError, match=r"is not a divergence corpus|has format"):
            corpora.load(path)


def store_with(path: Path, made: Corpus) -> DivergenceStore:
    store = DivergenceStore.create(path, made, TOP, 512, {"protocol": "sglang"})
    for name, role in (("b", "baseline"), ("aa", "floor"), ("c", "candidate")):
        store.add_arm(ArmRow(name, role, f"boot-{name}", "http://x", {"model": "toy", "moe_backend": "marlin"}))
    return store


def test_scores_come_back_bit_for_bit(tmp_path: Path) -> None:
    made = corpus()
    scores = replace(said(made, 0), texts=tuple(f"<{t}>\u2028" for t in made.sequences[0].targets))
    with store_with(tmp_path / "r.sqlite", made) as store:
        store.add("b", ScoreRow(0, scores, tokens=24, seconds=0.5))
        store.add("b", ScoreRow(3, None, "null at position 7"))
    with DivergenceStore.open(tmp_path / "r.sqlite") as store:
        assert (store.corpus, store.top, store.width, store.settings) == (made, TOP, 512, {"protocol": "sglang"})
        rows = store.scores("b")
        found = rows[0].scores
        assert found is not None
        assert found.chosen.tobytes() == scores.chosen.tobytes()
        assert found.top.tobytes() == scores.top.tobytes()
        assert (found.top_ids.tolist(), found.texts) == (scores.top_ids.tolist(), scores.texts)
        assert (rows[0].tokens, rows[0].seconds, rows[3].scores, rows[3].error) == (24, 0.5, None, "null at position 7")
        assert store.missing("b") == [p for p in range(20) if p not in (0, 3)]
        assert store.arms()["aa"].role == "floor"


def test_a_second_answer_another_boot_and_another_corpus_are_refused(tmp_path: Path) -> None:
    made, path = corpus(), tmp_path / "r.sqlite"
    with store_with(path, made) as store:
        store.add("b", ScoreRow(0, said(made, 0)))
        with pytest.raises(InvalidRun, match="has sequence 0 already"):
            store.add("b", ScoreRow(0, said(made, 0, 0.1)))
        with pytest.raises(ValueError, match=r"scores of shape \(3, 20\) for sequence 1, not \(20, 20\)"):
            store.add("b", ScoreRow(1, Scores(np.zeros(3), np.zeros((3, TOP), np.int32), np.zeros((3, TOP)))))
        with pytest.raises(UsageError, match="is baseline on boot boot-b, not baseline on other"):
            store.add_arm(ArmRow("b", "baseline", "other", "http://x", {}))
        with pytest.raises(UsageError, match="has role 'judge'"):
            store.add_arm(ArmRow("d", "judge", "x", "http://x", {}))
    with pytest.raises(UsageError, match="use another file for another corpus"):
        DivergenceStore.resume(path, corpus(3))
    with DivergenceStore.resume(path, made) as store:
        store.add("b", ScoreRow(5, said(made, 5)))
    with pytest.raises(UsageError, match="cannot create"):
        DivergenceStore.create(path, made, TOP, 512, {})


@pytest.mark.parametrize("change", ["data", "sequence", "corpus", "truncated", "schema", "role"])
def test_a_damaged_or_edited_file_is_not_trusted(change: str, tmp_path: Path) -> None:
    made, path = corpus(), tmp_path / "r.sqlite"
    with store_with(path, made) as store:
        store.add("b", ScoreRow(0, said(made, 0)))
    if change == "truncated":
        path.write_bytes(path.read_bytes()[:-4096])
    else:
        sql = {
            "data": "UPDATE score SET data=zeroblob(length(data))", "sequence": "UPDATE score SET place=1",
            "corpus": "UPDATE run SET corpus_sha256='0'", "schema": "PRAGMA user_version=7", "role": "UPDATE arm SET role='floor'",
        }[change]  # fmt: skip
        with sqlite3.connect(path) as db:
            db.execute(sql)
        db.close()
    with pytest.raises((InvalidRun, UsageError), match=r"checksum|damaged|record schema 7|is not a divergence run"):
        read_all(path)


def read_all(path: Path) -> None:
    with DivergenceStore.open(path) as store:
        store.arms()
        store.scores("b")


@pytest.mark.parametrize("content", [None, b"", b"not a database, but longer than a header of one hundred bytes" * 4])
def test_what_is_no_record_is_refused(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "x.sqlite"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UsageError, match=r"no divergence run at|is not a divergence run|record schema 0"):
        DivergenceStore.open(path)


_WRITER = """
import sys
from pathlib import Path
from mxfp4_validate.divergence.record import ScoreRow
from tests.test_divergence_record import corpus, said, store_with
made = corpus()
store = store_with(Path(sys.argv[1]), made)
for place in range(20):
    store.add("b", ScoreRow(place, said(made, place)))
    print(place, flush=True)
"""


def test_what_add_returned_from_survives_a_kill(tmp_path: Path) -> None:
    path = tmp_path / "r.sqlite"
    child = subprocess.Popen([sys.executable, "-c", _WRITER, str(path)], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    last = [int(child.stdout.readline()) for _ in range(6)][-1]
    os.kill(child.pid, signal.SIGKILL)
    child.wait(10)
    child.stdout.close()
    with DivergenceStore.resume(path, corpus()) as store:
        assert set(store.scores("b")) >= set(range(last + 1))
        for place in store.missing("b"):
            store.add("b", ScoreRow(place, said(corpus(), place)))
        assert store.missing("b") == []


def full(path: Path, candidate: float, hurt: int | None = None) -> DivergenceStore:
    """All three arms over the toy model; `hurt` is a candidate's sequence that ended in NaN."""
    made = corpus()
    store = store_with(path, made)
    for place in range(20):
        store.add("b", ScoreRow(place, said(made, place, 0.05, 1)))
        store.add("aa", ScoreRow(place, said(made, place, 0.05, 2)))
        store.add("c", ScoreRow(place, None, "null") if place == hurt else ScoreRow(place, said(made, place, candidate, 3)))
    return store


def test_a_record_is_decided_and_a_broken_arm_is_named(tmp_path: Path) -> None:
    with full(tmp_path / "a.sqlite", 0.05) as store:
        fine = analyse(store, "c")
    assert fine.decision.outcome != "FAIL", fine.decision
    assert fine.decision.kl is not None
    assert 0.8 < fine.decision.kl.estimate < 1.25
    assert fine.columns["positions"] == fine.floor_columns["positions"] == 400
    with full(tmp_path / "b.sqlite", 0.3) as store:
        broken = analyse(store, "c")
    assert [reason[:6] for reason in broken.decision.reasons][:1] == ["FAIL-A"], broken.decision
    assert broken.columns["mean_kld"] > 10 * fine.columns["mean_kld"]
    with full(tmp_path / "c.sqlite", 0.05, hurt=7) as store:
        hurt = analyse(store, "c")
    assert (hurt.decision.outcome, hurt.not_finite, hurt.columns["positions"]) == ("FAIL", (7,), 380)


def test_what_cannot_be_decided_says_why(tmp_path: Path) -> None:
    made = corpus()
    with store_with(tmp_path / "r.sqlite", made) as store:
        with pytest.raises(IncompleteRun, match="arm 'b' lacks 20 sequences, the first is 0"):
            analyse(store, "c")
        with pytest.raises(UsageError, match=r"no candidate arm 'x', it has b \(baseline\), aa \(floor\), c \(candidate\)"):
            analyse(store, "x")
    with full(tmp_path / "f.sqlite", 0.05) as store:
        store.add_arm(ArmRow("aa2", "floor", "z", "http://y", {"model": "toy", "moe_backend": "triton"}))
        for place in range(20):
            store.add("aa2", ScoreRow(place, said(made, place, 0.05, 4)))
        with pytest.raises(InvalidRun, match="floor arm 'aa2' is not the baseline's configuration: moe_backend differ"):
            analyse(store, "c")
    with DivergenceStore.create(tmp_path / "n.sqlite", made, TOP, 512, {}) as store, pytest.raises(UsageError, match="it has no arm"):
        analyse(store, "c")


def test_nan_of_every_sequence_is_a_failure_and_nan_of_the_baseline_is_no_result(tmp_path: Path) -> None:
    made = corpus()
    for bad, name in (("c", "a"), ("aa", "b")):
        with store_with(tmp_path / f"{name}.sqlite", made) as store:
            for arm in ("b", "aa", "c"):
                for place in range(20):
                    store.add(arm, ScoreRow(place, None, "null") if arm == bad else ScoreRow(place, said(made, place)))
            if bad == "c":
                assert analyse(store, "c").decision.outcome == "FAIL"
            else:
                with pytest.raises(InvalidRun, match="the baseline's arm 'aa' answered no number for sequence 0: null"):
                    analyse(store, "c")


def test_another_tokenizer_shows_in_the_tokens_texts(tmp_path: Path) -> None:
    made = corpus()
    with store_with(tmp_path / "r.sqlite", made) as store:
        for arm in ("b", "aa", "c"):
            for place in range(20):
                texts = tuple(
                    "other" if arm == "c" and place == 2 and i == 5 else f"<{t}>" for i, t in enumerate(made.sequences[place].targets)
                )
                store.add(arm, ScoreRow(place, replace(said(made, place), texts=texts)))
        with pytest.raises(BadServer, match="other-texts: sequence 2, baseline and 'c', scored position 5") as caught:
            analyse(store, "c")
    assert caught.value.fault == "other-texts"


@pytest.mark.parametrize(
    ("a", "b", "want"),
    [
        (((1, 2, 3), True), ((1, 2, 3), True), (3, False)),
        (((1, 2, 3), True), ((1, 5, 3), True), (1, True)),
        (((1, 2), True), ((1, 2, 3), True), (2, True)),  # one stopped, the other went on
        (((1, 2), False), ((1, 2, 3), True), (2, False)),  # cut by the cap: nothing is known of what would have come
        (((1, 2, 3), False), ((1, 2), False), (2, False)),
        (((), True), ((), True), (0, False)),
    ],
)
def test_where_two_answers_part(a: tuple[tuple[int, ...], bool], b: tuple[tuple[int, ...], bool], want: tuple[int, bool]) -> None:
    assert first_difference(Greedy(*a), Greedy(*b)) == want == first_difference(Greedy(*b), Greedy(*a))


def test_pairs_need_the_same_prompts() -> None:
    one = Greedy((1, 2), True)
    assert pairs([one, one], [one, Greedy((1, 3), True)]) == ([2, 1], [False, True])
    with pytest.raises(ValueError, match="zip"):
        pairs([one], [])


@given(seed=st.integers(0, 10**6), n=st.integers(2, 40), m=st.integers(2, 40), ties=st.sampled_from([3, 30, 3000]))
@settings(deadline=None)
def test_the_log_rank_test_is_scipys(seed: int, n: int, m: int, ties: int) -> None:
    rng = np.random.default_rng(seed)
    times = rng.integers(1, ties, n + m)
    events = rng.random(n + m) < 0.7
    found = log_rank(times[:n], events[:n], times[n:], events[n:])
    arms = [stats.CensoredData.right_censored(times[s], ~events[s]) for s in (slice(0, n), slice(n, None))]
    with np.errstate(all="ignore"):
        oracle = stats.logrank(*arms, alternative="greater")
    if not np.isfinite(oracle.statistic):
        assert found.z == 0
        return
    assert found.z == pytest.approx(oracle.statistic, rel=1e-9, abs=1e-12)
    assert found.p == pytest.approx(oracle.pvalue, abs=1e-9)
    assert found.events == events.sum()


def test_an_arm_that_leaves_earlier_has_positive_z_and_its_hazard_ratio() -> None:
    rng = np.random.default_rng(0)
    early, late = rng.geometric(0.02, 400), rng.geometric(0.01, 400)
    cap = 150
    found = log_rank(np.minimum(early, cap), early < cap, np.minimum(late, cap), late < cap)
    assert found.z > 5
    assert found.p < 1e-6
    assert found.hazard_ratio == pytest.approx(2, rel=0.25)
    back = log_rank(np.minimum(late, cap), late < cap, np.minimum(early, cap), early < cap)
    assert back.z == pytest.approx(-found.z)
    assert log_rank([5, 5], [False, False], [5, 5], [False, False]).p == 1.0


def test_events_needed_are_the_tables_and_their_power_is_true() -> None:
    assert [events_needed(ratio) for ratio in (1.5, 2, 3)] == [151, 52, 21]
    assert events_needed(0.5) == events_needed(2)
    for ratio in (1.0, 0.0, -2.0):
        with pytest.raises(ValueError, match="hazard ratio"):
            events_needed(ratio)
    rng = np.random.default_rng(1)
    half = events_needed(2) // 2
    seen = sum(log_rank(rng.exponential(0.5, half), np.ones(half), rng.exponential(1, half), np.ones(half)).p < 0.05 for _ in range(600))
    assert 0.74 < seen / 600 < 0.88, f"power {seen / 600:.3f}, .80 is planned"
