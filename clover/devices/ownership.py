"""Which instances of a GPU are Clover's own: a file, because the driver does not know whose an instance is.

An instance outlives the process that made it.  After a crash the next start must tell what Clover left, which it may
adopt or remove, from what somebody else set up, which it must not touch.  So the file is written ahead: a place is
recorded *before* its instance is made and struck out *after* it is gone, each time replaced as a whole and flushed to
the disk.  Whenever the process dies, the file names at least all that is ours; an instance that it names too much does
not exist.  The file survives a reboot of the machine, instances do not.  So it says to which boot it belongs, and
nothing recorded in another boot counts as ours.

Once an instance is complete, its record also has the id and the UUID that the driver gave it.  If another instance
stands at its place later, somebody removed ours and made that one: it is theirs.  A driver gives the same id and UUID
to whatever is made at the same place in the same shape, so an exact copy cannot be told from ours.

One server owns a GPU at a time: it holds a lock on a second file.  The lock is the kernel's, so it ends with the
process.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
from pathlib import Path

import msgspec

from clover.cache import make_private
from clover.errors import DeviceError
from clover.hints import program
from clover.malformed import MALFORMED
from clover.types import Record

_FORMAT = 1
_NAME = re.compile(r"[A-Za-z0-9._-]+")


class OwnPlace(Record, frozen=True, kw_only=True, omit_defaults=True):
    """A place on the GPU where an instance of ours exists, or may exist.  `gi` and `uuid` name the one that was made
    there; -1 and empty as long as it is not complete."""

    profile: str
    start: int
    size: int
    gi: int = -1
    uuid: str = ""

    @property
    def place(self) -> tuple[str, int]:
        """Profile and start, which identify an instance on its GPU."""
        return self.profile, self.start

    def means(self, gi: int, uuid: str) -> bool:
        """Return whether the instance with this id and UUID (empty if it is not complete) may be the recorded one."""
        return self.gi < 0 or (self.gi == gi and uuid in ("", self.uuid))


class _File(Record, frozen=True, kw_only=True):
    format: int
    gpu: str
    boot: str
    places: tuple[OwnPlace, ...]


def boot_of(root: Path = Path("/")) -> str:
    """Return what tells this boot of the machine from others; empty if the kernel does not say."""
    try:
        return (root / "proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


class Ownership:
    """The record of one GPU in `folder`.  `boot` empty: instances survive whatever happens to this machine.

    `exclusive` takes the lock and allows changes; without it the record is only read.  Raises DeviceError if another
    process holds the lock, or the file cannot be understood.
    """

    def __init__(self, folder: Path, gpu: str, *, boot: str = "", exclusive: bool = True) -> None:
        if not _NAME.fullmatch(gpu):
            raise DeviceError(f"the driver names a GPU {gpu!r}, which cannot be kept as a file")
        self._folder = folder
        self._gpu = gpu
        self._boot = boot
        self._path = folder / f"{gpu}.json"
        self._lock: int | None = None
        if exclusive:
            self._take()
        try:
            self._places = self._read()
        except BaseException:
            self.close()
            raise

    @property
    def places(self) -> tuple[OwnPlace, ...]:
        """The recorded places, by start."""
        return tuple(sorted(self._places, key=lambda place: (place.start, place.profile)))

    @property
    def exclusive(self) -> bool:
        """Whether changes are allowed: the lock is held."""
        return self._lock is not None

    def find(self, place: tuple[str, int]) -> OwnPlace | None:
        """Return the record of the place, if there is one."""
        return next((own for own in self._places if own.place == place), None)

    def add(self, place: OwnPlace) -> None:
        """Record `place`, instead of what was recorded of it; on return it is on the disk."""
        if place not in self._places:
            self._write(self._without(place) | {place})

    def remove(self, place: OwnPlace) -> None:
        """Strike `place` out; on return that is on the disk."""
        if self.find(place.place) is not None:
            self._write(self._without(place))

    def _without(self, place: OwnPlace) -> frozenset[OwnPlace]:
        return frozenset(own for own in self._places if own.place != place.place)

    def close(self) -> None:
        """Release the lock."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _take(self) -> None:
        path = self._folder / f"{self._gpu}.lock"
        try:
            make_private(self._folder)
            self._lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self.close()
            raise DeviceError(
                f"another Clover holds {self._gpu}: stop it first, or give each its own GPUs, as nvidia:0 and nvidia:1 "
                "(or an emulated box of its own: another count, or another --cache-dir)"
            ) from error
        except OSError as error:
            self.close()
            raise DeviceError(f"cannot lock {path}: {error.strerror}; see --cache-dir") from error

    def _read(self) -> frozenset[OwnPlace]:
        try:
            data = self._path.read_bytes()
        except FileNotFoundError:
            return frozenset()
        except OSError as error:
            raise DeviceError(f"cannot read {self._path}: {error.strerror}") from error
        try:
            file = msgspec.json.decode(data, type=_File)
            if file.format != _FORMAT:
                raise ValueError(f"format {file.format} instead of {_FORMAT}")
            if file.gpu != self._gpu:
                raise ValueError("it belongs to another GPU")
        except MALFORMED as error:
            raise DeviceError(
                f"the record of what Clover made on {self._gpu} is damaged ({error}): see what stands there with "
                f"`{program()} mig list`, then delete {self._path}; from then on nothing that stands there "
                "counts as Clover's, and it must be removed by hand"
            ) from error
        return frozenset(file.places) if file.boot == self._boot else frozenset()

    def _write(self, places: frozenset[OwnPlace]) -> None:
        if self._lock is None:
            raise DeviceError(f"{self._gpu} was opened for reading only")
        ordered = tuple(sorted(places, key=lambda place: (place.start, place.profile)))
        file = _File(format=_FORMAT, gpu=self._gpu, boot=self._boot, places=ordered)
        draft = self._folder / f".{self._gpu}.json.new"  # only the holder of the lock writes: one name is enough
        try:
            with open(draft, "wb") as out:
                out.write(msgspec.json.format(msgspec.json.encode(file), indent=1) + b"\n")
                out.flush()
                os.fsync(out.fileno())
            os.replace(draft, self._path)
            self._flush_folder()
        except OSError as error:
            with contextlib.suppress(OSError):
                os.unlink(draft)
            raise DeviceError(
                f"cannot write {self._path}: {error.strerror}; without it a crash would leave instances that "
                "no server knows as its own, so none is made or removed: see --cache-dir"
            ) from error
        self._places = places

    def _flush_folder(self) -> None:
        folder = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
