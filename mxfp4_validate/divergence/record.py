"""The file of a divergence run: SQLite like the other records; a sequence that `add` returned from survives a kill and a power cut."""

from __future__ import annotations

import json
import sqlite3
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

import mxfp4_validate
from mxfp4_validate.divergence.corpus import Corpus, parse
from mxfp4_validate.divergence.scores import Scores
from mxfp4_validate.errors import InvalidRun, UsageError
from mxfp4_validate.records.durable import Transaction, connect, create, damage, open_checked, plain, sealed, unsealed
from mxfp4_validate.records.store import new_run_id, now

SCHEMA_VERSION = 201  # kernel records count from 1, eval records from 101, divergence records from 201
ROLES = ("baseline", "floor", "declared", "candidate")
_SCHEMA = """
CREATE TABLE run (id TEXT PRIMARY KEY, created TEXT NOT NULL, version TEXT NOT NULL, corpus_sha256 TEXT NOT NULL, corpus BLOB NOT NULL,
                  top INTEGER NOT NULL, width INTEGER NOT NULL, settings TEXT NOT NULL, checksum TEXT NOT NULL);
CREATE TABLE arm (name TEXT PRIMARY KEY, role TEXT NOT NULL, boot TEXT NOT NULL, address TEXT NOT NULL, identity TEXT NOT NULL, at TEXT NOT NULL,
                  checksum TEXT NOT NULL);
CREATE TABLE score (arm TEXT NOT NULL REFERENCES arm(name), place INTEGER NOT NULL, sequence TEXT NOT NULL, outcome TEXT NOT NULL,
                    data BLOB NOT NULL, error TEXT NOT NULL, tokens INTEGER NOT NULL, seconds REAL NOT NULL, at TEXT NOT NULL, checksum TEXT NOT NULL,
                    PRIMARY KEY (arm, place));
"""
OK, NOT_FINITE = "ok", "not-finite"


@dataclass(frozen=True)
class ArmRow:
    """One arm: a boot of a server that scored the corpus. `role` is one of `ROLES`, `identity` its settings."""

    name: str
    role: str
    boot: str
    address: str
    identity: Mapping[str, str]


@dataclass(frozen=True)
class ScoreRow:
    """What one arm said of one sequence: `scores`, or None and `error` where it was no number. `tokens` were sent for it."""

    place: int
    scores: Scores | None
    error: str = ""
    tokens: int = 0
    seconds: float = 0.0


class DivergenceStore:
    """One divergence run's file; `create` a new one, `resume` to go on writing, `open` to read."""

    def __init__(self, path: Path, db: sqlite3.Connection) -> None:
        self.path = path
        self._db = db
        self.corpus, self.top, self.width, self.settings = self._run()

    @classmethod
    def create(cls, path: Path, corpus: Corpus, top: int, width: int, settings: Mapping[str, Any]) -> DivergenceStore:
        """A new file that holds the corpus. Never an existing file."""
        head = (new_run_id(), now(), mxfp4_validate.__version__, corpus.sha256, zlib.compress(corpus.canonical()))
        row = (*head, top, width, json.dumps(settings, sort_keys=True, allow_nan=False))

        def fill(db: sqlite3.Connection) -> None:
            db.execute("INSERT INTO run VALUES (?,?,?,?,?,?,?,?,?)", sealed(row))

        return cls(path, create(path, _SCHEMA, SCHEMA_VERSION, fill, "divergence run"))

    @classmethod
    def resume(cls, path: Path, corpus: Corpus | None = None) -> DivergenceStore:
        """An existing run, to add to it; `UsageError` if it holds another corpus than the one given."""
        with cls.open(path) as store:
            if corpus is not None and store.corpus.sha256 != corpus.sha256:
                raise UsageError(
                    f"{path} holds corpus {store.corpus.sha256[:12]}, not {corpus.sha256[:12]}; use another file for another corpus"
                )
        return cls(path, connect(path))

    @classmethod
    def open(cls, path: Path) -> DivergenceStore:
        """An existing run, read-only; `UsageError` if it is no divergence record of ours, `InvalidRun` if its file is damaged."""
        if not path.is_file():
            raise UsageError(f"no divergence run at {path}")
        db = open_checked(path, SCHEMA_VERSION, "a divergence run", "divergence runs")
        try:
            return cls(path, db)
        except BaseException:
            db.close()
            raise

    def _run(self) -> tuple[Corpus, int, int, dict[str, Any]]:
        rows = self._rows("SELECT * FROM run")
        if len(rows) != 1:
            raise InvalidRun(f"{self.path} is damaged, it cannot be trusted: it describes {len(rows)} runs")
        values = unsealed(rows[0], "the run's own row")
        self.id, self.created, self.version = map(str, values[:3])
        with damage(self.path):
            corpus = parse(zlib.decompress(values[4]), str(self.path))
            settings = dict(json.loads(values[7]))
        if corpus.sha256 != values[3]:
            raise InvalidRun(f"{self.path}: its corpus does not have the sha256 it is said to have; the file was damaged or edited")
        return corpus, int(values[5]), int(values[6]), settings

    def add_arm(self, arm: ArmRow) -> None:
        """Begin an arm, or go on with it; `UsageError` if an arm of that name is of another boot or server."""
        if arm.role not in ROLES:
            raise UsageError(f"arm {arm.name!r} has role {arm.role!r}, it must be one of {', '.join(ROLES)}")
        old = self.arms().get(arm.name)
        if old is None:
            row = (arm.name, arm.role, arm.boot, arm.address, json.dumps(dict(arm.identity), sort_keys=True), now())
            self._db.execute("INSERT INTO arm VALUES (?,?,?,?,?,?,?)", sealed(row))
        elif (old.role, old.boot, dict(old.identity)) != (arm.role, arm.boot, dict(arm.identity)):
            raise UsageError(
                f"arm {arm.name!r} of {self.path} is {old.role} on boot {old.boot}, not {arm.role} on {arm.boot}; name a new arm"
            )

    def arms(self) -> dict[str, ArmRow]:
        """Arms by name, in the order they were begun."""
        rows = [unsealed(row, f"arm {row[0]!r}") for row in self._rows("SELECT * FROM arm ORDER BY rowid")]
        with damage(self.path):
            return {row[0]: ArmRow(row[0], row[1], row[2], row[3], dict(json.loads(row[4]))) for row in rows}

    def missing(self, arm: str) -> list[int]:
        """Places of the corpus that the arm has not scored yet."""
        done = {row[0] for row in self._rows("SELECT place FROM score WHERE arm=?", (arm,))}
        return [place for place in range(len(self.corpus.sequences)) if place not in done]

    def add(self, arm: str, row: ScoreRow) -> None:
        """Keep one sequence in one durable transaction; a second answer is refused."""
        sequence = self.corpus.sequences[row.place]
        if row.scores is not None and row.scores.top.shape != (sequence.scored, self.top):
            raise ValueError(f"scores of shape {row.scores.top.shape} for sequence {row.place}, not {(sequence.scored, self.top)}")
        outcome, data = (NOT_FINITE, b"") if row.scores is None else (OK, _packed(row.scores))
        values = (arm, row.place, sequence.sha256, outcome, data, plain(row.error), row.tokens, row.seconds, now())
        try:
            with Transaction(self._db):
                self._db.execute("INSERT INTO score VALUES (?,?,?,?,?,?,?,?,?,?)", sealed(values))
        except sqlite3.IntegrityError as error:
            raise InvalidRun(f"arm {arm!r} has sequence {row.place} already; a second answer is refused") from error

    def scores(self, arm: str) -> dict[int, ScoreRow]:
        """What the arm said, by place, each checked against its checksum and against the corpus."""
        out = {}
        for stored in self._rows("SELECT * FROM score WHERE arm=? ORDER BY place", (arm,)):
            row = unsealed(stored, f"sequence {stored[1]} of arm {arm!r}")
            sequence = self.corpus.sequences[row[1]] if 0 <= row[1] < len(self.corpus.sequences) else None
            if sequence is None or row[2] != sequence.sha256:
                raise InvalidRun(f"{self.path}: arm {arm!r} holds a sequence {row[1]} that is not the corpus's")
            with damage(self.path):
                scores = _unpacked(row[4], sequence.scored, self.top) if row[3] == OK else None
            out[int(row[1])] = ScoreRow(row[1], scores, row[5], row[6], row[7])
        return out

    def _rows(self, sql: str, values: tuple[object, ...] = ()) -> list[tuple[Any, ...]]:
        with damage(self.path):
            return self._db.execute(sql, values).fetchall()

    def close(self) -> None:
        self._db.close()

    def __enter__(self) -> DivergenceStore:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def _packed(scores: Scores) -> bytes:
    """Chosen and listed log-probabilities as float64, ids as int32, little-endian, then the texts as JSON; the bits come back as they were."""
    parts = (scores.chosen.astype("<f8"), scores.top.astype("<f8"), scores.top_ids.astype("<i4"))
    return zlib.compress(b"".join(part.tobytes() for part in parts) + json.dumps(scores.texts).encode(), 6)


def _unpacked(data: bytes, n: int, top: int) -> Scores:
    raw = zlib.decompress(data)
    ends = np.cumsum([8 * n, 8 * n * top, 4 * n * top])
    chosen = np.frombuffer(raw[: ends[0]], "<f8").copy()
    listed = np.frombuffer(raw[ends[0] : ends[1]], "<f8").reshape(n, top).copy()
    ids = np.frombuffer(raw[ends[1] : ends[2]], "<i4").reshape(n, top).copy()
    return Scores(chosen, ids, listed, tuple(json.loads(raw[ends[2] :])))
