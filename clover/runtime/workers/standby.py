"""Which standby workers a family has, and when they take rows (`clover.runtime.router.relief` says what for)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from clover.planning.model.problem import backends_of, services_of
from clover.planning.model.queueing import Service
from clover.runtime.router.relief import RELIEF_TIMES, WAIT_OF_SLO
from clover.types import Assignment, FamilyProfile


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

    def beside(self, routed: Sequence[Assignment]) -> tuple[Assignment, ...]:
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
            found = self._with(name, routed)
            same = [item for item in routed if item.variant == name and item not in found]
            rows = sum(map(self.rows_per_s, (*found, *same)))
            if found and rows > most:
                best, most = found, rows
            if most >= wanted:
                break
        return best

    def _with(self, variant: str, routed: Sequence[Assignment]) -> tuple[Assignment, ...]:
        """Return the standby workers that there would be with `variant`, one a placement; the plan's own if it has
        one there."""
        there = {item.placement.id: item for item in routed if item.variant == variant}
        found = {}
        for item in routed:
            place, backend = item.placement.id, self._backend.get((variant, item.placement.profile))
            if backend is None or self._rank[variant] >= self._rank[item.variant]:
                continue
            standby = there.get(place) or msgspec.structs.replace(item, variant=variant, backend=backend)
            if place in there or self._fits(item, standby):
                found[place] = standby
        return tuple(found.values())

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
