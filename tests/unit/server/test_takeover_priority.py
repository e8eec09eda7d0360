"""A successor's low priority: lowered only if it can be raised again, and raised for all that descends from it."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from clover.server.takeover import priority
from clover.server.takeover.autogroup import Autogroup
from clover.server.takeover.priority import NICE, SLOWDOWN, LowPriority, may_raise

SCRIPT = """
import os, subprocess, sys, threading
from pathlib import Path
from clover.server.takeover.autogroup import Autogroup
from clover.server.takeover.priority import LowPriority

low = LowPriority(Autogroup(Path("/nowhere")))
done = threading.Event()
assert low.lower(1)
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
    assert not low.lower(1)
    assert low.slowdown == 1.0
    low.restore()
    assert os.getpriority(os.PRIO_PROCESS, 0) == before
    assert "at full priority" in caplog.text


def test_its_session_is_lowered_even_so(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    class Group(Autogroup):
        def lower(self, by: int, running: int) -> bool:
            done.append((by, running))
            return True

        def restore(self) -> None:
            done.append("restored")

    done: list[object] = []
    caplog.set_level("INFO")
    monkeypatch.setattr(priority, "may_raise", lambda: False)
    low = LowPriority(Group())
    assert low.slowdown == 1.0
    assert low.lower(77)
    assert low.slowdown == SLOWDOWN
    low.restore()
    assert low.slowdown == 1.0
    assert done == [(NICE, 77), "restored"]
    assert caplog.text == ""


@pytest.mark.slow
@pytest.mark.skipif(not may_raise(), reason="this user cannot raise a priority")
def test_threads_and_children_follow() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=False)
    nice = os.getpriority(os.PRIO_PROCESS, 0)
    low = min(nice + NICE, 19)
    assert done.stdout == f"{low} {[low] * 3} {[nice] * 3}\n", done.stderr
