"""The file of a bench: SQLite like the other records, a durable transaction a group, so that what was measured survives a kill."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any

import mxfp4_validate
from mxfp4_validate.bench.floor import Floor, floor_of, peak_of
from mxfp4_validate.bench.spec import Plan, Row, row_of
from mxfp4_validate.cases import MoeShape
from mxfp4_validate.errors import IncompleteRun, InvalidRun, UsageError
from mxfp4_validate.records.durable import Transaction, connect, damage, disk_failed, publish, sealed, unsealed
from mxfp4_validate.records.store import new_run_id, now

SCHEMA_VERSION = 301  # kernel records count from 1, eval records from 101, divergence records from 201, bench records from 301
_SCHEMA = """
CREATE TABLE run (id TEXT PRIMARY KEY, created TEXT NOT NULL, version TEXT NOT NULL, settings TEXT NOT NULL, provenance TEXT NOT NULL,
                  checksum TEXT NOT NULL);
CREATE TABLE "group" (place INTEGER NOT NULL, part TEXT NOT NULL, rows TEXT NOT NULL, at TEXT NOT NULL, checksum TEXT NOT NULL,
                      PRIMARY KEY (place, part));
CREATE TABLE fact (name TEXT PRIMARY KEY, value TEXT NOT NULL, checksum TEXT NOT NULL);
CREATE TABLE ended (exit_status INTEGER NOT NULL, at TEXT NOT NULL, checksum TEXT NOT NULL)
"""


@dataclass(frozen=True)
class BenchRun:
    """A bench as read: `facts` by backend (versions, or why it cannot run) and, under `device`, of the device; `exit_status` None if cut short."""

    id: str
    created: str
    version: str
    settings: dict[str, Any]
    provenance: dict[str, Any]
    facts: dict[str, dict[str, Any]]
    rows: tuple[Row, ...]
    exit_status: int | None

    @cached_property
    def plan(self) -> Plan:
        return Plan.from_settings(self.settings)

    @property
    def device(self) -> str:
        """The GPU's name as its driver gives it, or `cpu`."""
        return str(self.facts.get("device", {}).get("name", self.settings["device"]))

    def shape(self, row: Row) -> MoeShape:
        """The shape of a row, its bias as measured."""
        return next(s for s, bias in self.plan.sides() if (s.name, bias) == (row.shape, row.bias))

    def floor(self, row: Row) -> Floor | None:
        """What the row is held against; None where no peaks are known (a CPU, another GPU, a slice)."""
        peak = peak_of(self.device)
        return None if peak is None or not row.experts_hit else floor_of(self.shape(row), row.tokens, row.experts_hit, peak)

    def absent(self) -> tuple[tuple[str, str], ...]:
        """Backends that could not run, with their reasons."""
        return tuple((name, str(fact.get("reason", ""))) for name, fact in self.facts.items() if fact.get("available") is False)

    def sides(self) -> list[tuple[str, bool]]:
        """Every (shape, bias) that has a row, in the order measured."""
        return list(dict.fromkeys((row.shape, row.bias) for row in self.rows))

    def of(self, side: tuple[str, bool]) -> tuple[Row, ...]:
        """The rows of one (shape, bias)."""
        return tuple(row for row in self.rows if (row.shape, row.bias) == side)


class BenchStore:
    """One bench's file; `create` a new one, `resume` to go on writing, `read_bench` to read."""

    def __init__(self, path: Path, db: sqlite3.Connection) -> None:
        self.path = path
        self._db = db

    @classmethod
    def create(cls, path: Path, settings: Mapping[str, Any], provenance: Mapping[str, Any]) -> BenchStore:
        """A new file, never an existing one."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_name(path.name + ".new")
            temporary.unlink(missing_ok=True)
            with closing(connect(temporary)) as db, Transaction(db):
                for statement in (*_SCHEMA.split(";"), f"PRAGMA user_version={SCHEMA_VERSION}"):
                    db.execute(statement)
                texts = (json.dumps(value, sort_keys=True, allow_nan=False) for value in (settings, provenance))
                db.execute("INSERT INTO run VALUES (?,?,?,?,?,?)", sealed((new_run_id(), now(), mxfp4_validate.__version__, *texts)))
            publish(temporary, path)
            return cls(path, connect(path))
        except (OSError, sqlite3.Error) as error:
            raise UsageError(f"--out {path}: cannot create the record: {error}") from error

    @classmethod
    def resume(cls, path: Path, settings: Mapping[str, Any], provenance: Mapping[str, Any]) -> BenchStore:
        """An unfinished bench to go on with; `UsageError` unless it measures the same thing on the same machine with the same versions."""
        run = read_bench(path)
        here = dict(settings) | {name: provenance[name] for name in ("gpus", "versions", "commit")}
        there = run.settings | {name: run.provenance.get(name) for name in ("gpus", "versions", "commit")}
        wrong = [name for name in here if json.loads(json.dumps(here[name])) != there.get(name)]
        if wrong:
            raise UsageError(f"--out {path} holds a bench with another {', '.join(wrong)}; name another file, or repeat its options")
        return cls(path, connect(path))

    def add(self, place: int, part: str, rows: Sequence[Row]) -> None:
        """Keep the rows of the plan's group number `place`; once this returns they survive a crash. `part` is a backend measured alone, or empty."""
        text = json.dumps([asdict(row) for row in rows], allow_nan=False)
        with damage(self.path), Transaction(self._db):
            self._db.execute('INSERT OR REPLACE INTO "group" VALUES (?,?,?,?,?)', sealed((place, part, text, now())))

    def note(self, name: str, value: Mapping[str, Any]) -> None:
        """Keep a backend's facts, or the device's under `device`."""
        with damage(self.path), Transaction(self._db):
            text = json.dumps(dict(value), sort_keys=True, allow_nan=False)
            self._db.execute("INSERT OR REPLACE INTO fact VALUES (?,?,?)", sealed((name, text)))

    def done(self) -> set[tuple[int, str]]:
        """Place and part of every group that is kept."""
        with damage(self.path):
            return {(row[0], row[1]) for row in self._db.execute('SELECT place, part FROM "group"')}

    def finish(self, exit_status: int) -> None:
        """Note that everything planned was tried."""
        with damage(self.path), Transaction(self._db):
            self._db.execute("DELETE FROM ended")
            self._db.execute("INSERT INTO ended VALUES (?,?,?)", sealed((exit_status, now())))

    def close(self) -> None:
        self._db.close()

    def __enter__(self) -> BenchStore:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def read_bench(path: Path) -> BenchRun:
    """The bench in `path`; `UsageError` if it is no bench record of ours, `InvalidRun` if a byte of it changed since it was written."""
    if not path.is_file():
        raise UsageError(f"no bench record at {path}")
    with ExitStack() as stack:
        try:
            if path.with_name(path.name + "-journal").exists():  # a killed writer's open transaction: only a writer may roll it back
                connect(path).close()
            db = stack.enter_context(closing(sqlite3.connect(path.resolve().as_uri() + "?mode=ro", uri=True, isolation_level=None)))
            (version,) = db.execute("PRAGMA user_version").fetchone()
        except sqlite3.Error as error:
            if disk_failed(error):
                raise IncompleteRun(f"{path} cannot be read: {error}; mend that, then run the same command again") from error
            raise UsageError(f"{path} is not a bench record of mxfp4-validate: {error}") from error
        if version != SCHEMA_VERSION:
            raise UsageError(f"{path} has record schema {version}, this version reads bench records of schema {SCHEMA_VERSION}")
        with damage(path):
            found = db.execute("PRAGMA integrity_check(1)").fetchall()
            tables = {name: db.execute(f'SELECT * FROM "{name}" ORDER BY rowid').fetchall() for name in ("run", "group", "fact", "ended")}
        if found != [("ok",)] or len(tables["run"]) != 1:
            raise InvalidRun(f"{path} is damaged, it cannot be trusted: {found[0][0] if found != [('ok',)] else 'it is not one run'}")
        return _read(path, tables)


def _read(path: Path, tables: Mapping[str, Sequence[tuple[Any, ...]]]) -> BenchRun:
    """The tables' rows, each checked against its checksum."""
    run = unsealed(tables["run"][0], f"{path}: the run's own row")
    groups = sorted((unsealed(row, f"{path}: group {row[0]}") for row in tables["group"]), key=lambda group: group[0])
    facts = [unsealed(row, f"{path}: facts of {row[0]!r}") for row in tables["fact"]]
    ended = [unsealed(row, f"{path}: the run's end") for row in tables["ended"]]
    with damage(path):
        rows = tuple(row_of(data) for group in groups for data in json.loads(group[2]))
        known = {name: dict(json.loads(value)) for name, value in facts}
        settings, provenance = dict(json.loads(run[3])), dict(json.loads(run[4]))
        found = BenchRun(run[0], run[1], run[2], settings, provenance, known, rows, ended[0][0] if ended else None)
        strange = set(found.sides()) - {(shape.name, bias) for shape, bias in found.plan.sides()}
        if strange:
            raise ValueError(f"it has rows of {sorted(strange)}, which its plan has not")
        return found
