"""Laying out: what it keeps, against trying every combination of layouts."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clover.errors import PlanError
from clover.planning.transition.layout import lay_out
from clover.types import Assignment, Configuration, DeviceShape, GroupCount, Placement, configuration_of
from tests.support.geometry_fixture import a30, a100, filled, runs
from tests.support.profiles_fixture import cpu

BACKEND = {"small": "eager", "large": "eager"}
RATES = {"small": 3.0, "large": 1.0}


def rows_per_s(item: Assignment) -> float:
    return RATES[item.variant] * item.placement.slices


def deployment(draw: Callable[..., Any], devices: tuple[DeviceShape, ...]) -> tuple[Assignment, ...]:
    found = []
    for device in devices:
        for place in draw(st.sampled_from(device.layouts)):
            variant = draw(st.sampled_from(sorted(BACKEND)))
            found.append(Assignment(placement=place, family="toy", variant=variant, backend="eager"))
    return tuple(found)


def kept(
    layout: set[str], running: tuple[Assignment, ...], wanted: Configuration, *, by_rows: bool
) -> tuple[float, int]:
    """Capacity that need not go down, and workers that may stay, one device at a time."""
    counts = {(group.variant, group.profile): group.count for group in wanted}
    capacity, same = 0.0, Counter[tuple[str, tuple[str, str]]]()
    for item in running:
        if item.placement.id not in layout:
            continue
        key = (item.variant, item.placement.profile)
        own = rows_per_s(item) if by_rows else float(item.placement.slices)
        if key in counts:
            capacity += own
            same[item.placement.device, key] += 1
        else:
            rates = [
                RATES[v] * item.placement.slices if by_rows else float(item.placement.slices)
                for v, profile in counts
                if profile == item.placement.profile
            ]
            capacity += min(own, max(rates))
    return round(capacity, 6), sum(min(number, counts[key]) for (_, key), number in same.items())


def all_layouts(devices: tuple[DeviceShape, ...], wanted: Configuration) -> list[set[str]]:
    profiles = Counter[str]()
    for group in wanted:
        profiles[group.profile] += group.count
    found = []
    for chosen in itertools.product(*(device.layouts for device in devices)):
        places: list[Placement] = [place for layout in chosen for place in layout]
        if Counter(place.profile for place in places) == profiles:
            found.append({place.id for place in places})
    return found


BOXES = (
    (a100("gpu0"),),
    (a100("gpu0"), a100("gpu1")),
    (a30("gpu0"), a30("gpu1"), a30("gpu2")),
    (a100("gpu0"), a30("gpu1")),
)


@pytest.mark.slow
@pytest.mark.parametrize("devices", BOXES, ids=["a100", "2xa100", "3xa30", "a100+a30"])
@settings(max_examples=60, deadline=None)
@given(data=st.data(), by_rows=st.booleans())
def test_nothing_keeps_more(devices: tuple[DeviceShape, ...], data: st.DataObject, by_rows: bool) -> None:
    draw = data.draw
    running = deployment(draw, devices)
    wanted = configuration_of(deployment(draw, devices))
    target = lay_out(
        wanted,
        family="toy",
        backend=BACKEND,
        devices=devices,
        running=running,
        capacity=rows_per_s if by_rows else None,
    )
    assert configuration_of(target) == wanted
    places = {item.placement.id for item in target}
    assert len(places) == len(target)
    everything = all_layouts(devices, wanted)
    assert places in everything
    best = max(kept(layout, running, wanted, by_rows=by_rows) for layout in everything)
    assert kept(places, running, wanted, by_rows=by_rows) == best
    if len(devices) == 1:
        assert len(set(running) & set(target)) == best[1]


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_what_no_layouts_give_is_refused_and_nothing_else(data: st.DataObject) -> None:
    devices = (a30("gpu0"), a30("gpu1"))
    groups = data.draw(
        st.dictionaries(st.sampled_from(("1g.6gb", "2g.12gb", "4g.24gb", "3g.20gb")), st.integers(1, 9), max_size=3)
    )
    wanted = tuple(GroupCount(variant="small", profile=name, count=n) for name, n in sorted(groups.items()))
    possible = bool(all_layouts(devices, wanted))
    if possible:
        target = lay_out(wanted, family="toy", backend=BACKEND, devices=devices)
        assert configuration_of(target) == wanted
    else:
        with pytest.raises(PlanError, match="no layout of gpu0, gpu1 consists of"):
            lay_out(wanted, family="toy", backend=BACKEND, devices=devices)


def test_equal_gpus_are_interchangeable() -> None:
    devices = (a100("gpu0"), a100("gpu1"))
    running = (*filled(a100("gpu0").layouts[0], "large"), *filled(a100("gpu1").layouts[-1], "small"))
    mirrored = tuple(
        Assignment(
            placement=Placement(
                device={"gpu0": "gpu1", "gpu1": "gpu0"}[item.placement.device],
                profile=item.placement.profile,
                start=item.placement.start,
                size=item.placement.size,
            ),
            family="toy",
            variant=item.variant,
            backend="eager",
        )
        for item in running
    )
    target = lay_out(configuration_of(mirrored), family="toy", backend=BACKEND, devices=devices, running=running)
    assert set(target) == set(running)


def test_an_instance_that_stays_beats_a_worker_that_stays() -> None:
    # Both targets of the 3g fit; the one under which the four 1g stay loses no capacity while variants change.
    device = a100("gpu0")
    running = (*(runs("small", "1g.5gb", start) for start in range(4)), runs("large", "3g.20gb", 4))
    wanted = configuration_of((*(runs("large", "1g.5gb", start) for start in range(4)), runs("large", "3g.20gb", 4)))
    target = lay_out(wanted, family="toy", backend=BACKEND, devices=(device,), running=running)
    assert {item.placement for item in target} == {item.placement for item in running}


def test_ten_gpus_are_laid_out_over_themselves_without_a_change() -> None:
    devices = tuple(a100(f"gpu{index}") for index in range(10))
    running = tuple(
        item
        for index, device in enumerate(devices)
        for item in filled(device.layouts[(index * 7) % 19], ("small", "large")[index % 2])
    )
    target = lay_out(
        configuration_of(running), family="toy", backend=BACKEND, devices=tuple(reversed(devices)), running=running
    )
    assert set(target) == set(running)


def test_core_sets_keep_workers_first_and_places_second() -> None:
    device = cpu(4)
    places = {(p.size, p.start): p for layout in device.layouts for p in layout}
    running = tuple(
        Assignment(placement=places[2, start], family="toy", variant="large", backend="eager") for start in (0, 2)
    )
    wanted = (GroupCount(variant="large", profile="2c", count=2),)
    assert lay_out(wanted, family="toy", backend=BACKEND, devices=(device,), running=running) == running
