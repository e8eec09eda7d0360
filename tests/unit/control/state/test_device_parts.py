"""Several families on one GPU: how it is divided, and that none touches what is another's."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clover.control.state.device_pool import (
    DIVIDE_S,
    DevicePool,
    Part,
    divide,
    divide_by_need,
    gather,
    limit,
    most_parts,
    part_slices,
    whole_part,
    within,
)
from clover.control.state.family import Family
from clover.devices import tables
from clover.planning.packing import geometry
from clover.types import DeviceShape, Placement
from tests.support.control_fixture import FakeDevice, FakeFleet, FakeGpu, Rig
from tests.support.examples import examples
from tests.support.mig_fixture import SLICES, a100, mig_profile, slice_worker


def shape_of(name: str) -> tuple[DeviceShape, dict[str, geometry.SliceProfile], int]:
    """A whole GPU of the tables, with its profiles and compute slices."""
    table = tables.table(name)
    profiles = tables.slice_profiles(table)
    compute = max(profile.slices for profile in profiles)
    base = tuple(profile for profile in profiles if "+" not in profile.name)
    layouts = geometry.layouts(base, device="gpu0", compute=compute)
    shape = msgspec.structs.replace(a100(), layouts=layouts, slices=compute)
    return shape, {profile.name: profile for profile in profiles}, compute


def test_an_a100_is_divided_by_share() -> None:
    shape = a100()
    assert (whole_part(shape), most_parts(shape)) == ((0, 8), 7)
    assert divide(shape, {"a": 1.0}) == {"a": (0, 8)}
    assert divide(shape, {"a": 1.0, "b": 1.0}) == {"a": (0, 4), "b": (4, 8)}
    assert divide(shape, {"a": 1.0, "b": 6.0}) == {"a": (0, 1), "b": (1, 8)}
    four = divide(shape, dict.fromkeys("abcd", 1.0))
    assert list(four.values()) == [(0, 2), (2, 4), (4, 6), (6, 8)]
    seven = divide(shape, dict.fromkeys("abcdefg", 1.0))
    assert [part_slices(shape, part) for part in seven.values()] == [1] * 7


@pytest.mark.parametrize("board", ["a100-40gb", "a30-24gb", "h100-sxm-80gb"])
@pytest.mark.parametrize("families", [2, 3])
def test_whatever_families_run_in_their_parts_is_legal_together(board: str, families: int) -> None:
    shape, profiles, compute = shape_of(board)
    parts = list(divide(shape, {str(number): number + 1.0 for number in range(families)}).values())
    assert parts[0][0] == 0
    assert parts[-1][1] == whole_part(shape)[1]
    assert all(before[1] == after[0] for before, after in itertools.pairwise(parts))

    def tried(standing: tuple[Placement, ...], left: Sequence[Part]) -> None:
        assert geometry.legal(standing, profiles, compute=compute) == ""
        if not left:
            return
        allowed = limit(shape, left[0], standing)
        assert allowed.layouts, "there is always something that goes with what the others have"
        for layout in allowed.layouts:
            assert all(within(place, left[0]) for place in layout)
            tried((*standing, *layout), left[1:])

    tried((), parts)


@settings(max_examples=examples(100), deadline=None)
@given(shares=st.lists(st.floats(0.1, 9.0), min_size=1, max_size=12), gpus=st.integers(1, 3), data=st.data())
def test_families_are_gathered_on_gpus_evenly_and_stay(shares: list[float], gpus: int, data: st.DataObject) -> None:
    room = {f"gpu{i}": data.draw(st.integers(1, 7)) for i in range(gpus)}
    families = {f"f{i}": share for i, share in enumerate(shares)}
    before = {family: [data.draw(st.sampled_from(sorted(room)))] for family in families}
    found = gather(room, families, before)
    everyone = [family for names in found.values() for family in names]
    assert len(everyone) == len(set(everyone)) == min(len(families), sum(room.values()))
    assert all(len(names) <= room[name] for name, names in found.items())


def test_a_gpu_is_divided_by_load_only_if_that_helps() -> None:
    shape = a100()
    shares = {"a": 1.0, "b": 1.0}
    parts: dict[str, Part] = {"a": (0, 4), "b": (4, 8)}
    assert divide_by_need(shape, parts, shares, {"a": 4.2, "b": 3.0}) is None, "no more than a tenth"
    assert divide_by_need(shape, parts, shares, {"a": 6.0, "b": 3.0}) is None, "both lack"
    assert divide_by_need(shape, parts, shares, {"a": 1.0, "b": 4.5}) == {"a": (0, 2), "b": (2, 8)}
    assert divide_by_need(shape, {"a": (0, 2), "b": (2, 8)}, shares, {"a": 1.0, "b": 3.0}) is None, "it stays"


# --- controllers ----------------------------------------------------------------------------------


def rig(gpus: int = 1, **config: object) -> Rig:
    devices: dict[str, FakeDevice] = {f"gpu{i}": FakeGpu(a100(f"gpu{i}")) for i in range(gpus)}
    return Rig(devices=devices, measured=mig_profile(), **config)  # type: ignore[arg-type]


def legal(of: Rig) -> None:
    """What all families run is legal, within their parts, and all that stands."""
    of.consistent()
    context = of.controller.context
    profiles = {profile.name: profile for profile in SLICES}
    for name in of.devices:
        here = [
            item.placement
            for family in context.families.values()
            for item in family.desired
            if item.placement.device == name
        ]
        assert geometry.legal(here, profiles, compute=7) == ""
    for family in context.families.values():
        assert not context.must_move(family)


def test_two_families_share_one_gpu_and_change_only_their_own() -> None:
    async def run() -> None:
        of = rig(allow_capacity_loss=True)
        second, fleet = of.second()
        await of.controller.start()
        legal(of)
        assert {place.start // 4 for place in of.family.places} == {0}
        assert {place.start // 4 for place in second.places} == {1}
        (device,) = of.controller.state()["devices"]
        assert device["family"] == "toy, second"
        pool = of.controller.context.device_pool
        assert (pool.part("toy", "gpu0"), pool.part("second", "gpu0")) == (4 / 7, 3 / 7)
        before, calls = list(fleet.alive), len(fleet.calls)
        made = {place.id for place in second.places}
        for groups in ({"large@4g.20gb": 1}, {"large@1g.5gb": 4}, {"large@2g.10gb": 2}):
            await of.controller.command("apply", {"model": "toy", "configuration": groups, "force": True}, "alice")
            legal(of)
            assert fleet.alive == before
            assert made <= of.devices["gpu0"].made
        assert len(fleet.calls) == calls
        await of.controller.stop()

    asyncio.run(run())


def test_eight_families_share_two_gpus() -> None:
    async def run() -> None:
        of = rig(2)
        fleets = [FakeFleet() for _ in range(7)]
        for number, fleet in enumerate(fleets):
            config = msgspec.structs.replace(of.settings, name=f"m{number}", accuracy_floor=80.0)
            of.controller.add(of.family.spec, of.profile, fleet, config)
        for fleet in (of.fleet, *fleets):
            fleet.figures["arrival_rate"] = 5.0
        await of.controller.start()
        legal(of)
        families = of.controller.context.families.values()
        assert all(family.desired and family.deployed.plan.feasible for family in families if family.deployed)
        assert all(len(family.devices) == 1 for family in families)
        assert sorted(len(of.controller.context.device_pool.owners(name)) for name in of.devices) == [4, 4]
        await of.look(10.0, looks=3)
        legal(of)
        await of.controller.stop()

    asyncio.run(run())


def test_a_family_that_joins_gets_a_part_and_the_other_makes_room() -> None:
    async def run() -> None:
        of = rig()
        await of.settled()
        assert max(place.start + place.size for place in of.family.places) > 4
        fleet = FakeFleet()
        config = msgspec.structs.replace(of.settings, name="second")
        await of.controller.adopt(of.family.spec, of.profile, fleet, config)
        legal(of)
        assert fleet.alive
        assert of.controller.decisions(2)[1]["trigger"] == "second needs a place"

    asyncio.run(run())


def test_a_family_whose_gpu_is_lost_takes_a_part_of_anothers() -> None:
    async def run() -> None:
        of = rig(2)
        second, fleet = of.second()
        await of.controller.start()
        assert (of.family.devices, second.devices) == ({"gpu0"}, {"gpu1"})
        lost = of.devices["gpu0"]
        assert isinstance(lost, FakeGpu)
        lost.lost = True
        await of.look(10.0, looks=3)
        lost.made.clear()
        legal(of)
        assert of.fleet.alive
        assert fleet.alive
        assert of.family.devices == second.devices == {"gpu1"}
        lost.lost = False
        await of.look(10.0, looks=3)
        legal(of)
        assert {*of.family.devices, *second.devices} == {"gpu0", "gpu1"}
        await of.controller.stop()

    asyncio.run(run())


def _parts(of: Rig) -> dict[str, Part]:
    pool = of.controller.context.device_pool
    return {name: pool.assigned(name)["gpu0"] for name in of.controller.context.families}


def _capacity(family: Family) -> float:
    return sum(map(family.capacity(1.0), family.desired))


def test_the_gpu_is_divided_anew_when_one_family_needs_more_and_not_again_soon() -> None:
    async def run() -> None:
        of = rig()
        second, fleet = of.second()
        of.fleet.figures["arrival_rate"] = fleet.figures["arrival_rate"] = 5.0
        await of.controller.start()
        assert _parts(of) == {"toy": (0, 4), "second": (4, 8)}
        await of.look(DIVIDE_S, looks=2)
        assert _parts(of) == {"toy": (0, 4), "second": (4, 8)}, "nobody lacks anything"
        fleet.figures["arrival_rate"] = 1.4 * _capacity(second)
        await of.look(10.0, looks=4)
        after = _parts(of)
        assert after["second"][0] < 4
        legal(of)
        assert "gpu0 is assigned to toy and second now" in {item["trigger"] for item in of.controller.decisions(20)}
        of.fleet.figures["arrival_rate"] = 3.0 * _capacity(of.family)
        fleet.figures["arrival_rate"] = 5.0
        await of.look(10.0, looks=10)
        assert _parts(of) == after
        await of.look(10.0, looks=int(DIVIDE_S / 10.0))
        assert _parts(of)["toy"][1] > after["toy"][1]
        legal(of)
        await of.controller.stop()

    asyncio.run(run())


def test_a_frozen_family_keeps_its_part() -> None:
    pool = DevicePool({"gpu0": FakeGpu(a100())})
    for name in ("a", "b"):
        pool.name(name, 1.0)
    pool.assign({})
    assert not pool.divide({"b": 9.0}, 1000.0)
    assert pool.divide({"a": 0.5, "b": 6.0}, 1000.0)
    assert pool.outside("a", [slice_worker("small", "3g.20gb", 0).placement])
