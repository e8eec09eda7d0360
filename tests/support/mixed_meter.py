"""An emulated GPU on whose slices the variants of a mix serve, with one counter for all of them, hidden factors of
their joules, and the production controller, which sees no more than a server's would."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any, NamedTuple

import numpy as np

from clover._native.route import Quota
from clover.control.request import Pin
from clover.planning.model.problem import services_of
from clover.types import DeviceShape, FamilyProfile, GroupCount, MeteredWindow, Routing, WorkReport
from tests.support.control_fixture import FakeDevice, LocalSolver, Rig
from tests.support.profiles_fixture import placement, profile

RATE = 50.0
UTILISATION = 0.6
BATCH_SPREAD = 0.1
IDLE_PART = 0.4
"""Of all power."""
SHARES = {2: (0.5, 0.5), 3: (0.4, 0.35, 0.25), 5: (0.3, 0.25, 0.2, 0.15, 0.1)}
"""Of the rows, the least accurate variant first."""
LOOK_S, TICK_S = 0.005, 0.1
"""How late a reading of the counter is at most: if it is read as it moves, and if it is not."""


class Batch(NamedTuple):
    """A row by itself on the worker of a variant."""

    variant: str
    since_s: float
    until_s: float
    joules: float

    def drawn_j(self, at_s: float) -> float:
        """Return what it drew until then."""
        return self.joules * min(max((at_s - self.since_s) / (self.until_s - self.since_s), 0.0), 1.0)


class MixedMeter:
    """The workers and their meter.  Rows come by chance and are dealt by the production quota; a batch counts in the
    second in which it ends, and draws its joules, which scatter, from when it begins."""

    def __init__(self, measured: FamilyProfile, truth: dict[str, float], *, seed: int, tick_s: float) -> None:
        self._rng = np.random.default_rng(seed)
        self._truth, self._tick_s = truth, tick_s
        self._services = services_of(measured)
        self._variants = list(truth)
        self._quota = Quota(len(self._variants))
        self._free_s = dict.fromkeys(self._variants, 0.0)
        self._under_way: deque[Batch] = deque()
        self._second, self._ended_j, self._seen_j = 0, 0.0, 0.0
        self._idle_w = 0.0
        self.rows: dict[str, int] = dict.fromkeys(self._variants, 0)

    def second(self, shares: dict[str, float]) -> WorkReport:
        """Serve for a second with these shares; return what a server's account reports of it."""
        own = [shares.get(variant, 0.0) for variant in self._variants]
        self._quota.set_shares(own)
        row_w = [self._joules(variant) * self._truth[variant] for variant in self._variants]
        idle_w = RATE * float(np.dot(own, row_w)) * IDLE_PART / (1.0 - IDLE_PART)
        self._idle_w = self._idle_w or idle_w
        for at_s in np.sort(self._second + self._rng.uniform(size=self._rng.poisson(RATE))):
            variant = self._variants[self._quota.choose((1 << len(self._variants)) - 1)]
            since_s = max(float(at_s), self._free_s[variant])
            self._free_s[variant] = until_s = since_s + self._services[variant, "1c"].seconds(1)
            scatter = float(self._rng.gamma(BATCH_SPREAD**-2, BATCH_SPREAD**2))
            joules = self._joules(variant) * self._truth[variant] * scatter
            self._under_way.append(Batch(variant, since_s, until_s, joules))
            self.rows[variant] += 1
        self._second += 1
        return self._report()

    def _report(self) -> WorkReport:
        ended = [batch for batch in self._under_way if batch.until_s <= self._second]
        self._under_way = deque(batch for batch in self._under_way if batch.until_s > self._second)
        late_s = float(self._rng.uniform(0.0, self._tick_s))
        seen_s = self._second - late_s
        self._ended_j += sum(batch.joules for batch in ended)
        # What ended after the counter moved last is not in it yet.
        lacks_j = sum(batch.joules - batch.drawn_j(seen_s) for batch in ended)
        drawn_j = sum(batch.drawn_j(seen_s) for batch in self._under_way)
        total_j = self._ended_j - lacks_j + drawn_j + self._idle_w * seen_s
        joules, self._seen_j = total_j - self._seen_j - self._idle_w, total_j
        counts = {variant: sum(batch.variant == variant for batch in ended) for variant in self._variants}
        served = {
            (variant, "1c", 1): (float(count), count * self._services[variant, "1c"].seconds(1))
            for variant, count in counts.items()
            if count
        }
        expected_j = {(variant, "1c"): counts[variant] * self._joules(variant) for variant, _, _ in served}
        window = MeteredWindow(device="gpu0", joules=joules, expected_j=expected_j, shared=True)
        return WorkReport(served=served, metered=(window,))

    def _joules(self, variant: str) -> float:
        return self._services[variant, "1c"].energy_j(1)


def mix(count: int) -> tuple[FamilyProfile, dict[str, float]]:
    """Return the profile of `count` variants, each of which is busy for `UTILISATION` of the time on a slice of its own
    if rows that come at `RATE` are dealt by the shares, and these."""
    shares = {f"v{at}": share for at, share in enumerate(SHARES[count])}
    served = {name: (90.0 + at, 1e3 * UTILISATION / (RATE * shares[name])) for at, name in enumerate(shares)}
    return profile(cores=(1,), variants=served), shares


def hidden_truth(count: int, seed: int) -> dict[str, float]:
    """Return factors of joules between a half and one and a half: at either end with an odd seed."""
    rng = np.random.default_rng([count, seed])
    drawn = rng.choice([0.5, 1.5], count) if seed % 2 else rng.uniform(0.5, 1.5, count)
    return {f"v{at}": float(factor) for at, factor in enumerate(drawn)}


class MixRig:
    """The production controller over a mix of `count` variants, pinned to one slice each.  Its clock passes a second a
    look."""

    def __init__(self, count: int, seed: int, *, tick_s: float = LOOK_S, **config: Any) -> None:
        self.truth = hidden_truth(count, seed)
        self.measured, self.shares = mix(count)
        self.meter = MixedMeter(self.measured, self.truth, seed=seed, tick_s=tick_s)
        places = tuple(placement(at, 1, "gpu0") for at in range(count))
        shape = DeviceShape(device="gpu0", kind="mig", layouts=(places,), slices=count, overlap=False)
        solver = LocalSolver()
        solver.knobs = {"shares": self.shares}
        self.rig = Rig(
            devices={"gpu0": FakeDevice(shape)},
            measured=self.measured,
            family={"slo_ms": 2000.0, "accuracy_floor": 85.0},
            solver=solver,
            **config,
        )
        self.rig.fleet.figures["arrival_rate"] = RATE
        self.rig.controller.swinger.find = solver.swings
        groups = (GroupCount(variant=variant, profile="1c", count=1) for variant in self.shares)
        self.rig.family.pin = Pin(configuration=tuple(groups))
        self.report_apart = False
        """Whether each worker has a meter to itself."""
        self.routings: list[Routing] = []
        """The routing of each second."""

    async def serve(self, seconds: int) -> None:
        """Serve for so many seconds, with a look of the controller after each."""
        fleet = self.rig.fleet
        for _ in range(seconds):
            self.routings.append(fleet.routing)
            fleet.work = self._told_apart(self.meter.second(fleet.shares))
            await self.rig.look()
            await asyncio.sleep(0)  # the solver answers

    def _told_apart(self, report: WorkReport) -> WorkReport:
        """Return a report as if each worker had a meter to itself, if that is so."""
        if not self.report_apart:
            return report
        parts = [(key, joules) for window in report.metered for key, joules in window.expected_j.items()]
        windows = tuple(
            MeteredWindow(device="gpu0", joules=joules * self.truth[key[0]], expected_j={key: joules}, shared=False)
            for key, joules in parts
        )
        return WorkReport(served=report.served, metered=windows)

    def off(self) -> dict[str, float]:
        """Return how far the factors of joules in force are from the truth, as a part of it."""
        energy = self.rig.family.learned.energy
        return {name: abs(energy.get((name, "1c"), 1.0) / factor - 1.0) for name, factor in self.truth.items()}


def five_minutes(count: int, seed: int, *, tick_s: float = LOOK_S, seconds: int = 300, **config: Any) -> MixRig:
    """Return the rig after five minutes of service, or so many `seconds`."""
    made = MixRig(count, seed, tick_s=tick_s, **config)

    async def play() -> None:
        await made.rig.deploy()
        await made.serve(seconds)

    asyncio.run(play())
    return made
