"""The standby workers of a family: `StandbyPolicy` chooses which it has and when they take rows, `StandbyCrew` starts
and ends them in the background, one at every placement that is routed to.

They are members (`clover.runtime.workers.members`) that get no rows until the router calls for relief
(`clover.runtime.router.relief`), and that no transition sees.

Workers that answer audits are such members too.  If the plan routes no rows to the best variant, a worker that holds it
anyway answers the audits.  No process is started for that.  The same holds for the variants that rows of batch jobs are
answered by (`clover.runtime.router.waiting`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

import msgspec

from clover.errors import CloverError
from clover.planning.model.problem import backends_of, services_of
from clover.planning.model.queueing import Service
from clover.runtime.router.lanes import Entry
from clover.runtime.router.relief import RELIEF_TIMES, WAIT_OF_SLO, StandbyWorkers
from clover.runtime.router.router import Router
from clover.runtime.workers.member import Member
from clover.runtime.workers.members import Members
from clover.types import Assignment, FamilyProfile, Placement

log = logging.getLogger("clover.fleet")

_STARTED_AT_ONCE = 4  # nothing waits for standby workers, so few start at a time


class StandbyPolicy:
    """Chooses standby workers for the family with these `variants`, cheapest first.

    All standby workers have one variant: the one that `relief` names, or (`auto`) the most accurate with which the
    slices serve `RELIEF_TIMES` the rows that they serve now at most, else the one with which they serve most.  A slice
    gets a standby worker if the variant was measured on its shape, a more expensive one works there, and both fit into
    its memory.  If rows are routed to it there already, in the process of the more expensive one, that is who relieves:
    nothing is started, only the shares change.  `slo_ms` returns the present p95 target, 0 for none; `fits` says
    whether a standby worker may be beside a worker (always, if it is left out).
    """

    def __init__(
        self,
        variants: Sequence[str],
        relief: str,
        slo_ms: Callable[[], float],
        fits: Callable[[Assignment, Assignment], bool] = lambda one, other: True,
    ) -> None:
        self._rank = {name: rank for rank, name in enumerate(variants)}
        self._candidates = tuple(reversed(variants)) if relief == "auto" else (relief,)
        self._slo_ms = slo_ms
        self._fits = fits
        self._services: dict[tuple[str, str], Service] = {}
        self._backend: dict[tuple[str, str], str] = {}
        self._fastest: dict[tuple[Service, float], float] = {}

    def use(self, profile: FamilyProfile | None) -> None:
        """Use the latencies and backends of `profile`; without one there are no standby workers."""
        self._services = services_of(profile) if profile is not None else {}
        self._backend = backends_of(profile) if profile is not None else {}
        self._fastest.clear()

    def choose(self, routed: Sequence[Assignment]) -> tuple[Assignment, ...]:
        """Return the standby workers for the placements of `routed`: at most one each, all of one variant.  One that is
        in `routed` itself takes all rows of relief without more than that."""
        fastest: dict[str, float] = {}
        for item in routed:  # one process a placement, which serves most if it does nothing but its fastest variant
            place = item.placement.id
            fastest[place] = max(fastest.get(place, 0.0), self.rows_per_s(item))
        wanted = RELIEF_TIMES * sum(fastest.values())
        best: tuple[Assignment, ...] = ()
        most = 0.0
        for name in self._candidates:
            chosen = self._with(name, routed)
            same = [item for item in routed if item.variant == name and item not in chosen]
            rows = sum(map(self.rows_per_s, (*chosen, *same)))
            if chosen and rows > most:
                best, most = chosen, rows
            if most >= wanted:
                break
        return best

    def _with(self, variant: str, routed: Sequence[Assignment]) -> tuple[Assignment, ...]:
        """Return the standby workers that there would be with `variant`, one a placement; the plan's own if it has
        one there."""
        there = {item.placement.id: item for item in routed if item.variant == variant}
        by_place = {}
        for item in routed:
            place, backend = item.placement.id, self._backend.get((variant, item.placement.profile))
            if backend is None or self._rank[variant] >= self._rank[item.variant]:
                continue
            standby = there.get(place) or msgspec.structs.replace(item, variant=variant, backend=backend)
            if place in there or self._fits(item, standby):
                by_place[place] = standby
        return tuple(by_place.values())

    def rows_per_s(self, assignment: Assignment) -> float:
        """Return the rows a second that a worker serves in batches so short that a row has time to wait within the SLO;
        0 if that is not known."""
        service = self._services.get((assignment.variant, assignment.placement.profile))
        if service is None:
            return 0.0
        key = (service, self._slo_ms() * (1.0 - WAIT_OF_SLO))
        if key not in self._fastest:
            spent_s = [service.seconds(rows) for rows in range(1, service.max_batch + 1)]
            fast = [rows / s for rows, s in enumerate(spent_s, 1) if s * 1e3 <= key[1]]
            self._fastest[key] = max(fast, default=1.0 / spent_s[0])
        return self._fastest[key]

    def wait_ms(self) -> float:
        """Return the milliseconds that a row may wait before standby workers take rows; 0 for never."""
        return WAIT_OF_SLO * self._slo_ms()


class StandbyCrew:
    """Keeps the standby workers that `chooser` chooses (none without a chooser), and those that answer audits."""

    def __init__(self, router: Router, members: Members, chooser: StandbyPolicy | None) -> None:
        self.chooser = chooser
        self._router = router
        self._members = members
        self._answering: list[Assignment] = []
        self._auditing: list[Entry] = []
        members.on_standby_ready = self.report

    def tend(self) -> None:
        """Start standby workers that are missing, a few at a time, and end those that are not needed any more."""
        spawned = self._members.spawned
        wanted = self.chooser.choose(self._members.routed) if self.chooser is not None else ()
        self._answering = self._auditors()
        auditors = [item for item in self._answering if item not in wanted]
        standby = [member for member in spawned.values() if member.standby]
        for member in standby:
            if member.assignment in (*wanted, *auditors):
                member.background = member.assignment in auditors
            elif member.respawn is None:
                member.respawn = asyncio.get_running_loop().create_task(self._dismiss(member))
        for item in auditors:
            if item not in spawned:
                member = spawned[item] = Member(item, standby=True, background=True)
                if not self._members.take_resident(member):
                    del spawned[item]
        starting = sum(not member.ready for member in standby)
        for item in wanted:
            if item not in spawned and starting < _STARTED_AT_ONCE:
                starting += 1
                member = spawned[item] = Member(item, standby=True)
                member.respawn = asyncio.get_running_loop().create_task(self._enlist(member))
        self.report()

    def _auditors(self) -> list[Assignment]:
        """Return the variants that answer audits, or rows of batch jobs, at each placement whose worker holds them;
        without those that rows are routed to anywhere."""
        router = self._router
        best = router.guard.best
        lanes = {best} if best >= 0 and router.audits.on else set()
        if router.spare is not None:
            lanes |= router.spare.lanes_wanted()
        there: set[tuple[Placement, int]] = set()
        auditors = []
        for lane in sorted(lanes):
            name = router.traffic.variants[lane]
            if any(item.variant == name for item in self._members.routed):
                continue
            for item in self._members.routed:
                member = self._members.spawned.get(item)
                backend = member.worker.backend_of(name) if member is not None and member.worker is not None else ""
                if backend and (item.placement, lane) not in there:
                    there.add((item.placement, lane))
                    auditors.append(msgspec.structs.replace(item, variant=name, backend=backend))
        return auditors

    async def _enlist(self, member: Member) -> None:
        """Start the worker of a new standby member, and try again until one starts."""
        try:
            await self._members.bring_up(member)
        except CloverError as error:
            item = member.assignment
            if self._members.spawned.get(item) is member:
                self._members.record(member, "failed", str(error))
                log.warning("%s: relief at %s: %s", self._router.name, item.placement.id, error)
                await self._members.respawn(member)
            return
        member.respawn = None
        self.report()

    async def _dismiss(self, member: Member) -> None:
        """End a standby worker."""
        member.respawn = None  # it is this task, which must not be cancelled
        await self._members.end(member.assignment)

    def report(self) -> None:
        """Give the router the standby workers that are ready, and those that answer audits, if they have changed."""
        standby = self.ready()
        if standby != self._router.standby:
            self._router.set_standby(standby)
        spawned = self._members.spawned
        background = [spawned[item] for item in self._answering if item in spawned and spawned[item].standby]
        auditing = [entry for entry in map(self._members.entry, background) if entry is not None]
        if auditing != self._auditing:
            self._auditing = auditing
            self._router.set_background(auditing)

    def ready(self) -> StandbyWorkers | None:
        """Return the standby workers that are ready, without those of the plan, which have their links; None if there
        are neither, or nothing calls for relief."""
        chooser, spawned = self.chooser, self._members.spawned
        wait_ms = chooser.wait_ms() if chooser is not None else 0.0
        if chooser is None or wait_ms <= 0.0:
            return None
        routed = self._members.routed
        beside = [spawned[item] for item in chooser.choose(routed) if item in spawned]
        members = [member for member in beside if member.ready and not member.background]
        if not members:
            return None
        started = [member for member in members if member.standby]
        entries = tuple(entry for entry in map(self._members.entry, started) if entry is not None)
        rates = [0.0] * len(self._members.lanes)
        for item in routed:
            rates[self._members.lanes[item.variant]] += chooser.rows_per_s(item)
        lane = self._members.lanes[members[0].assignment.variant]
        return StandbyWorkers(lane=lane, entries=entries, longest_wait_ns=int(wait_ms * 1e6), rates=tuple(rates))
