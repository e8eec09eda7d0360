"""A constant carbon intensity, as the operator states it: `static:G` with G in gCO2e/kWh."""

from __future__ import annotations

from clover.types import Reading


class StaticSource:
    """The same intensity at every time, labelled "configured"."""

    remote = False
    step_s = 300.0

    def __init__(self, g_per_kwh: float) -> None:
        self.name = "static"
        self.g_per_kwh = g_per_kwh

    async def read(self, grid_s: float) -> Reading:
        """Return the constant; it is always of now."""
        return self._at(grid_s)

    async def forecast(self, grid_s: float, horizon_s: float) -> list[Reading]:
        """Return the constant, once a step."""
        return [self._at(grid_s + n * self.step_s) for n in range(max(0, int(horizon_s // self.step_s)) + 1)]

    def _at(self, at_s: float) -> Reading:
        return Reading(g_per_kwh=self.g_per_kwh, at_s=at_s, provider=self.name, method="configured")
