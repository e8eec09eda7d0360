"""What the parts of the controller share: configuration, mode, families, devices, the grid, clocks and decisions.

Planner, executor, commands, shadows and reports all get the context, so that none of them has to know the controller.
The context decides nothing.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from clover.carbon.grid import Grid, Reference, reference_in_force
from clover.config import ControllerConfig
from clover.control.state.apply import SharedInstances
from clover.control.state.decisions import Decisions
from clover.control.state.demand import why_closed
from clover.control.state.device_pool import DevicePool
from clover.control.state.family import Conditions, Family, Mode
from clover.control.state.parked import ParkedGpus
from clover.control.state.request import Pin
from clover.control.state.sleep import spared_w
from clover.interfaces import Device
from clover.planning.budget.forecast import HOUR_S
from clover.planning.model.problem import accuracies
from clover.planning.transition.stages import served
from clover.policies.demanded import heeds
from clover.runtime.workers.resident_orders import resident_bytes
from clover.types import Declined, DeviceShape, Placement

_PLANS = 24
"""Plans whose median says what one takes."""


@dataclass(frozen=True)
class Clocks:
    """The time: `monotonic` for all that waits, `wall` for the record; `sleep` waits for so many seconds."""

    monotonic: Callable[[], float] = time.monotonic
    wall: Callable[[], float] = time.time
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep


class LeastSaving:
    """The watts that a routing has to spare to be worth its accuracy: `PART` of the machine's idle power (`idle_w`, in
    watts), and at least what one plan an hour takes at `core_w` watts a busy core."""

    PART = 1e-3

    def __init__(self, *, core_w: float = 0.0, idle_w: Callable[[], float] = lambda: 0.0) -> None:
        self._core_w = core_w
        self._idle_w = idle_w
        self._seconds: deque[float] = deque(maxlen=_PLANS)

    def record_plan(self, seconds: float) -> None:
        """Record that a plan took `seconds` of the solver."""
        self._seconds.append(seconds)

    def watts(self, share: float) -> float:
        """Return the watts for a family that has `share` of the machine."""
        plan_w = self._core_w * statistics.median(self._seconds) / HOUR_S if self._seconds else 0.0
        return max(plan_w, self.PART * self._idle_w() * share)


class Context:
    """The state that all families have in common.  Everything here changes on the event loop only; what takes more than
    one step changes under `lock`."""

    def __init__(
        self,
        config: ControllerConfig,
        devices: Mapping[str, Device],
        grid: Grid,
        clocks: Clocks,
        least_saving: LeastSaving,
    ) -> None:
        self.config = config
        self.least_saving = least_saving
        self.mode: Mode = config.mode
        self.frozen = False
        self.families: dict[str, Family] = {}
        self.device_pool = DevicePool(devices)
        self._devices = devices
        self.instances = SharedInstances(devices)
        self.unplanned: dict[str, set[Placement]] = {}
        """The places on which families that are served without a plan have workers."""
        self.parked = ParkedGpus()
        self.decisions = Decisions(clocks.wall)
        self.grid = grid
        self.monotonic = clocks.monotonic
        self.lock = asyncio.Lock()

    async def read_grid(self) -> None:
        """Read the present intensity, and give every family the grid's reference intensity."""
        await self.grid.read()
        reference = await self.grid.find_reference()
        for family in self.families.values():
            family.grid_reference = reference

    def reference(self) -> Reference:
        """Return the reference intensity in force: the configured one, else the grid's own."""
        return reference_in_force(self.config.reference_g_per_kwh, self.grid.reference)

    def mode_of(self, family: Family) -> Mode:
        """Return the mode in force for a family."""
        return family.mode or self.mode

    def frozen_of(self, family: Family) -> bool:
        """Return whether a family is held as it is."""
        return self.frozen or family.frozen

    def pin_of(self, family: Family, pin: Pin | None = None) -> Pin:
        """Return what a family is planned by: `pin`, its own pin, its cluster's policy, or the configured one."""
        return pin or family.pin or Pin(policy=family.planned_by(self.config))

    def policy_of(self, family: Family) -> str:
        """Return the policy in force for a family; empty if it is pinned to a configuration."""
        return self.pin_of(family).policy

    def rests(self, family: Family) -> bool:
        """Return whether nothing is planned for the grid's sake, because there is nothing to save."""
        return family.deployed is not None and family.deployed.plan.nothing_to_save

    def devices_of(self, family: str) -> tuple[DeviceShape, ...]:
        """Return the devices that a family (also one served without a plan) may use now."""
        return self.device_pool.devices_for(family, self.occupied())

    def share_of(self, family: Family) -> float:
        """Return the part of the devices' time that is a family's."""
        return self.device_pool.share(family.name)

    def occupied(self) -> dict[str, set[Placement]]:
        """Return the places on which each family has, or shall have, workers."""
        return {**self.unplanned, **{name: family.places for name, family in self.families.items()}}

    def needs(self) -> dict[str, float]:
        """Return the compute slices that each family's load takes, by what its workers serve now; 0 for families that
        run nothing or may not be changed now."""
        needs = {}
        for name, family in self.families.items():
            if self.frozen_of(family) or self.mode_of(family) != "active" or family.pin is not None:
                continue
            capacity = served(family.desired, family.capacity(self.share_of(family)))
            if capacity > 0.0:
                slices = sum(place.slices for place in {item.placement for item in family.desired})
                utilisation = family.rate(self.config) / capacity
                needs[name] = slices * utilisation / self.config.max_utilisation
        return needs

    def must_move(self, family: Family) -> bool:
        """Return whether a family has workers on a GPU, or a part of one, that is now assigned to another."""
        return self.device_pool.outside(family.name, family.places)

    def count_parked(self) -> None:
        """Count the time that GPUs are parked until now."""
        occupied = self.occupied()
        asleep = {name for name, family in self.families.items() if family.fleet.asleep}
        taken = {place.device for name, places in occupied.items() if name not in asleep for place in places}
        may = {place.device for name in asleep for place in occupied[name]}
        for name, family in self.families.items():
            # A GPU whose workers were lost is to have them again: no plan parked it.
            devices = self.device_pool.devices_for(name, occupied) if family.desired and family.whole else ()
            if spared_w(devices) is not None:
                may.update(device.device for device in devices)
        self.parked.observe(self.device_pool.shapes(), may, taken, self.monotonic())

    def lost_suffix(self) -> str:
        """Return the lost devices in brackets, to end an error text; empty if none is lost."""
        lost = sorted(self.device_pool.lost())
        return f" ({', '.join(lost)} lost)" if lost else ""

    async def conditions(self, family: Family) -> Conditions:
        """Return the conditions under which a plan of a family is made now."""
        return Conditions(
            reading=self.grid.reading or await self.grid.read(),
            grid_s=self.grid.now(),
            devices=self.devices_of(family.name),
            share=self.share_of(family),
            resident_bytes=self._resident_bytes(family),
            least_saving_w=self.least_saving.watts(self.share_of(family)),
        )

    def _resident_bytes(self, family: Family) -> dict[str, int]:
        """Return the bytes that a worker of the family may hold, by profile; nothing if it holds one variant."""
        if family.config.most_resident(len(family.spec.variants)) < 2:
            return {}
        share, limit_bytes = self.share_of(family), family.slice_memory().limit_bytes
        places = {item.profile: item for shape in self.devices_of(family.name) for own in shape.layouts for item in own}
        return {
            profile: resident_bytes(self._devices[item.device], item, share=share, limit_bytes=limit_bytes)
            for profile, item in places.items()
            if item.device in self._devices
        }

    def look_at_memory(self, family: Family) -> None:
        """Let a family forget what it found no room for if its devices, what others have in the same memory, or its
        profile are not what they were then.  Only core-sets have their memory in common with other places."""
        usable = self.device_pool.usable_by(family.name)
        shapes = tuple((shape.device, shape.label, shape.layouts) for shape in usable)
        common = {shape.device for shape in usable if shape.overlap}
        others = frozenset(
            (name, place)
            for name, places in self.occupied().items()
            for place in places
            if name != family.name and place.device in common
        )
        family.memory_troubles.observe((family.profile.key, shapes, others))

    def declined(self, family: Family) -> dict[str, Declined]:
        """Return the variants for which no worker will be started, and why: rows that need one are refused."""
        policy = self.policy_of(family)
        why = why_closed(
            mode=self.mode_of(family),
            frozen=self.frozen_of(family),
            pinned="" if policy else "a configuration",
            policy=policy,
            heeded=heeds(policy),
        )
        return family.demand.declined(self.monotonic(), accuracies(family.profile), family.desired, why)
