"""The operating points of a node's devices, from what its server says of its profiles and devices."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import msgspec

from clover.cluster.node import kind_of
from clover.errors import CloverError
from clover.planning.cluster.frontiers import device_frontier
from clover.planning.cluster.records import DeviceFrontier
from clover.types import DeviceShape, FamilyProfile, ObjectiveConfig

log = logging.getLogger("clover.cluster")


def frontiers(told: Mapping[str, Any]) -> tuple[DeviceFrontier, ...]:
    """Return the operating points of every kind of device and family, from a server's answer to `profiles`; blocks for
    seconds.  A family that no rate of is served within its SLO on a device is left out, and logged."""
    kinds: dict[str, tuple[DeviceShape, float]] = {}
    for item in told["devices"]:
        shape = msgspec.convert(item, DeviceShape)
        kinds.setdefault(kind_of(shape), (shape, float(told["idle_w"].get(shape.device, 0.0))))
    found = []
    for name, model in told["models"].items():
        profile = msgspec.convert(model["profile"], FamilyProfile)
        objective = msgspec.convert(model["objective"], ObjectiveConfig)
        for kind, (shape, idle_w) in kinds.items():
            try:
                made = device_frontier(profile, shape, objective, kind=kind, idle_w=idle_w)
            except CloverError as error:
                log.warning("%s on %s: %s", name, kind, error)
                continue
            if made.points:
                found.append(msgspec.structs.replace(made, family=name))
            else:
                log.warning("%s: no rate is served within %g ms on %s", name, objective.slo_ms, kind)
    return tuple(found)
