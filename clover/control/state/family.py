"""What the controller keeps of one family: targets, the plan in force, the last good deployment, and back-offs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from msgspec import structs

from clover.carbon.grid import ASSUMED, Reference, reference_in_force
from clover.config import ControllerConfig, FamilyConfig
from clover.control.state.apply import Applier, SharedInstances
from clover.control.state.arrivals import WINDOW_S, ArrivalRate
from clover.control.state.capacity import FloorCapacity
from clover.control.state.demand import DemandMemory
from clover.control.state.learning import Learning
from clover.control.state.ledger import Ledger
from clover.control.state.memory_troubles import MemoryTroubles
from clover.control.state.request import ClusterOrder, Pin, PlanRequest, Targets
from clover.control.state.sleep import SleepKeeper
from clover.control.state.slo.keeper import SloKeeper
from clover.control.state.slo.waits import WaitWatch
from clover.control.state.triggers import Triggers
from clover.interfaces import Fleet
from clover.planning.budget.forecast import Outlook
from clover.planning.model.margin import AccuracySample
from clover.planning.model.objective import derive_lambda
from clover.planning.model.problem import LEAST_RATE, accuracies, services_of
from clover.planning.model.queueing import Service
from clover.planning.transition.memory import MemoryAware, MemoryNeeds, SliceMemory
from clover.planning.transition.stages import StepSeconds, typical_spawn_s
from clover.policies import BUDGETED
from clover.profiles import default_slo_ms, default_slo_source
from clover.runtime.guard.guard import CASCADE_OFF, OK
from clover.types import (
    Assignment,
    Configuration,
    Demand,
    DeviceShape,
    FamilyProfile,
    FamilySpec,
    ObjectiveConfig,
    Placement,
    Plan,
    Reading,
    Routing,
    State,
    Transition,
    configuration_of,
)

Mode = Literal["off", "observe", "active"]
Services = Mapping[tuple[str, str], Service]

FLOOR_BELOW_BEST = 1.0
FIRST_BACKOFF_S = 60.0
LONGEST_BACKOFF_S = 3600.0


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """The conditions of a plan: the newest intensity, grid time, the devices the family may use, the part of their time
    that is its own, the bytes that a worker may hold, by profile (0: not known), and the watts that a routing has to
    spare to be worth its accuracy."""

    reading: Reading
    grid_s: float
    devices: tuple[DeviceShape, ...]
    share: float
    resident_bytes: dict[str, int]
    least_saving_w: float


@dataclass(frozen=True)
class DeployedPlan:
    """A plan that is in force, or was: its workers, how rows go to them, and the plan itself."""

    deployment: tuple[Assignment, ...]
    routing: Routing
    plan: Plan

    @property
    def configuration(self) -> Configuration:
        """The configuration of its workers."""
        return configuration_of(self.deployment)


@dataclass
class Watch:
    """A new deployment under verification since `since_s` (monotonic), with what was counted and planned then.
    `late_ms`: the p95 of what ran before, if that missed the SLO (infinite: it answered nothing), else NaN."""

    since_s: float
    rows: float
    restarts: float
    rate: float
    queue_rows: float = 0.0
    missing: int = 0
    late_ms: float = math.nan


@dataclass
class Backoff:
    """A configuration that failed `failures` times and is not planned before `until_s` (monotonic)."""

    until_s: float
    failures: int


class Family:
    """One family under control.  Everything here changes on the event loop only."""

    def __init__(
        self,
        spec: FamilySpec,
        profile: FamilyProfile,
        fleet: Fleet,
        config: FamilyConfig,
        controller: ControllerConfig,
        instances: SharedInstances,
    ) -> None:
        self.spec = spec
        self.name = config.name or spec.name
        self.profile = profile
        self.learned = Learning(self.name, profile)
        self.fleet = fleet
        self.config = config
        self.targets = default_targets(profile, config, controller)
        self.grid_reference = ASSUMED
        """The grid's own reference intensity, as the controller last read it."""
        self.pin: Pin | None = Pin(policy=f"static:{config.variant}") if config.variant else None
        self.order: ClusterOrder | None = None
        """What a cluster's controller asks of it, while the server follows one; a pin stands above it."""
        self.mode: Mode | None = "off" if config.variant else None
        self.frozen = False
        self.trial = ""
        """The version that is being tried beside it, if one is: its plan stays meanwhile."""
        self.triggers = Triggers()
        self.slo = SloKeeper(self.name)
        self.waiting = WaitWatch()
        self.ledger = Ledger()
        self.sample = AccuracySample(config.accuracy_margin)
        self.demand = DemandMemory()
        self.applier = Applier(self.name, fleet, instances)
        self.deployed: DeployedPlan | None = None
        self.good: DeployedPlan | None = None
        self.watch: Watch | None = None
        self.sleep = SleepKeeper(controller.sleep_after_s)
        self.floor_capacity = FloorCapacity()
        self.memory_troubles = MemoryTroubles(self.name)
        self._memory = SliceMemory(needs=MemoryNeeds(profile))
        self.looked_s = 0.0
        """When it was last observed (monotonic)."""
        self.backoffs: dict[Configuration, Backoff] = {}
        self.observed: dict[str, float] = {}
        self.arrivals = ArrivalRate()
        self.news = ""
        """What happened to its devices and was not planned for yet, in words."""
        self._derived: dict[tuple[ObjectiveConfig, int], float] = {}
        self._services: tuple[FamilyProfile, float, Services] | None = None
        self.transition: Transition | None = None
        """The last transition that was planned."""
        self.planned_alarm_level = OK
        """The guard's level of alarm that the last plan was made for."""
        self.changes = 0
        """Changes of deployment, the first one included."""
        self.turned = 0
        """Changes of thresholds or chain on the same workers."""
        self.rollbacks = 0

    def restore_orders(self, before: Family, controller: ControllerConfig) -> None:
        """Take over what an operator has set of the same family, which was `before`; targets that a cluster asked for
        are not among it, nor is a pin to variants that are not there any more."""
        default = vars(default_targets(before.profile, before.config, controller))
        ordered = ("accuracy_floor", "form") if before.order is not None else ()
        changed = {name: value for name, value in vars(before.targets).items() if value != default[name]}
        self.targets = replace(self.targets, **{name: changed[name] for name in changed.keys() - ordered})
        self.mode, self.frozen = before.mode, before.frozen
        if before.pin is None or before.pin.variants <= accuracies(self.profile).keys():
            self.pin = before.pin

    def observe(self, now_s: float) -> dict[str, float]:
        """Observe the fleet now (`now_s`, monotonic) and return what was observed."""
        self.looked_s = now_s
        seen = self.observed = self.fleet.observe()
        self.sleep.gusts.record(now_s, seen.get("arrival_rate", 0.0))
        self.arrivals.record(now_s, seen.get("arrival_rate", 0.0), seen.get("arrival_window_s", WINDOW_S))
        return seen

    @property
    def corrected(self) -> FamilyProfile:
        """The profile with the factors learned so far, which plans are made with; `profile` stays as it was
        measured."""
        return self.learned.corrected

    @property
    def desired(self) -> tuple[Assignment, ...]:
        """What shall run: the deployment in force, including dead workers, which the fleet restarts.  `applier.workers`
        is what was spawned; the fleet says which of it is ready to take rows."""
        return self.deployed.deployment if self.deployed is not None else ()

    @property
    def whole(self) -> bool:
        """Whether the deployment in force has as many workers as its plan, dead ones included.  It has fewer if a
        device with some of them was given up."""
        if self.deployed is None:
            return False
        return len({item.placement for item in self.desired}) >= sum(
            group.count for group in self.deployed.plan.configuration
        )

    @property
    def places(self) -> set[Placement]:
        """The places on which the family has, or shall have, workers."""
        return {item.placement for item in (*self.desired, *self.applier.workers)}

    @property
    def devices(self) -> set[str]:
        """The devices on which the family has, or shall have, workers."""
        return {place.device for place in self.places}

    @property
    def missing(self) -> int:
        """How many workers of the deployment in force are not ready; assignments of one placement share a worker."""
        ready = set(self.fleet.ready_assignments())
        return len({item.placement for item in self.desired if item not in ready})

    def record_answer(self, grid_s: float) -> None:
        """Record that a plan was made, or could not be made, for all that was known at `grid_s`."""
        self.news = ""
        self.planned_alarm_level = self.alarm_level
        self.learned.record_plan()
        self.ledger.planned_s = grid_s

    @property
    def slo_source(self) -> str:
        """Where the SLO comes from, in words."""
        if self.config.slo_ms is None and self.targets.slo_ms == default_slo_ms(self.profile):
            return default_slo_source(self.profile)
        return "given"

    def lam(self, controller: ControllerConfig, targets: Targets | None = None) -> float:
        """Return the lambda in force, given or derived."""
        config = self.objective(targets or self.targets, controller)
        if config.lam is not None:
            return config.lam
        key = config, self.learned.changed
        if key not in self._derived:  # it takes a millisecond of the event loop, at each poll
            self._derived = {key: derive_lambda(self.corrected, config)}
        return self._derived[key]

    def reference(self, controller: ControllerConfig) -> Reference:
        """Return the reference intensity in force: the configured one, else the grid's own."""
        return reference_in_force(controller.reference_g_per_kwh, self.grid_reference)

    def cascades(self, controller: ControllerConfig) -> bool:
        """Return whether plans may have chains: as configured, else if the profile knows a confidence."""
        return self.profile.cascade is not None if controller.cascade is None else controller.cascade

    def may_wait(self, controller: ControllerConfig, targets: Targets) -> bool:
        """Return whether plans may let rows wait for fuller batches: as configured, else if an SLO was given; not while
        that is held (`waiting`)."""
        given = self.config.slo_ms is not None or targets.slo_ms != default_slo_ms(self.profile)
        return (given if controller.waits is None else controller.waits) and not self.waiting.held

    def objective(
        self, targets: Targets, config: ControllerConfig, *, accuracy_budget: float | None = None
    ) -> ObjectiveConfig:
        """Return `targets` as the planner takes them; `accuracy_budget` (points) for a policy that spends one.  While
        the SLO is missed, and for some time after, services are taken to be slower and workers are loaded less."""
        slower = self.slo.pressure.factor
        return ObjectiveConfig(
            form=targets.form,
            slo_ms=targets.slo_ms,
            accuracy_floor=targets.accuracy_floor,
            accuracy_margin=self.margin(targets),
            cascade_margin=self.sample.cascade_margin,
            lam=targets.lam,
            reference_g_per_kwh=self.reference(config).g_per_kwh,
            max_utilisation=config.max_utilisation / math.sqrt(slower),
            profile_error=slower - 1.0,
            cascade=self.cascades(config),
            waits=self.may_wait(config, targets),
            accuracy_budget=accuracy_budget,
            budget_horizon_s=self.config.budget_horizon_s,
        )

    def margin(self, targets: Targets) -> float:
        """Return the points that plans aim for above the accuracy floor of `targets`."""
        return self.sample.margin(self.corrected, targets.accuracy_floor, relative=self._relative(targets))

    def _relative(self, targets: Targets) -> bool:
        """Return whether the accuracy floor is the default one, which is relative to the best variant."""
        return self.config.accuracy_floor is None and targets.accuracy_floor == default_floor(self.profile)

    def state(
        self,
        conditions: Conditions,
        config: ControllerConfig,
        request: PlanRequest,
        *,
        outlook: Outlook | None = None,
        demand: tuple[Demand, ...] = (),
    ) -> State:
        """Return the state that a policy sees, with what `request` gives in place of what is in force.  `outlook`: what
        a policy that spends an accuracy budget may expect; `demand`: accuracies that rows ask for."""
        reading, targets = conditions.reading, request.targets or self.targets
        if request.g_per_kwh is not None:
            reading = Reading(
                g_per_kwh=request.g_per_kwh, at_s=conditions.grid_s, provider="operator", method="configured"
            )
        rate = self.rate(config) if request.rate is None else request.rate
        held = request.pin or self.pin
        policy = held.policy if held is not None else self.planned_by(config)
        budgeted = policy in BUDGETED
        objective = self.objective(targets, config, accuracy_budget=self.config.accuracy_budget if budgeted else None)
        objective, relative = self._apply_alarm(objective, config, targets), self._relative(targets)
        free = held is not None and not held.policy  # a configuration that is given says what it takes
        seconds = self.step_seconds(conditions.devices, self.desired)
        start_s = max(map(seconds.spawn, self.desired), default=0.0)
        objective = self.sleep.objective(objective, conditions.devices, self.looked_s, start_s, free=free)
        return State(
            family=self.name,
            grid_s=conditions.grid_s,
            intensity=reading,
            arrival_rate=rate,
            p95_ms=self.observed.get("p95_ms"),
            queue_rows=int(self.observed.get("queue_rows", 0.0)),
            objective=objective,
            profile=self.memory_troubles.without_refused(
                self.sample.keep_certain(self.corrected, objective.accuracy_floor, relative=relative), self.desired
            ),
            devices=conditions.devices,
            running=self.desired,
            routing=self.deployed.routing if self.deployed is not None else None,
            share=conditions.share,
            memory=self.slice_memory().by_profile(conditions.devices),
            ahead=outlook.steps if outlook is not None else (),
            forecast=outlook.label if outlook is not None else "",
            served_rows=self.ledger.rows if outlook is not None else 0.0,
            served_accuracy_rows=self.ledger.accuracy_rows if outlook is not None else 0.0,
            demand=demand,
            online=policy == "budget:online",
            least_saving_w=conditions.least_saving_w,
            resident=self.config.most_resident(len(self.spec.variants)),
            resident_bytes=conditions.resident_bytes,
            apart=self.apart(conditions.devices),
        )

    @property
    def alarm_level(self) -> int:
        """The guard's level of alarm as last observed: 0 ok, 1 tightened, 2 cascade switched off."""
        return int(self.observed.get("guard", OK))

    def _apply_alarm(
        self, objective: ObjectiveConfig, controller: ControllerConfig, targets: Targets
    ) -> ObjectiveConfig:
        """Return `objective` as the guard's level of alarm allows it: with half of the accuracy loss that the targets
        permit, or with none of it and no cascade.  Lambda stays what it would be without an alarm."""
        if self.alarm_level == OK:
            return objective
        best = max(accuracies(self.profile).values(), default=0.0)
        no_loss = self.alarm_level >= CASCADE_OFF
        floor = best if no_loss else max(objective.accuracy_floor, (objective.accuracy_floor + best) / 2.0)
        budget = objective.accuracy_budget
        return structs.replace(
            objective,
            accuracy_floor=floor,
            accuracy_budget=None if budget is None else 0.0 if no_loss else budget / 2.0,
            cascade=objective.cascade and not no_loss,
            lam=self.lam(controller, targets),
        )

    def rate(self, config: ControllerConfig) -> float:
        """Return the rows a second to plan for: what arrives (`arrivals`), the design rate, what its cluster's
        controller asks, or a small minimum, whichever is most."""
        return max(self.arrivals.rows_per_s(), self._design_rate(config), LEAST_RATE)

    def _design_rate(self, config: ControllerConfig) -> float:
        """Return the rows a second to be ready for, as configured or as its cluster's controller asks."""
        return max(config.design_rate, self.order.rate if self.order is not None else 0.0)

    def planned_by(self, config: ControllerConfig) -> str:
        """Return the policy that it is planned by without a pin: its cluster's, or the configured one."""
        return self.order.policy if self.order is not None else config.policy

    def without_margins(self, state: State, config: ControllerConfig) -> tuple[State, State]:
        """Return `state` without its margins against chance: first without the one above the accuracy floor, unless the
        operator wants one, then also with the rate that was counted.  A miss of the floor by chance evens out over
        hours; a miss of the SLO does not."""
        objective = state.objective
        if self.sample.configured is None:
            objective = structs.replace(objective, accuracy_margin=0.0)
        counted = max(self.arrivals.counted(), self._design_rate(config), LEAST_RATE)
        first = structs.replace(state, objective=objective)
        return first, structs.replace(first, arrival_rate=min(state.arrival_rate, counted))

    def services(self, share: float) -> Services:
        """Return how each (variant, slice) serves by `corrected`, slowed to `share` of the machine's time.  It is asked
        at each poll, and worked out anew if what is asked changes."""
        known = self._services
        if known is None or known[0] is not self.corrected or known[1] != share:
            known = self._services = self.corrected, share, services_of(self.corrected, share)
        return known[2]

    def capacity(self, share: float) -> Callable[[Assignment], float]:
        """Return a function from a worker to the rows a second it serves, by `corrected`; 0 for one that was never
        measured."""
        services = self.services(share)

        def rows_per_s(item: Assignment) -> float:
            service = services.get((item.variant, item.placement.profile))
            return service.capacity() if service is not None else 0.0

        return rows_per_s

    def slice_memory(self) -> SliceMemory:
        """Return what is known of the memory that its workers need and have."""
        known = self.fleet.memory if isinstance(self.fleet, MemoryAware) else self._memory
        return replace(known, failed=self.memory_troubles.failed)  # which knows what became of them since

    def alone(self, devices: Sequence[DeviceShape]) -> dict[tuple[str, str], str]:
        """Return why variants are not held beside others on `devices` now, by (variant, profile)."""
        why = self.slice_memory().alone
        profiles = {place.profile for shape in devices for layout in shape.layouts for place in layout}
        cells = ((one.name, profile) for profile in sorted(profiles) for one in self.spec.variants)
        return {cell: words for cell in cells if (words := why(*cell))}

    def apart(self, devices: Sequence[DeviceShape]) -> tuple[tuple[str, str, str], ...]:
        """Return the pairs of variants that no worker on `devices` holds together now: (profile, variant, variant)."""
        pairs = set(self.memory_troubles.apart)
        for variant, profile in self.alone(devices):
            for other in self.spec.variants:
                if other.name != variant:
                    first, second = sorted((variant, other.name))
                    pairs.add((profile, first, second))
        return tuple(sorted(pairs))

    def step_seconds(self, shapes: Sequence[DeviceShape], workers: Sequence[Assignment]) -> StepSeconds:
        """Return how long the steps of a transition take that starts `workers` on the devices of `shapes`: as long as
        this family's workers took so far if the fleet knows, else what is typical of such a device."""
        by_name = {shape.device: shape for shape in shapes}
        kinds = {(item.placement.device, item.backend) for item in workers}
        typical = {(device, backend): typical_spawn_s(by_name.get(device), backend) for device, backend in kinds}
        if not isinstance(self.fleet, MemoryAware):
            return StepSeconds(typical=typical)
        spawns, drain_s = dict(self.fleet.start_seconds()), self.fleet.drain_seconds()
        if drain_s is None:
            return StepSeconds(spawns=spawns, typical=typical)
        return StepSeconds(spawns=spawns, typical=typical, drain_s=drain_s, drained=True)

    def reach(self, routing: Routing) -> tuple[float, ...]:
        """Return the part of the rows that reaches each stage of `routing`'s chain; empty if it is unknown."""
        points = self.profile.cascade.points if self.profile.cascade is not None else ()
        asked = (routing.chain, routing.thresholds)
        return next((point.reach for point in points if (point.chain, point.thresholds) == asked), ())

    def capacity_floor(self) -> float:
        """Return the rows a second that no transition may go below: what arrives now, and in any case one worker that
        answers."""
        return max(self.observed.get("arrival_rate", 0.0), LEAST_RATE)

    def back_off(self, configuration: Configuration, now_s: float) -> float:
        """Leave `configuration` out of plans for a while, twice as long each time it fails; return the monotonic time
        at which that ends."""
        failures = self.backoffs[configuration].failures + 1 if configuration in self.backoffs else 1
        wait_s = min(LONGEST_BACKOFF_S, FIRST_BACKOFF_S * 2.0 ** min(failures - 1, 16))
        self.backoffs[configuration] = Backoff(now_s + wait_s, failures)
        return now_s + wait_s

    def backed_off(self, configuration: Configuration, now_s: float) -> bool:
        """Return whether `configuration` failed lately and may not be planned yet."""
        entry = self.backoffs.get(configuration)
        return entry is not None and now_s < entry.until_s


def default_floor(profile: FamilyProfile) -> float:
    """Return the accuracy floor (percent) that holds if none is configured: a point below the best variant."""
    return max(0.0, max(accuracies(profile).values(), default=0.0) - FLOOR_BELOW_BEST)


def default_targets(profile: FamilyProfile, config: FamilyConfig, controller: ControllerConfig) -> Targets:
    """Return the configured targets, or those that follow from the profile: its default SLO, and an accuracy floor one
    point below the best variant."""
    return Targets(
        slo_ms=config.slo_ms if config.slo_ms is not None else default_slo_ms(profile),
        accuracy_floor=(config.accuracy_floor if config.accuracy_floor is not None else default_floor(profile)),
        form=controller.objective,
        lam=controller.lam,
    )
