"""Enumeration of configurations as tests ask for it: of devices, within a limit that is never met."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from clover.planning.packing.candidates import Profiles, configurations_of, kinds_of, profile_sets_of
from clover.types import Configuration, DeviceShape

LIMIT = 200_000


def configurations(
    devices: Sequence[DeviceShape],
    fitting: Mapping[str, tuple[str, ...]],
    *,
    limit: int = LIMIT,
) -> list[Configuration]:
    """Return all configurations of the devices, sorted; `fitting` names the variants that run on each profile."""
    return configurations_of(kinds_of(devices), dict(fitting), limit=limit)


def profile_sets(devices: Sequence[DeviceShape]) -> list[Profiles]:
    """Return the different multisets of profiles that the devices' layouts allow together, sorted."""
    return profile_sets_of(kinds_of(devices), LIMIT)
