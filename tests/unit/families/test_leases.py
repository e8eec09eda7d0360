"""Files that another process holds a lease on: nobody waits for it, and the error says what holds the file up."""

from __future__ import annotations

import fcntl
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from clover import families
from clover.errors import ConfigError
from clover.families.manifest import MANIFEST, text_of
from tests.support.family_folder import write


@contextmanager
def leased(path: Path) -> Iterator[None]:
    """Hold a lease on a file, and let nobody have it.  The kernel takes it away after /proc/sys/fs/lease-break-time."""
    before = signal.signal(signal.SIGIO, signal.SIG_IGN)
    file = os.open(path, os.O_RDONLY)
    try:
        try:
            fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        except OSError as error:
            pytest.skip(f"no leases here: {error}")
        yield
    finally:
        os.close(file)
        signal.signal(signal.SIGIO, before)


@pytest.mark.parametrize("name", ["family.toml", "model.py", "weights/w.bin", "manifest.sha256"])
def test_a_family_with_a_leased_file_is_refused_at_once(tmp_path: Path, name: str) -> None:
    folder = write(tmp_path / "echo")
    if name == MANIFEST:
        (folder / MANIFEST).write_text(text_of(folder))
    with leased(folder / name), pytest.raises(ConfigError, match=rf"{name}.*another process holds a lease on it"):
        families.load_family(str(folder))
    assert families.load_family(str(folder)).name == "echo"


def test_python_of_a_family_with_a_lease_is_not_waited_for(tmp_path: Path) -> None:
    folder = write(tmp_path / "echo")
    with leased(folder / "parts.py"), pytest.raises(OSError, match="another process holds a lease on it"):
        families.resolve("model:load", folder)
