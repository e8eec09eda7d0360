"""GPUs by their published geometry, and workers on them, for tests of planning."""

from __future__ import annotations

from functools import cache

from clover.planning.packing.geometry import SliceProfile, layouts
from clover.types import Assignment, DeviceShape, Placement

A100 = (
    SliceProfile(name="1g.5gb", slices=1, size=1, starts=(0, 1, 2, 3, 4, 5, 6), most=7),
    SliceProfile(name="2g.10gb", slices=2, size=2, starts=(0, 2, 4), most=3),
    SliceProfile(name="3g.20gb", slices=3, size=4, starts=(0, 4), most=2),
    SliceProfile(name="4g.20gb", slices=4, size=4, starts=(0,), most=1),
    SliceProfile(name="7g.40gb", slices=7, size=8, starts=(0,), most=1),
)
A100_MEDIA = SliceProfile(name="1g.5gb+me", slices=1, size=1, starts=(0, 1, 2, 3, 4, 5, 6), most=1, media=True)
A100_DOUBLE = SliceProfile(name="1g.10gb", slices=1, size=2, starts=(0, 2, 4, 6), most=4)
A30 = (
    SliceProfile(name="1g.6gb", slices=1, size=1, starts=(0, 1, 2, 3), most=4),
    SliceProfile(name="2g.12gb", slices=2, size=2, starts=(0, 2), most=2),
    SliceProfile(name="4g.24gb", slices=4, size=4, starts=(0,), most=1),
)
BY_NAME = {profile.name: profile for profile in (*A100, A100_MEDIA, A100_DOUBLE)}


def place(profile: str, start: int, device: str = "gpu0") -> Placement:
    known = {**BY_NAME, **{item.name: item for item in A30}}
    return Placement(device=device, profile=profile, start=start, size=known[profile].size)


@cache
def a100_layouts(device: str = "gpu0") -> tuple[tuple[Placement, ...], ...]:
    return layouts(A100, device=device, compute=7)


@cache
def a100(device: str = "gpu0") -> DeviceShape:
    return DeviceShape(device=device, kind="mig", layouts=a100_layouts(device), slices=7, overlap=False)


@cache
def a30(device: str = "gpu0") -> DeviceShape:
    found = layouts(A30, device=device, compute=4)
    return DeviceShape(device=device, kind="mig", layouts=found, slices=4, overlap=False)


def runs(variant: str, profile: str, start: int, device: str = "gpu0", backend: str = "eager") -> Assignment:
    return Assignment(placement=place(profile, start, device), family="toy", variant=variant, backend=backend)


def filled(layout: tuple[Placement, ...], variant: str = "small") -> tuple[Assignment, ...]:
    """A worker of `variant` on every instance of a layout."""
    return tuple(Assignment(placement=p, family="toy", variant=variant, backend="eager") for p in layout)
