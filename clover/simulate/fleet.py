"""Workers that exist only as numbers: `clover.interfaces.Fleet` and `Device`, simulated.

What is routed serves as the production queueing model says (`planning.model.queueing`): every variant is a lane that
gets its share of the rows, with the model's batches, joules and latencies.  Plans are predicted by the same model, so
the simulation shows what the *controller* makes of a grid and a load, and not how wrong the model is.  How wrong the
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
import numpy as np
from numpy.typing import NDArray

from clover.control.arrivals import WINDOW_S
from clover.errors import DeviceError, WorkerError
from clover.planning.cascade import chains
from clover.planning.cascade.waits import energy_j
from clover.planning.model.problem import accuracies, services_of
from clover.planning.model.queueing import Lane, Service, batched, lane_of, latencies_ms, mixture_p95_ms
from clover.planning.packing.evaluation import UNBOUNDED_MS
from clover.simulate.records import JOULES_PER_KWH
from clover.types import (
    Asked,
    Assignment,
    ChainPoint,
    Configuration,
    Declined,
    DeviceShape,
    FamilyProfile,
    MeteredWindow,
    Placement,
    Routing,
    WorkReport,
    configuration_of,
)

Floats = NDArray[np.float64]

_DUST = 1e-9
_FULL = 0.999  # of a lane's capacity, above which the model has no p95


@dataclass(frozen=True)
class Flow:
    """What a routing does at a rate: rows/s served, accuracy (percent), watts above idle, the part of the rows later
    than the SLO, spare capacity in rows/s, and p95 (ms) with the weighted latencies that it is taken from."""

    served: float
    accuracy: float
    active_w: float
    late: float
    spare: float
    p95_ms: float
    parts: tuple[tuple[float, Floats], ...]
    work: tuple[LaneWork, ...] = ()


@dataclass(frozen=True)
class LaneWork:
    """What the workers of one (variant, profile of the slice) do in a second: rows in batches of `batch`, each of which
    takes `batch_s`; `joules` above idle, and those that the profile believes in."""

    variant: str
    profile: str
    rows: float
    batch: int
    batch_s: float
    joules: float
    expected_j: float


@dataclass(frozen=True)
class Serving:
    """A configuration and its routing at a moment: `rate` rows/s arrive, and the grid emits `g_per_kwh`."""

    configuration: Configuration
    routing: Routing
    rate: float
    g_per_kwh: float


OnRoute = Callable[[Serving, Serving], None]
"""Called with what served and what serves instead, each time that rows are routed to other workers or otherwise."""


class FleetModel:
    """The queueing model of one family on its devices; what was computed is kept.  `profile` is how workers really
    serve, `believed` what the controller takes for it."""

    def __init__(self, profile: FamilyProfile, slo_ms: float, believed: FamilyProfile | None = None) -> None:
        self._services = services_of(profile)
        self._believed = services_of(believed or profile)
        self._accuracy = accuracies(profile)
        self._slo_ms = slo_ms
        self._points = points_of(profile)
        self._known: dict[tuple[object, ...], Flow] = {}

    def flow(self, configuration: Configuration, routing: Routing, rate: float) -> Flow:
        """Return what `configuration` does with `rate` rows a second under `routing`."""
        knobs = tuple(
            (v, routing.shares[v], routing.largest.get(v, 0), routing.wait_ms.get(v, 0.0)) for v in routing.shares
        )
        key = (configuration, knobs, routing.chain, routing.thresholds, rate)
        if key not in self._known:
            self._known[key] = self._flow(configuration, routing, rate)
        return self._known[key]

    def _flow(self, configuration: Configuration, routing: Routing, rate: float) -> Flow:
        groups: dict[str, list[tuple[Service, int]]] = {}
        for group in configuration:
            own = groups.setdefault(group.variant, [])
            own.append((self._services[group.variant, group.profile], group.count))
        if routing.chain and groups.keys() >= set(routing.chain):
            return self._chained(configuration, groups, routing, rate)
        total = sum(share for variant, share in routing.shares.items() if variant in groups) or 1.0
        served = right = watts = late = spare = 0.0
        parts = []
        work: list[LaneWork] = []
        for variant, members in groups.items():
            lane = lane_of(tuple(members))
            share = routing.shares.get(variant, 0.0) / total  # plans round shares: no row may be lost by that
            coming = rate * share
            done = min(coming, _FULL * lane.capacity)
            spare += lane.capacity - done
            if done <= 0.0:
                continue
            energy_j, batch, latencies = _lane(
                lane, done, share, routing.largest.get(variant, 0), routing.wait_ms.get(variant, 0.0)
            )
            work += self._work(configuration, variant, done, batch, energy_j)
            overloaded = coming > done
            served += done
            right += done * self._accuracy[variant]
            watts += done * energy_j
            late += done * (1.0 if overloaded else float(np.mean(latencies > self._slo_ms)))
            parts.append((done, latencies))
        return Flow(
            served=served,
            accuracy=right / served if served > 0.0 else 0.0,
            active_w=watts,
            late=late / served if served > 0.0 else 0.0,
            spare=spare,
            p95_ms=mixture_p95_ms([(rows / served, values) for rows, values in parts]) if parts else 0.0,
            parts=tuple(parts),
            work=tuple(work),
        )

    def _work(
        self, configuration: Configuration, variant: str, rate: float, batch: float, energy_j: float
    ) -> list[LaneWork]:
        """Return what the workers of `variant` do with `rate` rows a second at `energy_j` a row, in proportion to what
        they can serve."""
        own = [group for group in configuration if group.variant == variant]
        services = [self._services[variant, group.profile] for group in own]
        rows = max(1, round(batch))
        whole = sum(service.capacity() * group.count for service, group in zip(services, own, strict=True))
        plain_j = [service.energy_j(rows) for service in services]
        parts = [service.capacity() * group.count / whole for service, group in zip(services, own, strict=True)]
        scale = energy_j / max(sum(part * joules for part, joules in zip(parts, plain_j, strict=True)), 1e-12)
        return [
            LaneWork(
                variant=variant,
                profile=group.profile,
                rows=rate * part,
                batch=rows,
                batch_s=service.seconds(rows),
                joules=rate * part * joules * scale,
                expected_j=rate * part * self._believed[variant, group.profile].energy_j(rows) * scale,
            )
            for group, service, part, joules in zip(own, services, parts, plain_j, strict=True)
        ]

    def _chained(
        self,
        configuration: Configuration,
        groups: Mapping[str, list[tuple[Service, int]]],
        routing: Routing,
        rate: float,
    ) -> Flow:
        """Return what a cascade does: all rows come to the first stage, and to the next ones as often as the profile
        says."""
        point = self._points[routing.chain, routing.thresholds]
        stages = [lane_of(tuple(groups[variant])) for variant in point.chain]
        most = min(lane.capacity / part for lane, part in zip(stages, point.reach, strict=True) if part > 0.0)
        done = min(rate, _FULL * most)
        wait_ms = chains.wait_of(point.chain, routing)
        latencies = chains.played_ms(tuple(lane.workers for lane in stages), done, point.reach, wait_ms)
        watts = done * energy_j(stages, done, point.reach, wait_ms)
        asked = [done * part for part in point.reach]
        alone = [lane.energy_j(rows) for lane, rows in zip(stages, asked, strict=True)]
        scale = watts / max(sum(rows * joules for rows, joules in zip(asked, alone, strict=True)), 1e-12)
        work = [
            item
            for variant, lane, rows, joules in zip(point.chain, stages, asked, alone, strict=True)
            for item in self._work(configuration, variant, rows, lane.batch(rows), joules * scale)
        ]
        return Flow(
            served=done,
            accuracy=point.accuracy,
            active_w=watts,
            late=1.0 if done < rate else float(np.mean(latencies > self._slo_ms)),
            spare=most - done,
            p95_ms=float(np.quantile(latencies, 0.95)),
            parts=((done, latencies),),
            work=tuple(work),
        )


def points_of(profile: FamilyProfile) -> dict[tuple[tuple[str, ...], tuple[float, ...]], ChainPoint]:
    """Return the cascades of a profile, by chain and thresholds."""
    points = profile.cascade.points if profile.cascade is not None else ()
    return {(point.chain, point.thresholds): point for point in points}


def _lane(lane: Lane, rate: float, share: float, largest: int, wait_ms: float) -> tuple[float, float, Floats]:
    """Return joules a row, rows a batch and latencies (ms) of a lane."""
    if largest or wait_ms:
        played = batched(lane, rate, share, largest=largest, wait_ms=wait_ms)
        return played.energy_j_per_row, played.batch, played.latencies_ms
    return lane.energy_j(rate, share), lane.batch(rate, share), latencies_ms(lane.workers, rate, share)


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
    (None: `idle_w` always).  `load_s`: virtual seconds until a spawned worker is ready.  `exact`: `observe` returns the
    true rate, not one counted over a window."""

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
    ) -> None:
        self.load_s = 0.0
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
        found, self.sums = self.sums, FleetTotals()
        return found

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

    async def spawn(self, assignment: Assignment) -> None:
        """Add a worker, which is ready after `load_s`."""
        if assignment in self._ready:
            raise WorkerError(f"{assignment.variant} runs at {assignment.placement.id} already")
        self._accrue()
        self._coming.append(assignment)
        try:
            if self.load_s > 0.0:
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
        found = {
            "arrival_rate": self._observed,
            "arrival_window_s": math.inf if self._exact else WINDOW_S,
            "queue_rows": self.queue_rows,
            "rows": self._rows,
            "restarts": 0.0,
        }
        if self._rows > 0.0:
            found["accuracy_served"] = self._right / self._rows
        if self._rate > 0.0 and self.routed:
            flow = self._flow()
            found["p95_ms"] = min(UNBOUNDED_MS, flow.p95_ms + _wait_ms(self.queue_rows, flow))
        return found

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

    def guard_report(self) -> dict[str, Any]:
        """Return {}: simulated answers are what the profile says."""
        return {}

    def reset_guard(self) -> None:
        """Do nothing: there is no guard (see `clover.interfaces.Fleet.reset_guard`)."""

    def demanded(self) -> dict[str, Asked]:
        """Return {}: simulated rows ask for no accuracy of their own."""
        return {}

    def decline(self, declined: Mapping[str, Declined], wanted: Callable[[], None]) -> None:
        """Do nothing: no simulated row asks for a variant (see `clover.interfaces.Fleet.decline`)."""

    def words(self) -> str:
        """Return what is routed, in words."""
        return " + ".join(f"{group.count} x {group.variant}@{group.profile}" for group in self._configuration)


@dataclass
class SimulatedDevice:
    """A device that makes every instance its layouts allow, at once; none while it is `lost`."""

    given: DeviceShape
    made: dict[str, Placement] = field(default_factory=dict)
    lost: bool = False

    def shape(self) -> DeviceShape:
        """Return the layouts that the device allows."""
        return msgspec.structs.replace(self.given, layouts=()) if self.lost else self.given

    async def create(self, placement: Placement) -> None:
        """Make an instance; DeviceError if the layouts do not allow it beside those that exist."""
        if self.lost:
            raise DeviceError(f"{placement.device} is lost")
        wanted = {*self.made, placement.id}
        fits = any(wanted <= {item.id for item in layout} for layout in self.given.layouts)
        if placement.id in self.made or not (fits or self.given.overlap):
            raise DeviceError(f"{placement.id} cannot be made beside {', '.join(self.made) or 'nothing'}")
        self.made[placement.id] = placement

    async def destroy(self, placement: Placement) -> None:
        """Remove an instance."""
        if self.made.pop(placement.id, None) is None:
            raise DeviceError(f"there is no {placement.id}")

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
