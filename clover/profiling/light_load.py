"""What a batch costs where requests come one by one: its worker, beyond what it took batch after batch, and the front
end.

A worker that is measured alone keeps its caches. One that serves shares the core with the front end and with clients,
and sleeps meanwhile: at 200 requests a second a small model's batch may take five times the CPU time, most of it for
the code around the model.  The front end pays likewise: a turn of its event loop reads a request or sends the answers
of a batch, and takes a tenth of a millisecond where it takes a hundredth under load.  Neither depends on the variant.
So both are measured once, at some `LIGHT_RATE` rows a second, by the kernel's clocks of BASE's workers and of the front
end's thread (`front_end`), and become what each batch of any variant costs more after a pause:
`LatencyMeasurement.wake_j` and `FamilyProfile.turn_j`.  Plans then know what waiting for company saves, and what a
second stage costs.
"""

from __future__ import annotations

from dataclasses import dataclass

from msgspec import structs

from clover.planning.model.queueing import REST_S, TURNS, WAKE_S, cold
from clover.profiling.front_end import FrontEndRun
from clover.types import FamilyProfile, LatencyMeasurement

LIGHT_PART = 0.25
"""Of the rate at which BASE is measured under load, if that is less."""
MOST_TURNS = 2.0
"""A worker wakes up at the price of so many turns of the front end at most.  More is no wake-up, but a BASE that took
another time than it was profiled with, which is no price of other variants."""


@dataclass(frozen=True)
class LightLoad:
    """A run at a light load of `workers` workers: their CPU seconds, the seconds that it lasted, and batches with their
    rows."""

    workers_s: float
    seconds: float
    batches: int
    rows: int
    workers: int


def with_light_load(profile: FamilyProfile, light: LightLoad, front: FrontEndRun) -> FamilyProfile:
    """Return `profile` with what batches cost at a light load; unchanged if the runs say nothing."""
    base = _measured(profile)
    if base is None or not front.requests or not light.batches or base.cpu_s_per_row <= 0.0:
        return profile
    joules_a_s = base.energy_j_per_row / base.cpu_s_per_row
    known_j = base.energy_j_per_row * max(light.rows / light.batches, base.batch)
    pause_s = light.seconds * light.workers / light.batches - base.mean_ms * 1e-3
    if pause_s <= 0.0:
        return profile
    known_j += base.rested_j * cold(pause_s, REST_S)
    front_pause_s = front.seconds / (TURNS * front.requests)
    turn_j = front.cpu_s / (front.requests * TURNS) * joules_a_s / cold(front_pause_s, WAKE_S)
    wake_j = max(light.workers_s / light.batches * joules_a_s - known_j, 0.0) / cold(pause_s, WAKE_S)
    wake_j = min(wake_j, MOST_TURNS * turn_j)
    latency = tuple(structs.replace(item, wake_j=wake_j) for item in profile.latency)
    return structs.replace(profile, latency=latency, turn_j=turn_j)


def _measured(profile: FamilyProfile) -> LatencyMeasurement | None:
    """Return how BASE runs in its smallest batches."""
    base = profile.base
    wanted = (base.variant, base.profile, base.backend)
    found = [item for item in profile.latency if (item.variant, item.profile, item.backend) == wanted]
    return min(found, key=lambda item: (item.batch, item.mean_ms), default=None)
