"""Workers that exist only as numbers: `clover.interfaces.Fleet` and `Device`, simulated.

What is routed serves as the production queueing model says (`flow`).  Plans are predicted by the same model, so the
simulation shows what the *controller* makes of a grid and a load, and not how wrong the model is.  How wrong the
*profile* is can be simulated too: then the services here are the true ones, and the controller has others
(`surprises`).

A lane that gets more rows than it can serve serves at capacity, and the rest waits: a fluid queue, emptied later with
half of the spare capacity; a row waits behind it for queue / rows served a second.  Rows that wait for a variant that
is no longer routed are served by the others.

Energy is counted between events (a new route, a new load, a new intensity), at constant power between them.  Every
device draws idle power, routed or not.  One without workers draws less if it may sleep: it is awake from the moment at
which a worker is spawned on it until the last one is gone.
"""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from clover.control.state.arrivals import WINDOW_S
from clover.errors import DeviceError, WorkerError
from clover.planning.model.queueing import mixture_p95_ms
from clover.planning.packing.evaluation import UNBOUNDED_MS
from clover.research.simulate.flow import FleetModel, Flow
from clover.research.simulate.records import JOULES_PER_KWH
from clover.types import (
    Asked,
    Assignment,
    Configuration,
    Declined,
    DeviceShape,
    MeteredWindow,
    Placement,
    Routing,
    WorkReport,
    configuration_of,
    words_of,
)

_DUST = 1e-9


@dataclass(frozen=True)
class Serving:
    """A configuration and its routing at a moment: `rate` rows/s arrive, and the grid emits `g_per_kwh`."""

    configuration: Configuration
    routing: Routing
    rate: float
    g_per_kwh: float


OnRoute = Callable[[Serving, Serving], None]
"""Called with what served and what serves instead, each time that rows are routed to other workers or otherwise."""


@dataclass
class FleetTotals:
    """What a fleet did since the last step of the ledger."""

    rows: float = 0.0
    right: float = 0.0
    active_j: float = 0.0
    idle_j: float = 0.0
    active_grams: float = 0.0
    idle_grams: float = 0.0
    late: float = 0.0
    served: list[tuple[float, Flow, float]] = field(default_factory=list)
    """Rows, how they were served, and what they waited (ms) behind a queue."""

    @property
    def p95_ms(self) -> float:
        """Of all rows together."""
        served = [item for item in self.served if item[0] > 0.0]
        if not served:
            return 0.0
        if all(wait_ms <= 0.0 and flow is served[0][1] for _, flow, wait_ms in served):
            return served[0][1].p95_ms
        parts = [
            (rows * weight / max(flow.served, 1e-12), latencies + wait_ms)
            for rows, flow, wait_ms in served
            for weight, latencies in flow.parts
        ]
        return min(UNBOUNDED_MS, mixture_p95_ms(parts)) if parts else UNBOUNDED_MS


class SimulatedFleet:
    """The workers of one family on `devices`, each of which draws `idle_w`, or `asleep_w` while it has no workers
    (None: `idle_w` always).  `load_s`: virtual seconds until a spawned worker is ready; with `resident` a variant is
    ready at once where a worker is, which holds it already.  `exact`: `observe` returns the true rate, not one counted
    over a window."""

    asleep = False

    def __init__(
        self,
        model: FleetModel,
        *,
        clock: Callable[[], float],
        devices: int,
        idle_w: float,
        pue: float,
        asleep_w: float | None = None,
        exact: bool = False,
        resident: bool = False,
    ) -> None:
        self.load_s = 0.0
        self._resident = resident
        self._exact = exact
        self.sums = FleetTotals()
        self.queue_rows = 0.0
        self.routed: tuple[Assignment, ...] = ()
        self.routing = Routing(shares={})
        self._model = model
        self._clock = clock
        self._devices = devices
        self._idle_w = idle_w
        self._asleep_w = asleep_w
        self._pue = pue
        self.on_route: OnRoute | None = None
        self._served: dict[tuple[str, str, int], tuple[float, float]] = {}
        self._metered: dict[str, dict[tuple[str, str], tuple[float, float]]] = {}
        self._ready: list[Assignment] = []
        self._coming: list[Assignment] = []
        self._configuration: Configuration = ()
        self._rate = self._observed = 0.0
        self._g_per_kwh = 0.0
        self._since_s = clock()
        self._rows = self._right = 0.0

    # --- the world's side ---------------------------------------------------------------------------------------------

    def weather(self, rate: float, observed: float, g_per_kwh: float) -> None:
        """Set the world from now on: `rate` rows/s arrive, `observed` rows/s are measured, and the grid emits
        `g_per_kwh`."""
        self._accrue()
        self._rate, self._observed, self._g_per_kwh = rate, observed, g_per_kwh

    def take(self) -> FleetTotals:
        """Return what was added up since the last call."""
        self._accrue()
        sums, self.sums = self.sums, FleetTotals()
        return sums

    @property
    def awake(self) -> int:
        """Devices that draw their full idle power."""
        if self._asleep_w is None:
            return self._devices
        return len({item.placement.device for item in (*self._ready, *self._coming)})

    @property
    def _idle_now_w(self) -> float:
        awake = self.awake
        return awake * self._idle_w + (self._devices - awake) * (self._asleep_w or 0.0)

    def _flow(self) -> Flow:
        """Return what is served now; a fleet with spare capacity serves rows of the queue, too."""
        flow = self._model.flow(self._configuration, self.routing, self._rate)
        if self.queue_rows <= 0.0 or flow.spare <= 0.0:
            return flow
        more = self._rate + max(0.0, 0.5 * flow.spare)
        return self._model.flow(self._configuration, self.routing, more)

    def _accrue(self) -> None:
        now_s = self._clock()
        while now_s - self._since_s > 1e-9:
            self._since_s += self._segment(now_s - self._since_s)
        self._since_s = now_s

    def _segment(self, seconds: float) -> float:
        """Add up at constant power for at most `seconds`, and only until the queue is empty; return the
        seconds added."""
        flow, sums = self._flow(), self.sums
        rate = flow.served - self._rate  # above zero: the queue shrinks
        if abs(rate) < _DUST * self._rate:
            rate = 0.0
        if self.queue_rows > 0.0 and rate > 0.0:
            seconds = min(seconds, max(self.queue_rows / rate, 1e-6))
        rows = flow.served * seconds
        before = self.queue_rows
        self.queue_rows = max(0.0, before - rate * seconds)
        if self.queue_rows < 1e-6:
            self.queue_rows = 0.0
        wait_ms = _wait_ms(max(before, self.queue_rows), flow)
        slow = flow.late if wait_ms <= 0.0 else 1.0
        sums.rows += rows
        sums.right += rows * flow.accuracy
        sums.late += rows * slow
        sums.active_j += flow.active_w * seconds
        idle_w = self._idle_now_w
        sums.idle_j += idle_w * seconds
        grams_per_j = self._g_per_kwh * self._pue / JOULES_PER_KWH
        sums.active_grams += flow.active_w * seconds * grams_per_j
        sums.idle_grams += idle_w * seconds * grams_per_j
        sums.served.append((rows, flow, wait_ms))
        self._note_work(flow, seconds)
        self._rows += rows
        self._right += rows * flow.accuracy
        return seconds

    # --- clover.interfaces.Fleet --------------------------------------------------------------------------------------

    def ready_assignments(self) -> tuple[Assignment, ...]:
        """Return the workers that are ready now."""
        return tuple(self._ready)

    async def wake(self) -> None:
        """See `clover.interfaces.Fleet.wake`: it never sleeps."""

    async def spawn(self, assignment: Assignment) -> None:
        """Add a worker, which is ready after `load_s`."""
        if assignment in self._ready:
            raise WorkerError(f"{assignment.variant} runs at {assignment.placement.id} already")
        self._accrue()
        self._coming.append(assignment)
        held = self._resident and any(item.placement == assignment.placement for item in self._ready)
        try:
            if self.load_s > 0.0 and not held:
                await asyncio.sleep(self.load_s)
        finally:
            self._accrue()
            self._coming.remove(assignment)
        self._ready.append(assignment)

    async def drain(self, assignment: Assignment) -> None:
        """Remove a worker at once: rows are short beside a step of the ledger."""
        self.forget(assignment, "drained")

    def forget(self, assignment: Assignment, reason: str) -> None:
        """Remove a worker without waiting."""
        self._accrue()
        if assignment in self._ready:
            self._ready.remove(assignment)
        if assignment in self.routed:
            self._set(tuple(item for item in self.routed if item != assignment), self.routing)

    def route(self, assignments: tuple[Assignment, ...], routing: Routing) -> None:
        """Make exactly `assignments` the workers that receive rows."""
        if missing := [item.placement.id for item in assignments if item not in self._ready]:
            raise WorkerError(f"rows cannot go to {', '.join(missing)}, where no worker is ready")
        self._set(assignments, routing)

    def lose(self, device: str) -> None:
        """Let the workers on `device` die, as it does not answer any more."""
        self._accrue()
        self._ready = [item for item in self._ready if item.placement.device != device]
        left = tuple(item for item in self.routed if item.placement.device != device)
        if len(left) < len(self.routed):
            self._enter(left, self.routing)

    def _set(self, assignments: tuple[Assignment, ...], routing: Routing) -> None:
        before = self.current
        self._enter(assignments, routing)
        if self.on_route is not None and before.configuration:
            self.on_route(before, self.current)

    @property
    def current(self) -> Serving:
        """What serves now, and what it has to serve."""
        return Serving(self._configuration, self.routing, self._rate, self._g_per_kwh)

    def _enter(self, assignments: tuple[Assignment, ...], routing: Routing) -> None:
        self._accrue()
        self.routed, self.routing = assignments, routing
        self._configuration = configuration_of(assignments)

    def observe(self) -> dict[str, float]:
        """Return the rate as a server would see it over its window, and p95 by the model of what is routed."""
        self._accrue()
        figures = {
            "arrival_rate": self._observed,
            "arrival_window_s": math.inf if self._exact else WINDOW_S,
            "queue_rows": self.queue_rows,
            "rows": self._rows,
            "restarts": 0.0,
        }
        if self._rows > 0.0:
            figures["accuracy_served"] = self._right / self._rows
        if self._rate > 0.0 and self.routed:
            flow = self._flow()
            figures["p95_ms"] = min(UNBOUNDED_MS, flow.p95_ms + _wait_ms(self.queue_rows, flow))
        return figures

    def work_report(self) -> WorkReport:
        """Return what workers did since the last report: their own times, and joules by device."""
        self._accrue()
        served, self._served, metered, self._metered = self._served, {}, self._metered, {}
        return WorkReport(
            served=served,
            metered=tuple(
                MeteredWindow(
                    device=device,
                    joules=sum(joules for joules, _ in own.values()),
                    expected_j={key: expected_j for key, (_, expected_j) in own.items()},
                    shared=True,
                )
                for device, own in metered.items()
            ),
        )

    def _note_work(self, flow: Flow, seconds: float) -> None:
        """Count what the workers do for `seconds`."""
        there = Counter((item.variant, item.placement.profile, item.placement.device) for item in self.routed)
        totals = Counter((item.variant, item.placement.profile) for item in self.routed)
        for work in flow.work:
            key = (work.variant, work.profile, work.batch)
            batches, total_s = self._served.get(key, (0.0, 0.0))
            more = work.rows / work.batch * seconds
            self._served[key] = (batches + more, total_s + more * work.batch_s)
            for (variant, profile, device), count in there.items():
                if (variant, profile) == (work.variant, work.profile):
                    part = count / totals[variant, profile] * seconds
                    own = self._metered.setdefault(device, {})
                    joules, expected_j = own.get((variant, profile), (0.0, 0.0))
                    own[variant, profile] = (joules + work.joules * part, expected_j + work.expected_j * part)

    def correct_energy(self, factors: Mapping[tuple[str, str], float]) -> None:
        """Do nothing: joules are the model's."""

    def correct_front(self, front_ms: float) -> None:
        """Do nothing: there is no front end, and what it adds is the profile's."""

    def guard_report(self) -> dict[str, Any]:
        """Return {}: simulated answers are what the profile says."""
        return {}

    def reset_guard(self) -> None:
        """Do nothing: there is no guard (see `clover.interfaces.Fleet.reset_guard`)."""

    def accuracy_demand(self) -> dict[str, Asked]:
        """Return {}: simulated rows ask for no accuracy of their own."""
        return {}

    def decline(self, declined: Mapping[str, Declined], wanted: Callable[[], None]) -> None:
        """Do nothing: no simulated row asks for a variant (see `clover.interfaces.Fleet.decline`)."""

    def words(self) -> str:
        """Return what is routed, in words."""
        return words_of(self._configuration)


@dataclass
class SimulatedDevice:
    """A device that makes every instance its layouts allow, one after another, each in `create_s` virtual seconds, and
    removes it in `destroy_s`; none while it is `lost`."""

    given: DeviceShape
    made: dict[str, Placement] = field(default_factory=dict)
    lost: bool = False
    create_s: float = 0.0
    destroy_s: float = 0.0
    _one_at_a_time: asyncio.Lock = field(default_factory=asyncio.Lock, repr=False, compare=False)

    def shape(self) -> DeviceShape:
        """Return the layouts that the device allows."""
        return msgspec.structs.replace(self.given, layouts=()) if self.lost else self.given

    async def create(self, placement: Placement) -> None:
        """Make an instance; DeviceError if the layouts do not allow it beside those that exist."""
        self._check_there()
        wanted = {*self.made, placement.id}
        fits = any(wanted <= {item.id for item in layout} for layout in self.given.layouts)
        if placement.id in self.made or not (fits or self.given.overlap):
            raise DeviceError(f"{placement.id} cannot be made beside {', '.join(self.made) or 'nothing'}")
        self.made[placement.id] = placement
        await self._takes(self.create_s)
        self._check_there()

    async def destroy(self, placement: Placement) -> None:
        """Remove an instance."""
        if placement.id not in self.made:
            raise DeviceError(f"there is no {placement.id}")
        await self._takes(self.destroy_s)
        self.made.pop(placement.id, None)  # a GPU that is lost meanwhile has none

    def _check_there(self) -> None:
        if self.lost:
            raise DeviceError(f"{self.given.device} is lost")

    async def _takes(self, seconds: float) -> None:
        if seconds > 0.0:
            async with self._one_at_a_time:
                await asyncio.sleep(seconds)

    def cores(self, placement: Placement) -> tuple[int, ...]:
        """Return no cores: nothing runs here."""
        return ()

    def threads(self, placement: Placement) -> int:
        """Return 1, the threads of a worker."""
        return 1

    def visible(self, placement: Placement) -> str:
        """Return "": there is no accelerator to see."""
        return ""

    def memory_bytes(self, placement: Placement) -> int:
        """Return 0: an instance has no memory of its own."""
        return 0


def _wait_ms(queue_rows: float, flow: Flow) -> float:
    """Return milliseconds that a row waits behind `queue_rows` others."""
    if queue_rows <= 0.0:
        return 0.0
    return UNBOUNDED_MS if flow.served <= 0.0 else min(UNBOUNDED_MS, queue_rows / flow.served * 1e3)


def simulated(shapes: tuple[DeviceShape, ...]) -> Mapping[str, SimulatedDevice]:
    """Return devices of these shapes, by name."""
    return {shape.device: SimulatedDevice(shape) for shape in shapes}
