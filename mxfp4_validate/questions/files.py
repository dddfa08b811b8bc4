"""Rows from a local file: JSON lines, CSV or Parquet; nothing that could run code."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

from mxfp4_validate.errors import UsageError

LARGEST = 64 << 20  # bytes of a file
MOST = 100_000  # rows
_READ = (".jsonl", ".txt", ".csv", ".parquet")
_UNSAFE = (".pkl", ".pickle", ".npy", ".npz", ".pt", ".pth", ".bin", ".dill", ".joblib", ".ckpt")

Row = tuple[str, dict[str, Any]]


def rows(path: Path) -> list[Row]:
    """The rows of a file, each with the place it stands at, for messages.

    Raises:
        UsageError: no such file, a kind that is not read, too large, or a row that cannot be read.
    """
    kind = path.suffix.lower()
    if kind in _UNSAFE:
        raise UsageError(f"{path}: {kind} files can run code when they are read; convert it to one of {', '.join(_READ)}")
    if kind not in _READ:
        raise UsageError(f"{path}: {kind or 'no'} extension; question files are {', '.join(_READ)}")
    if not path.is_file():
        raise UsageError(f"{path}: no such file")
    size = path.stat().st_size
    if size > LARGEST:
        raise UsageError(f"{path}: {size:,} bytes, at most {LARGEST:,} are read; give the test split alone")
    found = _parquet(path) if kind == ".parquet" else text_rows(path.read_bytes(), str(path), kind)
    if len(found) > MOST:
        raise UsageError(f"{path}: {len(found):,} rows, at most {MOST:,} are read; give the test split alone")
    return found


def text_rows(data: bytes, name: str, kind: str) -> list[Row]:
    """The rows of a JSON lines (`.jsonl`, `.txt`) or CSV text."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"{name}: not UTF-8 at byte {error.start}; save it as UTF-8") from error
    return list(_csv(text, name) if kind == ".csv" else _lines(text, name))


def _lines(text: str, name: str) -> Iterator[Row]:
    # Split at LF alone: str.splitlines would also cut at U+2028 and its like, which may stand in a string.
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        where = f"{name}:{number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UsageError(f"{where}: not a line of JSON: {str(error)[:120]}") from error
        if not isinstance(row, dict):
            raise UsageError(f"{where}: a {type(row).__name__}; each line must be one object")
        yield where, row


def _csv(text: str, name: str) -> Iterator[Row]:
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    csv.field_size_limit(LARGEST)
    try:
        for number, row in enumerate(reader, 1):
            if None in row:
                raise UsageError(f"{name}: row {number} has more fields than the header; quote fields that hold commas")
            yield f"{name}: row {number}", row
    except csv.Error as error:
        raise UsageError(f"{name}: line {reader.line_num}: {error}") from error


def _parquet(path: Path) -> list[Row]:
    try:
        arrow, parquet = import_module("pyarrow"), import_module("pyarrow.parquet")
    except ImportError as error:
        raise UsageError(f"{path}: reading Parquet needs pyarrow: pip install 'mxfp4-validate[eval]', or convert it to .jsonl") from error
    try:
        file = parquet.ParquetFile(path)
        meta = file.metadata
        if meta.num_rows > MOST:
            raise UsageError(f"{path}: {meta.num_rows:,} rows, at most {MOST:,} are read; give the test split alone")
        # A compressed file of a few bytes may unpack to anything: its own header says how much.
        unpacked = sum(meta.row_group(place).total_byte_size for place in range(meta.num_row_groups))
        if unpacked > 4 * LARGEST:
            raise UsageError(f"{path}: unpacks to {unpacked:,} bytes, at most {4 * LARGEST:,} are read; give the test split alone")
        table = file.read()
    except (arrow.ArrowException, OSError) as error:
        raise UsageError(f"{path}: not a Parquet file: {str(error)[:120]}") from error
    return [(f"{path}: row {number}", row) for number, row in enumerate(table.to_pylist(), 1)]
