"""The workers of one family, as a transition drives them: spawn, route, drain; and what keeps them alive in between.

A member is an assignment that shall have a worker, from `spawn` until `drain`.  If its worker dies, the fleet starts
another after 0.1 s, doubling to 10 s while starts or lives are short, and for as long as the member exists: nothing
here ever gives up.  Once a worker has been well for 30 s its next death counts as a first one.  A worker that completes
nothing for `silent_s` while it holds a batch, or that breaks the protocol of its ring, is killed and replaced alike.
While a routed member is restarted for the first few times, rows wait for it rather than being refused.

A worker that was asked to end by others (SIGTERM) serves on until another one of its member is ready, then is drained:
no row is lost by it and nothing counts as a failure.  If no other starts beside it, it goes first.

Rows of a worker that must die are queued again only when it is dead, not when it is told to: until then it may still
write into their slots.

Old and new workers may share a placement (that is a swap), so members are known by their whole assignment.

Where relief is asked for (`runtime.router.relief`), a cheaper worker stands by at every placement that is routed
to.  The fleet starts, restarts and ends these by itself, in the background and after what was asked of it; they are
members too, but neither `running` nor seen by a transition.  One that is spawned becomes a worker like any other, at
once.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from clover.accounting import Account, WorkerMeter
from clover.errors import CloverError, PlanError, WorkerError
from clover.runtime.router.lanes import Entry
from clover.runtime.router.links import WorkerHandle
from clover.runtime.router.relief import StandbyWorkers
from clover.runtime.router.router import Router
from clover.runtime.workers.members import FleetWorker, Member, StandbyChooser
from clover.types import Asked, Assignment, Declined, Routing

log = logging.getLogger("clover.fleet")

WELL_AFTER_S = 30.0
REPLACED_AFTER_S = 0.2
"""Seconds that a worker which was asked to end goes on before another is started.  Who asks a whole group asks the
server too, and a server that stops needs the workers that it has, and no others."""

_HELD_FAILURES = 3
_KEPT_EVENTS = 32
_STARTED_AT_ONCE = 4  # of those that stand by: nobody waits for them
_SECOND_NS = 1_000_000_000


class FamilyFleet:
    """Implements `clover.interfaces.Fleet` for the family of `router`.

    `start` starts a worker for an assignment and returns it ready (the pool, with the order and the slab bound to it);
    `joules` gives the profiled joules a row by batch size; `core_w` stands in where there is no profile.  `reserve`
    says who stands by beside whom, and from when on they are called.
    """

    def __init__(
        self,
        router: Router,
        account: Account,
        *,
        start: Callable[[Assignment], Awaitable[FleetWorker]],
        joules: Callable[[Assignment], list[float]],
        silent_s: float,
        reserve: StandbyChooser | None = None,
        clock: Callable[[], int] = time.monotonic_ns,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.router = router
        self.closing = False
        """The server is stopping: workers that are asked to end by others stay until they are drained."""
        self.restarts = 0
        self.swaps = 0
        self.repartitions = 0
        self.events: deque[dict[str, Any]] = deque(maxlen=_KEPT_EVENTS)
        self._account = account
        self._start = start
        self._joules = joules
        self._reserve = reserve
        self._silent_ns = int(silent_s * _SECOND_NS)
        self._clock = clock
        self._sleep = sleep
        self._members: dict[Assignment, Member] = {}
        self._leaving: list[Member] = []
        self._letting_go: dict[asyncio.Task[None], Assignment] = {}
        self._routed: tuple[Assignment, ...] = ()
        self._routing = Routing(shares={})
        self._lanes = {variant.name: lane for lane, variant in enumerate(router.spec.variants)}
        router.lost = self._lost

    # --- what the controller drives -----------------------------------------------------------------------------------

    def ready_assignments(self) -> tuple[Assignment, ...]:
        """Return the assignments whose worker is ready now."""
        return tuple(item for item, member in self._members.items() if member.ready and not member.relief)

    async def spawn(self, assignment: Assignment) -> None:
        """See `Fleet.spawn`; does nothing for an assignment that has its worker."""
        if assignment.variant not in self._lanes:
            raise WorkerError(f"family {self.router.name!r} has no variant {assignment.variant!r}")
        member = self._members.get(assignment)
        if member is not None and member.relief:
            if member.ready:
                member.relief = False
                self._call()
                return
            await self._end(assignment)
            member = None
        if member is not None:
            if not member.ready:
                raise WorkerError(f"{assignment.variant} at {assignment.placement.id} is being restarted")
            return
        member = Member(assignment)
        self._members[assignment] = member
        try:
            await self._bring_up(member)
        except BaseException:
            if self._members.get(assignment) is member:
                del self._members[assignment]
            raise

    async def drain(self, assignment: Assignment) -> None:
        """See `Fleet.drain`; does nothing for an assignment the fleet does not have.  Cancelled, it kills the worker:
        nobody else would end it.  With the last worker of a placement goes the one that stands by there."""
        member = self._members.get(assignment)
        if member is None or member.relief:
            return
        place = assignment.placement
        members = [item for item in self._members.values() if item.assignment.placement == place and item is not member]
        left = [] if any(not item.relief for item in members) else members
        await asyncio.gather(self._end(assignment), *(self._end(item.assignment) for item in left))

    async def _end(self, assignment: Assignment) -> None:
        member = self._members.pop(assignment, None)
        if member is None:
            return
        self._routed = tuple(item for item in self._routed if item != assignment)
        if member.respawn is not None:
            member.respawn.cancel()
            member.respawn = None
        self._set_hold()
        parting = [task for task, item in self._letting_go.items() if item == assignment]
        if member.worker is not None:
            self._leaving.append(member)
            await self._let_go(member)
        if parting:  # a worker that another one was started for may still be there, and its instance in use
            await asyncio.wait(parting)

    async def _let_go(self, member: Member) -> None:
        """Drain the worker of a member that is leaving."""
        worker = member.worker
        if worker is None:
            return
        idle: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.router.leave(worker, lambda: None if idle.done() else idle.set_result(None))
        try:
            await idle
        except asyncio.CancelledError:
            worker.kill()
            raise
        if member.worker is None:
            return  # it died while it drained; its rows went elsewhere
        try:
            await worker.drain_and_exit()
        finally:
            self._gone(member)

    def forget(self, assignment: Assignment, reason: str) -> None:
        """See `Fleet.forget`; does nothing for an assignment the fleet does not have."""
        place = assignment.placement
        for item in [other for other, member in self._members.items() if member.relief and other.placement == place]:
            self._forget(item, reason)
        self._forget(assignment, reason)

    def _forget(self, assignment: Assignment, reason: str) -> None:
        member = self._members.pop(assignment, None)
        if member is None:
            return
        self._routed = tuple(item for item in self._routed if item != assignment)
        member.given_up = True  # by us: no request is to blame
        self._note(member, "given up", reason)
        if member.respawn is not None:
            member.respawn.cancel()
            member.respawn = None
        self._set_hold()
        if member.worker is not None:
            self._leaving.append(member)  # until it is dead: its rows are asked again elsewhere then
            self.router.leave(member.worker, lambda: None)
        for left in self._leaving:
            if left.assignment == assignment and left.worker is not None:
                left.given_up = True
                left.worker.kill()

    def route(self, assignments: tuple[Assignment, ...], routing: Routing) -> None:
        """See `Fleet.route`.  A worker that is being restarted joins when it is back.  Raises PlanError where an
        assignment was never spawned or the routing names an unknown variant."""
        for variant in (*routing.shares, *routing.largest, *routing.wait_ms):
            if variant not in self._lanes:
                raise PlanError(f"family {self.router.name!r} has no variant {variant!r}")
        members = []
        for assignment in assignments:
            member = self._members.get(assignment)
            if member is None:
                raise PlanError(f"{assignment.variant} at {assignment.placement.id} has no worker to route to")
            members.append(member)
        self._count_changes(assignments)
        self._routed = tuple(assignments)
        self._routing = routing
        self._set_hold()
        entries = [entry for entry in map(self._entry, members) if entry is not None]
        self.router.route(entries, routing, self._standby())

    def observe(self) -> dict[str, float]:
        """Return the router's live figures, and `workers` ready, `restarting` and `restarts` so far."""
        figures = self.router.observe()
        members = [member for member in self._members.values() if not member.relief]
        figures["workers"] = float(sum(member.ready for member in members))
        figures["restarting"] = float(sum(not member.ready for member in members))
        if self._reserve is not None:
            standing = [member for member in self._members.values() if member.relief]
            figures["relief_workers"] = float(sum(member.ready for member in standing))
        figures["restarts"] = float(self.restarts)
        return figures

    def guard_report(self) -> dict[str, Any]:
        """See `Fleet.guard_report`."""
        return self.router.guard_report()

    def reset_guard(self) -> None:
        """See `Fleet.reset_guard`."""
        self.router.guard.reset()

    def demanded(self) -> dict[str, Asked]:
        """See `Fleet.demanded`."""
        return self.router.demand.report(self._clock())

    def decline(self, declined: Mapping[str, Declined], wanted: Callable[[], None]) -> None:
        """See `Fleet.decline`."""
        self.router.decline(declined, wanted)

    # --- what the server drives ---------------------------------------------------------------------------------------

    @property
    def routed(self) -> tuple[Assignment, ...]:
        """The assignments that shall receive rows."""
        return self._routed

    @property
    def routing(self) -> Routing:
        """How rows go, as last routed."""
        return self._routing

    @property
    def shares(self) -> dict[str, float]:
        """Shares per variant as last routed."""
        return self._routing.shares

    @property
    def ready(self) -> bool:
        """Whether some routed worker is there to take rows."""
        return self.router.ready

    def watch(self) -> None:
        """Kill workers that fell silent, and see to those that stand by; call it about once a second."""
        for worker in self.router.silent(self._silent_ns):
            self._lost(worker, f"silent for more than {self._silent_ns / _SECOND_NS:g} s")
        self._tend()

    def describe(self) -> list[dict[str, Any]]:
        """Return every member for people: where, what, which process, how it is."""
        routed = set(self._routed)
        now_ns = self._clock()
        out = []
        for member in [*self._members.values(), *self._leaving]:
            item, worker = member.assignment, member.worker
            leaving = member in self._leaving
            out.append(
                {
                    "placement": item.placement.id,
                    "device": item.placement.device,
                    "profile": item.placement.profile,
                    "variant": item.variant,
                    "backend": item.backend,
                    "pid": worker.pid if worker is not None else None,
                    "state": member.state(leaving=leaving),
                    "routed": item in routed and not leaving,
                    "restarts": member.restarts,
                    "rows": member.meter.rows if member.meter is not None else 0,
                    "overruns": worker.overruns if worker is not None else 0,
                    "ready_s": round((now_ns - member.ready_ns) / 1e9, 3) if worker is not None else 0.0,
                }
            )
        return out

    async def stop(self) -> None:
        """Drain every worker at once."""
        self._reserve = None
        await asyncio.gather(*(self._end(assignment) for assignment in list(self._members)), *self._letting_go)
        self.router.stop()

    # --- lives --------------------------------------------------------------------------------------------------------

    async def _bring_up(self, member: Member) -> Member | None:
        """Start a worker for `member`, and give the one in whose place it is, if there is any; raises WorkerError."""
        item = member.assignment
        worker = await self._start(item)
        if self._members.get(item) is not member:
            worker.kill()
            raise WorkerError(f"{item.variant} at {item.placement.id} was drained while it started")
        if worker.state == "dead":
            raise WorkerError(f"{item.variant} at {item.placement.id} died as soon as it was ready")
        left = self._set_aside(member)
        member.meter = self._account.attach(
            WorkerMeter(
                family=self.router.name,
                variant=item.variant,
                device=item.placement.device,
                placement=item.placement.id,
                slices=item.placement.slices,
                joules=self._joules(item),
                core_w=self._account.core_w,
            )
        )
        member.worker = worker
        member.ready_ns = self._clock()
        worker.on_death = self._died
        worker.on_end_asked = self._end_asked
        return left

    def _count_changes(self, assignments: tuple[Assignment, ...]) -> None:
        """A placement whose variants change is a swap; another set of placements is a repartition."""
        before, after = _by_placement(self._routed), _by_placement(assignments)
        if before and after:
            self.swaps += sum(before[place] != after[place] for place in before.keys() & after.keys())
            self.repartitions += before.keys() != after.keys()

    def _entry(self, member: Member) -> Entry | None:
        if member.worker is None or member.meter is None:
            return None
        return (
            member.worker,
            self._lanes[member.assignment.variant],
            self.router.spec.max_batch,
            member.meter,
        )

    def _lost(self, worker: WorkerHandle, reason: str) -> None:
        """The router or the watchdog gave a worker up: no more rows for it, and an end to it."""
        for member in self._all():
            if member.worker is worker:
                log.error("%s: worker %d is killed: %s", self.router.name, worker.pid, reason)
                self._note(member, "killed", reason)
                self.router.leave(worker, lambda: None)
                member.worker.kill()

    def _died(self, worker: WorkerHandle, reason: str) -> None:
        """A worker is dead.  Its rows go elsewhere; its member gets another one."""
        blame = True
        for member in self._all():
            if member.worker is worker:
                blame = not (member.worker.device_lost or member.given_up)
                self._note(member, "died", reason)
                lived_ns = self._clock() - member.ready_ns
                self._gone(member)
                if self._members.get(member.assignment) is member:
                    if lived_ns >= WELL_AFTER_S * _SECOND_NS:
                        member.failures = 0
                    if member.respawn is not None and not member.respawn.done():
                        continue  # another one is being started in its place
                    member.respawn = asyncio.get_running_loop().create_task(self._respawn(member))
        self._set_hold()
        self.router.died(worker, reason, blame=blame)

    async def _respawn(self, member: Member) -> None:
        item = member.assignment
        while True:
            await self._sleep(member.backoff_s)
            member.failures += 1
            member.restarts += 1
            self.restarts += not member.relief
            try:
                await self._bring_up(member)
            except CloverError as error:  # of the worker, the zygote or the device: none of them ends the attempts
                if self._members.get(item) is not member:
                    return
                self._set_hold()
                self._note(member, "failed", str(error))
                log.warning("%s: %s at %s: %s", self.router.name, item.variant, item.placement.id, error)
                continue
            break
        self._rejoin(member)

    def _rejoin(self, member: Member) -> None:
        """Let the new worker of `member` do what the one before it did."""
        member.respawn = None
        self._set_hold()
        entry = self._entry(member)
        if member.relief:
            self._call()
        elif member.assignment in self._routed and entry is not None:
            self.router.join(entry)
        self._note(member, "restarted", "")

    # --- workers that others ask to end -------------------------------------------------------------------------------

    def _end_asked(self, worker: WorkerHandle) -> None:
        """A worker got SIGTERM from outside."""
        for member in self._members.values():
            if member.worker is worker and (member.respawn is None or member.respawn.done()):
                member.respawn = asyncio.get_running_loop().create_task(self._replace(member, worker))

    async def _replace(self, member: Member, old: WorkerHandle) -> None:
        """Start another worker for `member`, then let `old` go."""
        item = member.assignment
        await self._sleep(REPLACED_AFTER_S)
        if self.closing and member.worker is old:
            member.respawn = None
            return
        about = f"worker {old.pid} ({item.variant} at {item.placement.id}) was asked to end (SIGTERM)"
        log.info("%s: %s: another is started in its place", self.router.name, about)
        self._note(member, "asked to end", "SIGTERM")
        member.restarts += 1
        self.restarts += not member.relief
        try:
            left = await self._bring_up(member)
        except CloverError as error:  # there may be no memory for two
            if self._members.get(item) is not member:
                return
            log.warning("%s: %s, and goes first, as no other starts beside it: %s", self.router.name, about, error)
            left = self._set_aside(member)
            self._set_hold()
            if left is not None:
                await asyncio.wait((self._part(left),))
            await self._respawn(member)
            return
        self._rejoin(member)
        if left is not None:
            self._part(left)

    def _set_aside(self, member: Member) -> Member | None:
        left = member.set_aside()
        if left is not None:
            self._leaving.append(left)
        return left

    def _part(self, left: Member) -> asyncio.Task[None]:
        """Let a worker go in the background, whatever becomes of its member meanwhile."""
        task = asyncio.get_running_loop().create_task(self._let_go(left))
        self._letting_go[task] = left.assignment
        task.add_done_callback(self._letting_go.pop)
        return task

    # --- those that stand by ------------------------------------------------------------------------------------------

    def _tend(self) -> None:
        """Start who shall stand by and is not there, a few at a time, and end who need not any more."""
        if self._reserve is None:
            return
        wanted = self._reserve.beside(self._routed)
        standing = [member for member in self._members.values() if member.relief]
        for member in standing:
            if member.assignment not in wanted and member.respawn is None:
                member.respawn = asyncio.get_running_loop().create_task(self._dismiss(member))
        starting = sum(not member.ready for member in standing)
        for item in wanted:
            if item not in self._members and starting < _STARTED_AT_ONCE:
                starting += 1
                member = self._members[item] = Member(item, relief=True)
                member.respawn = asyncio.get_running_loop().create_task(self._enlist(member))
        self._call()

    async def _enlist(self, member: Member) -> None:
        try:
            await self._bring_up(member)
        except CloverError as error:
            if self._members.get(member.assignment) is member:
                self._note(member, "failed", str(error))
                log.warning("%s: relief at %s: %s", self.router.name, member.assignment.placement.id, error)
                await self._respawn(member)
            return
        member.respawn = None
        self._call()

    async def _dismiss(self, member: Member) -> None:
        member.respawn = None  # it is this task, which is not to be cancelled
        await self._end(member.assignment)

    def _call(self) -> None:
        """Tell the router who stands by now, where others do."""
        standby = self._standby()
        if standby != self.router.standby:
            self.router.set_standby(standby)

    def _standby(self) -> StandbyWorkers | None:
        reserve = self._reserve
        wait_ms = reserve.wait_ms() if reserve is not None else 0.0
        if reserve is None or wait_ms <= 0.0:
            return None
        wanted = reserve.beside(self._routed)
        members = [self._members[item] for item in wanted if item in self._members and self._members[item].relief]
        entries = tuple(entry for entry in map(self._entry, members) if entry is not None)
        if not entries:
            return None
        rates = [0.0] * len(self._lanes)
        for item in self._routed:
            rates[self._lanes[item.variant]] += reserve.rows_per_s(item)
        lane = self._lanes[members[0].assignment.variant]
        return StandbyWorkers(lane=lane, entries=entries, wait_ns=int(wait_ms * 1e6), rates=tuple(rates))

    # --- what all share -----------------------------------------------------------------------------------------------

    def _set_hold(self) -> None:
        """Whether rows may wait for a worker that is on its way."""
        routed = [self._members[item] for item in self._routed if item in self._members]
        self.router.hold = any(not member.ready and member.failures < _HELD_FAILURES for member in routed)

    def _gone(self, member: Member) -> None:
        """The worker of `member` is no more."""
        if member.meter is not None:
            self._account.detach(member.meter)
        member.worker = None
        if member in self._leaving:
            self._leaving.remove(member)

    def _all(self) -> list[Member]:
        return [*self._members.values(), *self._leaving]

    def _note(self, member: Member, what: str, reason: str) -> None:
        item = member.assignment
        self.events.append(
            {"at_ns": self._clock(), "what": what, "variant": item.variant, "at": item.placement.id, "reason": reason}
        )


def _by_placement(assignments: tuple[Assignment, ...]) -> dict[str, set[str]]:
    out: dict[str, set[str]] = {}
    for item in assignments:
        out.setdefault(item.placement.id, set()).add(item.variant)
    return out
