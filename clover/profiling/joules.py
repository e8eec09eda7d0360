"""Active energy of a stretch of measuring: what the counter rose above idle, or CPU time by the model."""

from __future__ import annotations

import asyncio
import time
from types import TracebackType

from clover import energy
from clover.config import EnergyConfig
from clover.interfaces import EnergyMeter
from clover.types import EnergySample, Method

_IDLE_S = 1.1


class Window:
    """Counter readings at the ends of a stretch; a context manager around the work."""

    def __init__(self, meter: EnergyMeter | None, core_w: float) -> None:
        self._meter = meter
        self._core_w = core_w
        self._ends: list[EnergySample] = []

    def __enter__(self) -> Window:
        self._read()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._read()

    def _read(self) -> None:
        if self._meter is not None:
            self._ends.append(self._meter.sample(time.monotonic_ns()))

    def joules(self, rows: int, cpu_s: float) -> tuple[float, Method]:
        """Active joules a row and where they come from.  A counter that did not rise above idle (too short a stretch,
        or idle power set too high) leaves the model, labelled so."""
        if len(self._ends) == 2:
            first, last = self._ends
            active_j = last.total_j - first.total_j - last.idle_w * (last.at_ns - first.at_ns) / 1e9
            if active_j > 0:
                return active_j / rows, "measured"
        return self._core_w * cpu_s / rows, "modelled"


class Joules:
    """Makes windows over one meter."""

    def __init__(self, meter: EnergyMeter | None, core_w: float, label: str) -> None:
        self._meter = meter
        self._core_w = core_w
        self.label = label

    @classmethod
    async def start(cls, config: EnergyConfig, cores: int) -> Joules:
        """The meter `config` asks for.  A measured one first watches the idle machine for a second."""
        meter = energy.build(config, cores=cores, cpu_seconds=lambda: 0.0)
        if meter.method != "measured":
            return cls(None, config.core_w, f"energy is modelled: {config.core_w:g} W a busy core ({meter.why})")
        await asyncio.sleep(_IDLE_S)
        meter.sample(time.monotonic_ns())
        return cls(meter, config.core_w, f"energy is measured above idle ({meter.why})")

    def window(self) -> Window:
        """A new stretch."""
        return Window(self._meter, self._core_w)
