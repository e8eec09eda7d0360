"""Which variants a worker should hold beside the one it is started for, and how much memory all of them may take.

Variants that the plan has at the worker's placement come first, then those that it has elsewhere, then the cheapest.  A
variant that does not fit any more, by the memory in its profile, is passed over.  If its memory is not known, the
worker measures it, and leaves the variant out if it does not fit.
"""

from __future__ import annotations

from collections.abc import Collection

from clover.interfaces import Device
from clover.planning.model.problem import backends_of, services_of
from clover.runtime.memory.free import machine_memory
from clover.types import FamilyProfile, Placement
from clover.worker.frames import Recording

MEMORY_PART = 0.7
"""The part of a slice's memory that resident variants may take: the rest is for what batches take while they run."""


def part_of_machine(device: Device, placement: Placement, share: float) -> float:
    """Return the part of the machine's memory that is for the cores of `placement`, if the family has `share` of it."""
    return share * placement.size / max(1, device.shape().slices)


def resident_bytes(device: Device, placement: Placement, *, share: float, limit_bytes: int = 0) -> int:
    """Return the bytes that the variants of a worker at `placement` may take together: a part (`MEMORY_PART`) of
    the slice's own memory, or, on cores, of their part of the family's `share` of the machine's, at most of
    `limit_bytes` (the limit of a worker; 0: none).  0 if nothing is known."""
    memory = device.memory_bytes(placement)
    if not memory:
        memory = int(machine_memory() * part_of_machine(device, placement, share))
        if limit_bytes:
            memory = min(memory, limit_bytes) if memory else limit_bytes
    return int(MEMORY_PART * memory)


def recording(profile: FamilyProfile | None, variant: str, place_profile: str, backend: str) -> Recording:
    """Return what a worker on a slice of `place_profile` does about recorded launches of a variant, by what profiling
    found there; to compare them takes seconds, and what fails to be recorded may spoil more."""
    cell = variant, place_profile, backend
    for recorded in profile.recorded if profile is not None else ():
        if (recorded.variant, recorded.profile, recorded.backend) == cell:
            return "skip" if recorded.refused else "trust"
    return "check"


def choose_residents(
    profile: FamilyProfile | None,
    first: tuple[str, str],
    place_profile: str,
    *,
    most: int,
    limit_bytes: int,
    here: Collection[str] = (),
    planned: Collection[str] = (),
) -> tuple[tuple[str, str], ...]:
    """Return (variant, backend) of what to hold beside `first` on slices of `place_profile`, most useful first: at most
    `most` with the first one, as far as they were profiled there and are not known to exceed `limit_bytes` (0: no
    limit).  `here`: the variants that the plan has at the placement, `planned`: those that it has anywhere."""
    if profile is None or most <= 1:
        return ()
    services = services_of(profile)
    candidates = [
        (variant, backend)
        for (variant, name), backend in backends_of(profile).items()
        if name == place_profile and variant != first[0]
    ]
    candidates.sort(key=lambda one: (services[one[0], place_profile].least_energy_j, one[0]))
    candidates.sort(key=lambda one: (one[0] not in here, one[0] not in planned))
    needs = {
        (one.variant, one.backend): one.weights_bytes + one.peak_bytes
        for one in profile.memory
        if one.profile == place_profile
    }
    used = profile.context_bytes.get(place_profile, 0) + needs.get(first, 0)
    kept: list[tuple[str, str]] = []
    for one in candidates:
        if len(kept) + 1 >= most:
            break
        need = needs.get(one, 0)
        if limit_bytes and used + need > limit_bytes:
            continue
        used += need
        kept.append(one)
    return tuple(kept)
