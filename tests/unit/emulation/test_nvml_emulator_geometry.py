"""Which instances the emulated NVML lets exist, held against the tables by brute force, for every board there is."""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clover.devices import tables
from clover.devices.tables import GpuTable, ProfileRow
from clover.emulation import emulated
from clover.planning.packing.geometry import layouts
from tests.support.nvml_child import Child

Made = tuple[ProfileRow, int]


@pytest.fixture(scope="module")
def boxes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Child, Path]]:
    folder = tmp_path_factory.mktemp("boxes")
    emulated.create_box(folder / "first.nvml", "a30-24gb", 1)
    with Child(folder / "first.nvml") as child:
        yield child, folder


_numbers = iter(range(10_000))


def fresh(boxes: tuple[Child, Path], name: str) -> Child:
    child, folder = boxes
    path = folder / f"{next(_numbers)}.nvml"
    emulated.create_box(path, name, 1)
    return child.move(path)


def legal(gpu: GpuTable, made: list[Made]) -> bool:
    """By definition, slice by slice and pair by pair."""
    cells = [cell for row, start in made for cell in range(start, start + row.size)]
    kinds = [row.kind for row, _ in made]
    return (
        all(start in row.starts for row, start in made)
        and len(cells) == len(set(cells))
        and sum(row.slices for row, _ in made) <= gpu.compute_slices
        and all(sum(other == row for other, _ in made) <= row.most for row, _ in made)
        and sum(kind in ("media", "all-media") for kind in kinds) <= 1
        and ("all-media" not in kinds or all(kind in ("all-media", "no-media") for kind in kinds))
    )


def heap_id(gpu: GpuTable, row: ProfileRow, start: int) -> int:
    """Where the interval lies in the tree that halves the axis."""
    level = {1: 0, 2: 1, 4: 3, 8: 7}[gpu.memory_slices // row.size]
    return level + start // row.size


steps = st.lists(st.tuples(st.booleans(), st.integers(0, 10**6), st.integers(0, 10**6)), min_size=5, max_size=30)


@pytest.mark.slow
@pytest.mark.parametrize("name", tables.names())
@settings(max_examples=8)
@given(walk=steps)
def test_random_walks_are_legal_exactly_where_brute_force_says(
    boxes: tuple[Child, Path], name: str, walk: list[tuple[bool, int, int]]
) -> None:
    gpu = tables.table(name)
    child = fresh(boxes, name)
    made: list[Made] = []
    orders: list[list[object]] = []
    expected: list[str] = []
    for destroys, which, where in walk:
        if destroys and made:
            row, start = made.pop(which % len(made))
            orders.append(["-", heap_id(gpu, row, start)])
            expected.append("SUCCESS")
            continue
        row = gpu.profiles[which % len(gpu.profiles)]
        start = where % (gpu.memory_slices + 1) if where % 3 == 0 else row.starts[where % len(row.starts)]
        orders.append(["+", row.name, start])
        if start not in row.starts:
            expected.append("INVALID_ARGUMENT")
        elif legal(gpu, [*made, (row, start)]):
            expected.append("SUCCESS")
            made.append((row, start))
        else:
            expected.append("INSUFFICIENT_RESOURCES")
    assert child(f"walk({orders!r})") == expected
    left = sorted([heap_id(gpu, row, start), row.profile_id, start, row.size] for row, start in made)
    assert child("instances()") == left


@pytest.mark.parametrize("name", tables.names())
def test_what_remains_is_what_can_be_made(boxes: tuple[Child, Path], name: str) -> None:
    """The capacity that is left of every profile, by trying all of its placements."""
    gpu, luck = tables.table(name), random.Random(name)
    child = fresh(boxes, name)
    made: list[Made] = []
    for _ in range(4):
        fitting = [(row, at) for row in gpu.profiles for at in row.starts if legal(gpu, [*made, (row, at)])]
        for row in gpu.profiles:
            most = max(
                count
                for count in range(len(row.starts) + 1)
                if any(legal(gpu, [*made, *((row, at) for at in some)]) for some in combinations(row.starts, count))
            )
            assert child(f"n.nvmlDeviceGetGpuInstanceRemainingCapacity(gpu(), {row.profile_id})") == most, row.name
        if not fitting:
            break
        row, start = luck.choice(fitting)
        child.run(f"create('{row.name}', {start})")
        made.append((row, start))


@pytest.mark.parametrize("name", tables.names())
def test_the_driver_places_at_the_highest_start_that_fits(boxes: tuple[Child, Path], name: str) -> None:
    gpu, luck = tables.table(name), random.Random(name)
    child = fresh(boxes, name)
    made: list[Made] = []
    for row in luck.choices(gpu.profiles, k=10):
        fitting = [start for start in row.starts if legal(gpu, [*made, (row, start)])]
        if fitting:
            made.append((row, max(fitting)))
            made_id = child(f"n.nvmlGpuInstanceGetInfo(create('{row.name}')).id")
            assert made_id == heap_id(gpu, row, max(fitting))
        else:
            assert child.refused(f"create('{row.name}')") == "INSUFFICIENT_RESOURCES"


def test_compute_slices_run_out_too(boxes: tuple[Child, Path]) -> None:
    """On the real boards memory always runs out first; on this one 1g could start at all eight memory slices."""
    child, folder = boxes
    gpu = tables.table("a100-40gb")
    first = msgspec.structs.replace(gpu.profiles[0], starts=tuple(range(8)), most=8)
    emulated.create_box(folder / "wide.nvml", msgspec.structs.replace(gpu, profiles=(first, *gpu.profiles[1:])), 1)
    child.move(folder / "wide.nvml")
    child.run(f"for start in range(1, 8): create('{first.name}', start)")
    assert child.refused(f"create('{first.name}', 0)") == "INSUFFICIENT_RESOURCES"
    assert child(f"n.nvmlDeviceGetGpuInstanceRemainingCapacity(gpu(), {first.profile_id})") == 0


def test_an_a100_has_297_legal_sets_19_of_them_maximal(boxes: tuple[Child, Path]) -> None:
    gpu = tables.table("a100-40gb")
    base = [row.name for row in gpu.profiles if row.base]
    child = fresh(boxes, gpu.name)
    found = {tuple((name, start) for name, start in made) for made in child(f"enumerate_all({base})")}
    assert len(found) == 297
    maximal = {made for made in found if not any(set(made) < set(other) for other in found)}
    assert len(maximal) == 19
    assert len({tuple(sorted(name for name, _ in made)) for made in maximal}) == 14
    slices = {row.name: row.slices for row in gpu.profiles}
    assert sum(sum(slices[name] for name, _ in made) == 7 for made in maximal) == 16
    planned = layouts(tables.slice_profiles(gpu), device="gpu0", compute=7)
    assert {tuple(sorted((place.profile, place.start) for place in layout)) for layout in planned} == maximal


@pytest.mark.parametrize("name", [name for name in tables.names() if name != "a100-40gb"])
def test_the_planner_knows_the_layouts_of_every_board(boxes: tuple[Child, Path], name: str) -> None:
    gpu = tables.table(name)
    base = [row.name for row in gpu.profiles if row.base]
    found = {tuple((one, start) for one, start in made) for made in fresh(boxes, name)(f"enumerate_all({base})")}
    planned = layouts(tables.slice_profiles(gpu), device="gpu0", compute=gpu.compute_slices, maximal=False)
    assert {tuple(sorted((place.profile, place.start) for place in layout)) for layout in planned} - {()} == found
