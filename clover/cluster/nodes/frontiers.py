"""The operating points of a node's devices, from what its server says of its profiles and devices.

To work them out takes seconds for core-sets, and minutes for GPUs with many layouts.  So they are kept in a file that
the nodes of a machine share.  The first node works them out while the others wait, and a node that is woken again reads
the file.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from clover._version import __version__
from clover.cache import replace_file
from clover.cluster.nodes.node import kind_of
from clover.cluster.planning.frontiers import device_frontier
from clover.cluster.planning.records import DeviceFrontier
from clover.errors import CloverError
from clover.malformed import MALFORMED
from clover.types import DeviceShape, FamilyProfile, ObjectiveConfig

log = logging.getLogger("clover.cluster")


_REFERENCE_G_PER_KWH = 250.0
_ANY = "any"
"""The name of a device of its kind, whichever it is."""


def kept_frontiers(told: Mapping[str, Any], folder: Path) -> tuple[DeviceFrontier, ...]:
    """Return the same as `frontiers`, from a file in `folder` if it was worked out before; blocks for as long as it is
    being worked out, here or in another process."""
    kinds = {kind: (msgspec.to_builtins(shape), idle_w) for kind, (shape, idle_w) in _kinds(told).items()}
    models = {
        name: (model["profile"], msgspec.to_builtins(_objective(model))) for name, model in told["models"].items()
    }
    key = hashlib.sha256(msgspec.json.encode((__version__, kinds, models), order="sorted")).hexdigest()
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    path = folder / f"{key}.json"
    with (folder / f"{key}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            return msgspec.json.decode(path.read_bytes(), type=tuple[DeviceFrontier, ...])
        except (OSError, *MALFORMED):
            fresh = frontiers(told)
            replace_file(path, msgspec.json.encode(fresh))
            return fresh


def frontiers(told: Mapping[str, Any]) -> tuple[DeviceFrontier, ...]:
    """Return the operating points of every kind of device and family, from a server's answer to `profiles`; blocks for
    seconds.  A family that no rate of is served within its SLO on a device is left out, and logged."""
    results = []
    for name, model in told["models"].items():
        profile = msgspec.convert(model["profile"], FamilyProfile)
        objective = _objective(model)
        for kind, (shape, idle_w) in _kinds(told).items():
            try:
                made = device_frontier(profile, shape, objective, kind=kind, idle_w=idle_w)
            except CloverError as error:
                log.warning("%s on %s: %s", name, kind, error)
                continue
            if made.points:
                results.append(msgspec.structs.replace(made, family=name))
            else:
                log.warning("%s: no rate is served within %g ms on %s", name, objective.slo_ms, kind)
    return tuple(results)


def _objective(model: Mapping[str, Any]) -> ObjectiveConfig:
    """Return a model's objective as far as what its devices can do depends on it: not on the grid, nor on floors."""
    return msgspec.structs.replace(
        msgspec.convert(model["objective"], ObjectiveConfig),
        form="floor",
        lam=None,
        reference_g_per_kwh=_REFERENCE_G_PER_KWH,
        accuracy_floor=0.0,
        accuracy_margin=0.0,
        cascade_margin=None,
        accuracy_budget=None,
    )


def _kinds(told: Mapping[str, Any]) -> dict[str, tuple[DeviceShape, float]]:
    """Return a device of each kind with its idle watts; its name does not matter."""
    kinds: dict[str, tuple[DeviceShape, float]] = {}
    for item in told["devices"]:
        shape = msgspec.convert(item, DeviceShape)
        layouts = tuple(
            tuple(msgspec.structs.replace(place, device=_ANY) for place in layout) for layout in shape.layouts
        )
        idle_w = float(told["idle_w"].get(shape.device, 0.0))
        kinds.setdefault(kind_of(shape), (msgspec.structs.replace(shape, device=_ANY, layouts=layouts), idle_w))
    return kinds
