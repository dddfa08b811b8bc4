"""Rows C2 to C5: the record of an eval under kills, power cuts, torn files and flipped bits."""

from __future__ import annotations

import os
import random
import sqlite3
import textwrap
from pathlib import Path
from typing import Any

import pytest

from mxfp4_validate.errors import InvalidRun, UsageError
from mxfp4_validate.records import durable
from mxfp4_validate.records.evals import AttemptRow, EvalStore
from mxfp4_validate.records.sample import Sample
from tests.store_rig import KEYS, Forker, create, entry, final, whole

ROOT = Path(__file__).resolve().parent.parent

_WRITERS = textwrap.dedent(
    """
    import os, signal, sys, time
    from pathlib import Path
    from mxfp4_validate.records.evals import EvalStore
    from tests.store_rig import KEYS, create, entry
    for line in sys.stdin:
        name, seconds = line.split()
        path = Path(name)
        if not path.exists():
            create(path).close()
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            store = EvalStore.resume(path)
            have = store.states()
            left = [key for key in KEYS if key not in have]
            for at in range(0, len(left), 3):
                store.add([entry(*key) for key in left[at : at + 3]], "1")
                os.write(write, "".join(f"{q}:{r} " for q, r in left[at : at + 3]).encode())
            os.write(write, b"finished ")
            os._exit(0)
        os.close(write)
        time.sleep(float(seconds))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        said = b""
        while piece := os.read(read, 65536):
            said += piece
        os.close(read)
        print(said.decode(), flush=True)
    """
)


def test_c02_two_hundred_kills(tmp_path: Path) -> None:
    """SIGKILL at 200 random instants of writing: nothing acknowledged is lost, nothing is there twice, the end is the uninterrupted one's."""
    with create(tmp_path / "golden.sqlite") as store:
        store.add([entry(*key) for key in KEYS], "1")
    golden = final(tmp_path / "golden.sqlite")
    rng, kills, rounds = random.Random(20), 0, 0
    writers = Forker(tmp_path / "log.txt", _WRITERS)
    try:
        while kills < 200:
            path, acknowledged = tmp_path / f"run{rounds}.sqlite", set[str]()
            rounds += 1
            finished = False
            while not finished:
                writers.say(f"{path} {rng.random() * 0.02}")
                said = writers.hear().split()
                finished = "finished" in said
                acknowledged |= set(said) - {"finished"}
                kills += not finished
                with EvalStore.open(path) as store:
                    there = {f"{question}:{repeat}" for question, repeat in store.states()}
                    attempts = [(row.question_id, row.repeat) for row in store.attempts()]
                assert acknowledged <= there, "acknowledged samples were lost"
                assert len(there - acknowledged) <= 3, "more than the batch in flight is there"
                assert len(attempts) == len(set(attempts)) == len(there), "a batch was kept by halves, or twice"
                acknowledged = there  # what the killed batch had committed counts from now on
            assert final(path) == golden
    finally:
        writers.close()


def test_c02_a_second_answer_is_refused(tmp_path: Path) -> None:
    """What the model said stays; the rest of a batch with a second answer is not kept either."""
    with create(tmp_path / "run.sqlite") as store:
        store.add([entry("q0", 0)], "1")
        with pytest.raises(InvalidRun, match="a second answer is refused"):
            store.add([entry("q1", 0), entry("q0", 0)], "1")
        assert store.states() == {("q0", 0): "answered"}


def spilled(path: Path) -> tuple[bytes, bytes, bytes]:
    """The file before a transaction; the file and its journal in the middle of it, pages on the disk already."""
    with create(path) as store:
        store.add([entry(*key) for key in KEYS[:10]], "1")
        before = path.read_bytes()
        store._db.execute("PRAGMA cache_size=1")
        store._db.execute("BEGIN IMMEDIATE")
        for question, repeat in KEYS[10:]:
            store._db.execute("UPDATE sample SET error=? WHERE question_id=?", ("x" * 900, question))
            store._db.execute("DELETE FROM grade WHERE question_id=? AND repeat=?", (question, repeat - 1))
        middle, journal = path.read_bytes(), path.with_name(path.name + "-journal").read_bytes()
        store._db.execute("ROLLBACK")
    return before, middle, journal


def test_c03_power_cut_in_a_commit(tmp_path: Path) -> None:
    """Any subset of a transaction's pages on the disk, beside its synced journal, and any prefix of the journal beside untouched pages: the old state."""
    before, middle, journal = spilled(tmp_path / "source.sqlite")
    assert before != middle[: len(before)], "nothing was written before the commit"
    path, rng = tmp_path / "cut.sqlite", random.Random(3)
    golden = whole(tmp_path / "source.sqlite")
    size, pages = 4096, len(middle) // 4096

    def check(data: bytes, log: bytes) -> None:
        path.write_bytes(data)
        path.with_name(path.name + "-journal").write_bytes(log)
        assert whole(path) == golden

    for _ in range(60):
        mixed = b"".join((middle if rng.random() < 0.5 else before)[at * size : (at + 1) * size] or bytes(size) for at in range(pages))
        check(mixed, journal)
        check(before, journal[: rng.randrange(len(journal))])


def test_c03_every_commit_and_name_is_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SQLite syncs each commit, also through resume, and a new file's folder is synced after it got its name."""
    order: list[str] = []
    sync, link = os.fsync, Path.hardlink_to
    monkeypatch.setattr(os, "fsync", lambda fd: (order.append("sync " + os.readlink(f"/proc/self/fd/{fd}")), sync(fd))[1])
    monkeypatch.setattr(Path, "hardlink_to", lambda self, target: (order.append("name"), link(self, target))[1])
    create(tmp_path / "run.sqlite").close()
    assert order == ["name", f"sync {tmp_path}"]
    with EvalStore.resume(tmp_path / "run.sqlite") as store:
        assert store._db.execute("PRAGMA synchronous").fetchone() == (2,)
        assert store._db.execute("PRAGMA journal_mode").fetchone() == ("delete",)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes, dict[str, Any]]:
    """A small finished store of small pages: its path, its bytes, its content."""
    path = tmp_path_factory.mktemp("small") / "run.sqlite"
    connect = durable.connect

    def small_pages(path: Path) -> sqlite3.Connection:
        db = connect(path)
        db.execute("PRAGMA page_size=512")
        return db

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(durable, "connect", small_pages)
        with create(path, 1) as store:
            store.add_boot("b", "http://a", {"moe_backend": "marlin"})
            store.add([entry("q0", repeat) for repeat in range(2)], "1")
            store.add_event("canary", "rubbish")
            store.finish(0)
    return path, path.read_bytes(), whole(path)


def test_c04_torn_tail(small: tuple[Path, bytes, dict[str, Any]]) -> None:
    """Cut at every byte: refused by name, or all of it is there; never a row fewer without a word."""
    path, data, golden = small
    opened, named = [], set[bool]()
    try:
        for length in reversed(range(len(data))):
            os.truncate(path, length)
            try:
                found = whole(path)
            except (UsageError, InvalidRun) as error:
                named.add(str(path) in str(error) or "checksum" in str(error))
            else:
                assert found == golden, f"cut at byte {length} of {len(data)}: other content was read without a word"
                opened.append(length)
    finally:
        path.write_bytes(data)
    assert named == {True}
    assert len(opened) < 0.1 * len(data)


def test_c04_torn_new_file(tmp_path: Path) -> None:
    """What a kill in `create` leaves behind is no run, and does not stand in the way of one."""
    (tmp_path / "run.sqlite.new").write_bytes(b"SQLite format 3\x00 and then the power went")
    with create(tmp_path / "run.sqlite") as store:
        assert len(store.questions()) == 10
    assert [path.name for path in tmp_path.iterdir()] == ["run.sqlite"]


def test_c05_flipped_bit(small: tuple[Path, bytes, dict[str, Any]]) -> None:
    """One bit of each byte flipped: refused, or it changed nothing that anybody reads."""
    path, data, golden = small
    rng, refused = random.Random(5), 0
    fd = os.open(path, os.O_RDWR)
    try:
        for place, byte in enumerate(data):
            os.pwrite(fd, bytes([byte ^ 1 << rng.randrange(8)]), place)
            try:
                assert whole(path) == golden, f"byte {place} of {len(data)}: other content was read without a word"
            except (UsageError, InvalidRun):
                refused += 1
            os.pwrite(fd, bytes([byte]), place)
    finally:
        os.close(fd)
    assert refused > 0.2 * len(data)  # the rest is room that no page uses yet
    assert whole(path) == golden


def test_c05_the_damaged_record_is_named(small: tuple[Path, bytes, dict[str, Any]], tmp_path: Path) -> None:
    path = tmp_path / "run.sqlite"
    path.write_bytes(small[1])
    db = sqlite3.connect(path)
    db.execute("UPDATE sample SET state='no_answer' WHERE repeat=1")
    db.commit()
    db.close()
    with pytest.raises(InvalidRun, match="sample 'q0' repeat 1: its checksum does not match"):
        whole(path)


def test_a_missing_sample_is_replaced_and_its_attempts_stay(tmp_path: Path) -> None:
    with create(tmp_path / "run.sqlite") as store:
        first = AttemptRow("q0", 0, "2026", "timeout", 0, 9.0, "late", "b", ())
        store.add([(Sample("q0", 0, "timeout"), [first], {})], "1")
        store.add([entry("q0", 0)], "1")
        assert store.states() == {("q0", 0): "answered"}
        assert [row.outcome for row in store.attempts()] == ["timeout", "ok"]


def test_create_never_takes_an_existing_file(tmp_path: Path) -> None:
    path = tmp_path / "run.sqlite"
    path.write_text("something of the user's")
    with pytest.raises(UsageError, match="cannot create"):
        create(path)
    assert path.read_text() == "something of the user's"
    assert [p.name for p in tmp_path.iterdir()] == ["run.sqlite"]
