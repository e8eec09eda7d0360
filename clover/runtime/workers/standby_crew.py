"""The standby workers of a fleet: one at every placement that is routed to, started and ended in the background.

They are members (`clover.runtime.workers.members`) that get no rows until the router calls for relief
(`clover.runtime.router.relief`), and that no transition sees.

So are those that answer audits: where the plan asks the best variant of nothing, a worker that holds it anyway answers
them.  No process is started for that.
"""

from __future__ import annotations

import asyncio
import logging

import msgspec

from clover.errors import CloverError
from clover.runtime.router.lanes import Entry
from clover.runtime.router.relief import StandbyWorkers
from clover.runtime.router.router import Router
from clover.runtime.workers.member import Member
from clover.runtime.workers.members import Members
from clover.runtime.workers.standby import StandbyPolicy
from clover.types import Assignment, Placement

log = logging.getLogger("clover.fleet")

_STARTED_AT_ONCE = 4  # nothing waits for standby workers, so few start at a time


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
        wanted = self.chooser.beside(self._members.routed) if self.chooser is not None else ()
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
        """Return the best variant at each placement whose worker holds it; none if rows are routed to it anywhere."""
        best = self._router.guard.best
        if best < 0 or not self._router.audits.on:
            return []
        name = self._router.traffic.variants[best]
        if any(item.variant == name for item in self._members.routed):
            return []
        there: set[Placement] = set()
        found = []
        for item in self._members.routed:
            member = self._members.spawned.get(item)
            backend = member.worker.backend_of(name) if member is not None and member.worker is not None else ""
            if backend and item.placement not in there:
                there.add(item.placement)
                found.append(msgspec.structs.replace(item, variant=name, backend=backend))
        return found

    async def _enlist(self, member: Member) -> None:
        """Start the worker of a new standby member, and try again until one starts."""
        try:
            await self._members.bring_up(member)
        except CloverError as error:
            item = member.assignment
            if self._members.spawned.get(item) is member:
                self._members.note(member, "failed", str(error))
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
        beside = [spawned[item] for item in chooser.beside(routed) if item in spawned]
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
