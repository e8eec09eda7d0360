"""The manifest of a family: the SHA-256 of each file in its folder, so that nothing else is loaded or run.

It is the file `manifest.sha256`, as `sha256sum` writes and checks it, and optional unless the configuration demands it.
If there is one, a server that loads the family refuses it if a file differs, is missing, or is not listed; so does
every worker, which also gets the digest of the manifest that the server read, so that both hold the same one.

**Between check and use.**  Python is compared as it is read, so what runs is what was checked.  Weights are opened by
the family's own code, which nothing can look into: instead, a worker that has loaded them checks that no file has
changed since it was hashed, by inode, size and the times that only the kernel sets, and does not serve if one has.
Who can change the kernel's clock or the disk below the file system is not kept out by this.

Not listed are the manifest itself, `__pycache__` (bytecode of a family is not used) and `.git`.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Collection, Iterator
from pathlib import Path

from clover.digests import open_at_once, sha256_of
from clover.errors import ConfigError
from clover.types import FamilySpec

MANIFEST = "manifest.sha256"

_LINE = re.compile(r"([0-9a-f]{64}) [ *](.+)")
_LEFT_OUT = {"__pycache__", ".git"}
_NAMED = 3
"""Of files that are wrong in one way, as many are named in an error."""

_known: dict[str, str] = {}
"""The digest of each listed file of the families that were checked, by its path: what Python is compared with."""


class CheckedFiles:
    """The files of a family as they were when they were hashed.  `manifest` is the SHA-256 of the manifest."""

    def __init__(self, folder: Path, manifest: str, signatures: dict[str, tuple[int, ...]]) -> None:
        self.manifest = manifest
        self._folder = folder
        self._signatures = signatures

    def check_unchanged(self) -> None:
        """Raise ConfigError if a file was changed or replaced since it was hashed."""
        for name, before in self._signatures.items():
            if _signature(self._folder / name) != before:
                raise ConfigError(f"{self._folder / name} was changed while the family was loaded: it is refused")


def text_of(folder: Path) -> str:
    """Return the manifest of a family's folder as it is now.  Raises ConfigError for what it cannot list."""
    return "".join(f"{sha256_of(folder / name)}  {name}\n" for name in sorted(_files(folder)))


def check(folder: Path, *, expected: str = "") -> CheckedFiles | None:
    """Check the files of a folder by its manifest and return them; None if it has none.

    `expected` is the SHA-256 of the manifest that it must have, if one is known.  Raises ConfigError if anything
    differs.
    """
    try:
        with open_at_once(folder / MANIFEST) as file:
            data = file.read()
    except FileNotFoundError:
        if expected:
            raise ConfigError(f"{folder}: {MANIFEST} is gone since the server read it") from None
        return None
    except OSError as error:
        raise ConfigError(f"{folder / MANIFEST}: cannot be read ({error.strerror})") from error
    digest = hashlib.sha256(data).hexdigest()
    if expected and digest != expected:
        raise ConfigError(f"{folder / MANIFEST} is another one than the server read")
    listed = parse(data, str(folder / MANIFEST))
    there = set(_files(folder))
    faults = [*_list_names("missing", listed.keys() - there), *_list_names("not listed", there - listed.keys())]
    signatures: dict[str, tuple[int, ...]] = {}
    different = []
    for name in sorted(there & listed.keys()):
        signatures[name] = _signature(folder / name)
        if sha256_of(folder / name) != listed[name]:
            different.append(name)
    faults += _list_names("different", different)
    if faults:
        raise ConfigError(
            f"{folder}: its files are not those of {MANIFEST}: {'; '.join(faults)} (if that is meant, write it anew: "
            "clover family manifest)"
        )
    _known.update({str(folder / name): listed[name] for name in listed})
    return CheckedFiles(folder, digest, signatures)


def check_manifest(spec: FamilySpec, *, required: bool) -> None:
    """Raise ConfigError if a family has no manifest, and one is `required`."""
    if required and not spec.manifest:
        where = f"`clover family manifest {spec.folder}` writes it" if spec.folder else "it has no folder of its own"
        raise ConfigError(f"family {spec.name!r} has no {MANIFEST}, and require_manifest is set: {where}")


def check_source(path: str, data: bytes) -> None:
    """Raise ConfigError if `data`, read from a file of a checked family, is not what its manifest lists."""
    digest = _known.get(os.path.abspath(path))
    if digest is not None and hashlib.sha256(data).hexdigest() != digest:
        raise ConfigError(f"{path} was changed after it was checked: it is not run")


def parse(data: bytes, where: str) -> dict[str, str]:
    """Return the digests of a manifest by name.  Raises ConfigError, naming `where`, if it is not one."""
    listed: dict[str, str] = {}
    try:
        lines = data.decode("utf-8").split("\n")
    except UnicodeDecodeError:
        raise ConfigError(f"{where}: is not UTF-8") from None
    for number, line in enumerate(lines, 1):
        if not line and number == len(lines):
            break
        match = _LINE.fullmatch(line)
        if match is None:
            raise ConfigError(f"{where}: line {number} is not of the form that sha256sum writes")
        name = match[2]
        if name in listed:
            raise ConfigError(f"{where}: line {number} lists {name} again")
        listed[name] = match[1]
    if not listed:
        raise ConfigError(f"{where}: lists no file")
    return listed


def _files(folder: Path) -> Iterator[str]:
    """Yield the names of the files below a folder, by `/`; raises ConfigError for what is neither file nor folder."""
    for at, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name not in _LEFT_OUT]
        for name in (*folders, *names):
            path = Path(at, name)
            relative = path.relative_to(folder).as_posix()
            if path.is_symlink() and not path.resolve().is_relative_to(folder.resolve()):
                raise ConfigError(f"{folder}: {relative} is a link that leaves the folder: a manifest cannot list it")
            if name in folders:
                if path.is_symlink():
                    raise ConfigError(f"{folder}: {relative} is a link to a folder: a manifest cannot list it")
                continue
            if relative == MANIFEST:
                continue
            if not path.is_file() or not relative.isprintable():
                raise ConfigError(f"{folder}: {relative!r} is no file, or its name is not printable: remove it")
            yield relative


def _list_names(what: str, names: Collection[str]) -> list[str]:
    """Return in words which files are `what`; nothing for none."""
    if not names:
        return []
    shown = sorted(names)[:_NAMED]
    more = f" and {len(names) - len(shown)} more" if len(names) > len(shown) else ""
    return [f"{what}: {', '.join(shown)}{more}"]


def _signature(path: Path) -> tuple[int, ...]:
    try:
        status = os.stat(path)
    except OSError:
        return ()
    kind = stat.S_IFMT(status.st_mode)
    return status.st_dev, status.st_ino, kind, status.st_size, status.st_mtime_ns, status.st_ctime_ns
