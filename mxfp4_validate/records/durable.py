"""SQLite as the stores use it: a rollback journal, every commit on the disk before it returns."""

from __future__ import annotations

import hashlib
import os
import sqlite3
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from mxfp4_validate.errors import IncompleteRun, InvalidRun, UsageError

_DISK = (
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_READONLY,
)


def connect(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=10)
    try:
        db.execute("PRAGMA journal_mode=DELETE")
        db.execute("PRAGMA synchronous=FULL")
    except sqlite3.Error:
        db.close()
        raise
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
            temporary.unlink()
            raise
        temporary.rename(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def create(path: Path, schema: str, version: int, fill: Callable[[sqlite3.Connection], None], what: str) -> sqlite3.Connection:
    """A new file with that schema and what `fill` puts into it, whole or not at all; never an existing one. `what` names it in `UsageError`."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(path.name + ".new")
        temporary.unlink(missing_ok=True)
        with closing(connect(temporary)) as db, Transaction(db):
            for statement in (*schema.split(";"), f"PRAGMA user_version={version}"):
                db.execute(statement)
            fill(db)
        publish(temporary, path)
        return connect(path)
    except (OSError, sqlite3.Error) as error:
        raise UsageError(f"cannot create the {what} {path}: {error}") from error


def open_checked(path: Path, version: int, a_what: str, whats: str) -> sqlite3.Connection:
    """An existing file, read-only, checked page by page.

    `UsageError` for one that is no `a_what` ("an eval run") or of another version than `whats` ("eval runs") have, or that does not hold one
    run; `InvalidRun` if it is damaged, `IncompleteRun` if the disk does not give it.
    """
    with ExitStack() as stack:
        try:
            if path.with_name(path.name + "-journal").exists():  # a killed writer's open transaction: only a writer may roll it back
                connect(path).close()
            db = sqlite3.connect(path.resolve().as_uri() + "?mode=ro", uri=True, isolation_level=None)
            stack.callback(db.close)
            (found,) = db.execute("PRAGMA user_version").fetchone()
            rows = db.execute("SELECT count(*) FROM run").fetchone()[0] if found == version else 0
            # A page that lost rows still has good checksums on those that are left.
            pages = db.execute("PRAGMA integrity_check(1)").fetchall() if rows == 1 else []
        except (sqlite3.Error, UnicodeError) as error:
            if disk_failed(error):
                raise IncompleteRun(f"{path} cannot be read: {error}; mend that, then run the same command again") from error
            raise UsageError(f"{path} is not {a_what} of mxfp4-validate: {error}") from error
        if rows != 1:
            raise UsageError(f"{path} has record schema {found}, this version reads {whats} of schema {version}")
        if pages != [("ok",)]:
            raise InvalidRun(f"{path} is damaged, it cannot be trusted: {pages[0][0] if pages else 'it cannot be checked'}")
        stack.pop_all()
    return db


@contextmanager
def damage(path: Path) -> Iterator[None]:
    """Turns what SQLite and the codecs say of a damaged file into `InvalidRun`, and a disk that fails just now into `IncompleteRun`."""
    try:
        yield
    except (sqlite3.Error, ValueError, TypeError, LookupError, AttributeError, OverflowError, RecursionError, zlib.error) as error:
        if disk_failed(error):
            raise IncompleteRun(f"{path} cannot be read or written: {error}; mend that, then run the same command again") from error
        raise InvalidRun(f"{path} is damaged, it cannot be trusted: {error}") from error


def disk_failed(error: Exception) -> bool:
    """Whether it is the disk or another process that stands in the way, not what the file holds."""
    code = getattr(error, "sqlite_errorcode", None) or 0
    return code & 0xFF in _DISK and code != sqlite3.SQLITE_IOERR_SHORT_READ


def checksum(values: tuple[object, ...]) -> str:
    """sha256 over all values, each with its type and length."""
    h = hashlib.sha256()
    for value in values:
        data = value if isinstance(value, bytes) else repr(value).encode("utf-8", "backslashreplace")
        h.update(type(value).__name__.encode() + len(data).to_bytes(8, "big") + data)
    return h.hexdigest()[:32]


def sealed(values: tuple[object, ...]) -> tuple[object, ...]:
    """The values with their checksum behind them, as a row is stored."""
    return (*values, checksum(values))


def unsealed(row: tuple[Any, ...], what: str) -> tuple[Any, ...]:
    """The values of a stored row; `InvalidRun` names it if a byte of it changed since it was written."""
    *values, stored = row
    if checksum(tuple(values)) != stored:
        raise InvalidRun(f"{what}: its checksum does not match, the file was damaged or edited")
    return tuple(values)
