"""The workers of one family, as a transition drives them: spawn, route, drain.

A member is an assignment that was spawned, until it is drained; `clover.runtime.workers.members` starts its worker,
restarts it after a death, and ends it.  While a routed member is restarted for the first few times, rows wait for it
rather than being refused.  A worker that completes nothing for `silent_s` while it holds a batch
(`clover.runtime.workers.deaths.Silence`), or that breaks the protocol of its ring, is killed and restarted alike.

If the family has relief, a cheaper standby worker waits at every placement that is routed to
(`clover.runtime.workers.standby`).  It is a member too, but neither in `ready_assignments` nor seen by a
transition.  One that a transition spawns becomes a worker like any other, at once.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import replace
from math import inf
from typing import Any

from clover.accounting import ProfiledEnergy
from clover.errors import CloverError, PlanError, WorkerError, says_out_of_memory
from clover.planning.transition.memory import SliceMemory
from clover.planning.transition.stages import start_key
from clover.runtime.router.lane_pace import ProfiledPace
from clover.runtime.router.router import Router
from clover.runtime.workers.deaths import Silence
from clover.runtime.workers.member import FleetWorker, Member, held_bytes, holds, learn
from clover.runtime.workers.members import Members
from clover.runtime.workers.standby import StandbyCrew, StandbyPolicy
from clover.types import Asked, Assignment, Declined, Placement, Routing, WorkReport

_SECOND_NS = 1_000_000_000

NO_ROOM_NS = 600 * _SECOND_NS
"""For how long a worker that found no room beside another one is not tried there again as its standby."""

GIVEN_UP_S = 5.0
"""The longest that a start waits for killed workers to be dead: in a driver that hangs they never are."""

_WEIGHT = 0.3  # of the newest start in a running mean


class StepTimes:
    """How long workers took so far to start, from the order to ready, and to end once they were drained.

    Running means: `starts` by variant, backend and profile of the slice, and `drain` of all (s; None before the first).
    """

    def __init__(self) -> None:
        self.starts: dict[tuple[str, str, str], float] = {}
        self.drain: float | None = None

    def record_start(self, item: Assignment, seconds: float) -> None:
        """Take note of a worker that was ready after `seconds`; nothing if no time passed."""
        if seconds > 0.0:
            key = start_key(item)
            mean_s = self.starts.get(key, seconds)
            self.starts[key] = mean_s + _WEIGHT * (seconds - mean_s)

    def record_drain(self, seconds: float) -> None:
        """Take note of a worker that was gone `seconds` after it got no more rows; nothing if no time passed."""
        if seconds > 0.0:
            mean_s = self.drain if self.drain is not None else seconds
            self.drain = mean_s + _WEIGHT * (seconds - mean_s)


class FamilyFleet:
    """Implements `clover.interfaces.Fleet` for the family of `router`, by that router's account and clock.

    `start` starts a worker for an assignment and returns it ready: the pool's, with order and slab bound.  `profiled`
    returns the energy that the profile expects of an assignment, `pace` the speed.  The attribute `memory` is what is
    known of the memory that workers need and have.  `one_process` says whether the device of a placement takes one
    process at a time.  `standby` chooses the standby workers; None: there are none.  `members.spawned` are the
    assignments that were spawned, `ready_assignments` those that have a worker now.
    """

    def __init__(
        self,
        router: Router,
        *,
        start: Callable[[Assignment], Awaitable[FleetWorker]],
        profiled: Callable[[Assignment], ProfiledEnergy],
        silent_s: float,
        pace: Callable[[Assignment], ProfiledPace] = lambda item: ProfiledPace(),
        one_process: Callable[[Placement], bool] = lambda place: False,
        standby: StandbyPolicy | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.router = router
        self.members = Members(
            router,
            start=self._timed_start(start),
            profiled=profiled,
            one_process=one_process,
            sleep=sleep,
        )
        self.standby_crew = StandbyCrew(router, self.members, standby)
        self.swaps = 0
        self.repartitions = 0
        self._silence = Silence(router, int(silent_s * _SECOND_NS), router.state.clock)
        self._clock = router.state.clock
        self._routing = Routing(shares={})
        self._target: tuple[Assignment, ...] = ()
        self._variants = {variant.name for variant in router.spec.variants}
        self.pace = pace
        self.memory = SliceMemory()
        self._step_times = StepTimes()
        self._no_room: dict[tuple[Assignment, Assignment], int] = {}
        """Until when (ns) the second is not tried beside the first again."""
        self._beside: set[int] = set()
        """Processes that started while another one was on their slice."""

    # --- what the controller drives -----------------------------------------------------------------------------------

    def ready_assignments(self) -> tuple[Assignment, ...]:
        """Return the assignments whose worker is ready now, without standby workers."""
        return tuple(item for item, member in self.members.spawned.items() if member.ready and not member.standby)

    async def spawn(self, assignment: Assignment) -> None:
        """See `Fleet.spawn`; does nothing for an assignment that has its worker."""
        if assignment.variant not in self._variants:
            raise WorkerError(f"family {self.router.name!r} has no variant {assignment.variant!r}")
        spawned = self.members.spawned
        member = spawned.get(assignment)
        if member is not None and member.standby:
            if member.ready:
                member.plan()
                self.standby_crew.report()
                return
            await self.members.end(assignment)
            member = None
        if member is not None:
            if not member.ready:
                raise WorkerError(f"{assignment.variant} at {assignment.placement.id} is being restarted")
            return
        member = Member(assignment)
        spawned[assignment] = member
        try:
            await self._wait_given_up(assignment.placement)
            await self.members.bring_up(member)
        except BaseException:
            if spawned.get(assignment) is member:
                del spawned[assignment]
            raise

    async def _wait_given_up(self, place: Placement) -> None:
        """Wait, but not for ever, until workers that were killed at `place` as its device was lost are dead: they may
        still have its memory, or be the one process that it takes."""
        there = [
            leaving for leaving in self.members.leaving if leaving.given_up and leaving.assignment.placement == place
        ]
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(GIVEN_UP_S):
                await asyncio.gather(*(leaving.gone.wait() for leaving in there))

    def renew(self, items: Collection[Assignment]) -> None:
        """See `Members.renew`."""
        self.members.renew(items)

    async def drain(self, assignment: Assignment) -> None:
        """See `Fleet.drain`; does nothing for an assignment that was not spawned.

        The last member of the plan at a placement takes those that stand by or answer audits there with it, and waits
        until no process is left.  Cancelled, it kills the worker, as nothing else would end it."""
        member = self.members.spawned.get(assignment)
        if member is None or member.standby:
            return
        began_ns, place = self._clock(), assignment.placement
        processes = len(self._workers_at(place))
        # The member leaves before anything is waited for: of several drains at once, the last one finds no other.
        there = [item for item in self.members.spawned if item.placement == place and item != assignment]
        last = all(self.members.spawned[item].standby for item in there)
        await self.members.end(assignment, *(there if last else ()))
        if last:
            await self.members.wait_departed(place)
        if len(self._workers_at(place)) < processes:  # and not only a lane of one
            self._step_times.record_drain((self._clock() - began_ns) / _SECOND_NS)

    def expect(self, assignments: tuple[Assignment, ...]) -> None:
        """Let rows wait, as long as the queue and their deadlines allow, for `assignments`, which take the place of all
        that is routed to; none: no more."""
        self.members.awaited = assignments
        self.members.set_hold()

    def prepare(self, target: tuple[Assignment, ...]) -> None:
        """See `clover.planning.transition.memory.MemoryAware`."""
        self._target = target

    @property
    def planned(self) -> tuple[Assignment, ...]:
        """What a transition under way goes to; else the assignments that are to receive rows."""
        return self._target or self.routed

    def forget(self, assignment: Assignment, reason: str) -> None:
        """See `Fleet.forget`; does nothing for an assignment that was not spawned."""
        place = assignment.placement
        for item, member in list(self.members.spawned.items()):
            if member.standby and item.placement == place:
                self.members.forget(item, reason)
        self.members.forget(assignment, reason)

    def route(self, assignments: tuple[Assignment, ...], routing: Routing) -> None:
        """See `Fleet.route`.  A worker that is being restarted joins when it is ready.  Raises PlanError if an
        assignment was never spawned or the routing names an unknown variant."""
        for variant in (*routing.shares, *routing.largest, *routing.wait_ms):
            if variant not in self._variants:
                raise PlanError(f"family {self.router.name!r} has no variant {variant!r}")
        members = []
        for assignment in assignments:
            member = self.members.spawned.get(assignment)
            if member is None:
                raise PlanError(f"{assignment.variant} at {assignment.placement.id} has no worker to route to")
            members.append(member)
        self._count_changes(assignments)
        self.members.routed = tuple(assignments)
        self._routing = routing
        self.members.set_hold()
        entries = [entry for entry in map(self.members.entry, members) if entry is not None]
        self.router.expect_pace(self._paces(assignments))
        self.router.route(entries, routing, self.standby_crew.ready())

    def _paces(self, assignments: tuple[Assignment, ...]) -> dict[int, ProfiledPace]:
        """Return what the profile says of the workers of each lane: of a shared worker, the part of its time that the
        lane takes by the shares of the rows (all of it, if it has no share)."""
        paces = {item: self.pace(item) for item in assignments}
        spent = {item: self.shares.get(item.variant, 0.0) / (pace.rows_per_s or inf) for item, pace in paces.items()}
        busy: dict[Placement, float] = {}
        for item, part in spent.items():
            busy[item.placement] = busy.get(item.placement, 0.0) + part
        found: dict[int, ProfiledPace] = {}
        for item, pace in paces.items():
            lane = self.members.lanes[item.variant]
            if spent[item]:
                pace = replace(pace, rows_per_s=pace.rows_per_s * spent[item] / busy[item.placement])
            found[lane] = found.get(lane, ProfiledPace()).combine(pace)
        return found

    def observe(self) -> dict[str, float]:
        """Return the router's live figures, and `workers` ready, `restarting` and `restarts` so far."""
        figures = self.router.observe()
        spawned = self.members.spawned.values()
        members = [member for member in spawned if not member.standby]
        # Members that share a worker are one; so are those that wait for one together.
        figures["workers"] = float(len({id(member.worker) for member in members if member.ready}))
        figures["restarting"] = float(len({id(member.respawn or member) for member in members if not member.ready}))
        if self.standby_crew.chooser is not None:
            relief = [member for member in spawned if member.standby and not member.background]
            figures["relief_workers"] = float(sum(member.ready for member in relief))
        figures["restarts"] = float(self.restarts)
        return figures

    def resident(self, assignment: Assignment) -> bool:
        """Return whether a ready worker at the placement of `assignment` holds its variant, by its backend; not one
        that was killed, and may be there still."""
        return any(
            worker is not None and worker.state == "ready" and holds(worker, assignment)
            for worker in (
                member.worker
                for item, member in self.members.spawned.items()
                if item.placement == assignment.placement and not member.dying
            )
        )

    def found_no_room(self, one: Assignment, other: Assignment) -> bool:
        """Return whether a worker for `other` did not start for want of memory while that of `one` was there, less than
        ten minutes ago: other programs may have had the memory."""
        return self._clock() < self._no_room.get((one, other), 0)

    def held_bytes(self, placement: Placement) -> int:
        """Return the bytes that the workers at `placement` hold, those that leave included; 0 if that is not known."""
        known = self.memory.needs.context_bytes(placement.profile)

        def context(worker: FleetWorker) -> int:
            said = worker.context_bytes
            return min(said, known) if known and worker.pid in self._beside else said

        return held_bytes(self._workers_at(placement), context)

    def overlapped(self, placement: Placement) -> bool:
        """Return whether a process, also one that leaves, is on some part of `placement`."""
        taken = [member.assignment.placement for member in self.members.all() if member.worker is not None]
        end = placement.start + placement.size
        return any(
            here.device == placement.device and here.start < end and placement.start < here.start + here.size
            for here in taken
        )

    def _workers_at(self, placement: Placement) -> list[FleetWorker]:
        """Return the processes at a placement, each once."""
        workers: dict[int, FleetWorker] = {
            id(member.worker): member.worker
            for member in self.members.all()
            if member.worker is not None and member.assignment.placement == placement
        }
        return list(workers.values())

    def start_seconds(self) -> Mapping[tuple[str, str, str], float]:
        """See `clover.planning.transition.memory.MemoryAware`."""
        return self._step_times.starts

    def drain_seconds(self) -> float | None:
        """See `clover.planning.transition.memory.MemoryAware`."""
        return self._step_times.drain

    def _timed_start(
        self, start: Callable[[Assignment], Awaitable[FleetWorker]]
    ) -> Callable[[Assignment], Awaitable[Any]]:
        """Return `start`, with a note of how long each worker took and what it holds."""

        async def noted(item: Assignment) -> FleetWorker:
            began_ns = self._clock()
            on_cores = self.memory.room(item.placement).free  # where a process counts its own pages alone
            alone = on_cores or not self.overlapped(item.placement)
            try:
                worker = await start(item)
            except CloverError as error:
                if says_out_of_memory(str(error)):
                    there = (other for other, member in self.members.spawned.items() if member.ready)
                    until_ns = self._clock() + NO_ROOM_NS
                    beside = (one for one in there if one.placement == item.placement)
                    self._no_room.update(((one, item), until_ns) for one in beside)
                raise
            self._step_times.record_start(item, (self._clock() - began_ns) / _SECOND_NS)
            alone = on_cores or (alone and not self.overlapped(item.placement))
            learn(self.memory.needs, item, worker, alone=alone)
            if not alone:
                live = {member.worker.pid for member in self.members.all() if member.worker is not None}
                self._beside = (self._beside & live) | {worker.pid}
            return worker

        return noted

    def work_report(self) -> WorkReport:
        """See `Fleet.work_report`."""
        return self.router.account.work_report(self.router.name)

    def correct_energy(self, factors: Mapping[tuple[str, str], float]) -> None:
        """See `Fleet.correct_energy`."""
        self.router.account.correct(self.router.name, factors)

    def correct_front(self, front_ms: float) -> None:
        """See `Fleet.correct_front`."""
        self.router.expect_front(front_ms)

    def guard_report(self) -> dict[str, Any]:
        """See `Fleet.guard_report`."""
        return self.router.guard_report()

    def reset_guard(self) -> None:
        """See `Fleet.reset_guard`."""
        self.router.guard.reset()

    def accuracy_demand(self) -> dict[str, Asked]:
        """See `Fleet.accuracy_demand`."""
        return self.router.demand.report(self._clock())

    def decline(self, declined: Mapping[str, Declined], wanted: Callable[[], None]) -> None:
        """See `Fleet.decline`."""
        self.router.decline(declined, wanted)

    # --- sleep --------------------------------------------------------------------------------------------------------

    @property
    def asleep(self) -> bool:
        """See `Fleet.asleep`."""
        return self.members.asleep or bool(self.members.waking)

    @property
    def may_sleep(self) -> bool:
        """Whether its workers can end now: no row is here, all of them are there, and none is being replaced."""
        spawned = self.members.spawned.values()
        settled = all(member.ready and member.respawn is None and not member.dying for member in spawned)
        return settled and self.empty and not self.asleep and bool(self.routed) and not self.members.leaving

    def record(self, what: str, reason: str) -> None:
        """Append what happened to all of the family to the events."""
        member = self.members.spawned[self.routed[0]]
        self.members.record(member, what, reason)

    @property
    def empty(self) -> bool:
        """Whether no row is here, waiting, computed, or answered and unread."""
        slots = self.router.state.table.free
        return bool(slots.free == slots.slots)

    async def put_to_sleep(self, wanted: Callable[[], None]) -> None:
        """End all workers, if `may_sleep`, but keep what is planned; `wanted` is called with each request that waits
        then, and has to call `start_again`."""
        if self.may_sleep:
            self.router.fall_asleep(wanted)
            await self.members.put_to_sleep()

    def start_again(self) -> None:
        """Start the workers of a family that sleeps."""
        if self.members.asleep:
            self.members.wake()

    async def wake(self) -> None:
        """See `Fleet.wake`."""
        asleep = self.router.state.asleep
        if asleep is not None:
            asleep.wanted()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(GIVEN_UP_S):
                    await asleep.awake.wait()

    # --- what the server drives ---------------------------------------------------------------------------------------

    @property
    def closing(self) -> bool:
        """Whether the server is stopping: workers that others ask to end stay until they are drained."""
        return self.members.closing

    @closing.setter
    def closing(self, closing: bool) -> None:
        self.members.closing = closing

    @property
    def restarts(self) -> int:
        """Restarts of workers so far, failed starts included, standby workers apart."""
        return self.members.restarts

    @property
    def missing(self) -> int:
        """How many placements lack a worker that is ready, for some assignment that is to receive rows; assignments of
        one placement share a worker.  0 while it sleeps."""
        missing = set(self.routed).difference(self.ready_assignments()) if not self.asleep else set()
        return len({item.placement for item in missing})

    @property
    def given_up(self) -> int:
        """Workers given up so far since their device was lost, standby workers apart."""
        return self.members.given_up

    @property
    def events(self) -> deque[dict[str, Any]]:
        """The latest deaths, kills, failed starts and restarts."""
        return self.members.events

    @property
    def routed(self) -> tuple[Assignment, ...]:
        """The assignments that are to receive rows."""
        return self.members.routed

    @property
    def routing(self) -> Routing:
        """The routing that was set last."""
        return self._routing

    @property
    def shares(self) -> dict[str, float]:
        """The shares by variant that were set last."""
        return self._routing.shares

    @property
    def ready(self) -> bool:
        """Whether some routed worker is there to take rows."""
        return self.router.ready

    def watch(self) -> None:
        """Kill workers that fell silent, and start or end standby workers; call it about once a second."""
        for worker, reason in self._silence.poll():
            self.members.kill(worker, reason)
        if not self.asleep:
            self.standby_crew.tend()

    def describe(self) -> list[dict[str, Any]]:
        """Return every worker for people, and every member without one: where, what, which process, in which state.
        Members that share a worker are one entry, by the first that is routed."""
        shared: dict[int, list[Member]] = {}
        for member in self.members.all():
            shared.setdefault(id(member.worker or member), []).append(member)
        return [self._describe_worker(members) for members in shared.values()]

    def _describe_worker(self, members: list[Member]) -> dict[str, Any]:
        """Describe the worker that `members` share, for people: `variants` are the plan's, `standby` stand by, and
        `resident` are in it."""
        gone, routed = self.members.leaving, set(self.routed)

        def rank(member: Member) -> tuple[bool, bool, bool]:
            return member in gone, member.assignment not in routed, member.standby

        members = sorted(members, key=rank)
        member = members[0]
        item, worker, leaving = member.assignment, member.worker, member in gone
        meters = [one.meter for one in members if one.meter is not None]
        ready_ns = self._clock() - min(one.ready_ns for one in members)
        lanes = self.members.lanes
        names = sorted({one.assignment.variant for one in members if not one.standby}, key=lanes.__getitem__)
        standby = [one.assignment.variant for one in members if one.standby and not one.background]
        return {
            "placement": item.placement.id,
            "device": item.placement.device,
            "profile": item.placement.profile,
            "start": item.placement.start,
            "size": item.placement.size,
            "variant": item.variant,
            "variants": names or [item.variant],
            "standby": sorted(standby, key=lanes.__getitem__),
            "resident": sorted(worker.resident, key=lanes.__getitem__) if worker is not None else [],
            "backend": item.backend,
            "pid": worker.pid if worker is not None else None,
            "state": member.state(leaving=leaving),
            "routed": item in routed and not leaving,
            "restarts": max(one.restarts for one in members),
            "rows": sum(meter.rows for meter in meters),
            "busy_s": round(sum(meter.busy_ns for meter in meters) / 1e9, 3),
            "overruns": worker.overruns if worker is not None else 0,
            "sandbox": worker.sandbox if worker is not None else "",
            "ready_s": round(ready_ns / 1e9, 3) if worker is not None else 0.0,
        }

    async def stop(self) -> None:
        """Drain every worker at once."""
        self.standby_crew.chooser = None
        await self.members.end_all()
        self.router.stop()

    def _count_changes(self, assignments: tuple[Assignment, ...]) -> None:
        """Count placements whose variants change as swaps, and another set of placements as a repartition."""
        before, after = _by_placement(self.routed), _by_placement(assignments)
        if before and after:
            self.swaps += sum(before[place] != after[place] for place in before.keys() & after.keys())
            self.repartitions += before.keys() != after.keys()


def _by_placement(assignments: tuple[Assignment, ...]) -> dict[str, set[str]]:
    """Return the variants at each placement."""
    out: dict[str, set[str]] = {}
    for item in assignments:
        out.setdefault(item.placement.id, set()).add(item.variant)
    return out
