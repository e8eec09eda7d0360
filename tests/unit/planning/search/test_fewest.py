"""How few cores would do: the first cores as a device of their own, and the fewest of them that keep the limits."""

from __future__ import annotations

from dataclasses import replace

import pytest

from clover.devices.cpu import CpuDevice, layouts_of
from clover.planning.model.cores import core_counts, cores_of, cores_under, first_cores, row_of_cores
from clover.planning.model.objective import objective_of
from clover.planning.model.problem import problem_of
from clover.planning.search.best import fewest_cores
from clover.planning.search.configurations import best_found
from clover.types import DeviceShape, State
from tests.support.profiles_fixture import cpu, objective, profile, state


def shape_of(total: int) -> DeviceShape:
    return CpuDevice.from_cores(tuple(range(total + 1))).shape()


def moment(rate: float, *, cores: int = 4) -> State:
    devices = (CpuDevice.from_cores(tuple(range(cores + 1))).shape(),)
    measured = profile((1, 2, 4))
    return state(rate=rate, devices=devices, measured=measured, config=objective(slo_ms=60.0, floor=80.0))


@pytest.mark.parametrize("total", range(2, 9))
def test_the_first_cores_have_the_layouts_of_a_row_of_so_many(total: int) -> None:
    for count in range(1, total + 1):
        part = first_cores(shape_of(total), count)
        assert part.slices == count
        made = {tuple((item.start, item.size) for item in layout) for layout in part.layouts}
        own = set(layouts_of(count))
        sizes = {size for layout in layouts_of(total) for _, size in layout}
        assert made == {layout for layout in own if {size for _, size in layout} <= sizes}


def test_every_number_of_cores_that_is_weighed_has_a_layout() -> None:
    for total in (9, 15, 31, 63, 95):
        counts = core_counts(total)
        assert counts[:8] == tuple(range(1, 9))
        assert counts[-1] == total
        assert all(first_cores(shape_of(total), count).layouts for count in counts)
    assert core_counts(1) == (1,)
    assert core_counts(16) == (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16)


@pytest.mark.parametrize("rate", [5.0, 300.0, 1_500.0, 3_000.0, 30_000.0])
def test_they_are_the_fewest_on_which_a_plan_keeps_the_limits(rate: float) -> None:
    now = moment(rate)
    problem, scored = problem_of(now), objective_of(now)
    row = row_of_cores(problem.devices)
    assert row is not None
    feasible = [
        count
        for count in (1, 2, 3, 4)
        if best_found(replace(problem, devices=(first_cores(row, count),)), scored).best.feasible
    ]
    found = fewest_cores(problem, scored)
    assert (found[0] if found is not None else None) == (min(feasible) if feasible else None)
    assert feasible == list(range(min(feasible, default=5), 5)), "more cores never serve less"
    if found is not None:
        count, candidate = found
        assert candidate.feasible
        assert cores_of(candidate.configuration) == count


def test_only_one_row_of_cores_has_an_answer() -> None:
    now = state(devices=(cpu(2, "a"), cpu(2, "b")))
    assert fewest_cores(problem_of(now), objective_of(now)) is None
    assert cores_under(()) == 0
