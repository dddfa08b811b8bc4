"""One process a run folder: a kernel lock that dies with its holder, and a check that the folder can hold a run at all."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
from pathlib import Path
from types import TracebackType

from mxfp4_validate.errors import UsageError


class FolderLock:
    """Holds `FOLDER/run.lock` while a run writes there. A killed holder leaves no lock behind; the file's pid is only for the message."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "run.lock"
        self._fd = -1

    def __enter__(self) -> FolderLock:
        check_folder(self._path.parent)
        try:
            self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        except OSError as error:
            raise UsageError(f"--out {self._path.parent}: cannot open run.lock: {error.strerror}") from error
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.read(self._fd, 32).decode("ascii", "replace").strip()
            os.close(self._fd)
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                raise UsageError(
                    f"--out {self._path.parent}: another process (pid {holder}) is writing this run; wait for it, or use another folder"
                ) from error
            raise UsageError(f"--out {self._path.parent}: its file system has no locks ({error.strerror}); use a local folder") from error
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, str(os.getpid()).encode(), 0)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        os.close(self._fd)


def check_folder(folder: Path) -> None:
    """`UsageError` before the first request if the folder cannot be written, fsynced and renamed in, or leads elsewhere by a link."""
    probe = folder / f".probe-{secrets.token_hex(4)}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("run.sqlite", "run.lock", "run.sqlite-journal"):
            if (folder / name).is_symlink():
                raise UsageError(f"--out {folder}: {name} is a symbolic link; a run is never written through one")
        with probe.open("xb") as file:
            file.write(b"probe")
            file.flush()
            os.fsync(file.fileno())
        renamed = probe.with_suffix(".renamed")
        probe.rename(renamed)
        content = renamed.read_bytes()
        renamed.unlink()
    except OSError as error:
        with contextlib.suppress(OSError):
            probe.unlink(missing_ok=True)
        raise UsageError(f"--out {folder}: cannot write there: {error.strerror or error}; choose another folder") from error
    if content != b"probe":
        raise UsageError(f"--out {folder}: its file system does not give back what was written; choose another folder")
