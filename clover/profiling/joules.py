"""Active energy of one part of a measurement: how far the counters rose above idle, or CPU time by the model.

On a GPU it is the counter of every GPU whose slices were at work; they are updated ten times a second at best, so a
window has to last longer than that.  There is no model to fall back to: a GPU whose energy cannot be read is refused.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Any

from clover import energy
from clover.config import EnergyConfig
from clover.errors import ProfileError
from clover.interfaces import EnergyMeter
from clover.types import EnergySample, Method, Placement


class EnergyWindow:
    """Counter readings before and after some work; an asynchronous context manager around it."""

    def __init__(self, meters: Sequence[EnergyMeter], core_w: float) -> None:
        self._meters = meters
        self._core_w = core_w
        self._ends: list[list[EnergySample]] = []

    async def __aenter__(self) -> EnergyWindow:
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
        """Return active joules a row and how they are known, for `rows` rows that took `cpu_s` CPU seconds.

        If the machine's counters did not rise above idle (too short a window, or idle power set too high), the model
        is used and labelled so.  Raises ProfileError if a GPU's did not rise: there is no model of a GPU.
        """
        if not self._meters:
            return self._core_w * cpu_s / rows, "modelled"
        if len(self._ends) != 2:
            raise ProfileError("the energy of a measurement was asked for before its end")
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


class EnergyMeters:
    """The meters of what is measured; `label` says how its energy is known."""

    def __init__(self, meters: Sequence[EnergyMeter], core_w: float, label: str, *, on_gpus: bool = False) -> None:
        self._meters = meters
        self._core_w = core_w
        self._on_gpus = on_gpus
        self.label = label

    @classmethod
    async def start(cls, config: EnergyConfig, cores: int, gpus: Sequence[Any] = ()) -> EnergyMeters:
        """Return the meters that `config` asks for: of `gpus` (devices with an NVML session), or else of the machine.

        Call it while nothing is measured: that of the machine first measures its idle power, as a server does.
        """
        core_w = energy.cpu_power(config).core_w
        if gpus:
            meters = [await energy.build_gpu(gpu.session, gpu, config) for gpu in gpus]
            label = f"energy is that of the GPU above idle ({meters[0].why})"
            return cls(meters, core_w, label, on_gpus=True)
        meter = energy.build(config, cores=cores, cpu_seconds=lambda: 0.0)
        if meter.method != "measured":
            return cls((), core_w, f"energy is modelled: {core_w:g} W a busy core ({meter.why})")
        await meter.rest()
        return cls((meter,), core_w, f"energy is measured above idle ({meter.why})")

    def window(self, places: Iterable[Placement]) -> EnergyWindow:
        """Return a window for work at `places`."""
        # Other GPUs are left out: they idle, but never at quite the power that is taken for idle, and eight of them
        # are off by more than a slice draws.
        devices = {place.device for place in places}
        at_work = [meter for meter in self._meters if not self._on_gpus or meter.device in devices]
        return EnergyWindow(at_work, self._core_w)
