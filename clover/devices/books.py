"""The books of one GPU, as the event loop keeps them: which instances exist, whose they are, and what fits beside.

Every GPU instance that exists is in one of these states:

    ours         recorded as made by Clover.  It serves, or waits to be removed.
    quarantined  ours, but the driver would not remove it: a process that does not die, or a handle that leaked.
    foreign      anything else.

If the driver failed to make an instance at a place, even one that had been there, the place is barred until making one
succeeds.

Layouts are what is possible beside foreign and quarantined instances and barred places.  They have plain profiles only:
a batch of inference has no use for media engines, graphics or double memory.  Ours are no obstacle, as transitions move
them.  A GPU without MIG is one instance, `gpu`, that always exists.  Fixed instances may be used but not changed: they
are the only layout.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterable
from typing import Any

import msgspec

from clover.devices.gpu import GpuInstance, MigGpu
from clover.devices.instances import InstanceInventory
from clover.errors import DeviceError
from clover.planning.packing import geometry
from clover.types import Placement

Place = tuple[str, int]
"""Profile and start: what tells the instances of one GPU apart."""

WHOLE = "gpu"
"""The profile of a GPU without MIG."""


def place_of(placement: Placement) -> Place:
    """Return the place of a placement."""
    return placement.profile, placement.start


class Books:
    """What is known of the instances of `gpu`, which the server calls `name`."""

    def __init__(self, gpu: MigGpu, name: str) -> None:
        self.ours: dict[Place, GpuInstance] = {}
        self.foreign: dict[Place, GpuInstance] = {}
        self.quarantined: dict[Place, str] = {}
        """Why an instance of ours cannot be removed."""
        self.barred: dict[Place, str] = {}
        """Why no instance can be made there."""
        self._gpu = gpu
        self._name = name

    def sort(self, standing: InstanceInventory) -> None:
        """Take over what was found; an instance that no longer exists is not quarantined any more."""
        self.ours = {found.place: found for found in standing.ours}
        self.foreign = {found.place: found for found in standing.foreign}
        self.quarantined = {place: why for place, why in self.quarantined.items() if place in self.ours}

    def check(self, placement: Placement, label: str) -> None:
        """Raise DeviceError if the GPU has no such place."""
        if self._gpu.mig:
            profile = self._gpu.profiles.get(placement.profile)
            known = (
                profile is not None
                and placement.device == self._name
                and placement.start in profile.starts
                and placement.size == profile.size
            )
        else:
            known = placement == self.whole
        if not known:
            raise DeviceError(f"{placement.id} does not exist on {self._name}, {label}")

    def usable(self) -> tuple[Placement, ...]:
        """Return our instances that are complete and not quarantined, by start."""
        if not self._gpu.mig:
            return (self.whole,)
        return self.placements(
            found for place, found in self.ours.items() if found.uuid and place not in self.quarantined
        )

    def layouts(self) -> tuple[tuple[Placement, ...], ...]:
        """Return the layouts possible beside foreign and quarantined instances and barred places; none if no room is
        left."""
        if not self._gpu.mig:
            return ((self.whole,),)
        if self._gpu.fixed:
            return (standing,) if (standing := self.usable()) else ()
        taken = [*self.foreign.values(), *(self.ours[place] for place in self.quarantined)]
        counts = Counter(found.profile for found in taken)
        base = tuple(
            msgspec.structs.replace(profile.shape, most=profile.most - counts[name])
            for name, profile in self._gpu.profiles.items()
            if profile.base
        )
        compute = self._gpu.slices - sum(self._gpu.profiles[found.profile].slices for found in taken)
        barred = {(start, self._gpu.profiles[name].size) for name, start in self.barred}
        blocked = tuple(sorted({(found.start, found.size) for found in taken} | barred))
        return tuple(
            tuple(msgspec.structs.replace(placement, device=self._name) for placement in layout)
            for layout in _possible(base, compute, blocked)
        )

    def obstacle(self, place: Place) -> str:
        """Return what occupies `place`, in words; empty if nothing does."""
        ways = (
            ("quarantined", [self.ours[other] for other in self.quarantined]),
            ("not made by Clover", list(self.foreign.values())),
            ("made by Clover", [found for other, found in self.ours.items() if other not in self.quarantined]),
        )
        start, end = place[1], place[1] + self._gpu.profiles[place[0]].size
        texts = [
            f"{self.placement(found).id} ({whose})"
            for whose, items in ways
            for found in items
            if found.start < end and start < found.start + found.size
        ]
        return f"in its place stands {', '.join(texts)}" if texts else ""

    def barred_empty(self) -> list[Place]:
        """Return the barred places in which nothing stands."""
        return [place for place in self.barred if not self.obstacle(place)]

    def report(self) -> dict[str, Any]:
        """Return the instances that exist, as JSON."""
        return {
            "instances": [placement.id for placement in self.usable()],
            "foreign": self._not_ours(),
            "quarantined": [
                {"placement": self.id_of(place), "reason": why}
                for place, why in sorted({**self.barred, **self.quarantined}.items(), key=lambda item: item[0][1])
            ],
        }

    def _not_ours(self) -> list[str]:
        """Return what is on the GPU and not ours; beside fixed instances that is not to be seen, only how much."""
        others, slices = self._gpu.others, self._gpu.slices
        unseen = [f"{others} of {others + slices} compute slices, which this process does not see"] if others else []
        return [placement.id for placement in self.placements(self.foreign.values())] + unseen

    @property
    def whole(self) -> Placement:
        """The one instance of a GPU without MIG."""
        return Placement(device=self._name, profile=WHOLE, start=0, size=1)

    def placement(self, found: GpuInstance) -> Placement:
        """Return an instance as a placement."""
        return Placement(device=self._name, profile=found.profile, start=found.start, size=found.size)

    def placements(self, found: Iterable[GpuInstance]) -> tuple[Placement, ...]:
        """Return instances as placements, by start."""
        return tuple(sorted(map(self.placement, found), key=lambda item: (item.start, item.profile)))

    def id_of(self, place: Place) -> str:
        """Return the name of a place in messages."""
        return Placement(device=self._name, profile=place[0], start=place[1], size=1).id


@functools.lru_cache(maxsize=64)
def _possible(
    profiles: tuple[geometry.SliceProfile, ...], compute: int, blocked: tuple[tuple[int, int], ...]
) -> tuple[tuple[Placement, ...], ...]:
    """Return maximal layouts of a GPU without a name, so that GPUs of one kind share the search."""
    layouts = geometry.layouts(profiles, device="", compute=compute, blocked=blocked)
    return tuple(layout for layout in layouts if layout)
