"""What the controller keeps of one family: its targets, what runs, what was good, what is held off."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from msgspec import structs

from clover.config import ControllerConfig, FamilyConfig
from clover.control.apply import Applier, Instances
from clover.control.arrivals import WINDOW_S, ArrivalRate
from clover.control.demand import Demanded
from clover.control.forecasting import Ledger
from clover.control.slo import SloLog
from clover.control.triggers import Triggers
from clover.interfaces import Fleet
from clover.planning.budget.forecast import Outlook
from clover.planning.model.objective import derive_lambda
from clover.planning.model.problem import LEAST_RATE, accuracies, base_capacity, services_of
from clover.runtime.guard.guard import CASCADE_OFF, OK
from clover.types import (
    Assignment,
    Configuration,
    Demand,
    DeviceShape,
    FamilyProfile,
    FamilySpec,
    ObjectiveConfig,
    Plan,
    Reading,
    Routing,
    State,
    Transition,
    configuration_of,
)

Mode = Literal["off", "observe", "active"]

SLO_OVER_BASE = 1.2
FLOOR_BELOW_BEST = 1.0
FIRST_BACKOFF_S = 60.0
LONGEST_BACKOFF_S = 3600.0


@dataclass(frozen=True)
class Targets:
    """What a family is held to.  `lam` None: derived."""

    slo_ms: float
    accuracy_floor: float
    form: Literal["paper", "floor"]
    lam: float | None


@dataclass(frozen=True)
class Pin:
    """What an operator (or the configuration) holds a family to: a policy or one configuration.  `forced`: although it
    was predicted to break the family's targets."""

    policy: str = ""
    configuration: Configuration | None = None
    forced: bool = False


@dataclass(frozen=True)
class Standing:
    """A deployment with its routing and the plan behind it."""

    deployment: tuple[Assignment, ...]
    routing: Routing
    plan: Plan

    @property
    def configuration(self) -> Configuration:
        """The configuration it realises."""
        return configuration_of(self.deployment)


@dataclass
class Watch:
    """A new deployment under verification since `since_s`."""

    since_s: float
    rows: float
    restarts: float
    rate: float
    queue_rows: float = 0.0
    missing: int = 0


@dataclass
class Backoff:
    """A configuration that failed, left alone until `until_s`."""

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
        instances: Instances,
    ) -> None:
        self.spec = spec
        self.name = config.name or spec.name
        self.profile = profile
        self.fleet = fleet
        self.config = config
        self.targets = default_targets(profile, config, controller)
        self.pin: Pin | None = Pin(policy=f"static:{config.variant}") if config.variant else None
        self.mode: Mode | None = "off" if config.variant else None
        self.frozen = False
        self.triggers = Triggers()
        self.slo = SloLog(self.name)
        self.ledger = Ledger()
        self.demand = Demanded()
        self.applier = Applier(self.name, fleet, instances)
        self.standing: Standing | None = None
        self.good: Standing | None = None
        self.watch: Watch | None = None
        self.dwell_until_s = 0.0
        self.backoffs: dict[Configuration, Backoff] = {}
        self.observed: dict[str, float] = {}
        self.arrivals = ArrivalRate()
        self.news = ""
        """What happened to its devices and was not planned for yet."""
        self._derived: dict[ObjectiveConfig, float] = {}
        self.transition: Transition | None = None
        """The last one that was planned."""
        self.planned_rung = OK
        """The guard's step that the last plan was made for."""
        self.changes = 0
        """Deployments that were changed to, the first included."""
        self.turned = 0
        """Times that other thresholds, or another chain, were turned to on the same workers."""
        self.rollbacks = 0

    def look(self, now_s: float) -> dict[str, float]:
        """Take in what the fleet shows now (`now_s`, monotonic) and return it."""
        self.observed = self.fleet.observe()
        seen = self.observed
        self.arrivals.note(now_s, seen.get("arrival_rate", 0.0), seen.get("arrival_window_s", WINDOW_S))
        return self.observed

    @property
    def running(self) -> tuple[Assignment, ...]:
        """What shall run: the deployment in force, dead workers included (the fleet restarts them)."""
        return self.standing.deployment if self.standing is not None else ()

    @property
    def devices(self) -> set[str]:
        """Devices it has workers on."""
        return {item.placement.device for item in (*self.running, *self.applier.workers)}

    @property
    def missing(self) -> int:
        """Workers of the deployment that are not ready."""
        ready = set(self.fleet.ready_assignments())
        return sum(item not in ready for item in self.running)

    def answered(self, grid_s: float) -> None:
        """Note that what asked for a plan has one, or was answered that there is none."""
        self.news = ""
        self.planned_rung = self.rung
        self.ledger.planned_s = grid_s

    def retarget(self, old: ControllerConfig, new: ControllerConfig) -> None:
        """Follow a new configuration of the controller in what no operator has changed."""
        form = new.objective if self.targets.form == old.objective else self.targets.form
        lam = new.lam if self.targets.lam == old.lam else self.targets.lam
        self.targets = replace(self.targets, form=form, lam=lam)

    def lam(self, controller: ControllerConfig, targets: Targets | None = None) -> float:
        """Return the lambda in force, given or derived."""
        config = self.objective(targets or self.targets, controller)
        if config.lam is not None:
            return config.lam
        if config not in self._derived:  # a millisecond that would be the event loop's, every time somebody looks
            self._derived = {config: derive_lambda(self.profile, config)}
        return self._derived[config]

    def objective(
        self, targets: Targets, config: ControllerConfig, *, accuracy_budget: float | None = None
    ) -> ObjectiveConfig:
        """`targets` as the planner takes them; `accuracy_budget` for a policy that holds to one."""
        return ObjectiveConfig(
            form=targets.form,
            slo_ms=targets.slo_ms,
            accuracy_floor=targets.accuracy_floor,
            accuracy_margin=self.config.accuracy_margin,
            lam=targets.lam,
            reference_g_per_kwh=config.reference_g_per_kwh,
            max_utilisation=config.max_utilisation,
            profile_error=config.profile_error,
            cascade=config.cascade,
            waits=config.waits,
            accuracy_budget=accuracy_budget,
            budget_horizon_s=self.config.budget_horizon_s,
        )

    def state(
        self,
        *,
        reading: Reading,
        grid_s: float,
        devices: tuple[DeviceShape, ...],
        share: float,
        config: ControllerConfig,
        targets: Targets | None = None,
        g_per_kwh: float | None = None,
        rate: float | None = None,
        budgeted: bool = False,
        outlook: Outlook | None = None,
        demand: tuple[Demand, ...] = (),
    ) -> State:
        """Return the state a policy sees now; `targets`, `g_per_kwh` and `rate` stand in for what holds, where given.
        `budgeted`: for a policy that holds to the accuracy budget, with what it may expect (`outlook`)."""
        if g_per_kwh is not None:
            reading = Reading(g_per_kwh=g_per_kwh, at_s=grid_s, provider="operator", method="configured")
        p95_ms = self.observed.get("p95_ms")
        return State(
            family=self.name,
            grid_s=grid_s,
            intensity=reading,
            arrival_rate=rate if rate is not None else self.rate(config),
            p95_ms=p95_ms,
            queue_rows=int(self.observed.get("queue_rows", 0.0)),
            objective=self._guarded(
                self.objective(
                    targets or self.targets, config, accuracy_budget=self.config.accuracy_budget if budgeted else None
                ),
                config,
                targets or self.targets,
            ),
            profile=self.profile,
            devices=devices,
            running=self.running,
            routing=self.standing.routing if self.standing is not None else None,
            share=share,
            ahead=outlook.steps if outlook is not None else (),
            forecast=outlook.label if outlook is not None else "",
            served_rows=self.ledger.rows if outlook is not None else 0.0,
            served_accuracy_rows=self.ledger.accuracy_rows if outlook is not None else 0.0,
            demand=demand,
        )

    @property
    def rung(self) -> int:
        """The step of the guard's ladder that was seen last."""
        return int(self.observed.get("guard", OK))

    def _guarded(self, objective: ObjectiveConfig, controller: ControllerConfig, targets: Targets) -> ObjectiveConfig:
        """Return what to plan by while the guard stands on its ladder: half of the accuracy that might be given up is
        not, or none of it.  Lambda stays what it would be."""
        if self.rung == OK:
            return objective
        best = max(accuracies(self.profile).values(), default=0.0)
        aside = self.rung >= CASCADE_OFF
        floor = best if aside else max(objective.accuracy_floor, (objective.accuracy_floor + best) / 2.0)
        budget = objective.accuracy_budget
        return structs.replace(
            objective,
            accuracy_floor=floor,
            accuracy_budget=None if budget is None else 0.0 if aside else budget / 2.0,
            cascade=objective.cascade and not aside,
            lam=self.lam(controller, targets),
        )

    def rate(self, config: ControllerConfig) -> float:
        """Return the rows a second to plan for: what arrives (`arrivals`), the design rate, or a small minimum,
        whichever is most."""
        return max(self.arrivals.rows_per_s(), config.design_rate, LEAST_RATE)

    def capacity(self, share: float) -> Callable[[Assignment], float]:
        """Return rows a second of a worker, by the profile; 0 for one that was never measured."""
        services = services_of(self.profile, share)

        def rows_per_s(item: Assignment) -> float:
            service = services.get((item.variant, item.placement.profile))
            return service.capacity() if service is not None else 0.0

        return rows_per_s

    def capacity_floor(self, config: ControllerConfig, devices: Sequence[DeviceShape], share: float) -> float:
        """Return rows a second that no transition may go below: the configured share of BASE on `devices`, what arrives
        now, and in any case somebody to answer."""
        base = base_capacity(self.profile, devices, share) if config.capacity_floor else 0.0
        return max(config.capacity_floor * base, self.observed.get("arrival_rate", 0.0), LEAST_RATE)

    def back_off(self, configuration: Configuration, now_s: float) -> float:
        """Leave `configuration` alone for a while, twice as long each time; the monotonic time until when."""
        failures = self.backoffs[configuration].failures + 1 if configuration in self.backoffs else 1
        wait_s = min(LONGEST_BACKOFF_S, FIRST_BACKOFF_S * 2.0 ** min(failures - 1, 16))
        self.backoffs[configuration] = Backoff(now_s + wait_s, failures)
        return now_s + wait_s

    def backed_off(self, configuration: Configuration, now_s: float) -> bool:
        """Return whether `configuration` is left alone at the moment."""
        entry = self.backoffs.get(configuration)
        return entry is not None and now_s < entry.until_s


def default_targets(profile: FamilyProfile, config: FamilyConfig, controller: ControllerConfig) -> Targets:
    """Return the configured targets, or those that follow from the profile: SLO = 1.2 x the p95 of BASE, floor = best -
    1."""
    return Targets(
        slo_ms=config.slo_ms if config.slo_ms is not None else SLO_OVER_BASE * profile.base.p95_ms,
        accuracy_floor=(
            config.accuracy_floor
            if config.accuracy_floor is not None
            else max(accuracies(profile).values(), default=0.0) - FLOOR_BELOW_BEST
        ),
        form=controller.objective,
        lam=controller.lam,
    )
