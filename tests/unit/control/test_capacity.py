"""The capacity that autoscalers read: of what runs, and of the devices above the accuracy floor."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clover.control.capacity import capacity_gauges, floor_capacity
from clover.planning.model.problem import services_of
from tests.support.control_fixture import Rig
from tests.support.profiles_fixture import cpu, profile


def rows_per_s(variant: str, shape: str) -> float:
    return services_of(profile())[variant, shape].capacity()


def test_the_fastest_variant_above_the_floor_counts_on_the_best_layout() -> None:
    found = floor_capacity(profile(), [cpu(2)], 1.0, 89.0)
    assert found == pytest.approx(max(2.0 * rows_per_s("medium", "1c"), rows_per_s("medium", "2c")))
    assert floor_capacity(profile(), [cpu(2), cpu(2, "cpu1")], 1.0, 89.0) == pytest.approx(2.0 * found)
    assert floor_capacity(profile(), [cpu(2)], 0.5, 89.0) == pytest.approx(0.5 * found)
    assert floor_capacity(profile(), [cpu(2)], 1.0, 99.0) == 0.0
    assert floor_capacity(profile(), [], 1.0, 89.0) == 0.0


@given(st.floats(80.0, 95.0), st.floats(80.0, 95.0))
def test_a_higher_floor_never_has_more_capacity(one: float, other: float) -> None:
    low, high = sorted((one, other))
    assert floor_capacity(profile(), [cpu(2)], 1.0, high) <= floor_capacity(profile(), [cpu(2)], 1.0, low)


def test_a_family_has_both_figures_within_its_utilisation_limit() -> None:
    async def run() -> None:
        one = Rig(max_utilisation=0.5)
        await one.settled()
        family = one.family
        found = capacity_gauges(one.controller.context, family)
        floor = family.targets.accuracy_floor
        assert found["floor"] == pytest.approx(0.5 * floor_capacity(family.corrected, [cpu(2)], 1.0, floor))
        running = sum(map(family.capacity(1.0), family.desired))
        assert running > 0.0
        assert found["running"] == pytest.approx(0.5 * running, rel=1e-5)

    asyncio.run(run())
