"""Records: what was acknowledged is there afterwards, whatever happens to the writer."""

from __future__ import annotations

import io
import json
import os
import signal
import sqlite3
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from mxfp4_validate.errors import UsageError
from mxfp4_validate.records.store import Result, Store

if TYPE_CHECKING:
    from pathlib import Path


def result(name: str, outcome: str = "passed") -> Result:
    return Result(f"{name}-a/m1/random/s0", name, "probe", "a/m1/random/s0", "b", outcome, "text", {"bit_equal": 1.0}, 0.5, "gw1", "now")


def test_a_run_is_read_back_as_written(tmp_path: Path) -> None:
    with Store.create(tmp_path / "deep" / "runs", {"case": None}, {"gpus": []}) as store:
        store.add(result("one"))
        store.add(result("two", "failed"))
        path = store.path
    assert path.name == f"{store.run_id}.sqlite"
    with Store.open(path) as store:
        assert store.results() == [result("one"), result("two", "failed")]
        assert (store.run().settings, store.run().provenance, store.run().finished) == ({"case": None}, {"gpus": []}, None)
        with pytest.raises(sqlite3.OperationalError, match="readonly"):
            store.add(result("three"))


def test_a_second_result_of_an_item_replaces_the_first(tmp_path: Path) -> None:
    with Store.create(tmp_path / "r.sqlite", {}, {}) as store:
        store.add(result("one", "failed"))
        store.add(result("one"))
        store.finish(0)
        assert [r.outcome for r in store.results()] == ["passed"]
        assert store.run().exit_status == 0


def test_nothing_is_written_over(tmp_path: Path) -> None:
    (tmp_path / "r.sqlite").write_text("mine")
    with pytest.raises(UsageError, match="cannot create"):
        Store.create(tmp_path / "r.sqlite", {}, {})
    assert (tmp_path / "r.sqlite").read_text() == "mine"


@pytest.mark.parametrize("content", [None, b"", b"not a database, but longer than a header of one hundred bytes" * 4])
def test_what_is_no_record_is_refused(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "x.sqlite"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UsageError, match=r"x\.sqlite"):
        Store.open(path)


def test_a_killed_writer_loses_nothing_it_acknowledged(tmp_path: Path) -> None:
    script = (
        "import sys, dataclasses; from pathlib import Path; from mxfp4_validate.records.store import Result, Store\n"
        "store = Store.create(Path(sys.argv[1]), {}, {})\n"
        "for n in range(10**6):\n"
        "    store.add(Result(f'i{n}', 'c', 'probe', 'a', 'b', 'passed')); print(n, flush=True)\n"
    )
    path = tmp_path / "r.sqlite"
    with subprocess.Popen([sys.executable, "-c", script, str(path)], stdout=subprocess.PIPE, text=True, env=dict(os.environ)) as writer:
        assert writer.stdout is not None
        for _ in range(20):
            last = int(writer.stdout.readline())
        writer.send_signal(signal.SIGKILL)
        last = max([last, *(int(line) for line in writer.stdout.read().splitlines() if line)])
    with Store.open(path) as store:
        names = [r.item_id for r in store.results()]
    assert names[: last + 1] == [f"i{n}" for n in range(last + 1)]


def test_export_is_one_object_a_line(tmp_path: Path) -> None:
    with Store.create(tmp_path, {}, {}) as store:
        store.add(result("one"))
        stream = io.StringIO()
        store.export_jsonl(stream)
    run, line = map(json.loads, stream.getvalue().splitlines())
    assert run["id"] == store.run_id
    assert Result(**line) == result("one")
