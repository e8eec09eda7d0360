"""SIGKILLs by the kernel for want of memory, told from those of others by its counts."""

from __future__ import annotations

from pathlib import Path

import pytest

from clover.runtime.workers.oom_kills import OomKills


def write(root: Path, path: str, text: str) -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(text)


def test_the_count_of_the_own_control_group_is_watched(tmp_path: Path) -> None:
    write(tmp_path, "proc/self/cgroup", "0::/pod/server\n")
    write(tmp_path, "sys/fs/cgroup/pod/server/memory.events", "low 0\nhigh 3\noom 1\noom_kill 2\n")
    write(tmp_path, "proc/vmstat", "nr_free_pages 7\noom_kill 9\n")
    kills = OomKills(tmp_path)
    assert not kills.risen()
    write(tmp_path, "proc/vmstat", "oom_kill 10\n")  # another group's
    assert not kills.risen()
    write(tmp_path, "sys/fs/cgroup/pod/server/memory.events", "oom_kill 3\n")
    assert kills.risen()
    assert not kills.risen()


@pytest.mark.parametrize("groups", [None, "0::/\n", "4:memory:/pod\n"])
def test_without_a_count_of_its_own_the_machine_s_is_watched(tmp_path: Path, groups: str | None) -> None:
    if groups is not None:
        write(tmp_path, "proc/self/cgroup", groups)
    assert not OomKills(tmp_path).risen()  # there is no count at all
    write(tmp_path, "proc/vmstat", "oom_kill 4\n")
    kills = OomKills(tmp_path)
    write(tmp_path, "proc/vmstat", "oom_kill 5\n")
    assert kills.risen()
