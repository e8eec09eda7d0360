"""A minute row by row: the server's own controller, fleet and router on a virtual clock, before simulated workers.

Days are played in steps, in which rows are a rate (`replay`).  What happens within a second shows only if each row is
queued, routed, batched and answered, and that is what the server's router does here: quotas, batches, deadlines and
relief are the code that serves.  Only workers (`workers`), devices and clients are simulated; there is no HTTP.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from clover.accounting import Account, profiled_energy
from clover.carbon import GridClock, SourceChain
from clover.carbon.grid import Grid
from clover.config import FamilyConfig
from clover.control.controller import Controller
from clover.control.state.context import Clocks
from clover.errors import ConfigError, RequestError
from clover.planning.model.problem import services_of
from clover.research.simulate import clock
from clover.research.simulate.families import spec_of
from clover.research.simulate.fleet import simulated
from clover.research.simulate.flow import points_of
from clover.research.simulate.solver import LocalSolver
from clover.research.simulate.workers import SimulatedWorker, Slice
from clover.research.simulate.world import Case
from clover.runtime.memory.slab import Layout, Slab
from clover.runtime.router.lane_pace import pace_by
from clover.runtime.router.router import Router
from clover.runtime.router.tickets import RouterTicket
from clover.runtime.workers.fleet import FamilyFleet
from clover.runtime.workers.standby import StandbyPolicy
from clover.types import Assignment, FamilyProfile, FamilySpec, Record

Floats = NDArray[np.float64]

GUST_FROM_S, GUST_S = 20.0, 12.0
"""A gust is `GUST_S` long, from `GUST_FROM_S` on in every minute."""
_SLOTS = 4096
_STEADY = 3  # seconds: a single good or bad one proves nothing
_P95 = 0.95
_UNSURE, _SURE = -1.0, 2.0  # below and above every threshold


class Second(Record, frozen=True, kw_only=True):
    """The rows that arrived within a second: how many, their p95 (ms, NaN without any), the part that was late or not
    answered, and how many each variant answered."""

    rows: int
    p95_ms: float
    late: float
    variants: dict[str, int]


class Minutes(Record, frozen=True, kw_only=True):
    """What became of every row.

    `accuracy` (percent) is the expected one of the rows answered, `planned_accuracy` the plan's; `shares` likewise.
    `late` counts rows above the SLO and rows without an answer, `gust_late` those of them that arrived in a gust.
    `back_s`: seconds from the beginning of the first gust until the p95 is within the SLO for three seconds in a row;
    infinite if it never is, 0 without a gust.  `active_j` are joules above idle, by the profile.  `relieved` rows were
    answered by standby workers, which took over `reliefs` times.
    """

    family: str
    policy: str
    relief: str
    seed: int
    seconds: float
    rate: float
    gust: float
    slo_ms: float
    deployment: str
    rows: int
    unanswered: int
    accuracy: float
    planned_accuracy: float
    shares: dict[str, float]
    planned_shares: dict[str, float]
    p50_ms: float
    p95_ms: float
    p99_ms: float
    late: int
    gust_late: int
    gust_rows: int
    back_s: float
    active_j: float
    relieved: int
    reliefs: int
    by_second: tuple[Second, ...]


@dataclass(frozen=True)
class RowOutcome:
    """One row: when it arrived (s), how long it took (ms), which variant answered (-1: none did)."""

    at_s: float
    ms: float
    lane: int


def gusty(rate: float, gust: float) -> Callable[[float], float]:
    """Return a function from time (s) to rows a second: `rate`, and `gust` times that in the gusts."""
    return lambda at_s: rate * (gust if 0.0 <= at_s % 60.0 - GUST_FROM_S < GUST_S else 1.0)


def play(case: Case, *, seconds: float, gust: float = 1.0, relief: str = "") -> Minutes:
    """Play `seconds` of `case` at its constant load, with gusts of `gust` times that."""
    if case.scheme.cascade and case.world.known.profile.cascade is None:
        raise ConfigError(f"{case.world.known.profile.family} has no profile of cascades: +cascade cannot be played")
    if case.world.rules.waits:  # they end at the ticks of a timer, which knows no virtual time
        raise ConfigError("row by row no row waits for a fuller batch: leave --waits out")
    if case.load.kind != "constant":
        raise ConfigError("row by row the load is constant:U, with --gust F for gusts")
    return clock.run(_Play(case, seconds, gust, relief).play())


class _Play:
    """One run while it is played."""

    def __init__(self, case: Case, seconds: float, gust: float, relief: str) -> None:
        profile = case.world.known.profile
        self.case = case
        self.seconds = seconds
        self.gust = gust
        self.relief = relief
        self.rate = case.load.rates(case.world.capacity, case.trace.start_s, 1.0, 1, case.seed)[0]
        self.spec = _spec(profile)
        self.services = services_of(profile)
        self.points = points_of(profile)
        self.front_ms = profile.front_ms
        self.rng = random.Random(case.seed)
        self.slices: dict[str, Slice] = {}
        self.workers: list[SimulatedWorker] = []
        self.rows: list[RowOutcome] = []
        self.begun_ns = 0
        names = [variant.name for variant in self.spec.variants]
        if relief not in ("", "auto", *names):
            raise ConfigError(f"{profile.family} has no variant {relief!r} to come to relief: {', '.join(names)}")

    async def play(self) -> Minutes:
        case, world, rules = self.case, self.case.world, self.case.world.rules
        profile = world.known.profile
        loop = asyncio.get_running_loop()
        settings = msgspec.structs.replace(case.settings, design_rate=self.rate, waits=False)
        config = FamilyConfig(
            family=profile.family,
            slo_ms=rules.slo_ms,
            accuracy_floor=rules.accuracy_floor,
            accuracy_margin=rules.accuracy_margin,
            relief=self.relief,
            guard="off",  # scores are simulated, and there are no answers to watch
            resident="auto" if case.scheme.resident else "off",
        )
        slab = Slab.create(Layout(self.spec, _SLOTS))
        account = Account(pue=1.0)
        router = Router(self.spec, slab, _SLOTS, config, profile, account, loop=loop, clock=self._now_ns)
        grid_clock = GridClock(case.trace.start_s, 1.0, clock.now_s)
        controller = Controller(
            settings,
            devices=simulated(world.machine.shapes),
            grid=Grid(SourceChain([case.trace.source], monotonic=clock.now_s), grid_clock.now),
            solver=LocalSolver(world.memory, seed=case.seed),
            clocks=Clocks(monotonic=clock.now_s, wall=grid_clock.now),
        )
        reserve = None
        if self.relief:
            names = [variant.name for variant in self.spec.variants]
            reserve = StandbyPolicy(names, self.relief, lambda: family.targets.slo_ms)
            reserve.use(profile)
        fleet = FamilyFleet(
            router,
            start=self._make_start(router, slab, lambda: fleet),
            profiled=lambda item: profiled_energy(
                profile, item.variant, item.placement.profile, item.backend, self.spec.max_batch
            ),
            silent_s=1e9,
            pace=lambda item: pace_by(self.services[item.variant, item.placement.profile]),
            standby=reserve,
        )
        family = controller.add(self.spec, profile, fleet, config)
        router.aim(family.targets.slo_ms, family.targets.accuracy_floor)
        tending = loop.create_task(_tend(fleet))
        try:
            await controller.start()
            deployment = _words(fleet.routed)
            fleet.watch()
            await asyncio.sleep(1.0)  # standby workers are ready by then
            standing = family.deployed
            planned = dict(standing.routing.shares) if standing is not None else {}
            expected = standing.plan.prediction.accuracy if standing is not None else math.nan
            await self._offer(router)
        finally:
            tending.cancel()
            await controller.stop()
            await fleet.stop()
            slab.close()
        return self._sum_up(router, family.targets.slo_ms, deployment, planned, expected)

    def _score(self, fleet: FamilyFleet, slab: Slab, variant: str, slots: NDArray[np.uint32]) -> None:
        """Write scores that send rows on as often as the profile says, each row at random."""
        point = self.points.get((fleet.routing.chain, fleet.routing.thresholds))
        if point is None or variant not in point.chain[:-1]:
            return
        at = point.chain.index(variant)
        part = point.reach[at + 1] / max(point.reach[at], 1e-12)
        slab.score[slots] = [_UNSURE if self.rng.random() < part else _SURE for _ in slots]

    def _make_start(self, router: Router, slab: Slab, fleet: Callable[[], FamilyFleet]) -> Callable[[Assignment], Any]:
        async def start(item: Assignment) -> SimulatedWorker:
            worker = SimulatedWorker(
                len(self.workers) + 1,
                self.services[item.variant, item.placement.profile],
                self.slices.setdefault(item.placement.id, Slice()),
                clock=self._now_ns,
                later=asyncio.get_running_loop().call_later,
                reap=router.reap,
                rng=self.rng,
                score=partial(self._score, fleet(), slab, item.variant),
            )
            self.workers.append(worker)
            return worker

        return start

    async def _offer(self, router: Router) -> None:
        """Submit rows as a Poisson process (thinned from the highest rate), and wait for the last answers."""
        arrivals = random.Random(self.case.seed + 1)
        rate = gusty(self.rate, self.gust)
        highest = self.rate * max(1.0, self.gust)
        self.begun_ns = self._now_ns()
        begun_s, at_s = clock.now_s(), 0.0
        while True:
            at_s += arrivals.expovariate(highest)
            if at_s >= self.seconds:
                break
            if arrivals.random() * highest >= rate(at_s):
                continue
            await asyncio.sleep(begun_s + at_s - clock.now_s())
            try:
                router.submit(router.open(1), self._make_on_done(router))
            except RequestError:
                self.rows.append(RowOutcome(at_s, math.inf, -1))
        await asyncio.sleep(60.0)

    def _make_on_done(self, router: Router) -> Callable[[Any], None]:
        def done(ticket: RouterTicket) -> None:
            at_s = (ticket.arrival_ns - self.begun_ns) / 1e9
            if ticket.status == 200:
                ms = (ticket.done_ns - ticket.arrival_ns) / 1e6 + self.front_ms
                self.rows.append(RowOutcome(at_s, ms, ticket.variants[0]))
            else:
                self.rows.append(RowOutcome(at_s, math.inf, -1))
            router.close(ticket)

        return done

    def _now_ns(self) -> int:
        return round(clock.now_s() * 1e9)

    def _sum_up(
        self, router: Router, slo_ms: float, deployment: str, planned: dict[str, float], expected: float
    ) -> Minutes:
        self.rows.sort(key=lambda row: row.at_s)
        at_s, ms = (np.array([getattr(row, name) for row in self.rows]) for name in ("at_s", "ms"))
        names = router.traffic.variants
        gusts = np.array([gusty(1.0, 2.0)(float(at)) > 1.0 for at in at_s]) & (self.gust > 1.0)
        late = ms > slo_ms
        counts = Counter(row.lane for row in self.rows if row.lane >= 0)
        answered = max(1, sum(counts.values()))
        by_second = self._by_second(at_s, ms, late, names)
        return Minutes(
            family=self.case.world.known.profile.family,
            policy=self.case.scheme.name,
            relief=self.relief,
            seed=self.case.seed,
            seconds=self.seconds,
            rate=self.rate,
            gust=self.gust,
            slo_ms=slo_ms,
            deployment=deployment,
            rows=len(self.rows),
            unanswered=sum(row.lane < 0 for row in self.rows),
            accuracy=router.traffic.accuracy_rows / max(1, sum(router.traffic.rows)),
            planned_accuracy=expected,
            shares={names[lane]: count / answered for lane, count in sorted(counts.items())},
            planned_shares=planned,
            p50_ms=quantile(ms, 0.5),
            p95_ms=quantile(ms, _P95),
            p99_ms=quantile(ms, 0.99),
            late=int(late.sum()),
            gust_late=int((late & gusts).sum()),
            gust_rows=int(gusts.sum()),
            back_s=back_s([second.p95_ms for second in by_second], slo_ms) if self.gust > 1.0 else 0.0,
            active_j=sum(worker.joules for worker in self.workers),
            relieved=router.traffic.relieved_rows,
            reliefs=router.traffic.reliefs,
            by_second=by_second,
        )

    def _by_second(
        self, at_s: Floats, ms: Floats, late: NDArray[np.bool_], names: tuple[str, ...]
    ) -> tuple[Second, ...]:
        edges = np.searchsorted(at_s, np.arange(math.ceil(self.seconds) + 1))
        counts = []
        for low, high in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
            lanes = Counter(names[row.lane] for row in self.rows[low:high] if row.lane >= 0)
            counts.append(
                Second(
                    rows=high - low,
                    p95_ms=quantile(ms[low:high], _P95),
                    late=float(late[low:high].mean()) if high > low else 0.0,
                    variants=dict(lanes),
                )
            )
        return tuple(counts)


def quantile(values: Floats, q: float) -> float:
    """Return the q-quantile, the higher of two neighbours; NaN without values.  A row without an answer counts as
    infinite."""
    return float(np.quantile(values, q, method="higher")) if len(values) else math.nan


def back_s(p95_ms: list[float], slo_ms: float, gust_from_s: float = GUST_FROM_S) -> float:
    """Return seconds from `gust_from_s` until the p95 of `_STEADY` seconds in a row (or of all that are left) is within
    the SLO, in the same minute; infinite if it never is."""
    minute = [value > slo_ms for value in p95_ms[int(gust_from_s) : 60]]
    return next((float(at) for at in range(len(minute)) if not any(minute[at : at + _STEADY])), math.inf)


def _spec(profile: FamilyProfile) -> FamilySpec:
    largest = max(item.batch for item in profile.latency)
    return msgspec.structs.replace(spec_of(profile), max_batch=largest)


def _words(routed: tuple[Assignment, ...]) -> str:
    counts = Counter((item.variant, item.placement.profile) for item in routed)
    return " + ".join(f"{count} x {variant}@{shape}" for (variant, shape), count in sorted(counts.items()))


async def _tend(fleet: FamilyFleet) -> None:
    while True:
        await asyncio.sleep(1.0)
        fleet.watch()
