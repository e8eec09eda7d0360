"""A fleet that answers as its workers really are, which need not be as their profile says.

Its p95 is that of the queueing model with the services of `truth`, seen through a trailing window, times noise.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from clover.control.state.arrivals import WINDOW_S
from clover.planning.cascade.evaluation import predict_routing
from clover.planning.model.problem import problem_of
from clover.planning.packing.evaluation import UNBOUNDED_MS, lanes_of
from clover.types import Assignment, DeviceShape, FamilyProfile, Routing, configuration_of
from tests.support.control_fixture import FakeFleet, Rig
from tests.support.profiles_fixture import profile, state

MOST_MS = 5000.0
"""Of a worker that is overloaded."""


def slowed(measured: FamilyProfile, times: Mapping[str, float]) -> FamilyProfile:
    """Return `measured` with the services of each variant so many times as long, and their joules as they were."""
    latency = tuple(
        msgspec.structs.replace(item, mean_ms=item.mean_ms * times.get(item.variant, 1.0)) for item in measured.latency
    )
    return msgspec.structs.replace(measured, latency=latency)


class PlantFleet(FakeFleet):
    """Workers on `devices` whose services are those of `truth`; `noise` is the deviation of the logarithm of what is
    seen of a p95."""

    def __init__(
        self,
        truth: FamilyProfile,
        devices: tuple[DeviceShape, ...],
        clock: Callable[[], float],
        *,
        rate: float,
        noise: float = 0.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.truth, self.devices, self.clock, self.noise = truth, devices, clock, noise
        self.rate = rate
        self.reconfigured = 0
        self._random = random.Random(seed)
        self._seen: deque[tuple[float, float]] = deque()
        self._at_s = clock()
        self._queue = 0.0
        self._known: tuple[tuple[float, tuple[Assignment, ...], Routing], tuple[float, float]] | None = None
        self._noisy = (-1, 1.0)

    def route(self, assignments: tuple[Assignment, ...], routing: Routing) -> None:
        if self.routed and configuration_of(self.routed) != configuration_of(assignments):
            self.reconfigured += 1
        super().route(assignments, routing)

    @property
    def p95_ms(self) -> float:
        """What rows that arrive now would see."""
        own, capacity = self._served()
        now_s = self.clock()
        self._queue = max(0.0, self._queue + (self.rate - capacity) * (now_s - self._at_s))
        self._at_s = now_s
        return own + self._queue / capacity * 1e3

    def _served(self) -> tuple[float, float]:
        """Return the p95 (milliseconds) without a queue of before, and the rows a second that are served at most."""
        key = self.rate, self.routed, self.routing
        if self._known is None or self._known[0] != key:
            problem = problem_of(state(rate=self.rate, devices=self.devices, measured=self.truth))
            configuration = configuration_of(self.routed)
            found = predict_routing(problem, configuration, self.routing)
            assert found is not None
            own = MOST_MS if found.p95_ms >= UNBOUNDED_MS else found.p95_ms
            self._known = key, (own, sum(lanes_of(problem, configuration).capacities))
        return self._known[1]

    def observe(self) -> dict[str, float]:
        now_s = self.clock()
        if self.routed:
            self._seen.append((now_s, self.p95_ms))
        while self._seen and self._seen[0][0] <= now_s - WINDOW_S:
            self._seen.popleft()
        if self._seen:
            # A trailing window holds what came before a change for as long as it lasts.
            p95_ms = max(ms for _, ms in self._seen)
            window = int(now_s // WINDOW_S)
            if window != self._noisy[0]:
                self._noisy = (window, self._random.lognormvariate(0.0, self.noise) if self.noise else 1.0)
            self.figures["p95_ms"] = p95_ms * self._noisy[1]
        self.figures["arrival_rate"] = self.rate
        self.figures["queue_rows"] = float(round(self._queue))
        self.figures["rows"] = self.rate * now_s
        return dict(self.figures)


def plant(
    truth: FamilyProfile | None = None, *, rate: float, noise: float = 0.0, seed: int = 0, **settings: Any
) -> tuple[Rig, PlantFleet]:
    """Return a rig whose fleet is a plant of `truth` (the profile itself if None); `settings` are those of `Rig`."""
    rig = Rig(**settings)
    shapes = tuple(device.shape() for device in rig.devices.values())
    fleet = PlantFleet(truth or rig.profile or profile(), shapes, rig.clock, rate=rate, noise=noise, seed=seed)
    rig.fleet = rig.family.fleet = rig.family.applier._fleet = fleet
    return rig, fleet
