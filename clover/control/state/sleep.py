"""When GPUs, or cores of a row, may lose their workers.

A GPU without workers is *parked*: their processes have ended, and with them the CUDA contexts, for which a board draws
26 to 66 W more even when idle.  A worker takes seconds to start, so putting it to sleep and waking it in turn costs
more than it spares.  A family therefore keeps the workers of all the GPUs (or cores) that it has for
`controller.sleep_after_s` after it got more of them.  Its first workers count as more, because nothing is known of the
load when they start.

The plan with fewer workers relies on the profile, which may be wrong.  If the SLO is missed while some sleep, all wake,
whatever the plan says, and stay awake for twice as long each time, up to `LONGEST_REST_S`.

**Gusts.**  A sleeping GPU serves again only once its workers have started.  So fewer GPUs than run are planned only if
they serve `ROOM` times the rate, or as many times as the load rose within a start in the last hour if that is more
(`Gusts`).  Waking needs no such room.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence

import msgspec

from clover.control.state.arrivals import deviation
from clover.control.state.slo.keeper import SLO_LOOKS
from clover.planning.model.cores import cores_under, sleeping_row
from clover.planning.search.best import ROOM
from clover.types import Assignment, DeviceShape, ObjectiveConfig

REST_S = 300.0
LONGEST_REST_S = 3600.0
MOST_ROOM = 3.0
"""A load that rises by more than this within a start of workers would keep all GPUs awake."""
GUSTS_S = 3600.0
_EACH_S = 5.0


class SleepKeeper:
    """How many GPUs, or cores of a row, must have workers of one family, and until when (monotonic seconds)."""

    def __init__(self, rest_s: float = REST_S) -> None:
        self.gusts = Gusts()
        self._least: int | None = None
        """None: all, as before the first workers."""
        self._until_s = math.inf
        self._first_rest_s = self._rest_s = rest_s
        self._woken_s = -math.inf
        self._late = 0

    def record_change(
        self, devices: Sequence[DeviceShape], before: Sequence[Assignment], after: Sequence[Assignment], now_s: float
    ) -> None:
        """Record that the deployment on `devices` changed from `before` to `after`."""
        more = awake_under(devices, after)
        if more > awake_under(devices, before):
            self._least, self._until_s = more, now_s + self._rest_s

    def observe(self, late: bool, devices: Sequence[DeviceShape], running: Sequence[Assignment], now_s: float) -> bool:
        """Observe whether rows are `late` (p95 above the SLO); return whether all have to get workers from now.

        Plans that are made meanwhile for another reason, as a rate that rises, do not start the count of polls anew.
        """
        self._late = self._late + 1 if late else 0
        if self._late < SLO_LOOKS or awake_under(devices, running) >= most_awake(devices):
            return False
        if now_s < self._until_s and self._least is None:
            return False  # they are being started
        again = now_s - self._woken_s < LONGEST_REST_S
        longest_s = max(self._first_rest_s, LONGEST_REST_S)
        self._rest_s = min(2.0 * self._rest_s, longest_s) if again else self._first_rest_s
        self._woken_s = now_s
        self._least, self._until_s = None, now_s + self._rest_s
        return True

    def held(self, devices: tuple[DeviceShape, ...], now_s: float) -> tuple[DeviceShape, ...]:
        """Return `devices` as a plan may use them now: of a row of cores it may have to use more."""
        row = sleeping_row(devices)
        if row is None or now_s >= self._until_s:
            return devices
        return (msgspec.structs.replace(row, least_cores=self._least_of(row.slices)),)

    def objective(
        self, objective: ObjectiveConfig, devices: Sequence[DeviceShape], now_s: float, start_s: float, *, free: bool
    ) -> ObjectiveConfig:
        """Return `objective` with three additions: what GPUs spare if they are parked, how many may not be parked (none
        if it is `free`), and the room for gusts of a load while workers start, which takes `start_s`."""
        spared = spared_w(devices)
        if spared is None:
            return objective
        held = not free and now_s < self._until_s
        return msgspec.structs.replace(
            objective,
            spared_w=spared,
            least_awake=self._least_of(most_awake(devices)) if held else 1,
            sleep_room=1.0 if free else self.gusts.room(now_s, start_s),
        )

    def _least_of(self, total: int) -> int:
        return total if self._least is None else min(self._least, total)

    def again_s(self, devices: Sequence[DeviceShape], now_s: float) -> float | None:
        """Return when to plan again because fewer may do then; None if fewer may do now, or never."""
        waits = now_s < self._until_s < math.inf and most_awake(devices) > 1
        return self._until_s if waits else None


class Gusts:
    """How much the load of one family rose within a short time, in the last hour."""

    def __init__(self) -> None:
        self._rates: deque[tuple[float, float]] = deque()

    def record(self, now_s: float, rate: float) -> None:
        """Record rows a second as they were observed at `now_s` (monotonic)."""
        if self._rates and now_s - self._rates[-1][0] < _EACH_S:
            return
        self._rates.append((now_s, rate))
        while now_s - self._rates[0][0] > GUSTS_S:
            self._rates.popleft()

    def room(self, now_s: float, within_s: float) -> float:
        """Return the most that the rate rose within `within_s` seconds, as a factor from `ROOM` to `MOST_ROOM`; what
        chance does to counts is no rise."""
        lows: deque[tuple[float, float]] = deque()  # of the last `within_s`, ascending: the first is the least
        most = ROOM
        for at_s, rate in self._rates:
            while lows and lows[0][0] < at_s - max(within_s, _EACH_S) - 1e-9:
                lows.popleft()
            if lows:
                least = lows[0][1]
                most = max(most, (rate - 2.0 * deviation(rate)) / max(least + 2.0 * deviation(least), 1.0))
            while lows and lows[-1][1] >= rate:
                lows.pop()
            lows.append((at_s, rate))
        return min(most, MOST_ROOM)


def spared_w(devices: Sequence[DeviceShape]) -> float | None:
    """Return the idle watts that a parked GPU of `devices` spares; None if none may be parked: they are cores, or one
    GPU, or are kept awake."""
    usable = [device for device in devices if device.layouts]
    if len(usable) < 2 or any(device.sleep_w is None for device in usable):
        return None
    return min(device.sleep_w or 0.0 for device in usable)


def awake_under(devices: Sequence[DeviceShape], deployment: Sequence[Assignment]) -> int:
    """Return how many GPUs, or cores of a row, have workers of `deployment` (of a row: and all before them)."""
    if sleeping_row(devices) is not None:
        return cores_under(deployment)
    return len({item.placement.device for item in deployment})


def most_awake(devices: Sequence[DeviceShape]) -> int:
    """Return how many GPUs, or cores of a row, may have workers if any may be without; else 0."""
    row = sleeping_row(devices)
    if row is not None:
        return row.slices
    return sum(bool(device.layouts) for device in devices) if spared_w(devices) is not None else 0
