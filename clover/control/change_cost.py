"""What a change of configuration costs here, as far as it was seen: how long a worker takes to start, and how long a
configuration lasts.

A change is worth it if it saves more, over the time that it is expected to last, than starting the workers takes
(`clover.planning.budget.steering`) and than the capacity that is missing meanwhile puts at risk (`clover.control.gate`,
which alone knows of that).
"""

from __future__ import annotations

from collections.abc import Iterable

from clover.interfaces import Fleet
from clover.planning.packing.formulation import SWITCH_S
from clover.planning.transition.memory import MemoryAware
from clover.planning.transition.stages import StepSeconds, typical_spawn_s
from clover.types import Assignment, DeviceShape, Transition

HOLDS_S = 3600.0
"""Seconds that a configuration is expected to last before one was seen to end: grids and loads move by the hour."""
_WEIGHT = 0.3  # of the newest observation in a running mean
_STARTS_S = (1.0, 120.0)
_LASTS_S = (60.0, 4.0 * 3600.0)


class ChangeCost:
    """Running means over a family's changes of configuration."""

    def __init__(self) -> None:
        self.start_s = SWITCH_S
        """Seconds that the start of workers takes, with their load and warm-up."""
        self._holds_s = HOLDS_S
        self._changed_s: float | None = None

    def changed(self, transition: Transition, began_s: float, now_s: float) -> None:
        """Take note of a transition that was carried out between `began_s` and `now_s` (monotonic)."""
        if transition.starts:
            self.start_s += _WEIGHT * (_within(now_s - began_s, _STARTS_S) - self.start_s)
        if self._changed_s is not None:
            self._holds_s += _WEIGHT * (_within(now_s - self._changed_s, _LASTS_S) - self._holds_s)
        self._changed_s = now_s

    def holds_s(self, now_s: float) -> float:
        """Return the seconds that a change made now is expected to last: as long as earlier ones did, or as long as
        what runs has lasted by now if that is more."""
        lasted_s = now_s - self._changed_s if self._changed_s is not None else 0.0
        return max(self._holds_s, min(lasted_s, _LASTS_S[1]))


def step_seconds(fleet: Fleet, shapes: Iterable[DeviceShape], workers: Iterable[Assignment]) -> StepSeconds:
    """Return how long the steps of a transition take that starts `workers` on the devices of `shapes`: as the workers
    of `fleet` took so far if it knows, else as such a device lets expect."""
    by_name = {shape.device: shape for shape in shapes}
    kinds = {(item.placement.device, item.backend) for item in workers}
    typical = {(device, backend): typical_spawn_s(by_name.get(device), backend) for device, backend in kinds}
    if not isinstance(fleet, MemoryAware):
        return StepSeconds(typical=typical)
    spawns, drain_s = dict(fleet.start_seconds()), fleet.drain_seconds()
    if drain_s is None:
        return StepSeconds(spawns=spawns, typical=typical)
    return StepSeconds(spawns=spawns, typical=typical, drain_s=drain_s, drained=True)


def _within(value: float, bounds: tuple[float, float]) -> float:
    return min(max(value, bounds[0]), bounds[1])
