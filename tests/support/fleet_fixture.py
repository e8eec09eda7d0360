"""A fleet with workers made of Python and time that does not pass by itself."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from clover.accounting import Account, ProfiledEnergy
from clover.config import FamilyConfig
from clover.errors import CloverError, WorkerError
from clover.runtime.memory.slab import Layout, Slab
from clover.runtime.router.router import Router
from clover.runtime.workers.fleet import FamilyFleet
from clover.types import Assignment, FamilySpec, Placement, TensorSpec, VariantSpec
from clover.worker.frames import HeldMemory

SECOND = 1_000_000_000
SPEC = FamilySpec(
    name="toy",
    inputs=(TensorSpec(name="x", datatype="FP32", shape=(1,)),),
    outputs=(TensorSpec(name="y", datatype="FP32", shape=(1,)),),
    variants=(VariantSpec(name="small", loader="m:f"), VariantSpec(name="large", loader="m:f")),
    max_batch=4,
)


def at(start: int, variant: str = "small", size: int = 1) -> Assignment:
    placement = Placement(device="cpu0", profile=f"{size}c", start=start, size=size)
    return Assignment(placement=placement, family="toy", variant=variant, backend="eager")


class Worker:
    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.state = "ready"
        self.on_death: Callable[[Any, str], None] | None = None
        self.on_end_asked: Callable[[Any], None] | None = None
        self.killed = False
        self.device_lost = False
        self.overruns = 0
        self.sandbox = ""
        self.cores = 1
        self.resident: dict[str, int] = {}
        self.held: tuple[HeldMemory, ...] = ()
        self.context_bytes = 0
        self.backends: dict[str, str] = {}
        self.sent: list[int] = []
        self.lanes: list[int] = []
        """The ring's lane of each batch that was sent."""
        self.done: list[tuple[int, int, int, int, int, int]] = []
        self.ring = self

    def submit(self, batch_id: int, slots: Any, n: int, lane: int = 0) -> int:
        self.sent.append(batch_id)
        self.lanes.append(lane)
        return 1

    def untaken(self) -> int:
        return 0

    def reap(self) -> tuple[int, int, int, int, int, int] | None:
        return self.done.pop(0) if self.done else None

    def backend_of(self, variant: str) -> str:
        return self.backends.get(variant, "eager") if variant in self.resident else ""

    def bell(self) -> None: ...

    def kill(self) -> None:
        self.killed = True

    def die(self, reason: str = "killed") -> None:
        self.state = "dead"
        assert self.on_death is not None
        self.on_death(self, reason)

    def sigterm(self) -> None:
        """Somebody else asks it to end."""
        assert self.on_end_asked is not None
        self.on_end_asked(self)

    async def drain_and_exit(self) -> None:
        self.state = "dead"


class House:
    def __init__(self, silent_s: float = 5.0) -> None:
        self.now_ns = 100 * SECOND
        self.account = Account(pue=1.0)
        self.slab = Slab.create(Layout(SPEC, 8))
        self.router = Router(
            SPEC,
            self.slab,
            8,
            FamilyConfig(family="toy"),
            None,
            self.account,
            loop=asyncio.get_running_loop(),
            clock=lambda: self.now_ns,
        )
        self.started: list[Worker] = []
        self.slept: list[float] = []
        self.failing = 0
        self.holding: tuple[str, ...] = ()
        """What workers hold beside the variant that they are started for."""
        self.may_start = asyncio.Event()
        self.may_start.set()
        self.failure: CloverError = WorkerError("asked to fail")
        self.fleet = FamilyFleet(
            self.router,
            start=self.start,
            profiled=lambda _: ProfiledEnergy(),
            silent_s=silent_s,
            sleep=self.sleep,
        )

    async def start(self, assignment: Assignment) -> Worker:
        await self.may_start.wait()
        if self.failing:
            self.failing -= 1
            raise self.failure
        worker = Worker(len(self.started) + 1)
        names = [assignment.variant, *(name for name in self.holding if name != assignment.variant)]
        worker.resident = {name: lane for lane, name in enumerate(names)} if self.holding else {}
        self.started.append(worker)
        return worker

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now_ns += int(seconds * SECOND)
        await asyncio.sleep(0)

    def watch_for(self, seconds: int) -> None:
        """Let time pass, with a look at the workers each second."""
        for _ in range(seconds):
            self.now_ns += SECOND
            self.fleet.watch()

    async def settle(self) -> None:
        for _ in range(60):
            await asyncio.sleep(0)


def in_a_house(test: Callable[[House], Any]) -> Callable[[], None]:
    def run() -> None:
        async def main() -> None:
            await test(House())

        asyncio.run(main())

    run.__name__ = test.__name__
    return run
