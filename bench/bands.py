"""Policies for the benches: the intensity's hundreds digit names the configuration.

They force changes at known grid times, so that the bench can measure what they cost; they save nothing.  Band k of a
trace (k x 100 <= intensity < (k + 1) x 100 gCO2e/kWh) maps to the k-th entry of `BANDS` on a CPU, and of `SLICES` on
two A100s.
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


SLICES: tuple[tuple[tuple[str, str, int], ...], ...] = (
    (("xlarge", "7g.40gb", 2),),
    (("large", "3g.20gb", 1), ("xlarge", "4g.20gb", 1), ("xlarge", "7g.40gb", 1)),
    (("large", "1g.5gb", 14),),
    (("large", "3g.20gb", 2), ("medium", "2g.10gb", 3), ("small", "1g.5gb", 1)),
    (("large", "1g.5gb", 7), ("xlarge", "7g.40gb", 1)),
    (("medium", "1g.5gb", 14),),
)
"""BASE, mixed and finest layouts of two A100s."""


class Bands:
    """The policy; pure, as every policy."""

    name = "bands"
    bands = BANDS

    def propose(self, state: State) -> Plan:
        """Return the band's configuration, with its best routing."""
        band = int(state.intensity.g_per_kwh // 100)
        if not 0 <= band < len(self.bands):
            raise PlanError(f"no band for {state.intensity.g_per_kwh} g/kWh")
        groups = sorted(self.bands[band])
        configuration = tuple(GroupCount(variant=v, profile=p, count=n) for v, p, n in groups)
        return plan_fixed(state, configuration, policy=self.name)


class Slices(Bands):
    """The same for two A100s."""

    name = "slices"
    bands = SLICES
