"""SQLite as the stores use it: a rollback journal, every commit on the disk before it returns."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path
from types import TracebackType


def connect(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=10)
    db.execute("PRAGMA journal_mode=DELETE")
    db.execute("PRAGMA synchronous=FULL")
    return db


class Transaction:
    """BEGIN IMMEDIATE .. COMMIT, rolled back on any error."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def __enter__(self) -> None:
        self._db.execute("BEGIN IMMEDIATE")

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None:
            self._db.execute("COMMIT")
        elif self._db.in_transaction:
            self._db.execute("ROLLBACK")


def plain(text: str) -> str:
    """`text` with lone surrogates and NULs written out, so that SQLite and any reader can hold it."""
    return text.encode("utf-8", "backslashreplace").decode().replace("\x00", "\\x00")


def publish(temporary: Path, path: Path) -> None:
    """Give a finished file its name: never half a file, never over another one, and the folder's entry on the disk."""
    try:
        path.hardlink_to(temporary)
        temporary.unlink()
    except FileExistsError:
        temporary.unlink()
        raise
    except OSError:  # a file system without hard links
        if path.exists():
            raise
        temporary.rename(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
