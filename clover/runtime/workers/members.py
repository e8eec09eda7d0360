"""The members of a fleet: assignments that were spawned, and the lives of their workers.

If the worker of a member dies, another is started after 0.1 s, doubling to 10 s while starts or lives are short, and
for as long as the member exists: nothing here ever gives up.  Once a worker has been well for 30 s, its next death
counts as a first one.

If another process asks a worker to end (SIGTERM), it keeps serving until its member has another worker, and is drained
then: no row is lost and nothing counts as a failure.  If no other worker starts beside it, it is drained first.

Rows of a worker that must die are queued again only when it is dead, not when it is killed: until then it may still
write into their slots.

Old and new workers may share a placement (that is a swap), so members are identified by their whole assignment.

A worker may hold several variants (`FleetWorker.resident`), and members at one placement then share it: a member whose
variant a ready worker there holds is ready at once, without a process of its own.  A member that leaves closes its lane
in the router; the last one ends the process.  If the process dies, all of its members get one new worker together,
started with a variant that is routed.  Members whose variant the new worker left out get one of their own.

A family that nobody asks may sleep: its workers end, and its members stay, until `wake` starts workers for them again.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from typing import Any

from clover.accounting import HostProcess, ProfiledEnergy, WorkerMeter
from clover.errors import CloverError, WorkerError
from clover.runtime.router.lanes import Entry
from clover.runtime.router.links import WorkerHandle
from clover.runtime.router.router import Router
from clover.runtime.workers.deaths import LaunchFailures
from clover.runtime.workers.member import DrainedInStart, FleetWorker, Member, holds
from clover.types import Assignment, Placement

log = logging.getLogger("clover.fleet")

WELL_AFTER_S = 30.0
REPLACED_AFTER_S = 0.2
"""Seconds that a worker which was asked to end serves before another is started.  A signal to a whole process group
reaches the server too, and a server that stops needs the workers that it has, and no others."""

_HELD_FAILURES, _KEPT_EVENTS = 3, 32
_SECOND_NS = 1_000_000_000


class Members:
    """The spawned members of one family, standby workers included; starts, restarts, replaces and ends their workers.

    `start` starts a worker for an assignment and returns it ready; `profiled` gives what the profile expects
    of its energy.  `routed`: the assignments that are to receive rows, all of them spawned; `awaited`: those that take
    the place of all that is routed to, and for which rows wait meanwhile.  `one_process` says whether the device of a
    placement takes one process at a time.
    """

    def __init__(
        self,
        router: Router,
        *,
        start: Callable[[Assignment], Awaitable[FleetWorker]],
        profiled: Callable[[Assignment], ProfiledEnergy],
        one_process: Callable[[Placement], bool],
        sleep: Callable[[float], Awaitable[None]],
    ) -> None:
        self.spawned: dict[Assignment, Member] = {}
        self.leaving: list[Member] = []
        """Members that were drained or forgotten and whose worker is not gone yet."""
        self.routed: tuple[Assignment, ...] = ()
        self.awaited: tuple[Assignment, ...] = ()
        self.closing = False
        self.asleep = False
        self.waking: set[Member] = set()
        """Members that slept, and whose first worker since then neither is there nor failed to start.  Rows wait for
        all of them: else an early one would be asked what the plan has others answer."""
        self.one_process = one_process
        self.restarts = 0
        self.given_up = 0
        self.events: deque[dict[str, Any]] = deque(maxlen=_KEPT_EVENTS)
        self.on_standby_ready: Callable[[], None] = lambda: None
        self.start = start
        self.sleep = sleep
        self._router = router
        self._account = router.account
        self._profiled = profiled
        self._clock = router.state.clock
        self._letting_go: dict[asyncio.Task[None], Assignment] = {}
        self._starting: dict[Placement, asyncio.Lock] = {}
        self._launch_failures = LaunchFailures()
        self.lanes = {variant.name: lane for lane, variant in enumerate(router.spec.variants)}
        router.lost = self.kill

    def all(self) -> list[Member]:
        """Return all members, those that leave included."""
        return [*self.spawned.values(), *self.leaving]

    def entry(self, member: Member) -> Entry | None:
        """Return the worker of `member` as the router takes it; None while there is none, or it is being killed."""
        if member.worker is None or member.meter is None or member.dying:
            return None
        lane = self.lanes[member.assignment.variant]
        return member.worker, lane, self._router.spec.max_batch, member.meter

    def set_hold(self) -> None:
        """Let rows wait in the router while the first few restarts of a routed member are under way, and for workers
        that are awaited."""
        routed = [self.spawned[item] for item in self.routed if item in self.spawned]
        missing = [one for one in routed if not one.serving or self.waking]
        restarting = [one.assignment for one in missing if one.failures < _HELD_FAILURES]
        self._router.expect_workers(self.lanes[item.variant] for item in (*restarting, *self.awaited))

    # --- begin and end ------------------------------------------------------------------------------------------------

    async def bring_up(self, *crew: Member) -> None:
        """Give the first of `crew`, members at one placement, a worker: one that is ready there and holds its variant,
        else a new one.  If it is drained meanwhile the next one gets that.  Raises WorkerError."""
        if self.take_resident(self._first(crew)):
            return
        async with self._start_lock(crew[0]):
            if not self.take_resident(self._first(crew)):
                member, worker = await self._start(crew)
                self._give(member, worker)
                self._gather(member.assignment.placement, worker)

    def take_resident(self, member: Member) -> bool:
        """Give `member` a ready worker at its placement that holds its variant; return whether there is one."""
        item = member.assignment
        for other in self.spawned.values():
            worker = other.worker
            here = other.assignment.placement == item.placement and not other.dying
            if worker is not None and here and worker.state == "ready" and holds(worker, item):
                self._give(member, worker)
                return True
        return False

    def _gather(self, place: Placement, worker: FleetWorker) -> None:
        """Have members at `place` use the new `worker` instead of one of which it holds all that is used."""
        there = [
            member
            for member in self.spawned.values()
            if member.assignment.placement == place and member.worker is not worker
        ]
        for old in {member.worker for member in there if member.worker is not None}:
            crew = [member for member in there if member.worker is old]
            if all(member.respawn is None and holds(worker, member.assignment) for member in crew):
                self._move(crew, worker)

    def _move(self, crew: Sequence[Member], worker: FleetWorker) -> None:
        """Give `worker` to all of `crew`, and drain those that they had."""
        parting = [self._give(member, worker) for member in crew]
        self._rejoin(crew)
        for left in filter(None, parting):
            self._part(left)

    def _start_lock(self, member: Member) -> asyncio.Lock:
        """Return the lock under which workers start at the placement of `member`, one at a time: the first may hold the
        variants of the others."""
        return self._starting.setdefault(member.assignment.placement, asyncio.Lock())

    def _first(self, crew: Sequence[Member]) -> Member:
        """Return the member of `crew` that a worker is to be started for.  Raises WorkerError if all are gone."""
        there = self._remaining(crew)
        if not there:
            item = crew[0].assignment
            raise DrainedInStart(f"{item.variant} at {item.placement.id} was drained before it started")
        return there[0]

    async def _start(self, crew: Sequence[Member]) -> tuple[Member, FleetWorker]:
        """Return a new worker, and who of `crew` gets it: the first, or one whose variant it holds if that is gone by
        then.  Raises WorkerError, also if there is none."""
        first = self._first(crew)
        item, place = first.assignment, first.assignment.placement
        if self.one_process(place) and any(one.ready for one in self.all() if one.assignment.placement == place):
            raise WorkerError(
                f"{item.variant} is not held by the worker at {place.id}, and none can start beside that: the device "
                "takes one process"
            )
        worker = await self.start(item)
        there = self._remaining(crew)
        if first not in there:
            there = [one for one in there if holds(worker, one.assignment)]
        if not there:
            worker.kill()
            raise DrainedInStart(f"{item.variant} at {place.id} was drained while it started")
        if worker.state == "dead":
            raise WorkerError(f"{item.variant} at {place.id} died as soon as it was ready")
        return (first if first in there else there[0]), worker

    def _give(self, member: Member, worker: FleetWorker) -> Member | None:
        """Make `worker` that of `member`; return the member that the worker before it was split off to, if there was
        one."""
        item = member.assignment
        left = self._split_off(member)
        same = (other for other in self.leaving if other.worker is worker and other.assignment == item)
        back = next((other for other in same if other.meter is not None), None)
        if back is not None:  # it comes back before it has left
            member.meter, back.meter = back.meter, None
        else:
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
        if member.meter is not None:
            member.meter.holds = not (member.standby and any(other.worker is worker for other in self.all()))
        member.worker, member.dying = worker, False
        member.ready_ns = self._clock()
        worker.on_death = self._died
        worker.on_end_asked = self._end_asked
        return left

    async def end(self, *assignments: Assignment) -> None:
        """Remove members at once, then drain their workers together; does nothing for an assignment that was not
        spawned."""
        members = [member for member in map(self._remove, assignments) if member is not None]
        ended = {member.assignment for member in members}
        parting = [task for task, item in self._letting_go.items() if item in ended]
        members = [member for member in members if member.worker is not None]
        self.leaving += members
        try:
            await asyncio.gather(*map(self._let_go, members))
        except asyncio.CancelledError:
            for member in members:
                if member in self.leaving:
                    self._abandon(member)
            raise
        if parting:  # a replaced worker may be there still, and its instance in use
            await asyncio.wait(parting)

    async def wait_departed(self, placement: Placement) -> None:
        """Wait until the members that leave a placement have left it, but for those whose device is lost."""
        there = [member for member in self.leaving if member.assignment.placement == placement]
        await asyncio.gather(*(member.gone.wait() for member in there if not member.given_up))

    async def put_to_sleep(self) -> None:
        """End the workers of all members, which stay: standby workers for good, the others until `wake`."""
        self.asleep = True
        staying = [member for member in self.spawned.values() if not member.standby]
        parting = [self._part(left) for left in map(self._split_off, staying) if left is not None]
        self.set_hold()
        await asyncio.gather(self.end(*(set(self.spawned) - {one.assignment for one in staying})), *parting)

    def wake(self) -> None:
        """Start workers for the members that `put_to_sleep` left without one."""
        self.asleep = False
        crews: dict[Placement, list[Member]] = {}
        for member in self.spawned.values():
            if not member.ready and member.respawn is None:
                crews.setdefault(member.assignment.placement, []).append(member)
        for crew in crews.values():
            self.waking.update(crew)
            self._restart(crew, woken=True)

    async def end_all(self) -> None:
        """Drain the workers of all members at once."""
        await asyncio.gather(self.end(*self.spawned), *self._letting_go)

    def forget(self, assignment: Assignment, reason: str) -> None:
        """Remove a member and kill its worker without waiting; does nothing for an assignment that was not spawned."""
        member = self._remove(assignment)
        if member is None:
            return
        member.given_up = True  # killed by the server: no request is to blame
        counted = any(other.given_up for other in self._others(member))
        self.given_up += not member.standby and not counted
        self.record(member, "given up", reason)
        if member.worker is not None:
            self.leaving.append(member)  # until it is dead: its rows are queued again then
            self._router.leave(member.worker, lambda: None)
        for left in self.leaving:
            if left.assignment == assignment and left.worker is not None:
                left.given_up = True
                left.worker.kill()

    def kill(self, worker: WorkerHandle, reason: str) -> None:
        """Kill a worker that fell silent or broke the protocol, and give it no more rows; only once."""
        for member in self.all():
            if member.worker is worker and not member.dying:  # one that hangs in a driver is there, silent, for long
                log.error("%s: worker %d is killed: %s", self._router.name, worker.pid, reason)
                self.record(member, "killed", reason)
                for one in (member, *self._others(member)):
                    one.dying = True
                self.set_hold()  # else rows that come before it is dead would be refused
                self._router.leave(worker, lambda: None)
                member.worker.kill()
                return

    def record(self, member: Member, what: str, reason: str) -> None:
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
        self.waking.discard(member)
        if not self.spawned:
            self.asleep = False  # there is nothing to wake
            self._router.end_sleep()
        if member.respawn is not None:
            if not any(other.respawn is member.respawn for other in self.spawned.values()):
                member.respawn.cancel()
            member.respawn = None
        self.set_hold()
        return member

    def _others(self, member: Member) -> list[Member]:
        """Return the other members that have the worker of `member`."""
        worker = member.worker
        return [other for other in self.all() if other is not member and other.worker is worker is not None]

    async def _let_go(self, member: Member) -> None:
        """Drain the worker of a member that is leaving, or only its lane if others have that worker."""
        worker = member.worker
        if worker is None:
            return
        idle: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._router.leave(
            worker,
            lambda: None if idle.done() else idle.set_result(None),
            served=not self.closing,
            lane=self.lanes[member.assignment.variant],
        )
        try:
            await idle
        except asyncio.CancelledError:
            self._abandon(member)
            raise
        if member.worker is None:
            return  # it died while it drained; its rows were queued again
        if self._others(member):
            self._wait_gone(member)
            return
        try:
            await worker.drain_and_exit()
        finally:
            self._wait_gone(member)

    def _abandon(self, member: Member) -> None:
        """Wait no longer for the rows of a member that is leaving: kill its worker, unless others have that."""
        if member.worker is None:
            return
        others = self._others(member)
        if not others:
            member.worker.kill()
            return
        if all(other.assignment != member.assignment for other in others):  # else its lane has come back
            self._router.leave(member.worker, lambda: None, lane=self.lanes[member.assignment.variant])
        self._wait_gone(member)

    def _wait_gone(self, member: Member) -> None:
        """Clear up after the worker of `member`, which has ended."""
        if member.meter is not None:
            self._account.detach(member.meter)
        member.worker = None
        if member in self.leaving:
            self.leaving.remove(member)
            member.gone.set()

    # --- deaths -------------------------------------------------------------------------------------------------------

    def _died(self, worker: WorkerHandle, reason: str) -> None:
        """Start another worker for the members whose worker died, and have the router queue its rows again."""
        members = [member for member in self.all() if member.worker is worker]
        excused = any(member.given_up or (member.worker and member.worker.device_lost) for member in members)
        blame = not (excused or self._launch_failures.forgives(reason, self._clock()))
        for member in members[:1]:
            self.record(member, "died", reason)
        crew = []
        for member in members:
            lived_ns = self._clock() - member.ready_ns
            self._wait_gone(member)
            if self.spawned.get(member.assignment) is member:
                if lived_ns >= WELL_AFTER_S * _SECOND_NS:
                    member.failures = 0
                if member.respawn is None or member.respawn.done():  # else another one is being started in its place
                    crew.append(member)
        self._restart(crew)
        self.set_hold()
        self._router.died(worker, reason, blame=blame)

    def _restart(self, crew: Sequence[Member], *, woken: bool = False) -> None:
        """Start a worker in the background for members that are to share it."""
        if crew:
            task = asyncio.get_running_loop().create_task(self.respawn(*crew, woken=woken))
            for member in crew:
                member.respawn = task

    def _remaining(self, crew: Iterable[Member]) -> list[Member]:
        """Return those of `crew` that were not drained, first those that are routed, then the plan's other ones."""
        there = [member for member in crew if self.spawned.get(member.assignment) is member]
        return sorted(there, key=lambda member: (member.assignment not in self.routed, member.standby))

    async def respawn(self, *members: Member, woken: bool = False) -> None:
        """Start workers for `members`, which shared one, each attempt later than the one before, until one is ready.
        `woken`: they slept, so that the first attempt is made at once and is no restart."""
        crew = self._remaining(members)
        while crew:
            if not woken:
                await self.sleep(crew[0].backoff_s)
                crew = self._remaining(crew)
                if not crew:
                    return
                self._count_restart(crew)
            first, item = crew[0], crew[0].assignment
            try:
                await self.bring_up(*crew)
                break
            except CloverError as error:  # of the worker, the zygote or the device: none of them ends the attempts
                woken = False
                self._wake_up(crew)
                crew = self._remaining(crew)
                if first in crew:
                    self.set_hold()
                    self.record(first, "failed", str(error))
                    log.warning("%s: %s at %s: %s", self._router.name, item.variant, item.placement.id, error)
        crew = self._remaining(crew)
        alone = [member for member in crew if not member.ready and not self.take_resident(member)]
        self._rejoin([member for member in crew if member.ready], woken=woken)
        self._restart(alone)

    def _count_restart(self, crew: Sequence[Member]) -> None:
        """Count one more start of a worker for these members."""
        for member in crew:
            member.failures += 1
            member.restarts += 1
        self.restarts += not all(member.standby for member in crew)

    def _rejoin(self, crew: Sequence[Member], *, woken: bool = False) -> None:
        """Let the new worker of these members do what the one before it did."""
        for member in crew:
            member.respawn = None
        self._wake_up(crew)
        if any(member.standby for member in crew):
            self.on_standby_ready()
        for member in crew[:1]:
            if not woken:
                self.record(member, "restarted", "")

    def _wake_up(self, crew: Sequence[Member]) -> None:
        """Let all members that have a worker get rows, once no other one wakes than `crew`."""
        self.waking.difference_update(crew)
        self.set_hold()
        routed = [self.spawned[item] for item in self.routed if not self.waking]
        # Together, or rows that wait for one of them would move to another.
        if entries := [entry for entry in map(self.entry, routed) if entry is not None]:
            self._router.join(*entries)

    # --- workers that others ask to end -------------------------------------------------------------------------------

    def _end_asked(self, worker: WorkerHandle) -> None:
        """Replace a worker that got SIGTERM from outside."""
        self._replace_soon(self._idle_crew(worker), worker)

    def renew(self, items: Collection[Assignment]) -> None:
        """Replace the workers of `items` that are still there, and count that as no restart: they know nothing of the
        profile that the family has by now.  They serve until others are ready."""
        for worker in {member.worker for item, member in self.spawned.items() if item in items and member.worker}:
            self._replace_soon(self._idle_crew(worker), worker, renewed=True)

    def _idle_crew(self, worker: WorkerHandle) -> list[Member]:
        """Return the members of a worker that nothing else is replacing."""
        members = [member for member in self.spawned.values() if member.worker is worker]
        return [one for one in members if one.respawn is None or one.respawn.done()]

    def _replace_soon(self, crew: Sequence[Member], old: WorkerHandle, *, renewed: bool = False) -> None:
        if crew:
            task = asyncio.get_running_loop().create_task(self._replace(crew, old, renewed=renewed))
            for member in crew:
                member.respawn = task

    async def _replace(self, members: Sequence[Member], old: WorkerHandle, *, renewed: bool) -> None:
        """Start another worker for `members`, then drain `old`, theirs."""
        await self.sleep(REPLACED_AFTER_S)
        crew = self._crew_of(members, old)
        if not crew:
            return
        if self.closing and all(member.worker is old for member in crew):
            for member in crew:
                member.respawn = None
            return
        first, item = crew[0], crew[0].assignment
        why = "knows nothing of the new profile" if renewed else "was asked to end (SIGTERM)"
        about = f"worker {old.pid} ({item.variant} at {item.placement.id}) {why}"
        if not renewed:
            self.record(first, "asked to end", "SIGTERM")
            for member in crew:
                member.restarts += 1
            self.restarts += not all(member.standby for member in crew)
        if self.one_process(item.placement):
            log.info("%s: %s; it ends first, since its device takes one process", self._router.name, about)
            await self._go_first(crew, old)
            return
        log.info("%s: %s: another is started in its place", self._router.name, about)
        try:
            async with self._start_lock(first):
                first, worker = await self._start(crew)
        except DrainedInStart:  # those that are left were not held by the new one
            self._replace_soon(self._crew_of(crew, old), old)
            return
        except CloverError as error:  # there may be no memory for two
            log.warning("%s: %s; it ends first, since no other started beside it: %s", self._router.name, about, error)
            await self._go_first(crew, old)
            return
        crew = self._crew_of(crew, old)
        taken = [one for one in crew if one is first or holds(worker, one.assignment)]
        self._move(taken, worker)
        self._replace_soon([member for member in crew if member not in taken], old)

    async def _go_first(self, members: Sequence[Member], old: WorkerHandle) -> None:
        """Drain `old`, then start another worker for `members`."""
        crew = self._crew_of(members, old)
        parting = [left for left in map(self._split_off, crew) if left is not None]
        self.set_hold()
        if parting:
            await asyncio.wait([self._part(left) for left in parting])
        await self.respawn(*crew)

    def _crew_of(self, members: Sequence[Member], old: WorkerHandle) -> list[Member]:
        """Return those of `members` that were not drained, and others that took a lane of `old` meanwhile: what this
        task does is done for them too."""
        came = [member for member in self.spawned.values() if member.worker is old and member not in members]
        came = [member for member in came if member.respawn is None or member.respawn.done()]
        for member in came:
            member.respawn = asyncio.current_task()
        return [*self._remaining(members), *came]

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
