"""The file of a run: SQLite with a rollback journal, one durable transaction a result."""

from __future__ import annotations

import json
import secrets
import sqlite3
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

import mxfp4_validate
from mxfp4_validate.errors import UsageError

SCHEMA_VERSION = 1
_SCHEMA = """
CREATE TABLE run (id TEXT PRIMARY KEY, created TEXT NOT NULL, version TEXT NOT NULL, settings TEXT NOT NULL, provenance TEXT NOT NULL,
                  finished TEXT, exit_status INTEGER);
CREATE TABLE result (run_id TEXT NOT NULL REFERENCES run(id), item_id TEXT NOT NULL, "check" TEXT NOT NULL, family TEXT NOT NULL,
                     case_id TEXT NOT NULL, backend TEXT NOT NULL, outcome TEXT NOT NULL, message TEXT NOT NULL, metrics TEXT NOT NULL,
                     seconds REAL NOT NULL, worker TEXT NOT NULL, at TEXT NOT NULL, PRIMARY KEY (run_id, backend, item_id));
"""
_COLUMNS = ("item_id", "check", "family", "case_id", "backend", "outcome", "message", "metrics", "seconds", "worker", "at")


@dataclass(frozen=True)
class Result:
    """What came of one check on one case with one backend. `outcome` is one of `worker.protocol.OUTCOMES`."""

    item_id: str
    check: str
    family: str
    case_id: str
    backend: str
    outcome: str
    message: str = ""
    metrics: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    worker: str = "main"
    at: str = ""

    def to_json(self) -> str:
        return json.dumps(asdict(self), allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Result:
        return cls(**json.loads(text))


@dataclass(frozen=True)
class Run:
    """The run a file holds; `finished` is None if it was cut short."""

    id: str
    created: str
    version: str
    settings: dict[str, Any]
    provenance: dict[str, Any]
    finished: str | None
    exit_status: int | None


def now() -> str:
    """This moment as ISO 8601 in UTC."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def new_run_id() -> str:
    """Sortable by time, and unique without asking anyone."""
    return datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ-") + secrets.token_hex(3)


class Store:
    """One run's file. Write with `create`, read with `open`; both are context managers."""

    def __init__(self, path: Path, connection: sqlite3.Connection, run_id: str) -> None:
        self.path = path
        self.run_id = run_id
        self._db = connection

    @classmethod
    def create(cls, path: Path, settings: Mapping[str, Any], provenance: Mapping[str, Any]) -> Store:
        """A new file at `path`, or, if `path` is a folder, at `path/RUN-ID.sqlite`; never an existing one."""
        run_id = new_run_id()
        path = Path(path)
        if path.suffix != ".sqlite":
            path = path / f"{run_id}.sqlite"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.open("x").close()
            db = sqlite3.connect(path, isolation_level=None)
        except (OSError, sqlite3.Error) as error:
            raise UsageError(f"cannot create the record {path}: {error}") from error
        db.execute("PRAGMA journal_mode=DELETE")
        db.execute("PRAGMA synchronous=FULL")
        db.executescript(f"BEGIN; {_SCHEMA} PRAGMA user_version={SCHEMA_VERSION}; COMMIT;")
        db.execute(
            "INSERT INTO run VALUES (?, ?, ?, ?, ?, NULL, NULL)",
            (run_id, now(), mxfp4_validate.__version__, json.dumps(settings), json.dumps(provenance)),
        )
        return cls(path, db, run_id)

    @classmethod
    def open(cls, path: Path) -> Store:
        """The run in `path`, read-only; `UsageError` if it is not a record of ours."""
        path = Path(path)
        if not path.is_file():
            raise UsageError(f"no record at {path}")
        try:
            if path.with_name(path.name + "-journal").exists():  # a killed writer's open transaction: only a writer may roll it back
                with sqlite3.connect(path) as writer:
                    writer.execute("SELECT count(*) FROM run").fetchone()
                writer.close()
            db = sqlite3.connect(path.resolve().as_uri() + "?mode=ro", uri=True, isolation_level=None)
            (version,) = db.execute("PRAGMA user_version").fetchone()
            row = db.execute("SELECT id FROM run").fetchone() if version == SCHEMA_VERSION else None
        except sqlite3.Error as error:
            raise UsageError(f"{path} is not a record of mxfp4-validate: {error}") from error
        if row is None:
            db.close()
            raise UsageError(f"{path} has record schema {version}, this version reads {SCHEMA_VERSION}, with one run in it")
        return cls(path, db, row[0])

    def add(self, result: Result) -> None:
        """Keep a result; once this returns it survives a crash. A second one for the same item replaces the first."""
        values = [json.dumps(result.metrics, allow_nan=False) if name == "metrics" else getattr(result, name) for name in _COLUMNS]
        self._db.execute(f"INSERT OR REPLACE INTO result VALUES ({', '.join('?' * (len(_COLUMNS) + 1))})", [self.run_id, *values])

    def finish(self, exit_status: int) -> None:
        """Note that the run came to its end."""
        self._db.execute("UPDATE run SET finished = ?, exit_status = ? WHERE id = ?", (now(), exit_status, self.run_id))

    def run(self) -> Run:
        """The run's own row."""
        row = self._db.execute("SELECT id, created, version, settings, provenance, finished, exit_status FROM run").fetchone()
        return Run(row[0], row[1], row[2], json.loads(row[3]), json.loads(row[4]), row[5], row[6])

    def results(self) -> list[Result]:
        """All results in the order in which they were added."""
        names = ", ".join(f'"{name}"' for name in _COLUMNS)
        rows = [dict(zip(_COLUMNS, row, strict=True)) for row in self._db.execute(f"SELECT {names} FROM result ORDER BY rowid")]
        return [Result(**{**row, "metrics": json.loads(row["metrics"])}) for row in rows]

    def export_jsonl(self, stream: TextIO) -> None:
        """The run on the first line, then one result a line."""
        stream.write(json.dumps(asdict(self.run())) + "\n")
        for result in self.results():
            stream.write(result.to_json() + "\n")

    def close(self) -> None:
        self._db.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
