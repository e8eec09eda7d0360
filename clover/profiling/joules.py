"""Active energy of one part of a measurement: how far the counters rose above idle, or CPU time by the model.

On a GPU it is the counter of every GPU whose slices were at work, above what the GPU draws with a context at rest
(`clover.energy.board_idle`), which is measured on the first worker there.  Counters move ten times a second at best, so
a window begins and ends when they do.  The time between the last batch and the counter's next step is rest, and costs
nothing above rest.  A GPU that has no counter is read every tenth of a second meanwhile.  If a counter does not rise
above rest, the measurement is refused, because nothing else is known of the energy.  Where joules are modelled from the
time in which workers are busy (`ModelledGpuMeter.by_work`), that time is taken.

`busy_share` and `others_on` say who else is at work: on the cores while nothing of ours runs on them, and on GPUs.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TypeGuard

from clover import energy
from clover.ancestry import descends_from
from clover.config import EnergyConfig
from clover.energy.foreign_work import busy_others
from clover.energy.gpu_probe import counted_others
from clover.energy.kept_idle import KeptIdles
from clover.errors import ProfileError
from clover.interfaces import EnergyMeter
from clover.proc_stat import PROC_STAT, cpu_times
from clover.profiling.driver import Cell
from clover.profiling.duty import DutyPoint
from clover.types import EnergySample, Method, Placement

_TICK_S = 0.5
"""The longest that a counter is waited for."""
_LOOK_S = 0.005
_SAMPLE_S = 0.1
_WATCH_S = 0.4


class EnergyWindow:
    """Counter readings before and after some work; an asynchronous context manager around it.

    `awake_w`: what GPUs draw beyond idle power with a context at rest, by device.  `busy_w`: what a busy worker draws,
    if that is modelled; None: meters say what was drawn.
    """

    def __init__(
        self,
        meters: Sequence[EnergyMeter],
        core_w: float,
        awake_w: Mapping[str, float] | None = None,
        *,
        busy_w: float | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.busy_w = busy_w
        self._meters = meters
        self._core_w = core_w
        self._awake_w = awake_w or {}
        self._sleep = sleep
        self._ends: list[list[EnergySample]] = []
        self._looking: asyncio.Task[None] | None = None

    async def __aenter__(self) -> EnergyWindow:
        await self._read()
        sampled = [meter for meter in self._meters if getattr(meter, "source", "counter") != "counter"]
        if sampled:
            self._looking = asyncio.ensure_future(self._follow(sampled))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._looking is not None:
            self._looking.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._looking
        if error is None:
            await self._read()

    async def _follow(self, meters: Sequence[EnergyMeter]) -> None:
        """Read power again and again, to integrate it between readings."""
        while True:
            await self._sleep(_SAMPLE_S)
            for meter in meters:
                await meter.refresh()

    async def _read(self) -> None:
        self._ends.append([await self._read_step(meter) for meter in self._meters])

    async def _read_step(self, meter: EnergyMeter) -> EnergySample:
        """Return what `meter` shows; of a GPU's counter as soon as it has moved."""
        await meter.refresh()
        first = meter.sample(time.monotonic_ns())
        if not first.device.startswith("gpu") or getattr(meter, "source", "counter") != "counter":
            return first
        sample, waited_s = first, 0.0
        while sample.total_j == first.total_j and sample.epoch == first.epoch and waited_s < _TICK_S:
            await self._sleep(_LOOK_S)
            waited_s += _LOOK_S
            await meter.refresh()
            sample = meter.sample(time.monotonic_ns())
        return sample

    def point(self, cell: Cell) -> DutyPoint | None:
        """Return what `cell` took in this window as a point of the line of power over duty; None if no GPU did."""
        if not self._ends or not any(sample.device.startswith("gpu") for sample in self._ends[0]):
            return None
        first, last = (samples[0] for samples in self._ends)
        seconds = (last.at_ns - first.at_ns) / 1e9 or cell.wall_s
        busy_s = cell.busy_s + cell.lead_s
        active_j = self._active_j() if self.busy_w is None else self.busy_w * busy_s
        return DutyPoint(seconds, busy_s, cell.rows + cell.batch, active_j)

    def joules(self, rows: int, cpu_s: float, busy_s: float = 0.0) -> tuple[float, Method]:
        """Return active joules a row and how they are known, for `rows` rows that took `cpu_s` CPU seconds, and a
        worker `busy_s` seconds.

        If the machine's counters did not rise above idle (too short a window, or idle power set too high), the model
        is used and labelled so.  Raises ProfileError if a GPU's did not rise: there is no model of a GPU.
        """
        if not self._meters:
            return self._core_w * cpu_s / rows, "modelled"
        if len(self._ends) != 2:
            raise ProfileError("the energy of a measurement was asked for before its end")
        if self.busy_w is not None:
            return self.busy_w * busy_s / rows, self.method
        active_j = self._active_j()
        if active_j > 0:
            return active_j / rows, self.method
        if any(sample.device.startswith("gpu") for sample in self._ends[0]):
            raise ProfileError(NOT_ABOVE_IDLE)
        return self._core_w * cpu_s / rows, "modelled"

    @property
    def method(self) -> Method:
        """How the meters know."""
        return self._ends[0][0].method

    def _active_j(self) -> float:
        """Return the joules above rest.  Raises ProfileError if a counter began anew."""
        active_j = 0.0
        for meter, first, last in zip(self._meters, *self._ends, strict=True):
            if last.epoch != first.epoch:
                raise ProfileError(f"the energy counter of {first.device} began anew while it was read ({meter.why})")
            rest_w = last.idle_w + self._awake_w.get(first.device, 0.0)
            active_j += last.total_j - first.total_j - rest_w * (last.at_ns - first.at_ns) / 1e9
        return active_j


NOT_ABOVE_IDLE = (
    "the GPU's energy did not rise above idle while it was measured: another program may have used it at the start; "
    "set energy.gpu_idle_w and energy.gpu_resident_w, or measure again"
)


def _ours(pid: int) -> bool:
    return descends_from(pid, os.getpid())


class EnergyMeters:
    """The meters of what is measured; `label` says how its energy is known."""

    def __init__(self, meters: Sequence[EnergyMeter], core_w: float, label: str, *, on_gpus: bool = False) -> None:
        self._meters = meters
        self._core_w = core_w
        self._on_gpus = on_gpus
        self._awake_w: dict[str, float] = {}
        self._slices: dict[str, int] = {}
        """All slices of each GPU, also those of others."""
        self.label = label

    @classmethod
    async def start(cls, config: EnergyConfig, cores: int, gpus: Sequence[Any] = ()) -> EnergyMeters:
        """Return the meters that `config` asks for: of `gpus` (devices with an NVML session), or else of the machine.

        Call it while nothing is measured: that of the machine first measures its idle power, as a server does.  Raises
        ProfileError if others compute on one of `gpus`.
        """
        core_w = energy.cpu_power(config).core_w
        if gpus:
            if others := await others_on(gpus):
                raise ProfileError(
                    f"{others}: their energy would be taken for the models'; stop them, or give the measurement a GPU "
                    "of its own"
                )
            meters = await asyncio.gather(*(energy.build_gpu(gpu.session, gpu, config) for gpu in gpus))
            label = f"energy is that of the GPU above rest with a context ({meters[0].why})"
            if any(_by_work(meter) for meter in meters):
                label = f"energy of GPUs is modelled by the time in which workers were busy ({meters[0].why})"
            elif beside := [gpu.name for gpu in gpus if counted_others(gpu)]:
                label += f"; the work of others, who have slices of {', '.join(beside)}, is in it"
            made = cls(meters, core_w, label, on_gpus=True)
            made._slices = {gpu.name: gpu.shape().slices + getattr(gpu, "others", 0) for gpu in gpus}
            return made
        meter = energy.build(config, cores=cores, cpu_seconds=lambda: 0.0)
        if meter.method != "measured":
            return cls((), core_w, f"energy is modelled: {core_w:g} W a busy core ({meter.why})")
        await meter.rest()
        return cls((meter,), core_w, f"energy is measured above idle ({meter.why})")

    async def rest(self, place: Placement) -> None:
        """Measure what a GPU draws with a context at rest, once: call it while the first worker on it has nothing to
        do."""
        for meter in self._meters:
            if self._on_gpus and meter.device == place.device and meter.device not in self._awake_w:
                measured = getattr(meter, "measure_resident", None)
                if measured is not None:
                    await measured()
                idle = getattr(meter, "idle", None)
                self._awake_w[meter.device] = idle.resident_w - idle.bare_w if idle is not None else 0.0

    def keep(self, cache: Path, gpus: Sequence[Any]) -> None:
        """Keep in `cache` what a context costs on each of `gpus`, for servers that are never at rest."""
        if self._on_gpus:
            for gpu, meter in zip(gpus, self._meters, strict=True):
                KeptIdles(cache).save(gpu.uuid, meter)

    def window(self, places: Iterable[Placement]) -> EnergyWindow:
        """Return a window for work at `places`."""
        # Other GPUs are left out: they idle, but never at quite the power that is taken for idle, and eight of them
        # are off by more than a slice draws.
        places = tuple(places)
        devices = {place.device for place in places}
        at_work = [meter for meter in self._meters if not self._on_gpus or meter.device in devices]
        modelled = {meter.device: meter for meter in at_work if _by_work(meter)}
        busy_w = [
            modelled[place.device].busy_w * place.slices / self._slices[place.device]
            for place in places
            if place.device in modelled
        ]
        mean_w = sum(busy_w) / len(busy_w) if busy_w else None
        return EnergyWindow(at_work, self._core_w, self._awake_w, busy_w=mean_w)


def _by_work(meter: object) -> TypeGuard[energy.ModelledGpuMeter]:
    return isinstance(meter, energy.ModelledGpuMeter) and meter.by_work


def jiffies(text: str, cores: Iterable[int]) -> tuple[int, int]:
    """Return busy and total jiffies of `cores` in the text of /proc/stat."""
    counted = cpu_times(text)
    chosen = [counted[name] for name in (f"cpu{core}" for core in cores) if name in counted]
    total = sum(times.total for times in chosen)
    return total - sum(times.idle for times in chosen), total


async def busy_share(cores: Iterable[int], path: Path = PROC_STAT, watch_s: float = _WATCH_S) -> float:
    """Return the share of `cores` that is busy (or stolen by the hypervisor) for the next `watch_s` seconds.

    0 if `path`, the kernel's counters, cannot be read.
    """
    chosen = tuple(cores)
    try:
        before = jiffies(path.read_text(encoding="ascii"), chosen)
        await asyncio.sleep(watch_s)
        after = jiffies(path.read_text(encoding="ascii"), chosen)
    except (OSError, ValueError):
        return 0.0
    return (after[0] - before[0]) / (after[1] - before[1]) if after[1] > before[1] else 0.0


async def others_on(gpus: Sequence[Any]) -> str:
    """Return who computes on `gpus` beside this process and its children, in words; the empty string if nobody does."""
    others = [(gpu.name, await busy_others(gpu.session, gpu, _ours)) for gpu in gpus]
    return "; ".join(f"{', '.join(names)} compute on {name}" for name, names in others if names)
