"""The CPU as a partitionable device: core-sets play the part of MIG slices.

The cores this process may run on (affinity, capped by the cgroup's CPU quota; never the count of the machine) are a
row of slices.  An instance of profile `2c` is two adjacent cores at an offset aligned to two; the whole row is one
more profile, whatever its length (`3c`).  A layout covers every core once, like a maximal MIG layout.

With three cores or more the first one is kept for the front end, so that batches do not delay the event loop.  With
fewer, the front end shares the workers' cores, and the shape says so (`shared_front`).  Cores given explicitly all
belong to workers.

**Layouts.**  Up to 8 cores: every tiling by aligned power-of-two blocks, plus the whole (26 for 8 cores).  Beyond,
where tilings explode: the whole, the uniform layouts (blocks of one size), and the two-size layouts whose larger blocks
fill a prefix that ends at one of at most 7 evenly spaced points; a remainder is filled by descending powers of two.
That is at most 7 layouts a pair of sizes: 66 for 64 cores.

**Sleep.**  With `workers.cores = auto` and unless `workers.sleep = off`, plans may leave the last cores without
workers, so that these sleep.  The shape says so, and how much a sleeping core is taken to spare (`core_sleep_w`).

Core-sets may overlap in time: a new worker loads beside the one it replaces, and the scheduler shares the cores.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path

from clover.config import WorkersConfig
from clover.devices import DeviceChoice
from clover.devices.nvml import Nvml
from clover.errors import ConfigError, DeviceError
from clover.interfaces import Device
from clover.settings.check import AUTO, device_forms, parse_cores
from clover.types import DeviceShape, Placement

_ALL_TILINGS_UP_TO = 8
_SPLITS = 8


def parse(text: str, rest: str | None) -> DeviceChoice:
    """Return the choice of the cores; ConfigError if anything follows the word (`workers.cores` says which cores)."""
    if rest is not None:
        raise ConfigError(f"device {text!r} is no device: give {device_forms()}")
    return DeviceChoice(kind="cpu")


def build(
    choice: DeviceChoice, config: WorkersConfig, cache: Path, *, exclusive: bool, session: Nvml | None
) -> dict[str, Device]:
    """Return the cores of `config` as one device; DeviceError if they cannot be used."""
    sleep_w = config.core_sleep_w if config.cores.strip() == AUTO and config.sleep == "park" else None
    device = CpuDevice(parse_cores(config.cores), sleep_w=sleep_w)
    return {device.name: device}


def available_cores(root: Path = Path("/"), affinity: tuple[int, ...] | None = None) -> tuple[int, ...]:
    """Return the cores this process may use: its affinity, cut to the whole CPUs its cgroup's quota allows (at least
    one)."""
    cores = tuple(sorted(os.sched_getaffinity(0))) if affinity is None else affinity
    quota = cgroup_cpus(root)
    return cores if quota is None else cores[: max(1, int(quota))]


def ranges(cores: Sequence[int]) -> str:
    """Return ascending core numbers as the setting `cores` takes them: "0-3,6"."""
    runs: list[list[int]] = []
    for core in cores:
        if runs and core == runs[-1][-1] + 1:
            runs[-1].append(core)
        else:
            runs.append([core])
    return ",".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)


def cgroup_cpus(root: Path = Path("/")) -> float | None:
    """Return the tightest CPU quota of this process's cgroup and its ancestors, in CPUs; None if there is none."""
    quotas = []
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        parts = [part for part in path.split("/") if part not in ("", "..")]
        if controllers == "":
            mount, read = root / "sys/fs/cgroup", _quota_v2
        elif "cpu" in controllers.split(","):
            names = (controllers, "cpu,cpuacct", "cpu")
            mounts = [root / "sys/fs/cgroup" / name for name in names if (root / "sys/fs/cgroup" / name).is_dir()]
            if not mounts:
                continue
            mount, read = mounts[0], _quota_v1
        else:
            continue
        # A container sees its own cgroup as the mount's root while the path still counts from the host's, so folders
        # that do not exist are skipped rather than taken for "no limit anywhere".
        quotas += [read(mount.joinpath(*parts[:depth])) for depth in range(len(parts) + 1)]
    finite = [quota for quota in quotas if quota is not None]
    return min(finite) if finite else None


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []


def _quota_v2(folder: Path) -> float | None:
    words = " ".join(_lines(folder / "cpu.max")).split()
    return _ratio(words[0], words[1]) if len(words) == 2 else None


def _quota_v1(folder: Path) -> float | None:
    quota, period = _lines(folder / "cpu.cfs_quota_us"), _lines(folder / "cpu.cfs_period_us")
    return _ratio(quota[0], period[0]) if quota and period else None


def _ratio(quota: str, period: str) -> float | None:
    try:
        value = int(quota) / int(period)
    except (ValueError, ZeroDivisionError):
        return None  # "max"
    return value if value > 0 else None


class CpuDevice:
    """Implements `clover.interfaces.Device`.

    `cores`: the cores workers may use, all of them for workers; None takes this process's, and keeps the first for the
    front end if there are at least three.  A worker runs one thread, which is best unless measured otherwise
    (`set_threads`).  `sleep_w`: watts that a core is taken to spare while it has no worker, if plans may leave cores
    without; None: every core has one.  Raises DeviceError if cores cannot be used.
    """

    def __init__(self, cores: tuple[int, ...] | None = None, *, sleep_w: float | None = None) -> None:
        self.name = "cpu0"
        self._sleep_w = sleep_w
        allowed = tuple(sorted(os.sched_getaffinity(0)))
        if cores is None:
            usable = available_cores(affinity=allowed)
            self._divide(usable, keep_front=len(usable) >= 3)
        else:
            wrong = sorted(set(cores) - set(allowed))
            if wrong:
                raise DeviceError(f"cores {ranges(wrong)} are not among those this process may use: {ranges(allowed)}")
            self._divide(tuple(cores), keep_front=False)
        self._threads: dict[str, int] = {}

    @classmethod
    def from_cores(
        cls, usable: tuple[int, ...], *, threads: Mapping[str, int] | None = None, sleep_w: float | None = None
    ) -> CpuDevice:
        """Return a device over `usable` as if they were this process's cores: for planning without that machine."""
        device = cls.__new__(cls)
        device.name = "cpu0"
        device._sleep_w = sleep_w
        device._divide(usable, keep_front=len(usable) >= 3)
        device._threads = {}
        for profile, count in (threads or {}).items():
            device.set_threads(profile, count)
        return device

    def _divide(self, usable: tuple[int, ...], *, keep_front: bool) -> None:
        if not usable or len(set(usable)) != len(usable):
            raise DeviceError("the cores of a device must be a list of different core numbers, at least one")
        self.front_cores: tuple[int, ...] = usable[:1] if keep_front else usable
        """Cores for the event loop; the workers' own where `shared_front`."""
        self.worker_cores: tuple[int, ...] = usable[1:] if keep_front else usable
        self.shared_front = not keep_front

    def shape(self) -> DeviceShape:
        """Return the layouts of core-sets."""
        return self._shape

    @cached_property
    def _shape(self) -> DeviceShape:
        total = len(self.worker_cores)
        sleeps = self._sleep_w is not None
        where = "shared with the front end" if self.shared_front else f"front end on core {self.front_cores[0]}"
        return DeviceShape(
            device=self.name,
            kind="cpu",
            layouts=tuple(tuple(self.placement(start, size) for start, size in blocks) for blocks in layouts_of(total)),
            slices=total,
            overlap=True,
            shared_front=self.shared_front,
            label=f"{total} core{'s' if total > 1 else ''}, {where}{', used as the load needs' if sleeps else ''}",
            core_sleep_w=self._sleep_w,
        )

    def placement(self, start: int, size: int) -> Placement:
        """Return the core-set of `size` cores at index `start` of the worker cores."""
        return Placement(device=self.name, profile=f"{size}c", start=start, size=size)

    async def create(self, placement: Placement) -> None:
        """Do nothing, as a core-set needs no making; DeviceError if it does not exist on this device."""
        self.cores(placement)

    async def destroy(self, placement: Placement) -> None:
        """Do nothing, as a core-set needs no removal; DeviceError if it does not exist on this device."""
        self.cores(placement)

    def cores(self, placement: Placement) -> tuple[int, ...]:
        """Return the core numbers of `placement`; DeviceError if it is not one of this device."""
        end = placement.start + placement.size
        if (
            placement.device != self.name
            or placement.size < 1
            or not 0 <= placement.start < end <= len(self.worker_cores)
            or placement.profile != f"{placement.size}c"
        ):
            raise DeviceError(f"{placement.id} does not exist on {self.name}: {len(self.worker_cores)} worker cores")
        return self.worker_cores[placement.start : end]

    def threads(self, placement: Placement) -> int:
        """Return the threads of a worker at `placement`: what `set_threads` set for its profile, else one."""
        return min(self._threads.get(placement.profile, 1), placement.size)

    def visible(self, placement: Placement) -> str:
        """Return "", as no accelerator belongs to a core-set; DeviceError if it does not exist on this device."""
        self.cores(placement)
        return ""

    def memory_bytes(self, placement: Placement) -> int:
        """Return 0, as a core-set has no memory of its own; DeviceError if it does not exist on this device."""
        self.cores(placement)
        return 0

    def set_threads(self, profile: str, count: int) -> None:
        """Let workers on `profile` run `count` threads, at most one a core."""
        if count < 1:
            raise DeviceError(f"a worker on {profile} needs at least one thread, not {count}")
        self._threads[profile] = count


def layouts_of(total: int) -> list[tuple[tuple[int, int], ...]]:
    """Return the layouts of `total` cores as (start, size) blocks, each covering every core once; the whole comes
    first."""
    whole: tuple[tuple[int, int], ...] = ((0, total),)
    layouts = dict.fromkeys([whole])
    rows = _tilings(0, total) if total <= _ALL_TILINGS_UP_TO else _bounded(total)
    layouts.update(dict.fromkeys(rows))
    return list(layouts)


def _sizes(total: int) -> list[int]:
    """Return the powers of two up to `total`, largest first."""
    return [1 << power for power in range(total.bit_length() - 1, -1, -1) if 1 << power <= total]


def _tilings(start: int, end: int) -> Iterator[tuple[tuple[int, int], ...]]:
    """Yield every cover of [start, end) by power-of-two blocks aligned to their size, larger blocks first."""
    if start == end:
        yield ()
        return
    for size in _sizes(end - start):
        if start % size == 0:
            for rest in _tilings(start + size, end):
                yield ((start, size), *rest)


def _bounded(total: int) -> Iterator[tuple[tuple[int, int], ...]]:
    """Yield the uniform layouts, and those of two sizes (see the module)."""
    sizes = _sizes(total)
    for size in sizes:
        yield tuple(_fill(0, total, size))
    for large, small in itertools.combinations(sizes, 2):
        blocks = total // large
        ends = {round(blocks * part / _SPLITS) * large for part in range(1, _SPLITS)}
        for end in sorted(ends - {0, total}):
            yield (*_fill(0, end, large), *_fill(end, total, small))


def _fill(start: int, end: int, size: int) -> Iterator[tuple[int, int]]:
    """Yield blocks of `size` from `start`, the remainder by descending powers of two (aligned, as `start` is a
    multiple)."""
    while start < end:
        while start + size > end:
            size //= 2
        yield start, size
        start += size
