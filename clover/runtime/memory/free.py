"""How much memory the processes of this machine may use, and how much is free for further workers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path


def machine_memory(root: Path = Path("/")) -> int:
    """Return the bytes that all processes of this server may have together: the machine's, or what the cgroup is
    limited to; 0 if the kernel does not tell."""
    total, limit = meminfo(root).get("MemTotal", 0), memory_limit(root)
    return min(total, limit) if total and limit is not None else total


def meminfo(root: Path = Path("/")) -> dict[str, int]:
    """Return the fields of /proc/meminfo in bytes; none if it cannot be read."""
    fields = {}
    try:
        for line in (root / "proc/meminfo").read_text().splitlines():
            name, _, rest = line.partition(":")
            fields[name] = int(rest.split()[0]) << 10
    except (OSError, ValueError, IndexError):
        pass
    return fields


def memory_limit(root: Path = Path("/")) -> int | None:
    """Return the tightest limit of this process's cgroup (version 2) and those above it, in bytes; None without one."""
    limits = (_number(folder / "memory.max") for folder in _cgroups(root))
    return min((limit for limit in limits if limit is not None), default=None)


def free_bytes(root: Path = Path("/")) -> int:
    """Return the bytes that further processes may take without swapping: what the kernel says is available, within the
    limits of this process's cgroup (version 2) and those above it; 0 if the kernel does not say."""
    available = meminfo(root).get("MemAvailable", 0)
    return max(0, min((available, *_free_of_groups(root)))) if available else 0


def _free_of_groups(root: Path) -> Iterator[int]:
    """Yield what each cgroup with a limit has left; pages of files that nothing uses now do not count as taken."""
    for folder in _cgroups(root):
        limit, held = (_number(folder / name) for name in ("memory.max", "memory.current"))
        if limit is not None and held is not None:
            yield limit - held + _unused(folder / "memory.stat")


def _cgroups(root: Path) -> Iterator[Path]:
    """Yield the folders of this process's cgroup (version 2) and those above it, the root first."""
    for line in _lines(root / "proc/self/cgroup"):
        if line.startswith("0::"):
            parts = [part for part in line[3:].split("/") if part not in ("", "..")]
            yield from (root.joinpath("sys/fs/cgroup", *parts[:depth]) for depth in range(len(parts) + 1))


def _unused(stat: Path) -> int:
    """Return the bytes of files in memory that nothing uses now."""
    return next((int(line.split()[1]) for line in _lines(stat) if line.startswith("inactive_file ")), 0)


def _number(path: Path) -> int | None:
    """Return the number in a file; None if it has none ("max")."""
    text = "".join(_lines(path)).strip()
    return int(text) if text.isdecimal() else None


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return []
