"""Energy by a model, if no counter can be read:  joules = idle_w x seconds + core_w x CPU seconds of the workers.

That is the usual linear model, idle + (max - idle) x utilisation, written with CPU time in place of utilisation: a
core that is busy all the time adds `core_w`.  The constants are configured, or published ones of the processor's
micro-architecture (`clover.energy.cpu_power`).  Published constants come with a range, from which a sample says how far
off its joules may be.  The figures are good for comparing variants on one machine; in absolute terms they are no better
than the constants.  They are labelled "modelled".
"""

from __future__ import annotations

from collections.abc import Callable

from clover.energy.cpu_power import Range
from clover.energy.marks import MeterMark
from clover.types import EnergySample, Method


class ModelledMeter:
    """Joules of a CPU by the linear model.

    `idle_w`: watts of the whole device at rest; `core_w`: of one busy core; both with their ranges, (1, 1) if none is
    known.
    """

    method: Method = "modelled"

    def __init__(
        self,
        *,
        idle_w: float,
        core_w: float,
        cpu_seconds: Callable[[], float],
        now_ns: int,
        why: str = "configured",
        device: str = "cpu0",
        idle_range: Range = (1.0, 1.0),
        core_range: Range = (1.0, 1.0),
    ) -> None:
        self.device = device
        self.why = why
        self.idle_w = idle_w
        self.core_w = core_w
        self._ranges = (idle_range, core_range)
        self._cpu_seconds = cpu_seconds
        self._cpu_s = cpu_seconds()
        self._at_ns = now_ns
        self._idle_j = 0.0
        self._active_j = 0.0
        self._idle_ns = now_ns
        """Until when idle power is counted."""

    @property
    def uncertainty(self) -> tuple[float, float] | None:
        """How far off the joules so far may be, as (-0.2, 0.4) of them by the ranges; None if no range is known."""
        idle, core = self._ranges
        if idle == core == (1.0, 1.0):
            return None
        parts = (self._idle_j, self._active_j) if self._idle_j + self._active_j > 0.0 else (1.0, 0.0)
        low, high = ((parts[0] * idle[end] + parts[1] * core[end]) / sum(parts) - 1.0 for end in (0, 1))
        return low, high

    @property
    def active_uncertainty(self) -> tuple[float, float] | None:
        """How far off the active joules alone may be, of which differences between variants are made."""
        low, high = self._ranges[1]
        return (low - 1.0, high - 1.0) if (low, high) != (1.0, 1.0) else None

    async def rest(self) -> None:
        """Do nothing: idle power is a constant."""

    async def refresh(self) -> None:
        """Do nothing: a sample is cheap."""

    def sample(self, now_ns: int) -> EnergySample:
        """Return joules since the meter was made; they never decrease, even if the clock or the CPU total does."""
        cpu_s = self._cpu_seconds()
        idle_w, elapsed_ns = self.idle_w, now_ns - self._at_ns
        if elapsed_ns > 0:
            idle_ns = max(0, now_ns - self._idle_ns)
            if idle_ns != elapsed_ns:
                idle_w *= idle_ns / elapsed_ns
            self._idle_j += self.idle_w * (idle_ns / 1e9)
            self._idle_ns = max(self._idle_ns, now_ns)
        self._active_j += self.core_w * max(0.0, cpu_s - self._cpu_s)
        self._at_ns = max(self._at_ns, now_ns)
        self._cpu_s = cpu_s
        return EnergySample(
            device=self.device,
            at_ns=self._at_ns,
            total_j=self._idle_j + self._active_j,
            idle_w=idle_w,
            method=self.method,
            uncertainty=self.uncertainty,
            active_uncertainty=self.active_uncertainty,
        )

    def mark(self) -> MeterMark:
        """Return where its last sample stands."""
        return MeterMark(device=self.device, method=self.method, at_ns=self._at_ns)

    def count_idle(self, since_ns: int) -> None:
        """Count idle power alone from `since_ns` (monotonic) on, because another server has counted until then, or is
        counting.  What of it came before the window under way falls into that window."""
        self._idle_ns = since_ns
