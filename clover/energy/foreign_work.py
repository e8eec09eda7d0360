"""Processes on a GPU that are not the server's: the GPU's one counter bills their work to the server.

NVML lists the processes that have a context on a GPU, and how busy each keeps it unless MIG splits it.  A process that
is known to rest draws nothing of its own beside its context.  If NVML does not say how busy a process is, it may be at
work.  Without any list (in a container, or without privileges) only the instances that others made on the GPU are
known.  Processes that this process cannot see (of another PID namespace) count as nobody's, because they may be ours.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from clover.energy.gpu_probe import MeteredGpu, NvmlSession, Probe, Value

log = logging.getLogger("clover.energy")

BUSY = 0.02
"""The part of a GPU that a process at rest keeps busy at most."""
BUSY_WATTS = 0.35
"""The part of its power limit that a GPU with idle contexts draws at most: 0.17 to 0.3 of boards of data centres."""


def _none() -> tuple[str, ...]:
    return ()


def _whole() -> float:
    return 1.0


@dataclass(frozen=True)
class OurWork:
    """What the server does on a GPU: the time that its workers were busy so far, the processes of those that are ready
    there, whether a process is the server's, the instances on the GPU that are not, and the part of its slices that
    workers hold."""

    busy_ns: Callable[[], int]
    workers: Callable[[], frozenset[int]]
    owns: Callable[[int], bool]
    foreign_instances: Callable[[], tuple[str, ...]] = _none
    held_part: Callable[[], float] = _whole


class ForeignWork:
    """The processes of others on the GPU `device`, as of the last reading.

    `pids`: those that have a context there; `names`: those that are or may be at work, as "python (4711)".
    """

    def __init__(self, device: str, work: OurWork | None, proc: Path = Path("/proc")) -> None:
        self.pids: tuple[int, ...] = ()
        self.names: tuple[str, ...] = ()
        self._device = device
        self._work = work
        self._proc = proc

    @property
    def why(self) -> str:
        """Who is at work, in words; the empty string if nobody is."""
        return f"shared with {', '.join(self.names)}" if self.names else ""

    def observe(self, pids: Iterable[int] | None, busy: Mapping[int, float] | None) -> None:
        """Record who is on the GPU, and how busy (None: NVML does not say).  A change is logged."""
        before = self.names
        if self._work is None:
            return
        if pids is None:
            self.pids, self.names = (), self._work.foreign_instances()
        else:
            self.pids = tuple(pid for pid in pids if self._seen(pid) and not self._work.owns(pid))
            at_work = [pid for pid in self.pids if busy is None or busy.get(pid, 0.0) > BUSY]
            self.names = tuple(process_name(pid, self._proc) for pid in sorted(set(at_work)))
        if self.names and self.names != before:
            log.warning(
                "%s: %s compute on this GPU and are not this server's: part of the energy that is counted for models "
                "is theirs (shared_s and active_uncertainty_low of its account say how much at most)",
                self._device, ", ".join(self.names),
            )  # fmt: skip
        elif before and not self.names:
            log.info("%s: nobody else computes on this GPU any more", self._device)

    def _seen(self, pid: int) -> bool:
        return os.path.exists(f"{self._proc}/{pid}")


async def busy_others(nvml: NvmlSession, gpu: MeteredGpu, owns: Callable[[int], bool]) -> tuple[str, ...]:
    """Return the processes at work on `gpu` that this one does not own, as "python (4711)".  Call it while none of ours
    works.  If NVML does not say how busy each is (MIG), others are taken to be at work if the GPU draws more than
    `BUSY_WATTS` of its limit.  Raises DeviceError if NVML does not answer."""
    probe = Probe(gpu.uuid, time.monotonic_ns)
    pids = await nvml.call(probe.pids)
    others = [pid for pid in pids or () if os.path.exists(f"/proc/{pid}") and not owns(pid)]
    if not others:
        return ()
    busy = await nvml.call(probe.busy)
    if busy is None:
        power, limit_w = await nvml.call(probe.power), await nvml.call(probe.limit_w)
        if not isinstance(power, Value) or limit_w is None or power.number / 1e3 <= BUSY_WATTS * limit_w:
            return ()
    return tuple(process_name(pid) for pid in sorted(set(others)) if busy is None or busy.get(pid, 0.0) > BUSY)


def process_name(pid: int, proc: Path = Path("/proc")) -> str:
    """Return "python (4711)", or "process 4711" if it has ended."""
    try:
        return f"{(proc / str(pid) / 'comm').read_text(encoding='utf-8', errors='replace').strip()} ({pid})"
    except OSError:
        return f"process {pid}"
