"""Synthetic A100s: the real geometry, and the toy family of `profiles_fixture` at speeds nobody measured."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import msgspec

from clover.planning.packing.geometry import SliceProfile, layouts
from clover.types import Assignment, DeviceShape, FamilyProfile, LatencyMeasurement, Placement
from tests.support.profiles_fixture import VARIANTS
from tests.support.profiles_fixture import profile as cpu_profile

SLICES = (
    SliceProfile(name="1g.5gb", slices=1, size=1, starts=tuple(range(7)), most=7),
    SliceProfile(name="2g.10gb", slices=2, size=2, starts=(0, 2, 4), most=3),
    SliceProfile(name="3g.20gb", slices=3, size=4, starts=(0, 4), most=2),
    SliceProfile(name="4g.20gb", slices=4, size=4, starts=(0,), most=1),
    SliceProfile(name="7g.40gb", slices=7, size=8, starts=(0,), most=1),
)
SIZE = {item.name: item.size for item in SLICES}


@functools.cache
def _layouts(device: str, blocked: tuple[tuple[int, int], ...]) -> tuple[tuple[Placement, ...], ...]:
    if device:
        return tuple(
            tuple(msgspec.structs.replace(place, device=device) for place in layout) for layout in _layouts("", blocked)
        )
    return layouts(SLICES, device=device, compute=7 - sum(size for _, size in blocked), blocked=blocked)


def a100(device: str = "gpu0", *, blocked: Sequence[tuple[int, int]] = (), lost: bool = False) -> DeviceShape:
    """An A100; `blocked`: (start, size) on its memory axis that somebody else holds (1g or 2g, say)."""
    return DeviceShape(
        device=device,
        kind="mig",
        layouts=() if lost else _layouts(device, tuple(blocked)),
        slices=7,
        overlap=False,
        emulated=True,
        label="NVIDIA A100-SXM4-40GB, emulated",
    )


def a100s(count: int) -> tuple[DeviceShape, ...]:
    return tuple(a100(f"gpu{index}") for index in range(count))


def slice_worker(variant: str, profile: str, start: int, device: str = "gpu0", family: str = "toy") -> Assignment:
    placement = Placement(device=device, profile=profile, start=start, size=SIZE[profile])
    return Assignment(placement=placement, family=family, variant=variant, backend="eager")


def mig_profile(variants: dict[str, tuple[float, float]] | None = None) -> FamilyProfile:
    """A variant of x ms on a core takes x ms on 1g; n compute slices are n^0.8 times faster and draw n x 10 W."""
    rows = variants or VARIANTS
    base = cpu_profile((1,), rows)
    latency: list[LatencyMeasurement] = []
    for item in base.latency:
        for shape in SLICES:
            mean_ms = item.mean_ms / shape.slices**0.8
            latency.append(
                msgspec.structs.replace(
                    item,
                    profile=shape.name,
                    threads=1,
                    mean_ms=mean_ms,
                    p50_ms=mean_ms,
                    p95_ms=mean_ms,
                    p99_ms=mean_ms,
                    cpu_s_per_row=0.0,
                    energy_j_per_row=mean_ms * shape.slices / item.batch / 1e3 * 10.0,
                    energy_method="analytical",
                )
            )
    best = base.base.variant
    whole = next(m for m in latency if (m.variant, m.profile, m.batch) == (best, "7g.40gb", 1))
    return msgspec.structs.replace(
        base,
        latency=tuple(latency),
        base=msgspec.structs.replace(
            base.base, profile="7g.40gb", p95_ms=10.0, energy_j_per_row=whole.energy_j_per_row, method="analytical"
        ),
    )
