"""Others on a GPU: told from our own processes, named, and found on emulated boards through the unmodified bindings."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from clover.ancestry import descends_from
from clover.emulation import emulated
from clover.energy.foreign_work import process_name
from tests.support.nvml_child import Child

LOOK = (
    "import asyncio\n"
    "from types import SimpleNamespace\n"
    "from clover.energy.foreign_work import busy_others\n"
    "class Session:\n"
    "    async def call(self, function, /, *arguments): return function(*arguments)\n"
    "def others(*ours):\n"
    "    board = SimpleNamespace(name='gpu0', uuid=n.nvmlDeviceGetUUID(gpu()), emulated=True)\n"
    "    return list(asyncio.run(busy_others(Session(), board, lambda pid: pid in ours)))\n"
)


@pytest.mark.parametrize("mig", [False, True])
def test_a_stranger_at_work_is_named_and_one_at_rest_is_not(tmp_path: Path, mig: bool) -> None:
    box = tmp_path / "box.nvml"
    emulated.create_box(box, "a100-40gb", 1, mig_enabled=mig)
    with Child(box) as child, Child(box) as stranger:
        child.run(LOOK)
        assert child("others()") == []
        stranger.run("a = attach(mig('3g.20gb', 4))" if mig else "a = attach(n.nvmlDeviceGetUUID(gpu()))")
        assert child("others()") == []  # a context that rests
        stranger.run("a.draw(250)")
        assert child("others()") == [process_name(stranger.pid)]
        assert child(f"others({stranger.pid})") == []
        stranger.run("a.draw(1)")
        assert child("others()") == []


def test_children_and_theirs_are_ours() -> None:
    nested = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import os; print(os.getpid()); input()'])"
    with subprocess.Popen(
        [sys.executable, "-c", nested], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as outer:
        assert outer.stdin is not None
        assert outer.stdout is not None
        inner = int(outer.stdout.readline())
        assert descends_from(inner, os.getpid())
        assert descends_from(inner, outer.pid)
        assert not descends_from(os.getpid(), outer.pid)
        assert not descends_from(os.getppid(), os.getpid())
        outer.stdin.write("\n")
        outer.stdin.close()
    assert not descends_from(inner, os.getpid())
    assert process_name(inner) == f"process {inner}"
    assert process_name(os.getpid()).endswith(f"({os.getpid()})")
