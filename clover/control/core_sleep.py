"""When cores may lose their workers: not before the load was watched for a while, nor soon after more came.

A worker takes about two seconds of a core's time to start, so that cores that are put to sleep and woken in turn cost
more than they spare.  A family therefore keeps the workers of all the cores that it has for `REST_S` after it got more
of them; its first workers count, since nothing is known of the load when they start.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from clover.planning.model.cores import cores_under, sleeping_row
from clover.types import Assignment, DeviceShape

REST_S = 300.0


class CoreSleep:
    """How many cores of a row have to have workers of one family, and until when (monotonic seconds)."""

    def __init__(self) -> None:
        self._least: int | None = None
        """None before the first workers: all cores."""
        self._until_s = 0.0

    def changed(self, before: Sequence[Assignment], after: Sequence[Assignment], now_s: float) -> None:
        """Note that the deployment changed from `before` to `after`."""
        if cores_under(after) > cores_under(before):
            self._least, self._until_s = cores_under(after), now_s + REST_S

    def held(self, devices: tuple[DeviceShape, ...], now_s: float) -> tuple[DeviceShape, ...]:
        """Return `devices` as a plan may use them now."""
        row = sleeping_row(devices)
        if row is None or (self._least is not None and now_s >= self._until_s):
            return devices
        least = row.slices if self._least is None else min(self._least, row.slices)
        return (msgspec.structs.replace(row, least_cores=least),)

    def again_s(self, devices: tuple[DeviceShape, ...], now_s: float) -> float | None:
        """Return when to plan again because fewer cores may do then; None if that is so now, or never."""
        waits = self._least is not None and now_s < self._until_s and sleeping_row(devices) is not None
        return self._until_s if waits else None
