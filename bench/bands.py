"""A policy for the swap bench: the intensity's hundreds digit names the configuration.

It forces changes at known grid times, so that the bench can measure what they cost; it saves nothing.  Band k of a
trace (k x 100 <= intensity < (k + 1) x 100 gCO2e/kWh) maps to the k-th entry of `BANDS`.
"""

from __future__ import annotations

from clover.errors import PlanError
from clover.policies.plans import plan_fixed
from clover.types import GroupCount, Plan, State

BANDS: tuple[tuple[tuple[str, str, int], ...], ...] = (
    (("xlarge", "2c", 1),),
    (("large", "1c", 2),),
    (("medium", "1c", 2),),
    (("small", "1c", 2),),
    (("large", "2c", 1),),
    (("large", "1c", 1), ("medium", "1c", 1)),
)


class Bands:
    """The policy; pure, as every policy."""

    name = "bands"

    def propose(self, state: State) -> Plan:
        """The band's configuration, with its best routing."""
        band = int(state.intensity.g_per_kwh // 100)
        if not 0 <= band < len(BANDS):
            raise PlanError(f"no band for {state.intensity.g_per_kwh} g/kWh")
        groups = sorted(BANDS[band])
        configuration = tuple(GroupCount(variant=v, profile=p, count=n) for v, p, n in groups)
        return plan_fixed(state, configuration, policy=self.name)
