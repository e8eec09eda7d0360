"""Digests of files: right after every change, and read once where there is none."""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path
from typing import Any

import pytest

from clover import digests


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files that are read."""
    names: list[str] = []
    whole = hashlib.file_digest

    def noted(file: Any, name: str) -> Any:
        names.append(Path(file.name).name)
        return whole(file, name)

    monkeypatch.setattr(hashlib, "file_digest", noted)
    return names


def later(monkeypatch: pytest.MonkeyPatch, seconds: float = 10.0) -> None:
    """Let time pass, so that files are not young any more."""
    now_ns = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: now_ns() + int(seconds * 1e9))


def of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def test_a_file_that_stays_is_read_once(tmp_path: Path, read: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "weights"
    path.write_bytes(b"one")
    later(monkeypatch)
    assert [digests.sha256_of(path) for _ in range(3)] == [of(b"one")] * 3
    assert read == ["weights"]


def test_a_change_is_seen_though_size_and_time_are_kept(
    tmp_path: Path, read: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "weights"
    path.write_bytes(b"one")
    found = path.stat()
    later(monkeypatch)
    assert digests.sha256_of(path) == of(b"one")
    while path.stat().st_ctime_ns == found.st_ctime_ns:  # a file system counts time in ticks of some milliseconds
        path.write_bytes(b"two")
        os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))
    assert digests.sha256_of(path) == of(b"two")
    assert len(read) == 2


def test_a_file_in_its_place_is_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, other = tmp_path / "weights", tmp_path / "other"
    path.write_bytes(b"one")
    other.write_bytes(b"two")
    later(monkeypatch)
    assert digests.sha256_of(path) == of(b"one")
    other.replace(path)
    assert digests.sha256_of(path) == of(b"two")


def test_a_young_file_is_read_again(tmp_path: Path, read: list[str]) -> None:
    path = tmp_path / "weights"
    path.write_bytes(b"one")
    assert digests.sha256_of(path) == digests.sha256_of(path) == of(b"one")
    assert len(read) == 2


def test_a_file_that_changes_while_it_is_read_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "weights"
    path.write_bytes(b"one")
    later(monkeypatch)
    whole = hashlib.file_digest

    def changed(file: Any, name: str) -> Any:
        found = whole(file, name)
        path.write_bytes(b"another")
        return found

    with monkeypatch.context() as patched:
        patched.setattr(hashlib, "file_digest", changed)
        assert digests.sha256_of(path) == of(b"one")
    assert digests.sha256_of(path) == of(b"another")


def test_a_file_that_took_long_to_read_was_young_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "weights"
    path.write_bytes(b"one")
    whole = hashlib.file_digest

    def slow(file: Any, name: str) -> Any:
        later(monkeypatch)
        return whole(file, name)

    monkeypatch.setattr(hashlib, "file_digest", slow)
    digests.sha256_of(path)
    assert str(path) not in digests._known


def test_a_file_that_is_gone_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "weights"
    path.write_bytes(b"one")
    later(monkeypatch)
    digests.sha256_of(path)
    path.unlink()
    with pytest.raises(FileNotFoundError):
        digests.sha256_of(path)
