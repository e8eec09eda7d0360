"""The files of ledgers: one a server in the folder `ledger` of the state folder, with a lock beside it."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import sqlite3
import stat
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from clover.cache import make_private, state_folder
from clover.errors import LedgerError

FOLDER = "ledger"
SUFFIX = ".db"
_PARTS = ("", "-wal", "-shm")
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")


def ledger_path(state_dir: str, name: str) -> Path:
    """Return the file of the server called `name` (`server_name`); raises ConfigError if there is no home folder."""
    return state_folder(state_dir) / FOLDER / f"{name}{SUFFIX}"


def ledgers_in(state_dir: str) -> list[Path]:
    """Return the ledgers in a state folder, the one that was written last first; raises as `ledger_path` does."""
    found = (state_folder(state_dir) / FOLDER).glob(f"*{SUFFIX}")
    return sorted(found, key=lambda path: (-last_written_s(path), path.name))


def last_written_s(path: Path) -> float:
    """Return when a ledger was last written to; 0 if it is gone."""
    return max((file.stat().st_mtime for file in _files(path) if file.exists()), default=0.0)


def server_name(name: str, host: str, port: int) -> str:
    """Return the name of a server's file: its own, or one made of the address that it is configured with."""
    return name or _UNSAFE.sub("_", f"{host}-{port}")


def size_bytes(path: Path) -> int:
    """Return the bytes of a ledger on the disk, its journal included; 0 without a file."""
    return sum(file.stat().st_size for file in _files(path) if file.exists())


def same_file(path: Path, inode: int) -> bool:
    """Return whether `path` still is the file that had this number when it was opened."""
    try:
        return path.stat().st_ino == inode
    except (FileNotFoundError, NotADirectoryError):
        return False


def check_folder(folder: Path) -> None:
    """Make `folder` for this user alone if it is missing; LedgerError if others may write to it.  Raises OSError."""
    make_private(folder)
    found = folder.stat()
    if found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o022:
        raise LedgerError(
            "others can write to its folder, and so change it: `chmod go-w` the folder, or name another --state-dir"
        )


class LedgerLock:
    """Keeps other servers off a ledger, until `close` or the end of the process.  LedgerError if one has it."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(self._fd, 0)
            os.pwrite(self._fd, b"%d\n" % os.getpid(), 0)
        except BlockingIOError:
            pid = os.pread(self._fd, 32, 0).decode(errors="replace").strip() or "unknown"
            os.close(self._fd)
            raise LedgerError(
                f"another server (process {pid}) keeps it: give this one a file of its own, as with --ledger-name"
            ) from None
        except BaseException:
            os.close(self._fd)
            raise

    def close(self) -> None:
        """Let others have it."""
        os.close(self._fd)


def set_aside(path: Path, at_s: float) -> Path:
    """Set a damaged ledger aside under another name, with its journal; return that.  Raises OSError."""
    stamp = datetime.fromtimestamp(at_s, UTC).strftime("%Y%m%dT%H%M%SZ")
    new = path.with_name(f"{path.name}.corrupt-{stamp}")
    count = 1
    while new.exists():
        count += 1
        new = path.with_name(f"{path.name}.corrupt-{stamp}-{count}")
    for part in _PARTS:
        old = Path(f"{path}{part}")
        if old.exists():
            os.replace(old, f"{new}{part}")
    return new


def reason_of(error: Exception) -> str:
    """Return one of `REASONS`: why a ledger cannot be written."""
    if isinstance(error, LedgerError):
        text = str(error)
        return "taken" if "another server" in text else "later" if "of version" in text else "refused"
    if isinstance(error, sqlite3.Error):
        name = getattr(error, "sqlite_errorname", "") or ""
        for start, word in _SQLITE.items():
            if name.startswith(start):
                return word
        return "damaged" if type(error) is sqlite3.DatabaseError else "failed"
    if isinstance(error, OSError):
        return _ERRNO.get(error.errno or 0, "failed")
    return "failed"


REASONS = ("full", "locked", "taken", "readonly", "damaged", "removed", "later", "refused", "failed")

_SQLITE = {
    "SQLITE_FULL": "full",
    "SQLITE_BUSY": "locked",
    "SQLITE_LOCKED": "locked",
    "SQLITE_READONLY": "readonly",
    "SQLITE_CANTOPEN": "readonly",
    "SQLITE_PERM": "readonly",
    "SQLITE_CORRUPT": "damaged",
    "SQLITE_NOTADB": "damaged",
}
_ERRNO = {
    errno.ENOSPC: "full",
    errno.EDQUOT: "full",
    errno.EROFS: "readonly",
    errno.EACCES: "readonly",
    errno.EPERM: "readonly",
}


def _files(path: Path) -> Iterator[Path]:
    return (Path(f"{path}{part}") for part in _PARTS)
