"""Energy by a model, if no counter can be read:  joules = idle_w x seconds + core_w x CPU seconds of the workers.

That is the usual linear model, idle + (max - idle) x utilisation, written with CPU time in place of utilisation: a
core that is busy all the time adds `core_w`.  Both constants come from the configuration.  The figures are good for
comparing variants on one machine and no better than the constants in absolute terms; they are labelled "modelled".
"""

from __future__ import annotations

from collections.abc import Callable

from clover.types import EnergySample, Method


class ModelledMeter:
    """Joules of a CPU by the linear model.  `idle_w`: watts of the whole device at rest; `core_w`: of one busy core."""

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
    ) -> None:
        self.device = device
        self.why = why
        self.idle_w = idle_w
        self.core_w = core_w
        self._cpu_seconds = cpu_seconds
        self._cpu_s = cpu_seconds()
        self._at_ns = now_ns
        self._total_j = 0.0

    async def refresh(self) -> None:
        """Do nothing: a sample is cheap."""

    def sample(self, now_ns: int) -> EnergySample:
        """Return joules since the meter was made; they never decrease, even if the clock or the CPU total does."""
        cpu_s = self._cpu_seconds()
        elapsed_s = max(0, now_ns - self._at_ns) / 1e9
        self._total_j += self.idle_w * elapsed_s + self.core_w * max(0.0, cpu_s - self._cpu_s)
        self._at_ns = max(self._at_ns, now_ns)
        self._cpu_s = cpu_s
        return EnergySample(
            device=self.device, at_ns=self._at_ns, total_j=self._total_j, idle_w=self.idle_w, method=self.method
        )
