"""The members of a fleet: assignments that were spawned, and the lives of their workers.

If the worker of a member dies, another is started after 0.1 s, doubling to 10 s while starts or lives are short, and
for as long as the member exists: nothing here ever gives up.  Once a worker has been well for 30 s, its next death
counts as a first one.

A worker that others asked to end (SIGTERM) keeps serving until another one of its member is ready, then is drained: no
row is lost and nothing counts as a failure.  If no other one starts beside it, it goes first.

Rows of a worker that must die are queued again only when it is dead, not when it is killed: until then it may still
write into their slots.

Old and new workers may share a placement (that is a swap), so members are identified by their whole assignment.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from clover.accounting import Account, HostProcess, ProfiledEnergy, WorkerMeter
from clover.errors import CloverError, WorkerError
from clover.runtime.router.lanes import Entry
from clover.runtime.router.links import RingLike, WorkerHandle
from clover.runtime.router.router import Router
from clover.types import Assignment

log = logging.getLogger("clover.fleet")

FIRST_BACKOFF_S = 0.1
LONGEST_BACKOFF_S = 10.0
WELL_AFTER_S = 30.0
REPLACED_AFTER_S = 0.2
"""Seconds that a worker which was asked to end serves before another is started.  A signal to a whole process group
reaches the server too, and a server that stops needs the workers that it has, and no others."""

_HELD_FAILURES = 3
_KEPT_EVENTS = 32
_SECOND_NS = 1_000_000_000


class FleetWorker(Protocol):
    """What the fleet needs of a worker of the pool."""

    on_death: Callable[[Any, str], None] | None
    on_end_asked: Callable[[Any], None] | None

    @property
    def pid(self) -> int: ...
    @property
    def ring(self) -> RingLike: ...
    @property
    def state(self) -> str: ...
    @property
    def device_lost(self) -> bool: ...
    @property
    def overruns(self) -> int: ...
    @property
    def cores(self) -> int: ...
    def bell(self) -> None: ...
    def kill(self) -> None: ...
    async def drain_and_exit(self) -> None: ...


class Member:
    """An assignment that was spawned, with its worker while that is ready.  `standby`: it is a standby worker."""

    __slots__ = (
        "assignment",
        "failures",
        "given_up",
        "meter",
        "ready_ns",
        "respawn",
        "restarts",
        "standby",
        "worker",
    )

    def __init__(self, assignment: Assignment, *, standby: bool = False) -> None:
        self.assignment = assignment
        self.standby = standby
        self.worker: FleetWorker | None = None
        self.meter: WorkerMeter | None = None
        self.respawn: asyncio.Task[None] | None = None
        """The task that starts, replaces or ends its worker, if there is one."""
        self.restarts = 0
        self.failures = 0
        self.given_up = False
        self.ready_ns = 0

    @property
    def ready(self) -> bool:
        """Whether it has a worker that can take rows."""
        return self.worker is not None

    @property
    def backoff_s(self) -> float:
        """How long to wait before the next start."""
        return float(min(FIRST_BACKOFF_S * 2.0 ** min(self.failures, 16), LONGEST_BACKOFF_S))

    def split_off(self) -> Member | None:
        """Move its worker to a new member, which is to be drained; return that, or None if there is no worker."""
        if self.worker is None:
            return None
        left = Member(self.assignment, standby=self.standby)
        left.worker, left.meter, left.ready_ns, left.restarts = self.worker, self.meter, self.ready_ns, self.restarts
        self.worker = self.meter = None
        return left

    def state(self, *, leaving: bool) -> str:
        """Return its state for people."""
        if leaving:
            return "draining"
        if self.worker is None:
            return "starting"
        return "standing by" if self.standby else "ready"


def _ignore() -> None:
    """Do nothing about a standby worker that is ready, until there is a crew."""


class Members:
    """The spawned members of one family, standby workers included; starts, restarts, replaces and ends their workers.

    `start` starts a worker for an assignment and returns it ready; `profiled` gives what the profile expects
    of its energy.  `routed`: the assignments that are to receive rows, all of them spawned; `awaited`: those that take
    the place of all that is routed to, and for which rows wait meanwhile.
    """

    def __init__(
        self,
        router: Router,
        account: Account,
        *,
        start: Callable[[Assignment], Awaitable[FleetWorker]],
        profiled: Callable[[Assignment], ProfiledEnergy],
        clock: Callable[[], int],
        sleep: Callable[[float], Awaitable[None]],
    ) -> None:
        self.spawned: dict[Assignment, Member] = {}
        self.leaving: list[Member] = []
        """Members that were drained or forgotten and whose worker is not gone yet."""
        self.routed: tuple[Assignment, ...] = ()
        self.awaited: tuple[Assignment, ...] = ()
        self.closing = False
        self.restarts = 0
        self.given_up = 0
        self.events: deque[dict[str, Any]] = deque(maxlen=_KEPT_EVENTS)
        self.on_standby_ready: Callable[[], None] = _ignore
        self.start = start
        self.sleep = sleep
        self._router = router
        self._account = account
        self._profiled = profiled
        self._clock = clock
        self._letting_go: dict[asyncio.Task[None], Assignment] = {}
        self.lanes = {variant.name: lane for lane, variant in enumerate(router.spec.variants)}
        router.lost = self.kill

    def all(self) -> list[Member]:
        """Return all members, those that leave included."""
        return [*self.spawned.values(), *self.leaving]

    def entry(self, member: Member) -> Entry | None:
        """Return the worker of `member` as the router takes it; None while there is none."""
        if member.worker is None or member.meter is None:
            return None
        lane = self.lanes[member.assignment.variant]
        return member.worker, lane, self._router.spec.max_batch, member.meter

    def set_hold(self) -> None:
        """Let rows wait in the router while the first few restarts of a routed member are under way, and for workers
        that are awaited."""
        routed = [self.spawned[item] for item in self.routed if item in self.spawned]
        restarting = [member.assignment for member in routed if not member.ready and member.failures < _HELD_FAILURES]
        self._router.expect_workers(self.lanes[item.variant] for item in (*restarting, *self.awaited))

    # --- begin and end ------------------------------------------------------------------------------------------------

    async def bring_up(self, member: Member) -> Member | None:
        """Start a worker for `member`; return the member that the worker before it was split off to, if there was one.
        Raises WorkerError."""
        item = member.assignment
        worker = await self.start(item)
        if self.spawned.get(item) is not member:
            worker.kill()
            raise WorkerError(f"{item.variant} at {item.placement.id} was drained while it started")
        if worker.state == "dead":
            raise WorkerError(f"{item.variant} at {item.placement.id} died as soon as it was ready")
        left = self._split_off(member)
        member.meter = self._account.attach(
            WorkerMeter(
                family=self._router.name,
                variant=item.variant,
                device=item.placement.device,
                placement=item.placement.id,
                slices=item.placement.slices,
                profiled=self._profiled(item),
                core_w=self._account.core_w,
                process=HostProcess(worker.pid, worker.cores),
            )
        )
        member.worker = worker
        member.ready_ns = self._clock()
        worker.on_death = self._died
        worker.on_end_asked = self._end_asked
        return left

    async def end(self, assignment: Assignment) -> None:
        """Drain the worker of a member and remove it; does nothing for an assignment that was not spawned."""
        member = self._remove(assignment)
        if member is None:
            return
        parting = [task for task, item in self._letting_go.items() if item == assignment]
        if member.worker is not None:
            self.leaving.append(member)
            await self._let_go(member)
        if parting:  # a replaced worker may be there still, and its instance in use
            await asyncio.wait(parting)

    async def end_all(self) -> None:
        """Drain the workers of all members at once."""
        await asyncio.gather(*(self.end(assignment) for assignment in list(self.spawned)), *self._letting_go)

    def forget(self, assignment: Assignment, reason: str) -> None:
        """Remove a member and kill its worker without waiting; does nothing for an assignment that was not spawned."""
        member = self._remove(assignment)
        if member is None:
            return
        member.given_up = True  # killed by the server: no request is to blame
        self.given_up += not member.standby
        self.note(member, "given up", reason)
        if member.worker is not None:
            self.leaving.append(member)  # until it is dead: its rows are queued again then
            self._router.leave(member.worker, lambda: None)
        for left in self.leaving:
            if left.assignment == assignment and left.worker is not None:
                left.given_up = True
                left.worker.kill()

    def kill(self, worker: WorkerHandle, reason: str) -> None:
        """Kill a worker that fell silent or broke the protocol, and give it no more rows."""
        for member in self.all():
            if member.worker is worker:
                log.error("%s: worker %d is killed: %s", self._router.name, worker.pid, reason)
                self.note(member, "killed", reason)
                self._router.leave(worker, lambda: None)
                member.worker.kill()

    def note(self, member: Member, what: str, reason: str) -> None:
        """Append what happened to a member to the events."""
        item = member.assignment
        self.events.append(
            {"at_ns": self._clock(), "what": what, "variant": item.variant, "at": item.placement.id, "reason": reason}
        )

    def _remove(self, assignment: Assignment) -> Member | None:
        """Remove and return a member that was spawned; cancel what is being done for it."""
        member = self.spawned.pop(assignment, None)
        if member is None:
            return None
        self.routed = tuple(item for item in self.routed if item != assignment)
        if member.respawn is not None:
            member.respawn.cancel()
            member.respawn = None
        self.set_hold()
        return member

    async def _let_go(self, member: Member) -> None:
        """Drain the worker of a member that is leaving."""
        worker = member.worker
        if worker is None:
            return
        idle: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._router.leave(worker, lambda: None if idle.done() else idle.set_result(None), served=not self.closing)
        try:
            await idle
        except asyncio.CancelledError:
            worker.kill()
            raise
        if member.worker is None:
            return  # it died while it drained; its rows were queued again
        try:
            await worker.drain_and_exit()
        finally:
            self._gone(member)

    def _gone(self, member: Member) -> None:
        """Clear up after the worker of `member`, which has ended."""
        if member.meter is not None:
            self._account.detach(member.meter)
        member.worker = None
        if member in self.leaving:
            self.leaving.remove(member)

    # --- deaths -------------------------------------------------------------------------------------------------------

    def _died(self, worker: WorkerHandle, reason: str) -> None:
        """Start another worker for the member whose worker died, and have the router queue its rows again."""
        blame = True
        for member in self.all():
            if member.worker is worker:
                blame = not (member.worker.device_lost or member.given_up)
                self.note(member, "died", reason)
                lived_ns = self._clock() - member.ready_ns
                self._gone(member)
                if self.spawned.get(member.assignment) is member:
                    if lived_ns >= WELL_AFTER_S * _SECOND_NS:
                        member.failures = 0
                    if member.respawn is not None and not member.respawn.done():
                        continue  # another one is being started in its place
                    member.respawn = asyncio.get_running_loop().create_task(self.respawn(member))
        self.set_hold()
        self._router.died(worker, reason, blame=blame)

    async def respawn(self, member: Member) -> None:
        """Start workers for `member`, each attempt later than the one before, until one is ready."""
        item = member.assignment
        while True:
            await self.sleep(member.backoff_s)
            member.failures += 1
            member.restarts += 1
            self.restarts += not member.standby
            try:
                await self.bring_up(member)
            except CloverError as error:  # of the worker, the zygote or the device: none of them ends the attempts
                if self.spawned.get(item) is not member:
                    return
                self.set_hold()
                self.note(member, "failed", str(error))
                log.warning("%s: %s at %s: %s", self._router.name, item.variant, item.placement.id, error)
                continue
            break
        self._rejoin(member)

    def _rejoin(self, member: Member) -> None:
        """Let the new worker of `member` do what the one before it did."""
        member.respawn = None
        self.set_hold()
        entry = self.entry(member)
        if member.standby:
            self.on_standby_ready()
        elif member.assignment in self.routed and entry is not None:
            self._router.join(entry)
        self.note(member, "restarted", "")

    # --- workers that others ask to end -------------------------------------------------------------------------------

    def _end_asked(self, worker: WorkerHandle) -> None:
        """Replace a worker that got SIGTERM from outside."""
        for member in self.spawned.values():
            if member.worker is worker and (member.respawn is None or member.respawn.done()):
                member.respawn = asyncio.get_running_loop().create_task(self._replace(member, worker))

    async def _replace(self, member: Member, old: WorkerHandle) -> None:
        """Start another worker for `member`, then drain `old`."""
        item = member.assignment
        await self.sleep(REPLACED_AFTER_S)
        if self.closing and member.worker is old:
            member.respawn = None
            return
        about = f"worker {old.pid} ({item.variant} at {item.placement.id}) was asked to end (SIGTERM)"
        log.info("%s: %s: another is started in its place", self._router.name, about)
        self.note(member, "asked to end", "SIGTERM")
        member.restarts += 1
        self.restarts += not member.standby
        try:
            left = await self.bring_up(member)
        except CloverError as error:  # there may be no memory for two
            if self.spawned.get(item) is not member:
                return
            log.warning("%s: %s, and goes first, as no other starts beside it: %s", self._router.name, about, error)
            left = self._split_off(member)
            self.set_hold()
            if left is not None:
                await asyncio.wait((self._part(left),))
            await self.respawn(member)
            return
        self._rejoin(member)
        if left is not None:
            self._part(left)

    def _split_off(self, member: Member) -> Member | None:
        """Move the worker of `member` to a leaving member, and return that."""
        left = member.split_off()
        if left is not None:
            self.leaving.append(left)
        return left

    def _part(self, left: Member) -> asyncio.Task[None]:
        """Drain a worker in the background, whatever becomes of its member meanwhile."""
        task = asyncio.get_running_loop().create_task(self._let_go(left))
        self._letting_go[task] = left.assignment
        task.add_done_callback(self._letting_go.pop)
        return task
