"""Finds other programs that hold GPU instances.

The driver refuses to remove an instance, or to turn MIG off, while any client is subscribed to it.  Monitors subscribe
without running anything on it: DCGM's host engine and exporter, NVSM, the device plugin of Kubernetes.  NVML does not
name them.  They can be found by the files that they hold open: the nodes of instances under /dev/nvidia-caps, and for
programs known by name /dev/nvidiactl.  That is best effort: processes of other users and of other containers may be
hidden.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Collection, Sequence
from pathlib import Path

from clover.ancestry import descends_from
from clover.types import Record

CAPABILITIES = "/dev/nvidia-caps/"
_CONTROL = "/dev/nvidiactl"

_UNITS = {
    "nv-hostengine": "nvidia-dcgm",
    "dcgm-exporter": "nvidia-dcgm-exporter",
    "nvsm_core": "nvsm",
    "nvsm-core": "nvsm",
    "nvsm_mqtt": "nvsm",
    "nvidia-device-p": "",
    "nvidia-cuda-mps": "",
    "mps-control-dae": "",
}
"""Programs that hold instances for as long as they run, by their name in /proc (15 characters), with the unit of
systemd that runs them; "" if they are usually run by something else."""

_SERVICE = re.compile(r"/([^/]+)\.service$", re.MULTILINE)


class GpuClient(Record, frozen=True, kw_only=True):
    """A process that may hold GPU instances; `unit` is the systemd unit that runs it and only it, "" if there is none
    such, or if it is not known."""

    pid: int
    name: str
    unit: str = ""

    @property
    def known(self) -> bool:
        """Whether it is a program that is known to hold instances."""
        return self.name in _UNITS

    @property
    def text(self) -> str:
        """The process in words."""
        return f"{self.name} (process {self.pid})"


def find(
    nodes: Sequence[str] = (CAPABILITIES,), *, proc: Path = Path("/proc"), without: Collection[int] = ()
) -> tuple[GpuClient, ...]:
    """Return the processes that hold a file below one of `nodes`, or are known to hold instances; not those of
    `without`, nor this one and its descendants."""
    clients = []
    for pid in sorted(int(entry) for entry in os.listdir(proc) if entry.isdigit()):
        if pid in without or descends_from(pid, os.getpid(), proc):
            continue
        name = _line(proc / str(pid) / "comm")
        files = _files(proc / str(pid) / "fd")
        if any(file.startswith(tuple(nodes)) for file in files) or (name in _UNITS and _CONTROL in files):
            clients.append(GpuClient(pid=pid, name=name, unit=_unit(proc / str(pid), name)))
    return tuple(clients)


def remedy(clients: Sequence[GpuClient]) -> str:
    """Return what ends these clients, as a command."""
    units = dict.fromkeys(client.unit for client in clients if client.unit)
    pids = [str(client.pid) for client in clients if not client.unit]
    commands = [f"systemctl stop {' '.join(units)}"] if units else []
    return " && ".join([*commands, *([f"kill {' '.join(pids)}"] if pids else [])])


def names(clients: Sequence[GpuClient]) -> str:
    """Return these clients in words."""
    return ", ".join(client.text for client in clients)


def holders(pids: Sequence[int], clients: Sequence[GpuClient]) -> str:
    """Return what holds an instance, in words: processes that run on it, and clients that may."""
    parts = [f"held by process {', '.join(map(str, pids))}"] if pids else []
    if clients:
        parts.append(f"{names(clients)} may hold it: {remedy(clients)}")
    return "; ".join(parts) or "no process is to be seen on it"


def _files(folder: Path) -> set[str]:
    """Return the files that a process holds open; none if they may not be read."""
    files = set()
    with contextlib.suppress(OSError):
        for entry in os.listdir(folder):
            with contextlib.suppress(OSError):
                files.add(os.readlink(folder / entry))
    return files


def _line(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").rstrip("\n")
    except OSError:
        return ""


def _unit(process: Path, name: str) -> str:
    if name not in _UNITS:
        return ""  # its unit may run more than it: cron, a shell's session, a scheduler of jobs
    service = _SERVICE.search(_line(process / "cgroup"))
    return service.group(1) if service is not None else _UNITS.get(name, "")
