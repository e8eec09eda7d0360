"""A successor's low priority: lowered only if it can be raised again, and raised for all that descends from it."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from clover import low_priority as priority
from clover import serve
from clover.__main__ import main as clover_program
from clover.low_priority import NICE, SLOWDOWN, Autogroup, LowPriority, may_raise

SCRIPT = """
import os, subprocess, sys, threading
from pathlib import Path
from clover.low_priority import Autogroup, LowPriority

low = LowPriority(Autogroup(Path("/nowhere")))
done = threading.Event()
assert low.lower()
nice = os.getpriority(os.PRIO_PROCESS, 0)
thread = threading.Thread(target=done.wait)
thread.start()
child = subprocess.Popen(["sleep", "60"])
found = lambda: [os.getpriority(os.PRIO_PROCESS, one) for one in (0, thread.native_id, child.pid)]
before = found()
low.restore()
low.restore()
print(nice, before, found())
done.set()
child.kill()
child.wait()
"""

EARLY = """
import os, sys
sys.argv = ["serve", "--take-over"]
import clover.serve

class Found(Exception):
    pass

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "clover.serve.command":
            print(os.getpriority(os.PRIO_PROCESS, 0), "numpy" in sys.modules)
            raise Found

sys.meta_path.insert(0, Finder())
try:
    clover.serve.main()
except Found:
    pass
"""


def status(folder: Path, capabilities: int) -> Path:
    (folder / "self").mkdir(exist_ok=True)
    (folder / "self" / "status").write_text(f"Name:\tx\nCapPrm:\tffffffff\nCapEff:\t{capabilities:016x}\n")
    return folder


def test_it_can_be_raised_with_the_capability_or_within_the_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = [(0, 0), (0, 0), (20, 20), (19, 20), (resource.RLIM_INFINITY, resource.RLIM_INFINITY)]
    monkeypatch.setattr(resource, "getrlimit", lambda which: limits.pop(0))
    monkeypatch.setattr(os, "getpriority", lambda which, who: 0)
    assert may_raise(status(tmp_path, 1 << 23))
    assert not may_raise(status(tmp_path, ~(1 << 23) & (1 << 40) - 1))
    assert may_raise(tmp_path)
    assert not may_raise(tmp_path)
    assert may_raise(tmp_path)
    assert limits == []


def test_one_that_could_not_be_raised_is_not_lowered(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    caplog.set_level("INFO")
    monkeypatch.setattr(priority, "may_raise", lambda: False)
    before = os.getpriority(os.PRIO_PROCESS, 0)
    low = LowPriority(Autogroup(tmp_path))
    assert not low.lower()
    assert low.slowdown == 1.0
    low.run_beside(77)
    low.restore()
    assert os.getpriority(os.PRIO_PROCESS, 0) == before
    assert "at full priority" in caplog.text


def test_its_session_is_lowered_even_so(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    class Group(Autogroup):
        def lower(self, by: int) -> bool:
            done.append(by)
            return True

        def holds(self, pid: int) -> bool:
            return pid == 78

        def restore(self) -> None:
            done.append("restored")

    done: list[object] = []
    caplog.set_level("INFO")
    monkeypatch.setattr(priority, "may_raise", lambda: False)
    low = LowPriority(Group())
    assert low.slowdown == 1.0
    assert low.lower()
    assert low.slowdown == SLOWDOWN
    low.run_beside(77)
    assert done == [NICE]
    assert caplog.text == ""
    low.run_beside(78)  # the running server is in that session
    assert done == [NICE, "restored"]
    assert low.slowdown == 1.0
    assert "at full priority" in caplog.text
    low.restore()
    assert low.slowdown == 1.0


@pytest.mark.parametrize("flag", [True, False])
@pytest.mark.parametrize("program", ["clover.serve", "clover serve"])
def test_a_successor_is_lowered_whichever_way_it_is_started(
    program: str, flag: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Low:
        def lower(self) -> bool:
            done.append("lowered")
            return True

    class Command:
        @staticmethod
        def main(argv: Sequence[str] | None, environ: Mapping[str, str] | None, given: Low | None) -> int:
            done.append("told" if isinstance(given, Low) else "at full priority")
            return 0

    done: list[str] = []
    monkeypatch.setattr(serve, "LowPriority", Low)
    monkeypatch.setattr(serve, "command", Command, raising=False)
    words = ["config.toml", *(["--take-over"] if flag else [])]
    monkeypatch.setattr(sys, "argv", [*program.split(), *words])
    assert (clover_program if program == "clover serve" else serve.main)() == 0
    assert done == (["lowered", "told"] if flag else ["at full priority"])


@pytest.mark.slow
@pytest.mark.skipif(not may_raise(), reason="this user cannot raise a priority")
def test_a_successor_is_lowered_before_it_imports_what_a_server_needs() -> None:
    """Else the requests of the running server would have a second of competition at full priority."""
    done = subprocess.run([sys.executable, "-c", EARLY], capture_output=True, text=True, check=True)
    assert done.stdout == f"{min(os.getpriority(os.PRIO_PROCESS, 0) + NICE, 19)} False\n"


@pytest.mark.slow
@pytest.mark.skipif(not may_raise(), reason="this user cannot raise a priority")
def test_threads_and_children_follow() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=False)
    nice = os.getpriority(os.PRIO_PROCESS, 0)
    low = min(nice + NICE, 19)
    assert done.stdout == f"{low} {[low] * 3} {[nice] * 3}\n", done.stderr


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
