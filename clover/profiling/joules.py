"""Active energy of a stretch of measuring: what the counters rose above idle, or CPU time by the model.

On a GPU it is the counter of every GPU whose slices were at work; they show a tenth of a second at best, so a stretch
has to last longer than that.  There is no model to fall back to: a GPU whose energy cannot be had is refused.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Any

from clover import energy
from clover.config import EnergyConfig
from clover.errors import ProfileError
from clover.interfaces import EnergyMeter
from clover.types import EnergySample, Method, Placement

_IDLE_S = 1.1


class Window:
    """Counter readings at the ends of a stretch; an asynchronous context manager around the work."""

    def __init__(self, meters: Sequence[EnergyMeter], core_w: float) -> None:
        self._meters = meters
        self._core_w = core_w
        self._ends: list[list[EnergySample]] = []

    async def __aenter__(self) -> Window:
        await self._read()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            await self._read()

    async def _read(self) -> None:
        for meter in self._meters:
            await meter.refresh()
        self._ends.append([meter.sample(time.monotonic_ns()) for meter in self._meters])

    def joules(self, rows: int, cpu_s: float) -> tuple[float, Method]:
        """Return active joules a row and where they come from.  Counters of the machine that did not rise above idle
        (too short a stretch, or idle power set too high) leave the model, labelled so.  Raises ProfileError where a
        GPU's did not: nothing models that."""
        if not self._meters:
            return self._core_w * cpu_s / rows, "modelled"
        if len(self._ends) != 2:
            raise ProfileError("the energy of a stretch of measuring was asked for before its end")
        active_j, on_gpu = 0.0, False
        for meter, first, last in zip(self._meters, *self._ends, strict=True):
            on_gpu = on_gpu or first.device.startswith("gpu")
            if last.epoch != first.epoch:
                raise ProfileError(f"the energy counter of {first.device} began anew while it was read ({meter.why})")
            active_j += last.total_j - first.total_j - last.idle_w * (last.at_ns - first.at_ns) / 1e9
        if active_j > 0:
            return active_j / rows, self._ends[0][0].method
        if on_gpu:
            raise ProfileError(
                "the GPU's energy did not rise above idle while it was measured: another program may have used it "
                "at the start; set energy.gpu_idle_w, or measure again"
            )
        return self._core_w * cpu_s / rows, "modelled"


class Joules:
    """Makes windows over the meters of what is measured."""

    def __init__(self, meters: Sequence[EnergyMeter], core_w: float, label: str, *, on_gpus: bool = False) -> None:
        self._meters = meters
        self._core_w = core_w
        self._on_gpus = on_gpus
        self.label = label

    @classmethod
    async def start(cls, config: EnergyConfig, cores: int, gpus: Sequence[Any] = ()) -> Joules:
        """Return the meters `config` asks for: of `gpus` (devices with an NVML session) if there are any, else of the
        machine. A measured one first watches the idle machine for a second."""
        if gpus:
            meters = [await energy.build_gpu(gpu.session, gpu, config) for gpu in gpus]
            label = f"energy is that of the GPU above idle ({meters[0].why})"
            return cls(meters, config.core_w, label, on_gpus=True)
        meter = energy.build(config, cores=cores, cpu_seconds=lambda: 0.0)
        if meter.method != "measured":
            return cls((), config.core_w, f"energy is modelled: {config.core_w:g} W a busy core ({meter.why})")
        await asyncio.sleep(_IDLE_S)
        meter.sample(time.monotonic_ns())
        return cls((meter,), config.core_w, f"energy is measured above idle ({meter.why})")

    def window(self, places: Iterable[Placement]) -> Window:
        """Return a new stretch, of work at `places`.  Other GPUs than theirs are left out: they idle, but never at
        quite the power that is taken for idle, and eight of them are off by more than a slice draws."""
        devices = {place.device for place in places}
        at_work = [meter for meter in self._meters if not self._on_gpus or meter.device in devices]
        return Window(at_work, self._core_w)
