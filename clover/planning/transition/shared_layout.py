"""From a configuration whose workers may share their time to a deployment: a placement then has several assignments.

Workers that hold the same variants are laid out as if these were one variant (`transition.layout`), and an assignment
for each of them is made of it afterwards.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from clover.planning.transition.layout import Capacity, lay_out
from clover.types import Assignment, Configuration, DeviceShape, GroupCount, Placement

_AND = "\0"  # between the names of variants that are laid out as one


def lay_out_shared(
    configuration: Configuration,
    *,
    family: str,
    backend: Mapping[str, str],
    devices: Sequence[DeviceShape],
    running: Sequence[Assignment] = (),
    capacity: Capacity | None = None,
    own: Mapping[tuple[str, str], str] | None = None,
) -> tuple[Assignment, ...]:
    """Return what `lay_out` does, with an assignment for each variant of workers that share their time."""
    if not any(group.beside for group in configuration):
        return lay_out(
            configuration, family=family, backend=backend, devices=devices, running=running, capacity=capacity, own=own
        )
    backends = {
        (variant, group.profile): (own or {}).get((variant, group.profile)) or backend.get(variant, "")
        for group in configuration
        for variant in group.variants
    }
    joined = tuple(
        GroupCount(variant=_AND.join(group.variants), profile=group.profile, count=group.count)
        for group in configuration
    )
    held: dict[Placement, list[Assignment]] = {}
    for item in running:
        held.setdefault(item.placement, []).append(item)
    together = [_joined(sorted(items, key=lambda item: item.variant)) for items in held.values() if len(items) > 1]
    found = lay_out(
        joined,
        family=family,
        backend={},
        devices=devices,
        running=[*together, *running],
        capacity=_mean(capacity) if capacity is not None else None,
        own={
            (_AND.join(group.variants), group.profile): _AND.join(backends[v, group.profile] for v in group.variants)
            for group in configuration
        },
    )
    return tuple(
        Assignment(placement=item.placement, family=family, variant=variant, backend=name)
        for item in found
        for variant, name in zip(item.variant.split(_AND), item.backend.split(_AND), strict=True)
    )


def _joined(items: Sequence[Assignment]) -> Assignment:
    return Assignment(
        placement=items[0].placement,
        family=items[0].family,
        variant=_AND.join(item.variant for item in items),
        backend=_AND.join(item.backend for item in items),
    )


def _mean(capacity: Capacity) -> Capacity:
    """Return the capacity of a worker of several variants: the mean of theirs."""

    def of(item: Assignment) -> float:
        names = zip(item.variant.split(_AND), item.backend.split(_AND), strict=True)
        own = [
            capacity(Assignment(placement=item.placement, family=item.family, variant=variant, backend=backend))
            for variant, backend in names
        ]
        return sum(own) / len(own)

    return of
