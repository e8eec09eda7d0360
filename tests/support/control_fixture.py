"""A controller among fakes: clocks that stand still until told, a fleet and a device that only keep books."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import msgspec

from clover.carbon.grid import Grid
from clover.config import ControllerConfig, FamilyConfig
from clover.control.controller import Controller
from clover.control.state.context import Clocks, LeastSaving
from clover.control.state.family import Family
from clover.errors import DeviceError, DeviceLost, PlanError, WorkerError
from clover.planning.budget.forecast import History
from clover.policies.demanded import propose_with_demand
from clover.policies.plans import plan_fixed, routing_fixed
from clover.types import (
    Asked,
    Assignment,
    Configuration,
    Declined,
    DeviceShape,
    FamilyProfile,
    FamilySpec,
    Placement,
    Plan,
    Reading,
    Routing,
    State,
    TensorSpec,
    VariantSpec,
    WorkReport,
)
from tests.support.profiles_fixture import VARIANTS, cpu, profile, reading


def spec(name: str = "toy", variants: Iterable[str] = VARIANTS) -> FamilySpec:
    return FamilySpec(
        name=name,
        inputs=(TensorSpec(name="x", datatype="FP32", shape=(4,)),),
        outputs=(TensorSpec(name="y", datatype="FP32", shape=(4,)),),
        variants=tuple(VariantSpec(name=variant, loader="model:load") for variant in variants),
    )


class FakeFleet:
    """Books of what was spawned, routed and drained.  `fail`: variants that do not load; `dead`: not ready."""

    def __init__(self) -> None:
        self.alive: list[Assignment] = []
        self.dead: set[Assignment] = set()
        self.routed: tuple[Assignment, ...] = ()
        self.routing = Routing(shares={})
        self.fail: set[str] = set()
        self.figures: dict[str, float] = {"arrival_rate": 50.0, "queue_rows": 0.0, "rows": 0.0, "restarts": 0.0}
        self.calls: list[str] = []
        self.asked: dict[str, Asked] = {}
        self.declined: dict[str, Declined] = {}
        self.wanted: Callable[[], None] = lambda: None
        self.work = WorkReport()
        self.energy_factors: dict[tuple[str, str], float] = {}
        self.front_ms = 0.0
        self.asleep = False

    def ready_assignments(self) -> tuple[Assignment, ...]:
        return tuple(item for item in self.alive if item not in self.dead)

    async def wake(self) -> None:
        self.calls.append("wake")
        self.asleep = False

    async def spawn(self, assignment: Assignment) -> None:
        self.calls.append(f"spawn {assignment.variant}")
        if assignment.variant in self.fail:
            raise WorkerError(f"{assignment.variant} does not load")
        assert assignment not in self.alive
        self.alive.append(assignment)

    async def drain(self, assignment: Assignment) -> None:
        self.calls.append(f"drain {assignment.variant}")
        self.alive.remove(assignment)
        self.routed = tuple(item for item in self.routed if item != assignment)

    def forget(self, assignment: Assignment, reason: str) -> None:
        self.calls.append(f"forget {assignment.placement.id}")
        self.alive.remove(assignment)
        self.dead.discard(assignment)
        self.routed = tuple(item for item in self.routed if item != assignment)

    @property
    def shares(self) -> dict[str, float]:
        return self.routing.shares

    def route(self, assignments: tuple[Assignment, ...], routing: Routing) -> None:
        self.calls.append("route")
        assert set(assignments) <= set(self.alive)
        assert abs(sum(routing.shares.values()) - 1.0) < 1e-3
        self.routed, self.routing = assignments, routing

    def observe(self) -> dict[str, float]:
        return dict(self.figures)

    def work_report(self) -> WorkReport:
        """Return `work`, and forget it."""
        done, self.work = self.work, WorkReport()
        return done

    def correct_energy(self, factors: Mapping[tuple[str, str], float]) -> None:
        self.energy_factors = dict(factors)

    def correct_front(self, front_ms: float) -> None:
        self.front_ms = front_ms

    def guard_report(self) -> dict[str, Any]:
        return {"state": "ok"}

    def reset_guard(self) -> None:
        self.calls.append("reset guard")
        self.figures["guard"] = 0.0

    def accuracy_demand(self) -> dict[str, Asked]:
        return dict(self.asked)

    def decline(self, declined: Mapping[str, Declined], wanted: Callable[[], None]) -> None:
        self.declined, self.wanted = dict(declined), wanted


class FakeDevice:
    def __init__(self, shape: DeviceShape) -> None:
        self._shape = shape
        self.made: set[str] = set()
        self.fail: set[str] = set()

    def shape(self) -> DeviceShape:
        return self._shape

    async def create(self, placement: Placement) -> None:
        if placement.profile in self.fail:
            raise DeviceError(f"{placement.id} cannot be made")
        assert placement.id not in self.made
        self.made.add(placement.id)

    async def destroy(self, placement: Placement) -> None:
        self.made.remove(placement.id)

    def cores(self, placement: Placement) -> tuple[int, ...]:
        return tuple(range(placement.start, placement.start + placement.size))

    def threads(self, placement: Placement) -> int:
        return placement.size

    def visible(self, placement: Placement) -> str:
        return ""

    def memory_bytes(self, placement: Placement) -> int:
        return 0


class FakeGpu(FakeDevice):
    """A GPU with what may happen to one.  `quarantined`: (start, size) that cannot be used, with the layouts that are
    left given by `reshape`."""

    def __init__(self, shape: DeviceShape, reshape: Callable[[DeviceShape], DeviceShape] | None = None) -> None:
        super().__init__(shape)
        self.lost = False
        self.losses = 0
        self.quarantined: list[str] = []
        self.left: list[Placement] = []
        self.stuck = False
        self._reshape = reshape

    def shape(self) -> DeviceShape:
        if self.lost:
            return msgspec.structs.replace(self._shape, layouts=())
        return self._reshape(self._shape) if self._reshape and self.quarantined else self._shape

    async def create(self, placement: Placement) -> None:
        if self.lost:
            raise DeviceLost(f"{placement.device} is lost")
        if placement in self.left:
            self.left.remove(placement)
        for other in self.left:
            assert other.start >= placement.start + placement.size or placement.start >= other.start + other.size
        await super().create(placement)

    async def destroy(self, placement: Placement) -> None:
        if self.lost:
            self.made.discard(placement.id)
            raise DeviceLost(f"{placement.device} is lost")
        await super().destroy(placement)
        if self.stuck:
            self.quarantined.append(placement.id)
            raise DeviceError(f"{placement.id} is in use")

    def report(self) -> dict[str, Any]:
        return {
            "lost": self.lost,
            "quarantined": [{"placement": place, "reason": "in use"} for place in self.quarantined],
            "foreign": [],
        }

    async def reconcile(self, keep: Sequence[Placement] = ()) -> tuple[Placement, ...]:
        self.left = [placement for placement in self.left if placement in keep]
        return tuple(self.left)


class FakeChain:
    def __init__(self, g_per_kwh: float) -> None:
        self.g_per_kwh = g_per_kwh
        self.state: Literal["fresh", "fallback", "configured"] = "fresh"
        self.known: dict[str, Any] = {}
        """What readings say of themselves besides."""
        self.foreseen: list[Reading] = []
        self.history = History()
        self.last_error = ""
        self.trouble = ""

    async def read(self, grid_s: float) -> Reading:
        self.history.record(grid_s, self.g_per_kwh)
        known = {"method": "stand-in", **self.known} if self.state == "configured" else self.known
        return msgspec.structs.replace(reading(self.g_per_kwh), state=self.state, **known)

    async def forecast(self, grid_s: float, horizon_s: float) -> list[Reading]:
        return self.foreseen


class LocalSolver:
    """Plans in this process.  `fail` makes every order fail, as `raises`; `knobs` are put into every routing."""

    def __init__(self) -> None:
        self.orders: list[str] = []
        self.fail = ""
        self.raises: type[PlanError] = PlanError
        self.knobs: dict[str, dict[str, Any]] = {}
        self.seconds = 0.0
        """What each plan took."""

    async def propose(self, state: State, policy: str, configuration: Configuration | None = None) -> Plan:
        self.orders.append("fixed" if configuration is not None else policy)
        if self.fail:
            raise self.raises(self.fail)
        plan = plan_fixed(state, configuration) if configuration is not None else propose_with_demand(policy, state)
        routing = msgspec.structs.replace(plan.routing, **self.knobs)
        return msgspec.structs.replace(plan, routing=routing, seconds=self.seconds)

    async def routing(self, state: State, configuration: Configuration) -> Routing | None:
        return routing_fixed(state, configuration)

    async def close(self) -> None:
        self.orders.append("close")


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def now(self) -> float:
        return self.now_s

    def __call__(self) -> float:
        return self.now_s


class Rig:
    """One family "toy" on two cores; the floor at 91 %, the SLO at 30 ms, the grid clean at first.  The policy is
    `objective` at a reference of 250 g/kWh, without waits, if `config` says nothing else."""

    def __init__(
        self,
        *,
        g_per_kwh: float = 100.0,
        shape: DeviceShape | None = None,
        devices: dict[str, FakeDevice] | None = None,
        measured: FamilyProfile | None = None,
        family: dict[str, Any] | None = None,
        solver: LocalSolver | None = None,
        least_saving: LeastSaving | None = None,
        **config: Any,
    ) -> None:
        self.clock = Clock()
        self.chain = FakeChain(g_per_kwh)
        self.device = FakeDevice(shape or cpu(2))
        self.devices = devices or {"cpu0": self.device}
        self.profile = measured or profile()
        self.solver = solver or LocalSolver()
        self.fleet = FakeFleet()
        own: dict[str, Any] = {"policy": "objective", "reference_g_per_kwh": 250.0, "waits": False, **config}
        self.controller = Controller(
            ControllerConfig(**own),
            devices=self.devices,
            grid=Grid(self.chain, self.clock),
            solver=self.solver,
            clocks=Clocks(monotonic=self.clock, wall=self.clock),
            least_saving=least_saving,
        )
        settings = {"family": "toy", "slo_ms": 30.0, "accuracy_floor": 91.0, "accuracy_margin": 0.0, **(family or {})}
        self.settings = FamilyConfig(**{"resident": "off"} | settings)  # the fake fleet has a worker a variant
        self.family = self.controller.add(spec(variants=self.profile.backend), self.profile, self.fleet, self.settings)

    def second(self, **settings: Any) -> tuple[Family, FakeFleet]:
        """A further family, "second"."""
        fleet = FakeFleet()
        config = msgspec.structs.replace(self.settings, name="second", **settings)
        return self.controller.add(spec("other"), self.profile, fleet, config), fleet

    async def look(self, seconds: float = 1.0, looks: int = 1) -> None:
        for _ in range(looks):
            self.clock.now_s += seconds
            await self.controller.poll()

    async def deploy(self) -> None:
        await self.controller.deploy("toy")

    async def settled(self) -> None:
        """The first plan, verified."""
        await self.deploy()
        await self.look(6.0)
        assert self.family.good is not None

    @property
    def actions(self) -> list[str]:
        return [decision["action"] for decision in reversed(self.controller.decisions(1000))]

    @property
    def last(self) -> dict[str, Any]:
        return self.controller.decisions(1)[0]

    def consistent(self) -> None:
        """Fleet, device and controller agree on what runs."""
        desired = self.family.desired
        assert set(self.fleet.alive) == set(desired)
        assert set(self.fleet.routed) == set(desired)
        made = {place for device in self.devices.values() for place in device.made}
        assert made == {
            item.placement.id for family in self.controller.context.families.values() for item in family.desired
        }
