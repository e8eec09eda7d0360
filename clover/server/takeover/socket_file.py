"""Where a running server is asked: a unix socket of mode 0600 in the state folder, named as the server's ledger.

A path of a unix socket has at most 107 bytes, and a state folder may be longer: both sides go through a descriptor of
the folder.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

from clover.cache import check_private, make_private, state_folder
from clover.config import ServerConfig
from clover.hints import program
from clover.server.takeover.channel import TakeOverError
from clover.telemetry.ledger.files import server_name

FOLDER = "take-over"
_METERS = "meters"
_LONGEST = 60


def place(config: ServerConfig) -> Path | None:
    """Return the path of a server's socket; None for one that keeps no ledger and was given no state folder."""
    if config.ledger.keep != "on" and not config.state_dir:
        return None
    name = server_name(config.ledger.name, config.listen.host, config.listen.port)
    return state_folder(config.state_dir) / FOLDER / name[:_LONGEST]


def meters_file(path: Path) -> Path:
    """Return the file in which the server that listened at `path` leaves where its meters stand."""
    return path.parent.parent / _METERS / path.name


def connect(config: ServerConfig) -> tuple[socket.socket, Path]:
    """Return a socket that is connected to the running server, and its path; raises TakeOverError or ConfigError."""
    path = place(config)
    if path is None:
        raise TakeOverError("--take-over finds the running server in the state folder: name one (--state-dir)")
    check_private(path.parent)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        with _through(path) as short:
            sock.connect(short)
    except OSError as error:
        sock.close()
        raise TakeOverError(
            f"no server with this configuration can be taken over here ({path}: {error.strerror}): a first one is "
            f"started without --take-over, `{program()} serve ...`"
        ) from error
    return sock, path


class ListeningFile:
    """A listening socket at `path`, for this user alone.  Raises OSError, ConfigError if others can change the folder,
    and FileExistsError if another server listens there."""

    def __init__(self, path: Path) -> None:
        make_private(path.parent)
        check_private(path.parent)
        self.path = path
        with _through(path) as short:
            self._free(Path(short))
            self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            self.socket.setblocking(False)
            before = os.umask(0o177)  # no moment at which others could connect
            try:
                self.socket.bind(short)
                self.socket.listen(8)
            except BaseException:
                self.socket.close()
                raise
            finally:
                os.umask(before)
            status = os.lstat(short)
        self._file = status.st_dev, status.st_ino

    @staticmethod
    def _free(path: Path) -> None:
        """Remove what an earlier server left."""
        with contextlib.suppress(FileNotFoundError):
            if not stat.S_ISSOCK(path.lstat().st_mode):
                raise FileExistsError(errno.EEXIST, "it is no socket")
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as probe:
                probe.setblocking(False)
                if probe.connect_ex(str(path)) in (0, errno.EAGAIN, errno.EINPROGRESS):
                    raise FileExistsError(errno.EEXIST, "another server listens there")
            path.unlink()

    def close(self) -> None:
        """Remove the file, unless another one is in its place, and close the socket.  Idempotent."""
        if self.socket.fileno() < 0:
            return
        with contextlib.suppress(OSError):
            status = self.path.lstat()
            if (status.st_dev, status.st_ino) == self._file:
                self.path.unlink()
        self.socket.close()


@contextlib.contextmanager
def _through(path: Path) -> Iterator[str]:
    """Give a short name of `path`, by a descriptor of its folder."""
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)
