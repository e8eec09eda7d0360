"""The group of a successor's session: lowered only if nobody else is in it, and raised again."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from clover.autogroup import Autogroup

OWN, SHELL, TERMINAL, RUNNING, CHILD = os.getpid(), 900_001, 900_002, 900_003, 900_004


class Machine:
    """What /proc shows: processes with their parents and groups."""

    def __init__(self, folder: Path, enabled: str = "1") -> None:
        self.folder = folder
        self.paused: list[float] = []
        (folder / "sys/kernel").mkdir(parents=True)
        (folder / "sys/kernel/sched_autogroup_enabled").write_text(f"{enabled}\n")
        (folder / "meminfo").touch()
        self.add(TERMINAL, 1, 3)
        self.add(SHELL, TERMINAL, 7)
        self.add(OWN, SHELL, 7)
        self.add(RUNNING, 1, 5)

    def add(self, pid: int, parent: int, group: int, nice: int = 0) -> None:
        (self.folder / str(pid)).mkdir()
        (self.folder / str(pid) / "stat").write_text(f"{pid} (a (b) c) S {parent} 0 0")
        (self.folder / str(pid) / "autogroup").write_text(f"/autogroup-{group} nice {nice}\n")

    def group(self) -> Autogroup:
        return Autogroup(self.folder, self.paused.append)

    @property
    def written(self) -> str:
        return (self.folder / f"{OWN}/autogroup").read_text()


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_a_session_of_its_own_is_lowered_and_raised(machine: Machine) -> None:
    machine.add(CHILD, OWN, 7)
    group = machine.group()
    assert group.lower(5)
    assert machine.written == "5"
    group.restore()
    assert machine.written == "0"
    group.restore()
    assert machine.paused == []


def test_it_is_raised_to_what_it_was(machine: Machine) -> None:
    (machine.folder / f"{OWN}/autogroup").write_text("/autogroup-7 nice 16\n")
    group = machine.group()
    assert group.lower(5)
    assert machine.written == "19"
    group.restore()
    assert machine.written == "16"


@pytest.mark.parametrize("parent", [1, SHELL])
def test_others_in_the_session_do_not_suffer(machine: Machine, parent: int) -> None:
    machine.add(CHILD, parent, 7)
    before = machine.written
    assert not machine.group().lower(5)
    assert machine.written == before


@pytest.mark.parametrize("nice", [-1, -20])
def test_one_that_an_administrator_raised_is_left(machine: Machine, nice: int) -> None:
    own = f"/autogroup-7 nice {nice}\n"
    (machine.folder / f"{OWN}/autogroup").write_text(own)
    assert not machine.group().lower(5)
    assert machine.written == own


def test_the_running_server_is_found_in_it_even_if_it_started_this_one(machine: Machine) -> None:
    assert machine.group().holds(SHELL)
    assert not machine.group().holds(RUNNING)
    assert not machine.group().holds(4_000_000)


def test_a_kernel_without_such_groups_is_left_alone(tmp_path: Path) -> None:
    off = Machine(tmp_path / "off", "0")
    assert not off.group().lower(5)
    assert not Autogroup(tmp_path / "none").lower(5)


def test_a_write_that_the_kernel_puts_off_is_tried_again(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    write, refusals = Path.write_text, [errno.EAGAIN, errno.EAGAIN, 0, errno.EACCES]

    def refusing(path: Path, text: str, encoding: str | None = None) -> int:
        if number := refusals.pop(0):
            raise OSError(number, os.strerror(number))
        return write(path, text, encoding)

    monkeypatch.setattr(Path, "write_text", refusing)
    assert machine.group().lower(5)
    assert machine.paused == [0.1, 0.1]
    write(machine.folder / f"{OWN}/autogroup", "/autogroup-7 nice 0\n")
    assert not machine.group().lower(5)
    assert refusals == []


def test_one_that_cannot_be_raised_again_says_what_to_do(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    group = machine.group()
    assert group.lower(5)
    (machine.folder / f"{OWN}/autogroup").unlink()
    (machine.folder / f"{OWN}/autogroup").mkdir()
    group.restore()
    assert f"write 0 to /proc/{OWN}/autogroup" in caplog.text
