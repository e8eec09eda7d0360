"""A profile with scores, and a router whose rows follow small > large."""

from __future__ import annotations

import random
from typing import Any

import msgspec
import numpy as np

from clover.runtime.cascade import RoutedChain
from clover.runtime.guard.guard import CASCADE_OFF, OWN, SERVED, Guard
from clover.runtime.router.tickets import RouterTicket
from clover.types import CascadeProfile, ChainPoint, FamilyProfile, Sureness
from tests.support import profiles_fixture
from tests.support.router_fixture import FakeWorker, House, dealt

SMALL, MEDIUM, LARGE = range(3)
CHAIN = ("small", "large")
THRESHOLDS = (0.5,)
TENTHS = tuple(at / 10 for at in range(1, 10))
POINT = ChainPoint(
    chain=CHAIN,
    thresholds=THRESHOLDS,
    accuracy=91.5,
    low=91.0,
    high=92.0,
    reach=(1.0, 0.5),
    ends=(95.0, 88.0),
    cut=(70.0, 88.0),
    cost=0.5,
    alike=(0.98, 1.0),
    overruled=0.1,
)


WATCHED = RoutedChain((SMALL, LARGE), THRESHOLDS, (), (), overruled=0.1, overruled_rows=5000)
VARIANTS = ("small", "medium", "large")
MINUTE = 60_000_000_000


def sureness(**alike: float) -> Sureness:
    return Sureness(right=(0.9,) * 10, agreement=(0.9,) * 10, edges=TENTHS, parts=(0.1,) * 10, rows=10_000, alike=alike)


def profile(**changes: Any) -> FamilyProfile:
    """Scores lie evenly in 0..1; small agrees with large in 90 %, in 98 % of the rows that end there."""
    cascade = CascadeProfile(
        points=(POINT,),
        quantiles={name: tuple(np.linspace(0.0, 1.0, 33).tolist()) for name in ("small", "medium", "large")},
        calibration_rows=5000,
        held_out_rows=5000,
        sureness={
            "small": sureness(medium=0.93, large=0.9),
            "medium": sureness(small=0.93, large=0.95),
            "large": sureness(small=0.9, medium=0.95),
        },
        best="large",
    )
    return msgspec.structs.replace(profiles_fixture.profile(), cascade=msgspec.structs.replace(cascade, **changes))


class Audited(House):
    """One worker each of small and large; every row is audited unless `share` says otherwise."""

    def __init__(
        self, lanes: tuple[int, ...] = (SMALL, LARGE), share: float = 1.0, chained: bool = True, **config: Any
    ) -> None:
        super().__init__(slots=64, **config)
        self.router.expect(profile())
        self.router.audits.sampler.set(share)
        self.staff = {lane: self.entry(lane) for lane in lanes}
        routing = dealt(1.0, 0.0, 0.0, chain=CHAIN, thresholds=THRESHOLDS) if chained else dealt(1.0, 0.0, 0.0)
        self.router.route(list(self.staff.values()), routing)

    def worker(self, lane: int) -> FakeWorker:
        worker: FakeWorker = self.staff[lane][0]
        return worker

    def says(self, lane: int, said: int, score: float = 0.9, status: int = 0) -> None:
        """The worker of `lane` answers its next batch, all rows alike."""
        _, slots = self.worker(lane).ring.batches[0]
        self.slab.score[slots] = score
        self.slab.output(0)[slots] = np.eye(2, dtype=np.float32)[said]
        self.complete(self.worker(lane), status)

    def sent(self, lane: int) -> list[list[int]]:
        return [slots for _, slots in self.worker(lane).ring.batches]

    def close(self, ticket: RouterTicket) -> None:
        self.router.close(ticket)
        self.loop.turn()

    def tests(self, variant: str = "small") -> dict[str, Any]:
        found: dict[str, Any] = self.router.guard_report()["variants"].get(variant, {})
        return found


class Guarded:
    """A guard with a clock that the tests move, and clients that send it inputs."""

    def __init__(self, seed: int = 1, *, acts: bool = True) -> None:
        self.now_ns = 1000 * MINUTE
        self.guard = Guard("toy", VARIANTS, acts=acts, clock=lambda: self.now_ns)
        self.guard.expect(profile())
        self.draw = random.Random(seed)

    def wait(self, ns: int) -> None:
        self.now_ns += ns
        self.guard.evaluate()

    def scores(self, rows: int, power: float = 1.0, lane: int = SMALL) -> None:
        for _ in range(rows):
            if self.guard.fresh(self.draw.getrandbits(64)):
                self.guard.score(lane, self.draw.random() ** power)

    def audits(self, rows: int, own: float, served: float) -> None:
        """Audits of rows of which such parts agree."""
        for _ in range(rows):
            self.guard.fresh_audit(self.draw.getrandbits(64))
            agrees = self.draw.random() < served
            self.guard.record_comparison(OWN, SMALL, self.draw.random() < own, 0.9, 10_000)
            self.guard.record_planned(SMALL, agrees, 0.98, 2500)
            self.guard.record_comparison(SERVED, SMALL, agrees, 0.98, 2500)

    def witnesses(self, rows: int, agree: float) -> None:
        for _ in range(rows):
            self.guard.witness(self.draw.random(), self.draw.random() < agree)

    def ill(self) -> None:
        """Whatever is well now."""
        while self.guard.alarm_level != CASCADE_OFF and self.guard.alarms < 1000:
            before = self.guard.alarm_level
            self.scores(50, power=3.0)
            if self.guard.alarm_level != before:
                return
