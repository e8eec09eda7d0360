"""What a package adds to Clover by its entry points: a policy, a carbon source and a backend."""

from __future__ import annotations

from clover.backends.eager import EagerBackend
from clover.policies.objective import StaticPolicy
from clover.types import Plan, Reading, State


class FrugalPolicy:
    """The cheapest variant on the layout that serves it best."""

    name = "frugal"

    def propose(self, state: State) -> Plan:
        """Return its plan."""
        return StaticPolicy(state.profile.accuracy[0].variant).propose(state)


class RooftopSource:
    """A roof that gives as many gCO2e/kWh as its number says."""

    step_s = 300.0
    remote = False

    def __init__(self, argument: str) -> None:
        self.name = f"rooftop:{argument}"
        self._g_per_kwh = float(argument)

    async def read(self, grid_s: float) -> Reading:
        """Return the reading."""
        return Reading(g_per_kwh=self._g_per_kwh, at_s=grid_s, provider=self.name, method="configured")

    async def forecast(self, grid_s: float, horizon_s: float) -> list[Reading]:
        """Return no forecast."""
        return []


class OurBackend(EagerBackend):
    """The module as it is, under another name."""

    name = "ours"
