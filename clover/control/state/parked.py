"""Which GPUs are parked, for how long, and what that spared: for the state, metrics and decisions.

A GPU is parked if it answers and has no worker, because a plan left it without (`control.state.sleep.spared_w`) or
because the family with workers there sleeps.  Parking spares the power of the contexts that are not there, as measured
at the start or as modelled (`DeviceShape.sleep_method`).  The GPU's meter still counts what it draws.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from clover.accounting.labels import join_labels
from clover.types import Assignment, DeviceShape, Method


@dataclass
class ParkedTime:
    """Seconds that a GPU was parked since the start, and the joules that this spared, by how they are known."""

    since_s: float | None = None
    """Since when it is (monotonic); None if it is not."""
    seconds: float = 0.0
    spares_w: float = 0.0
    """What it spares since the last poll, known by `method`."""
    method: Method = "none"
    spared_j: dict[Method, float] = field(default_factory=dict)


class ParkedGpus:
    """The parked GPUs of a server.  `observe` counts the time."""

    def __init__(self) -> None:
        self.known: dict[str, ParkedTime] = {}
        """By name, of the GPUs that may be parked."""
        self._looked_s: float | None = None

    def observe(
        self, shapes: Mapping[str, DeviceShape], may: Collection[str], taken: Collection[str], now_s: float
    ) -> None:
        """Count the time since the last poll; `may`: the GPUs of families that may leave some without workers;
        `taken`: the devices that have workers.

        The time counts by what was known at its beginning, the last poll.
        """
        passed_s = now_s - self._looked_s if self._looked_s is not None else 0.0
        self._looked_s = now_s
        for name, shape in shapes.items():
            if shape.sleep_w is None:
                continue
            time = self.known.setdefault(name, ParkedTime())
            if time.since_s is not None:
                time.seconds += passed_s
                time.spared_j[time.method] = time.spared_j.get(time.method, 0.0) + time.spares_w * passed_s
            time.spares_w, time.method = shape.sleep_w, shape.sleep_method
            parked = name in may and bool(shape.layouts) and name not in taken
            time.since_s = (now_s if time.since_s is None else time.since_s) if parked else None

    def report(self, shape: DeviceShape) -> dict[str, Any]:
        """Return whether a GPU is parked, for how long since the start, and what that spares and spared."""
        time = self.known.get(shape.device, ParkedTime())
        ways = {*time.spared_j, *((shape.sleep_method,) if time.since_s is not None or not time.spared_j else ())}
        return {
            "parked": time.since_s is not None,
            "parked_s": time.seconds,
            "spared_w": shape.sleep_w if time.since_s is not None else 0.0,
            "spared_j": sum(time.spared_j.values()),
            "spared_method": join_labels(ways) if time.spared_j or shape.sleep_w is not None else "none",
        }


def parking_words(
    devices: Iterable[DeviceShape], before: Iterable[Assignment], after: Iterable[Assignment]
) -> list[str]:
    """Return in words which GPUs a change of workers from `before` to `after` parks and wakes."""
    then, now = ({item.placement.device for item in items} for items in (before, after))
    words = []
    for device in devices:
        if device.sleep_w is not None and device.device in then - now:
            words.append(f"{device.device} is parked, which spares {device.sleep_w:.3g} W ({device.sleep_method})")
        elif device.sleep_w is not None and then and device.device in now - then:
            words.append(f"{device.device} is woken")
    return words
