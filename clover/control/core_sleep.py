"""When cores may lose their workers: not before the load was watched for a while, nor soon after more came.

A worker takes about two seconds of a core's time to start, so that cores that are put to sleep and woken in turn cost
more than they spare.  A family therefore keeps the workers of all the cores that it has for `REST_S` after it got more
of them; its first workers count, since nothing is known of the load when they start.

The plan of fewer cores is made by the profile, which may err: if the SLO is missed while cores sleep, all of them wake
whatever the plan says, and rest for twice as long each time, up to `LONGEST_REST_S`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec

from clover.control.triggers import SLO_LOOKS
from clover.planning.model.cores import cores_under, sleeping_row
from clover.types import Assignment, DeviceShape

REST_S = 300.0
LONGEST_REST_S = 3600.0


class CoreSleep:
    """How many cores of a row have to have workers of one family, and until when (monotonic seconds)."""

    def __init__(self) -> None:
        self._least: int | None = None
        """None: all cores, as before the first workers."""
        self._until_s = math.inf
        self._rest_s = REST_S
        self._woken_s = -math.inf
        self._late = 0

    def changed(self, before: Sequence[Assignment], after: Sequence[Assignment], now_s: float) -> None:
        """Note that the deployment changed from `before` to `after`."""
        more = cores_under(after)
        if more > cores_under(before):
            self._least, self._until_s = more, now_s + self._rest_s

    def look(
        self, late: bool, devices: Sequence[DeviceShape], running: Sequence[Assignment], now_s: float
    ) -> bool:
        """Look at whether rows are `late` (p95 above the SLO); return whether all cores have to get workers from now.

        Plans that are made meanwhile for another reason, as a rate that rises, do not start the count of looks anew.
        """
        self._late = self._late + 1 if late else 0
        row = sleeping_row(devices)
        if self._late < SLO_LOOKS or row is None or cores_under(running) >= row.slices:
            return False
        if now_s < self._until_s and self._least is None:
            return False  # they are being started
        again = now_s - self._woken_s < LONGEST_REST_S
        self._rest_s = min(2.0 * self._rest_s, LONGEST_REST_S) if again else REST_S
        self._woken_s = now_s
        self._least, self._until_s = None, now_s + self._rest_s
        return True

    def held(self, devices: tuple[DeviceShape, ...], now_s: float) -> tuple[DeviceShape, ...]:
        """Return `devices` as a plan may use them now."""
        row = sleeping_row(devices)
        if row is None or now_s >= self._until_s:
            return devices
        least = row.slices if self._least is None else min(self._least, row.slices)
        return (msgspec.structs.replace(row, least_cores=least),)

    def again_s(self, devices: Sequence[DeviceShape], now_s: float) -> float | None:
        """Return when to plan again because fewer cores may do then; None if that is so now, or never."""
        waits = now_s < self._until_s < math.inf and sleeping_row(devices) is not None
        return self._until_s if waits else None
