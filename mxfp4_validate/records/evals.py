"""The file of an eval run: SQLite with a rollback journal; what `add` returned from survives a kill and a power cut."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any

import mxfp4_validate
from mxfp4_validate.errors import InvalidRun, UsageError
from mxfp4_validate.grading.base import Grade
from mxfp4_validate.records.durable import Transaction, connect, create, damage, open_checked, plain, sealed, unsealed
from mxfp4_validate.records.sample import COLUMNS, Sample
from mxfp4_validate.records.store import new_run_id, now
from mxfp4_validate.states import MODEL_STATES

_RUN = "id, created, version, suite, repeats, settings, fingerprint, provenance, finished, exit_status"
SCHEMA_VERSION = 101  # kernel records count from 1, eval records from 101
_SCHEMA = """
CREATE TABLE run (id TEXT PRIMARY KEY, created TEXT NOT NULL, version TEXT NOT NULL, suite TEXT NOT NULL, repeats INTEGER NOT NULL,
                  settings TEXT NOT NULL, fingerprint TEXT NOT NULL, provenance TEXT NOT NULL, finished TEXT, exit_status INTEGER, checksum TEXT NOT NULL);
CREATE TABLE question (id TEXT PRIMARY KEY, place INTEGER NOT NULL, sha256 TEXT NOT NULL, gold TEXT NOT NULL, prompt_sha256 TEXT NOT NULL,
                       checksum TEXT NOT NULL);
CREATE TABLE boot (boot TEXT PRIMARY KEY, at TEXT NOT NULL, address TEXT NOT NULL, identity TEXT NOT NULL, checksum TEXT NOT NULL);
CREATE TABLE attempt (question_id TEXT NOT NULL, repeat INTEGER NOT NULL, at TEXT NOT NULL, outcome TEXT NOT NULL, status INTEGER NOT NULL,
                      seconds REAL NOT NULL, error TEXT NOT NULL, boot TEXT NOT NULL, flags TEXT NOT NULL, checksum TEXT NOT NULL);
CREATE TABLE sample (question_id TEXT NOT NULL REFERENCES question(id), repeat INTEGER NOT NULL, state TEXT NOT NULL, content BLOB NOT NULL,
                     reasoning BLOB NOT NULL, finish_reason TEXT NOT NULL, prompt_tokens INTEGER, completion_tokens INTEGER,
                     reasoning_tokens INTEGER, seconds REAL NOT NULL, boot TEXT NOT NULL, model TEXT NOT NULL, attempts INTEGER NOT NULL,
                     flags TEXT NOT NULL, error TEXT NOT NULL, at TEXT NOT NULL, checksum TEXT NOT NULL, PRIMARY KEY (question_id, repeat));
CREATE TABLE grade (question_id TEXT NOT NULL, repeat INTEGER NOT NULL, mode TEXT NOT NULL, correct INTEGER NOT NULL, answer TEXT, rule TEXT NOT NULL,
                    weak INTEGER NOT NULL, flags TEXT NOT NULL, grader TEXT NOT NULL, checksum TEXT NOT NULL,
                    PRIMARY KEY (question_id, repeat, mode));
CREATE TABLE event (at TEXT NOT NULL, kind TEXT NOT NULL, text TEXT NOT NULL, checksum TEXT NOT NULL);
"""
#: Kinds of events that make a run worthless for a verdict.
INVALIDATING = ("identity-changed", "wrong-backend", "wrong-model", "canary", "nan-output")


@dataclass(frozen=True)
class AttemptRow:
    """One request that was made for a sample; attempts are never overwritten."""

    question_id: str
    repeat: int
    at: str
    outcome: str
    status: int
    seconds: float
    error: str
    boot: str
    flags: tuple[str, ...]

    def cleaned(self) -> AttemptRow:
        """The same row with a text that any reader can hold."""
        return replace(self, error=plain(self.error))


@dataclass(frozen=True)
class EvalRun:
    """The run's own row."""

    id: str
    created: str
    version: str
    suite: str
    repeats: int
    settings: dict[str, Any]
    fingerprint: dict[str, str]
    provenance: dict[str, Any]
    finished: str | None
    exit_status: int | None


class EvalStore:
    """One eval run's file; `create` a new one, `resume` to go on writing, `open` to read."""

    def __init__(self, path: Path, db: sqlite3.Connection) -> None:
        self.path = path
        self._db = db

    @classmethod
    def create(
        cls,
        path: Path,
        suite: str,
        repeats: int,
        questions: Sequence[tuple[str, str, str, str]],
        settings: Mapping[str, Any],
        fingerprint: Mapping[str, str],
        provenance: Mapping[str, Any],
    ) -> EvalStore:
        """A new file. `questions` are (id, row sha256, gold, prompt sha256) in the order of the plan. Never an existing file."""
        row = (
            new_run_id(),
            now(),
            mxfp4_validate.__version__,
            suite,
            repeats,
            _json(settings),
            _json(fingerprint),
            _json(provenance),
            None,
            None,
        )

        def fill(db: sqlite3.Connection) -> None:
            db.execute("INSERT INTO run VALUES (?,?,?,?,?,?,?,?,?,?,?)", sealed(row))
            rows = [sealed((q[0], place, *q[1:])) for place, q in enumerate(questions)]
            db.executemany("INSERT INTO question VALUES (?,?,?,?,?,?)", rows)

        return cls(path, create(path, _SCHEMA, SCHEMA_VERSION, fill, "run"))

    @classmethod
    def resume(cls, path: Path) -> EvalStore:
        """An existing run, to add to it."""
        cls.open(path).close()
        return cls(path, connect(path))

    @classmethod
    def open(cls, path: Path) -> EvalStore:
        """An existing run, read-only; `UsageError` if it is not an eval record of ours, `InvalidRun` if its file is damaged."""
        path = run_file(path)
        if not path.is_file():
            raise UsageError(f"no eval run at {path}")
        return cls(path, open_checked(path, SCHEMA_VERSION, "an eval run", "eval runs"))

    def run(self) -> EvalRun:
        with damage(self.path):
            (row,) = self._db.execute(f"SELECT {_RUN}, checksum FROM run").fetchall()
            values = unsealed(row, "the run's own row")
            settings, fingerprint, provenance = (dict(json.loads(values[i])) for i in (5, 6, 7))
        return EvalRun(values[0], values[1], values[2], values[3], values[4], settings, fingerprint, provenance, values[8], values[9])

    def questions(self) -> list[tuple[str, str, str, str]]:
        """(id, row sha256, gold, prompt sha256) in the order of the plan."""
        rows = [unsealed(row, f"question {row[0]!r}") for row in self._rows("SELECT * FROM question ORDER BY place")]
        return [(row[0], row[2], row[3], row[4]) for row in rows]

    def _rows(self, sql: str, values: tuple[object, ...] = ()) -> list[tuple[Any, ...]]:
        """Rows of a query; `InvalidRun` if the file cannot give them."""
        with damage(self.path):
            return self._db.execute(sql, values).fetchall()

    def add(self, samples: Iterable[tuple[Sample, Sequence[AttemptRow], Mapping[str, Grade]]], grader: str) -> None:
        """Keep samples with their attempts and grades in one durable transaction; a later outcome replaces a missing one, never a model's."""
        with Transaction(self._db):
            for sample, attempts, grades in samples:
                old = self._db.execute(
                    "SELECT state FROM sample WHERE question_id=? AND repeat=?", (sample.question_id, sample.repeat)
                ).fetchone()
                if old and old[0] in MODEL_STATES:
                    raise InvalidRun(
                        f"sample {sample.question_id!r} repeat {sample.repeat} is {old[0]} already; a second answer is refused"
                    )
                marks = ",".join("?" * len(sample.row()))
                self._db.execute(f"INSERT OR REPLACE INTO sample ({COLUMNS}) VALUES ({marks})", sample.row())
                self._db.executemany("INSERT INTO attempt VALUES (?,?,?,?,?,?,?,?,?,?)", [sealed(_attempt(row)) for row in attempts])
                self._put_grades(sample.question_id, sample.repeat, grades, grader)

    def regrade(self, grades: Iterable[tuple[str, int, str, Mapping[str, Grade]]], grader: str, fingerprint: Mapping[str, str]) -> None:
        """Replace grades and states of samples, (question id, repeat, state, grades), and the fingerprint that names the grader, in one transaction."""
        with Transaction(self._db):
            for question_id, repeat, state, modes in grades:
                self._put_grades(question_id, repeat, modes, grader)
                columns, where = f"SELECT {COLUMNS} FROM sample WHERE question_id=? AND repeat=?", (question_id, repeat)
                sample = Sample.from_row(self._db.execute(columns, where).fetchone())
                if sample.state != state:
                    row = replace(sample, state=state).row()
                    self._db.execute("UPDATE sample SET state=?, checksum=? WHERE question_id=? AND repeat=?", (state, row[-1], *where))
            self._change_run(fingerprint=_json(fingerprint))

    def _put_grades(self, question_id: str, repeat: int, grades: Mapping[str, Grade], grader: str) -> None:
        rows = [
            sealed((question_id, repeat, m, int(g.correct), g.answer and plain(g.answer), g.rule, int(g.weak), json.dumps(g.flags), grader))
            for m, g in grades.items()
        ]
        self._db.executemany("INSERT OR REPLACE INTO grade VALUES (?,?,?,?,?,?,?,?,?,?)", rows)

    def add_boot(self, boot: str, address: str, identity: Mapping[str, str]) -> None:
        self._db.execute("INSERT OR IGNORE INTO boot VALUES (?,?,?,?,?)", sealed((boot, now(), address, _json(identity))))

    def add_event(self, kind: str, text: str) -> None:
        """Something a reader must know; kinds in `INVALIDATING` forbid a verdict."""
        self._db.execute("INSERT INTO event VALUES (?,?,?,?)", sealed((now(), kind, text)))

    def finish(self, exit_status: int) -> None:
        with Transaction(self._db):
            self._change_run(finished=now(), exit_status=exit_status)

    def _change_run(self, **changes: object) -> None:
        row = unsealed(self._db.execute(f"SELECT {_RUN}, checksum FROM run").fetchone(), "the run's own row")
        values = dict(zip(_RUN.split(", "), row, strict=True)) | changes
        names = [*changes, "checksum"]
        new = [*changes.values(), sealed(tuple(values.values()))[-1]]
        self._db.execute(f"UPDATE run SET {', '.join(f'{name}=?' for name in names)}", new)

    def states(self) -> dict[tuple[str, int], str]:
        """State by (question id, repeat) of every sample there is a row for."""
        return {(row[0], row[1]): row[2] for row in self._rows("SELECT question_id, repeat, state FROM sample")}

    def samples(self) -> Iterator[Sample]:
        """All samples in the order of the plan, each checked against its checksum; texts are read one at a time."""
        columns = ", ".join(f"sample.{name.strip()}" for name in COLUMNS.split(","))
        sql = f"SELECT {columns} FROM sample LEFT JOIN question ON question.id = sample.question_id ORDER BY place, repeat"
        with damage(self.path):
            cursor = self._db.execute(sql)
        while True:
            with damage(self.path):
                row = cursor.fetchone()
                sample = None if row is None else Sample.from_row(row)
            if sample is None:
                return
            yield sample

    def grades(self, mode: str) -> dict[tuple[str, int], Grade]:
        """The grades of one mode by (question id, repeat)."""
        rows = [unsealed(row, f"grade of {row[0]!r} repeat {row[1]}") for row in self._rows("SELECT * FROM grade")]
        with damage(self.path):
            return {(r[0], r[1]): Grade(bool(r[3]), r[4], r[5], bool(r[6]), tuple(json.loads(r[7]))) for r in rows if r[2] == mode}

    def modes(self) -> list[str]:
        """Grading modes there are grades of."""
        return [row[0] for row in self._rows("SELECT DISTINCT mode FROM grade ORDER BY mode")]

    def attempts(self) -> list[AttemptRow]:
        rows = [unsealed(row, f"an attempt at {row[0]!r}") for row in self._rows("SELECT * FROM attempt ORDER BY rowid")]
        with damage(self.path):
            return [AttemptRow(r[0], r[1], r[2], r[3], r[4], r[5], r[6], r[7], tuple(json.loads(r[8]))) for r in rows]

    def boots(self) -> dict[str, tuple[str, dict[str, str]]]:
        """boot -> (address, identity), in the order seen."""
        rows = [unsealed(row, f"boot {row[0]!r}") for row in self._rows("SELECT * FROM boot ORDER BY rowid")]
        with damage(self.path):
            return {row[0]: (row[2], dict(json.loads(row[3]))) for row in rows}

    def events(self) -> list[tuple[str, str, str]]:
        """(at, kind, text) in order."""
        rows = [unsealed(row, f"an event of {row[0]!r}") for row in self._rows("SELECT * FROM event ORDER BY rowid")]
        return [(row[0], row[1], row[2]) for row in rows]

    def close(self) -> None:
        self._db.close()

    def __enter__(self) -> EvalStore:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def run_file(path: Path) -> Path:
    """The file of a run given as itself or as its folder."""
    return path / "run.sqlite" if path.is_dir() or not path.suffix else path


def _json(value: Mapping[str, Any]) -> str:
    return json.dumps(value, sort_keys=True, allow_nan=False)


def _attempt(row: AttemptRow) -> tuple[object, ...]:
    return (*list(asdict(row).values())[:8], json.dumps(row.flags))
