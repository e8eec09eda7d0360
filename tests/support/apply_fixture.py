"""A fleet and GPUs that keep books while a transition is carried out, and refuse what they are told to refuse."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from clover.control.state.apply import Applier, SharedInstances
from clover.errors import CloverError, DeviceError, DeviceLost, WorkerError
from clover.planning.packing.geometry import SliceProfile, layouts, legal
from clover.planning.transition.steps import plan_transition
from clover.types import Asked, Assignment, Declined, DeviceShape, Placement, Routing, WorkReport
from tests.support.geometry_fixture import A100

Deployment = tuple[Assignment, ...]
Fault = Callable[[str, str], CloverError | None]


class Gpu:
    """Makes and unmakes instances by the rules of MIG; what cannot be unmade is left out of the layouts until it is
    made again."""

    def __init__(self, rig: Rig, name: str, profiles: tuple[SliceProfile, ...], compute: int) -> None:
        self.rig = rig
        self.name = name
        self.profiles = {profile.name: profile for profile in profiles}
        self.compute = compute
        self.standing: dict[str, Placement] = {}
        self.stuck: dict[str, Placement] = {}
        self.lost = False

    def shape(self) -> DeviceShape:
        taken = [(place.start, place.size) for place in self.stuck.values()]
        used = sum(place.slices for place in self.stuck.values())
        found = layouts(tuple(self.profiles.values()), device=self.name, compute=self.compute - used, blocked=taken)
        return DeviceShape(
            device=self.name, kind="mig", layouts=() if self.lost else found, slices=self.compute, overlap=False
        )

    async def create(self, placement: Placement) -> None:
        await self.rig.begin("create", placement.id)
        if self.lost:
            raise DeviceLost(f"{self.name} is lost")
        self.rig.refuse("create", placement.id)
        together = {**self.standing, placement.id: placement}
        why = legal(tuple(together.values()), self.profiles, compute=self.compute)
        if why:
            raise DeviceError(why)
        self.standing = together
        self.stuck.pop(placement.id, None)

    async def destroy(self, placement: Placement) -> None:
        await self.rig.begin("destroy", placement.id)
        if self.lost:
            raise DeviceLost(f"{self.name} is lost")
        holders = [item for item in self.rig.workers if item.placement.id == placement.id]
        assert not holders, f"{placement.id} has a worker"
        try:
            self.rig.refuse("destroy", placement.id)
        except DeviceLost:
            raise
        except DeviceError:
            self.stuck[placement.id] = placement
            raise
        del self.standing[placement.id]

    def cores(self, placement: Placement) -> tuple[int, ...]:
        return (0,)

    def threads(self, placement: Placement) -> int:
        return 1

    def visible(self, placement: Placement) -> str:
        return f"MIG-{placement.id}"

    def memory_bytes(self, placement: Placement) -> int:
        return 0


class Rig:
    """GPUs, a fleet that keeps books, and what shall fail.  `served`: how many slices were routed to, at every change;
    `busy`: how many actions of a kind were under way at once, at most."""

    def __init__(self, gpus: int = 2, profiles: tuple[SliceProfile, ...] = A100, compute: int = 7) -> None:
        self.gpus = {f"gpu{i}": Gpu(self, f"gpu{i}", profiles, compute) for i in range(gpus)}
        self.fault: Fault = lambda kind, what: None
        self.workers: list[Assignment] = []
        self.routed: tuple[Assignment, ...] = ()
        self.routing = Routing(shares={})
        self.seen: list[Routing] = []
        self.served: list[int] = []
        self.busy: Counter[str] = Counter()
        self.under_way: Counter[str] = Counter()
        self.done: list[str] = []
        self.instances = SharedInstances(self.gpus)
        self.applier = Applier("toy", self, self.instances)

    # --- the fleet

    asleep = False

    async def wake(self) -> None: ...

    def ready_assignments(self) -> Deployment:
        return tuple(self.workers)

    async def spawn(self, assignment: Assignment) -> None:
        await self.begin("spawn", assignment.placement.id)
        gpu = self.gpus[assignment.placement.device]
        assert assignment.placement.id in gpu.standing
        self.refuse("spawn", assignment.placement.id)
        if gpu.lost:
            raise WorkerError("its GPU is lost")
        assert assignment not in self.workers
        self.workers.append(assignment)

    async def drain(self, assignment: Assignment) -> None:
        self.routed = tuple(item for item in self.routed if item != assignment)
        self.count()
        await self.begin("drain", assignment.placement.id)
        self.workers.remove(assignment)
        self.refuse("drain", assignment.placement.id)

    def forget(self, assignment: Assignment, reason: str) -> None:
        self.done.append(f"forget {assignment.placement.id}")
        self.workers.remove(assignment)

    def route(self, assignments: Deployment, routing: Routing) -> None:
        self.done.append("route")
        self.refuse("route", "")
        assert set(assignments) <= set(self.workers)
        assert abs(sum(routing.shares.values()) - 1.0) < 1e-9
        self.routed, self.routing = assignments, routing
        self.seen.append(routing)
        self.count()

    def observe(self) -> dict[str, float]:
        return {}

    def work_report(self) -> WorkReport:
        return WorkReport()

    def correct_energy(self, factors: Mapping[tuple[str, str], float]) -> None:
        pass

    def correct_front(self, front_ms: float) -> None:
        pass

    def guard_report(self) -> dict[str, Any]:
        return {}

    def reset_guard(self) -> None:
        pass

    def accuracy_demand(self) -> dict[str, Asked]:
        return {}

    def decline(self, declined: Mapping[str, Declined], wanted: Callable[[], None]) -> None:
        pass

    # --- books

    def count(self) -> None:
        self.served.append(
            sum(item.placement.slices for item in self.routed if not self.gpus[item.placement.device].lost)
        )

    async def begin(self, kind: str, what: str) -> None:
        self.under_way[kind] += 1
        self.busy[kind] = max(self.busy[kind], self.under_way[kind])
        for _ in range(1 + len(self.done) % 3):
            await asyncio.sleep(0)
        self.under_way[kind] -= 1
        self.done.append(f"{kind} {what}")

    def refuse(self, kind: str, what: str) -> None:
        error = self.fault(kind, what)
        if error is not None:
            raise error

    def shapes(self) -> tuple[DeviceShape, ...]:
        return tuple(gpu.shape() for gpu in self.gpus.values())

    async def change(
        self,
        before: Deployment,
        target: Deployment,
        floor: float = math.inf,
        routing_before: Routing | None = None,
        routing: Routing | None = None,
    ) -> tuple[str, ...]:
        transition = plan_transition(before, target, self.shapes(), floor=floor)
        return await self.applier.run(
            transition,
            before=before,
            routing_before=routing_before or equal(before),
            routing=routing or equal(target),
        )

    def consistent(self) -> None:
        """Workers stand on instances, all of them serve, and nothing stands without a worker but what is stuck."""
        assert Counter(self.applier.workers) == Counter(self.workers)
        assert Counter(self.routed) == Counter(self.workers)
        places = {item.placement.id for item in self.workers}
        for gpu in self.gpus.values():
            if not gpu.lost:
                assert legal(tuple(gpu.standing.values()), gpu.profiles, compute=gpu.compute) == ""
                here = {place for place in places if place.startswith(f"{gpu.name}:")}
                assert here <= gpu.standing.keys()
                assert gpu.standing.keys() - here == gpu.stuck.keys()
        assert self.instances.held("toy") == places
        assert self.applier.progress is None


def equal(deployment: Deployment) -> Routing:
    variants = {item.variant for item in deployment}
    return Routing(shares=dict.fromkeys(variants, 1.0 / len(variants)) if variants else {})


async def standing(deployment: Deployment, **options: Any) -> Rig:
    rig = Rig(**options)
    await rig.change((), deployment)
    rig.consistent()
    rig.served, rig.busy = [], Counter()
    return rig


def always(kind: str, what: str, error: CloverError) -> Fault:
    return lambda this, place: error if (this, place) == (kind, what) else None
