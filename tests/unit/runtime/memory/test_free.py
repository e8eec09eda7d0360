"""How much memory there is and how much of it is free, from files as a kernel shows them."""

from __future__ import annotations

from pathlib import Path

from clover.runtime.memory.free import free_bytes, machine_memory

MIB = 1 << 20


def machine(root: Path, **files: str) -> Path:
    """A machine with 1000 MiB available; `files` of its cgroup, the one above that has no limit."""
    own = root / "sys/fs/cgroup/pod/server"
    for folder in (root / "proc/self", own):
        folder.mkdir(parents=True, exist_ok=True)
    (root / "proc/meminfo").write_text(f"MemTotal:  9999999 kB\nMemAvailable:  {1000 << 10} kB\n")
    (root / "proc/self/cgroup").write_text("0::/pod/server\n")
    (own.parent / "memory.max").write_text("max\n")
    (own.parent / "memory.current").write_text("1\n")
    for name, text in files.items():
        (own / name.replace("_", ".")).write_text(text)
    return root


def test_it_is_what_the_kernel_says_is_available(tmp_path: Path) -> None:
    assert free_bytes(machine(tmp_path)) == 1000 * MIB
    assert free_bytes(tmp_path / "nothing") == 0


def test_the_limit_of_a_cgroup_counts_without_files_that_nothing_uses(tmp_path: Path) -> None:
    limited = {"memory_max": str(600 * MIB), "memory_current": str(500 * MIB)}
    assert free_bytes(machine(tmp_path, **limited)) == 100 * MIB
    stat = f"anon 5\ninactive_file {50 * MIB}\n"
    assert free_bytes(machine(tmp_path, **limited, memory_stat=stat)) == 150 * MIB
    full = {"memory_max": str(600 * MIB), "memory_current": str(700 * MIB), "memory_stat": ""}
    assert free_bytes(machine(tmp_path, **full)) == 0


def test_this_machine_says_something() -> None:
    assert free_bytes() > MIB


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
