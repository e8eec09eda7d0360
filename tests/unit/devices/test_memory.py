"""The memory of the machine, and the limit of the cgroup."""

from __future__ import annotations

from pathlib import Path

from clover.devices.memory import machine_memory


def test_the_cgroup_may_have_less_than_the_machine(tmp_path: Path) -> None:
    assert machine_memory(tmp_path) == 0, "nothing says"
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/meminfo").write_text("MemTotal:       2048 kB\nMemAvailable:  1024 kB\n")
    assert machine_memory(tmp_path) == 2048 << 10
    (tmp_path / "proc/self/cgroup").write_text("0::/a/b\n")
    for folder, limit in (("a", "1048576\n"), ("a/b", "max\n")):
        (tmp_path / "sys/fs/cgroup" / folder).mkdir(parents=True)
        (tmp_path / "sys/fs/cgroup" / folder / "memory.max").write_text(limit)
    assert machine_memory(tmp_path) == 1 << 20
    (tmp_path / "sys/fs/cgroup/a/memory.max").write_text("9999999999\n")
    assert machine_memory(tmp_path) == 2048 << 10
    assert machine_memory() > 1 << 20
