"""A profile with scores, and a router whose rows follow small > large."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np

from clover.runtime.tickets import Ticket
from clover.types import CascadeProfile, ChainPoint, FamilyProfile, Sureness
from tests.unit import profiles_fixture
from tests.unit.router_fixture import FakeWorker, House, dealt

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

    def close(self, ticket: Ticket) -> None:
        self.router.close(ticket)
        self.loop.turn()

    def tests(self, variant: str = "small") -> dict[str, Any]:
        found: dict[str, Any] = self.router.guarded()["variants"].get(variant, {})
        return found
