"""A policy that only changes things: the intensity's hundreds digit names the configuration of the toy family."""

from __future__ import annotations

from clover.policies.plans import plan_fixed
from clover.types import GroupCount, Plan, State

BANDS: dict[int, tuple[tuple[tuple[str, str, int], ...], ...]] = {
    1: ((("full", "1c", 1),), (("half", "1c", 1),)),
    2: (
        (("full", "2c", 1),),
        (("half", "1c", 2),),
        (("full", "1c", 2),),
        (("full", "1c", 1), ("half", "1c", 1)),
        (("half", "2c", 1),),
    ),
}
"""Configurations by cores: the hundreds digit of the intensity picks one."""


class Bands:
    """The policy `tests.support.bands:Bands`: no saving, only changes at known times."""

    name = "bands"

    def propose(self, state: State) -> Plan:
        bands = BANDS[min(state.devices[0].slices, 2)]
        groups = bands[int(state.intensity.g_per_kwh // 100) % len(bands)]
        configuration = tuple(GroupCount(variant=v, profile=p, count=n) for v, p, n in groups)
        return plan_fixed(state, configuration, policy=self.name)
