"""Which GPUs are parked, for how long, and what that spared: said in the state, in metrics and in decisions.

A GPU is parked if the server may leave it without workers (`DeviceShape.sleep_w`), it answers, and no family has a
worker on it.  What it spares is the power of the contexts that are not there, as measured at the start or as modelled
(`DeviceShape.sleep_method`); the meter of the GPU counts what it draws all the same.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from clover.types import Assignment, DeviceShape, Method


@dataclass
class ParkedTime:
    """Seconds that a GPU was parked since the start, and the joules that this spared, by how they are known."""

    since_s: float | None = None
    """Since when it is (monotonic); None if it is not."""
    seconds: float = 0.0
    spared_j: dict[Method, float] = field(default_factory=dict)


class ParkedGpus:
    """The parked GPUs of a server.  `look` counts the time."""

    def __init__(self) -> None:
        self.known: dict[str, ParkedTime] = {}
        """By name, of the GPUs that may be parked."""
        self._looked_s: float | None = None

    def look(self, shapes: Mapping[str, DeviceShape], taken: Collection[str], now_s: float) -> None:
        """Count the time since the last look; `taken`: the devices that have workers."""
        passed_s = now_s - self._looked_s if self._looked_s is not None else 0.0
        self._looked_s = now_s
        for name, shape in shapes.items():
            if shape.sleep_w is None:
                continue
            time = self.known.setdefault(name, ParkedTime())
            if time.since_s is not None:
                spared_j = time.spared_j.get(shape.sleep_method, 0.0)
                time.seconds += passed_s
                time.spared_j[shape.sleep_method] = spared_j + shape.sleep_w * passed_s
            # Before the first plan nothing is parked: no family has a worker.
            parked = bool(taken) and bool(shape.layouts) and name not in taken
            time.since_s = (now_s if time.since_s is None else time.since_s) if parked else None

    def report(self, shape: DeviceShape) -> dict[str, Any]:
        """Return whether a GPU is parked, for how long since the start, and what that spares and spared."""
        time = self.known.get(shape.device, ParkedTime())
        return {
            "parked": time.since_s is not None,
            "parked_s": time.seconds,
            "spared_w": shape.sleep_w if time.since_s is not None else 0.0,
            "spared_j": sum(time.spared_j.values()),
            "spared_method": shape.sleep_method if shape.sleep_w is not None else "none",
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
