"""Where the cache folder is, and who may write to it: what lies in it runs as the server."""

from __future__ import annotations

import grp
import os
import pwd
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from clover import cache, families, settings
from clover.backends import artifacts
from clover.cache import cache_folder, check_files, check_private, expanded, make_private, state_folder
from clover.errors import ConfigError
from clover.profiles import ProfileStore
from clover.serve import command
from tests.support.profiles_fixture import profile


def test_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder("") == tmp_path / "clover"
    monkeypatch.setenv("XDG_CACHE_HOME", "not/absolute")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder("") == tmp_path / ".cache" / "clover"
    assert cache_folder(str(tmp_path / "x")) == tmp_path / "x"
    assert cache_folder("~/x") == tmp_path / "x"


def test_state_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert state_folder("") == tmp_path / "clover"
    monkeypatch.setenv("XDG_STATE_HOME", "not/absolute")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert state_folder("") == tmp_path / ".local" / "state" / "clover"
    assert state_folder("~/x") == tmp_path / "x"


def test_without_a_home_folder_the_error_says_what_to_set(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def unknown(uid: int) -> Any:
        raise KeyError(uid)

    monkeypatch.delenv("HOME")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    for call in (lambda: cache_folder(""), lambda: expanded("~/x"), lambda: families.load_family("~/family")):
        with pytest.raises(ConfigError, match="set HOME, or name a folder by its whole path"):
            call()
    assert command.main(["fashion", "--check-config"], {}) == 2
    assert capsys.readouterr().err.startswith("clover: ~/.cache: there is no such home folder")
    with pytest.raises(ConfigError, match="~nobody-at-all"):
        expanded("~nobody-at-all/x")


# --- what others could write to ---------------------------------------------------------------------------------------


@pytest.fixture
def cached(tmp_path: Path) -> Path:
    folder = tmp_path / "above" / "cache"
    make_private(folder)
    return folder


def test_what_is_made_is_for_this_user_alone(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        make_private(tmp_path / "a" / "b" / "c")
        make_private(tmp_path / "a" / "b" / "c")
        ProfileStore(tmp_path / "new").put(msgspec.structs.replace(profile(), key="a1b2"))
    finally:
        os.umask(before)
    for name in ("a", "a/b", "a/b/c", "new", "new/profiles"):
        assert (tmp_path / name).stat().st_mode & 0o777 == 0o700
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError):
        make_private(tmp_path / "file")


def test_a_private_folder_is_taken_and_so_is_one_that_is_not_there_yet(cached: Path) -> None:
    for mode in (0o700, 0o755, 0o500):
        cached.chmod(mode)
        check_private(cached)
    check_private(cached / "not" / "yet")
    cached.chmod(0o700)


@pytest.mark.parametrize(
    ("where", "mode", "text"),
    [
        ("", 0o777, "is writable by everybody, and whoever can write there could run code"),
        ("", 0o702, "chmod go-w"),
        ("", 0o1777, "name a folder below it"),
        ("..", 0o777, "above is writable by everybody"),
        ("..", 0o722, "chmod go-w"),
    ],
)
def test_a_folder_that_others_can_write_to_is_refused(cached: Path, where: str, mode: int, text: str) -> None:
    (cached / where).chmod(mode)
    with pytest.raises(ConfigError, match=text):
        check_private(cached)
    with pytest.raises(ConfigError, match=text):
        cache_folder(str(cached))


def test_a_sticky_folder_above_is_as_safe_as_tmp(cached: Path) -> None:
    cached.parent.chmod(0o1777)
    check_private(cached)


def test_a_group_of_ones_own_is_oneself(cached: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cached.chmod(0o770)
    members: list[str] = []
    name = "alice"
    monkeypatch.setattr(cache.pwd, "getpwuid", lambda uid: SimpleNamespace(pw_name="alice"))
    monkeypatch.setattr(cache.grp, "getgrgid", lambda gid: SimpleNamespace(gr_name=name, gr_mem=members))
    monkeypatch.setattr(cache.os, "lstat", _lstat_with(cached, st_gid=1234))
    check_private(cached)
    members = ["alice", "mallory"]
    with pytest.raises(ConfigError, match="is writable by its group"):
        check_private(cached)
    name, members = "users", []
    with pytest.raises(ConfigError, match="chmod g-w"):
        check_private(cached)
    assert grp is cache.grp


def _lstat_with(folder: Path, **changes: int) -> Callable[[Any], Any]:
    """`os.lstat`, with changes for `folder` alone."""
    real = os.lstat

    def lstat(path: Any) -> Any:
        found = real(path)
        if Path(path) != folder:
            return found
        fields = {name: getattr(found, name) for name in ("st_mode", "st_uid", "st_gid")}
        return SimpleNamespace(**{**fields, **changes})

    return lstat


@pytest.mark.parametrize("where", ["", ".."])
def test_a_folder_of_another_user_is_refused(cached: Path, where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    other = os.geteuid() + 54321
    folder = Path(os.path.normpath(cached / where))
    monkeypatch.setattr(cache.os, "lstat", _lstat_with(folder, st_uid=other))
    with pytest.raises(ConfigError, match=rf"{folder} belongs to another user \({other}\)"):
        check_private(cached)


def test_links_are_followed_one_by_one(cached: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    link = tmp_path / "link"
    link.symlink_to("shared/../shared/middle")
    (tmp_path / "shared").mkdir(mode=0o700)
    (tmp_path / "shared" / "middle").symlink_to(cached)
    check_private(link)
    assert link.resolve() == cached
    (tmp_path / "shared").chmod(0o777)  # on the way of the links only: neither above the first nor the last
    with pytest.raises(ConfigError, match="shared is writable by everybody"):
        check_private(link)
    (tmp_path / "shared").chmod(0o1777)
    check_private(link)
    monkeypatch.setattr(cache.os, "lstat", _lstat_with(tmp_path / "shared" / "middle", st_uid=os.geteuid() + 1))
    with pytest.raises(ConfigError, match="middle belongs to another user"):  # who may point it elsewhere at any time
        check_private(link)
    (tmp_path / "round").symlink_to("round")
    with pytest.raises(ConfigError, match="too many links"):
        check_private(tmp_path / "round")


def test_files_of_an_artifact_are_looked_at_too(cached: Path) -> None:
    (cached / "deep").mkdir()
    model = cached / "deep" / "model.so"
    model.write_bytes(b"")
    check_files(cached)
    model.chmod(0o666)
    with pytest.raises(ConfigError, match=r"model\.so is writable by everybody"):
        check_files(cached)


# --- who asks ---------------------------------------------------------------------------------------------------------


def test_a_server_does_not_start_over_it(cached: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["fashion", "--check-config", "--cache-dir", str(cached)], {}) == 0
    cached.chmod(0o777)
    assert command.main(["fashion", "--check-config", "--cache-dir", str(cached)], {}) == 2
    assert f"`chmod go-w {cached}`" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="writable by everybody"):
        command.check(settings.load(["fashion", "--cache-dir", str(cached)], {}).config)


def test_nothing_is_compiled_into_it(cached: Path) -> None:
    (cached / "artifacts").mkdir()
    (cached / "artifacts").chmod(0o777)
    spec = families.load_family("fashion")
    order = artifacts.CompileOrder(
        family=spec, variant=spec.variants[0].name, backend="aoti", folder=str(cached / "artifacts" / "x"), threads=1
    )
    with pytest.raises(ConfigError, match="artifacts is writable by everybody"):
        artifacts.build(None, order)  # type: ignore[arg-type]
