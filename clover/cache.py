"""The cache folder: where it is, and that nobody else can write to it; and where the state folder is.

Files in the cache are executed: compiled models are native code.  A user who can change the cache, or a folder above
it, can run code as the server.  The rule is that of ssh for its keys: every folder on the way, links followed one by
one, belongs to this user or to root, and others cannot write to it.  A folder above may be sticky, as /tmp is: only the
owner of a file can replace it there.
"""

from __future__ import annotations

import contextlib
import grp
import os
import pwd
import stat
import tempfile
from pathlib import Path

from clover.errors import ConfigError

_LINKS = 40
"""Links on the way, at most, as in the kernel."""

_REMEDY = "whoever can write there could run code in this server"


def fetched_files() -> Path:
    """Return the folder of published files that were fetched: that of `torch.hub`."""
    home = os.environ.get("TORCH_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "torch"
    return Path(home).expanduser() / "hub" / "checkpoints"


def cache_folder(text: str) -> Path:
    """Return the folder of profiles and artifacts: `text`, or if that is empty `$XDG_CACHE_HOME/clover`
    (`~/.cache/clover`).

    Raises ConfigError if others could write to it, or there is no home folder.
    """
    base = os.environ.get("XDG_CACHE_HOME", "")
    if text:
        folder = expanded(text).absolute()
    else:
        folder = (Path(base) if os.path.isabs(base) else expanded("~/.cache")) / "clover"
    check_private(folder)
    return folder


def state_folder(text: str) -> Path:
    """Return the folder of what a server remembers over restarts: `text`, or if that is empty `$XDG_STATE_HOME/clover`
    (`~/.local/state/clover`).  Raises ConfigError if there is no home folder."""
    base = os.environ.get("XDG_STATE_HOME", "")
    if text:
        return expanded(text).absolute()
    return (Path(base) if os.path.isabs(base) else expanded("~/.local/state")) / "clover"


def expanded(text: str) -> Path:
    """Return the path `text` with a leading `~` replaced; raises ConfigError if there is no such home folder."""
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise ConfigError(
            f"{text}: there is no such home folder (HOME is not set, and the system does not know the user): set HOME, "
            "or name a folder by its whole path, as with --cache-dir or --state-dir"
        ) from error


def make_private(folder: Path) -> None:
    """Make `folder`, and what is missing above it, for this user alone; what is there stays as it is.  Raises
    OSError."""
    missing = []
    at = folder
    while not at.exists() and at != at.parent:
        missing.append(at)
        at = at.parent
    for path in reversed(missing):
        with contextlib.suppress(FileExistsError):
            path.mkdir(mode=0o700)
    if not folder.is_dir():
        raise NotADirectoryError(20, "Not a directory", str(folder))


def replace_file(path: Path, data: bytes) -> None:
    """Write `data` as the file `path`, in the place of one that is there at once and whole; its folder is made if it is
    missing.  Raises OSError."""
    make_private(path.parent)
    fd, draft = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
    except BaseException:
        os.unlink(draft)
        raise


def check_private(folder: Path) -> None:
    """Raise ConfigError if others than this user and root could put something into `folder`, or in the place of it.

    What does not exist yet is no fault: `make_private` makes it.
    """
    at, ahead, links = Path("/"), list(reversed(folder.absolute().parts[1:])), 0
    _check(at, os.lstat(at), last=not ahead)
    while ahead:
        name = ahead.pop()
        path = at.parent if name == ".." else at / name
        try:
            status = os.lstat(path)
        except FileNotFoundError:
            return
        except OSError as error:
            raise ConfigError(f"{folder}: cannot be looked at: {error.strerror}; name another --cache-dir") from error
        _check(path, status, last=not ahead)
        if not stat.S_ISLNK(status.st_mode):
            at = path
            continue
        links += 1
        if links > _LINKS:
            raise ConfigError(f"{folder}: has too many links on its way; name another --cache-dir")
        target = Path(os.readlink(path))
        if target.is_absolute():
            at = Path("/")
        ahead += reversed(target.parts[1:] if target.is_absolute() else target.parts)


def check_files(folder: Path) -> None:
    """Raise ConfigError if `folder` is not private (`check_private`), or a file in it is not."""
    check_private(folder)
    for path in folder.rglob("*"):
        _check(path, os.lstat(path), last=True)


def _check(path: Path, status: os.stat_result, *, last: bool) -> None:
    """Raise ConfigError if the owner or the mode of `path` lets others change what is in it; `last`: nothing is to
    follow, so a sticky bit does not help."""
    if status.st_uid not in (0, os.geteuid()):
        raise ConfigError(
            f"{path} belongs to another user ({_user(status.st_uid)}), so {_REMEDY}: chown it if what is in it can be "
            "trusted, or name another --cache-dir"
        )
    if stat.S_ISLNK(status.st_mode) or (status.st_mode & stat.S_ISVTX and not last):
        return
    group = status.st_mode & stat.S_IWGRP and not _is_own(status.st_gid)
    if status.st_mode & stat.S_ISVTX and (group or status.st_mode & stat.S_IWOTH):
        raise ConfigError(f"{path} is shared with others, and {_REMEDY}: name a folder below it as --cache-dir")
    if group or status.st_mode & stat.S_IWOTH:
        whom, remove = ("everybody", "go-w") if status.st_mode & stat.S_IWOTH else ("its group", "g-w")
        raise ConfigError(
            f"{path} is writable by {whom}, and {_REMEDY}: `chmod {remove} {path}` if what is in it can be trusted, or "
            "name another --cache-dir"
        )


def _is_own(gid: int) -> bool:
    """Return whether a group is this user's alone: called as he is, with no other member; or root's."""
    if gid == 0:
        return True
    try:
        group, user = grp.getgrgid(gid), pwd.getpwuid(os.geteuid())
    except KeyError:
        return False
    return group.gr_name == user.pw_name and set(group.gr_mem) <= {user.pw_name}


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
