"""How the cores of this machine idle, by the kernel's counters: what leaving cores without workers really changes.

Where the kernel drives idle states (`/sys/devices/system/cpu/cpuN/cpuidle`: bare metal, few VMs), it counts the
microseconds that a core asked to be in each state, and how often.  *Deep* states only pay after `DEEP_US` and more, as
Intel's C6: a core there draws a tenth of a watt, in C1 about one and a half (Haj-Yahya and others, AgileWatts, MICRO
2022, for a Skylake server).  A core that is woken every millisecond hardly gets there.

Elsewhere `/proc/stat` says how long a core was idle, but not how deep.  In a VM the host decides what a core that asked
for a state really does.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clover.proc_stat import TICKS_PER_S, cpu_times

DEEP_US = 100
"""Target residency from which on a state is deep: C3 and C6 have some hundred microseconds, C1 and C1E 2 and 20."""
LEAST_S = 1.0
LOOK_S = 10.0
WINDOW_S = 60.0
_POLL = "POLL"


@dataclass(frozen=True)
class IdleCounters:
    """Of one core since the machine started: seconds idle, of these in deep states (None: not known), and how often it
    went idle (None: not known)."""

    idle_s: float
    deep_s: float | None
    times: int | None


class CoreIdle:
    """The idle times of `cores`.  Reading them costs some small files a core, which takes milliseconds where there are
    many, so a thread does that (`poll`), and `report` gives what it found."""

    def __init__(
        self, cores: Sequence[int], root: Path = Path("/"), clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._clock = clock
        self._stat = root / "proc/stat"
        folders = {core: root / f"sys/devices/system/cpu/cpu{core}/cpuidle" for core in cores}
        self._states = {core: _states(folder) for core, folder in folders.items()}
        self.source = "cpuidle" if all(self._states.values()) else "/proc/stat"
        self._since_s, self._since = clock(), self._read()
        self._answer: dict[str, Any] | None = None
        self._answer_s = self._since_s
        self._looked = False

    def report(self) -> dict[str, Any] | None:
        """Return the share of time that each core was idle, and deeply idle, in about the last minute before the last
        reading.  None if the kernel does not say, or if it is too early."""
        return self._answer

    @property
    def due(self) -> bool:
        """Whether the last reading was `LOOK_S` ago; the first is due `LEAST_S` after the start."""
        wait_s = LOOK_S if self._looked else LEAST_S
        return self._clock() - max(self._since_s, self._answer_s) >= wait_s

    def poll(self) -> None:
        """Read the counters, unless it is too early to tell anything.  A thread may call it, one at a time."""
        now_s = self._clock()
        if now_s - max(self._since_s, self._answer_s) < LEAST_S:
            return
        self._looked = True
        seconds, now = now_s - self._since_s, self._read()
        cores = [
            _core(core, self._since[core], counters, seconds) for core, counters in now.items() if core in self._since
        ]
        self._answer = {"source": self.source, "seconds": seconds, "cores": cores} if cores else None
        self._answer_s = now_s
        if seconds >= WINDOW_S:
            self._since_s, self._since = now_s, now

    def _read(self) -> dict[int, IdleCounters]:
        """Return the counters of every core; nothing if they cannot be read."""
        try:
            if self.source == "cpuidle":
                return {core: _of_states(states) for core, states in self._states.items()}
            return _of_stat(self._stat.read_text(encoding="ascii"), self._states)
        except (OSError, ValueError):
            return {}


def _states(folder: Path) -> list[tuple[Path, bool]]:
    """Return the idle states of a core, whether each is deep; polling, which is no rest, is left out."""
    states = []
    try:
        for state in sorted(folder.glob("state*")):
            if (state / "name").read_text().strip() != _POLL:
                states.append((state, int((state / "residency").read_text()) >= DEEP_US))
    except (OSError, ValueError):
        return []
    return states


def _of_states(states: Sequence[tuple[Path, bool]]) -> IdleCounters:
    spent = [(int((state / "time").read_text()) / 1e6, deep) for state, deep in states]
    return IdleCounters(
        idle_s=sum(seconds for seconds, _ in spent),
        deep_s=sum(seconds for seconds, deep in spent if deep),
        times=sum(int((state / "usage").read_text()) for state, _ in states),
    )


def _of_stat(text: str, cores: Sequence[int] | dict[int, Any]) -> dict[int, IdleCounters]:
    counted = cpu_times(text)
    named = {core: f"cpu{core}" for core in cores}
    return {
        core: IdleCounters(counted[name].idle / TICKS_PER_S, None, None)
        for core, name in named.items()
        if name in counted
    }


def _core(core: int, before: IdleCounters, after: IdleCounters, seconds: float) -> dict[str, Any]:
    deep = times = None
    if after.deep_s is not None and before.deep_s is not None:
        deep = _part(after.deep_s - before.deep_s, seconds)
    if after.times is not None and before.times is not None:
        times = max(after.times - before.times, 0) / seconds
    return {"core": core, "idle": _part(after.idle_s - before.idle_s, seconds), "deep": deep, "wakes_per_s": times}


def _part(spent_s: float, seconds: float) -> float:
    # Counters are rounded, and a core that has not woken is counted up to when it fell asleep: so within 0 and 1.
    return min(max(spent_s / seconds, 0.0), 1.0)
