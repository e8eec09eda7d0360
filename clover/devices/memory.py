"""The memory of this machine, as far as its processes may have it."""

from __future__ import annotations

from pathlib import Path

_ROOT = Path("/")


def machine_memory(root: Path = _ROOT) -> int:
    """Return the bytes that all processes of this server may have together: the machine's, or what the cgroup is
    limited to; 0 if the kernel does not tell."""
    total, limit = meminfo(root).get("MemTotal", 0), memory_limit(root)
    return min(total, limit) if total and limit is not None else total


def meminfo(root: Path = _ROOT) -> dict[str, int]:
    """Return the fields of /proc/meminfo in bytes; none if it cannot be read."""
    found = {}
    try:
        for line in (root / "proc/meminfo").read_text().splitlines():
            name, _, rest = line.partition(":")
            found[name] = int(rest.split()[0]) << 10
    except (OSError, ValueError, IndexError):
        pass
    return found


def memory_limit(root: Path = _ROOT) -> int | None:
    """Return the tightest limit of this process's cgroup (version 2) and those above it, in bytes; None without one."""
    limits = []
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        if not line.startswith("0::"):
            continue
        parts = [part for part in line[3:].split("/") if part not in ("", "..")]
        for depth in range(len(parts) + 1):
            folder = root.joinpath("sys/fs/cgroup", *parts[:depth])
            try:
                text = (folder / "memory.max").read_text().strip()
            except OSError:
                continue
            if text.isdecimal():
                limits.append(int(text))
    return min(limits, default=None)
