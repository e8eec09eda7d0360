"""The capacity that autoscalers read: of what runs, and of the devices at the accuracy floor."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clover.control.report import capacity_gauges
from clover.control.state.capacity import FloorCapacity, running_capacity, shares_at
from clover.planning.model.problem import services_of
from clover.types import Assignment, CascadeProfile, ChainPoint, DeviceShape, FamilyProfile, Routing
from tests.support.control_fixture import Rig
from tests.support.profiles_fixture import VARIANTS, cpu, profile, worker

CHAIN = ChainPoint(
    chain=("small", "large"), thresholds=(0.8,), accuracy=91.5, low=91.0, high=92.0, reach=(1.0, 0.25),
    ends=(90.0, 95.0), cut=(70.0, 95.0), cost=0.4, against=(-0.5, -1.0, 0.0), alike=(0.9, 1.0), overruled=0.1,
)  # fmt: skip


def with_chain() -> FamilyProfile:
    cascade = CascadeProfile(points=(CHAIN,), quantiles={}, calibration_rows=100, held_out_rows=100)
    return msgspec.structs.replace(profile(), cascade=cascade)


def rows_per_s(variant: str, shape: str) -> float:
    return services_of(profile())[variant, shape].capacity()


def of_one(item: Assignment) -> float:
    return rows_per_s(item.variant, item.placement.profile)


def floor(
    measured: FamilyProfile,
    devices: Sequence[DeviceShape],
    percent: float,
    *,
    share: float = 1.0,
    cascades: bool = True,
) -> float:
    return FloorCapacity().rows_per_s(measured, devices, share=share, accuracy_floor=percent, cascades=cascades)


# --- what runs --------------------------------------------------------------------------------------------------------


def test_workers_of_one_variant_add_up_and_the_fullest_lane_limits_several() -> None:
    both = [worker("small", 0, 1), worker("large", 1, 1)]
    assert running_capacity(both[:1], of_one, Routing(shares={"small": 1.0})) == pytest.approx(of_one(both[0]))
    twice = [worker("large", 0, 1), worker("large", 1, 1)]
    assert running_capacity(twice, of_one, Routing(shares={"large": 1.0})) == pytest.approx(2.0 * of_one(both[1]))
    halves = running_capacity(both, of_one, Routing(shares={"small": 0.5, "large": 0.5}))
    assert halves == pytest.approx(of_one(both[1]) / 0.5)
    assert running_capacity(both[:1], of_one, Routing(shares={"large": 1.0})) == 0.0
    assert running_capacity([], of_one, Routing(shares={})) == 0.0


def test_workers_that_share_their_time_are_as_slow_as_their_rows_together() -> None:
    shared = [worker(variant, start, 1) for start in (0, 1) for variant in ("small", "large")]
    found = running_capacity(shared, of_one, Routing(shares={"small": 0.75, "large": 0.25}))
    assert found == pytest.approx(2.0 / (0.75 / rows_per_s("small", "1c") + 0.25 / rows_per_s("large", "1c")))


def test_of_a_chain_each_stage_gets_the_rows_that_reach_it() -> None:
    workers = [worker("small", 0, 1), worker("large", 1, 1)]
    answered = Routing(shares={"small": 0.75, "large": 0.25}, chain=("small", "large"), thresholds=(0.8,))
    limit = min(rows_per_s("small", "1c"), rows_per_s("large", "1c") / 0.25)
    assert running_capacity(workers, of_one, answered) == pytest.approx(limit)
    entered = msgspec.structs.replace(answered, shares={"small": 1.0})
    assert running_capacity(workers, of_one, entered, (1.0, 0.25)) == pytest.approx(limit)


@given(st.lists(st.floats(0.01, 1.0), min_size=3, max_size=3), st.integers(1, 4))
def test_no_lane_has_more_rows_than_its_workers_take(parts: list[float], cores: int) -> None:
    shares = dict(zip(VARIANTS, (part / sum(parts) for part in parts), strict=True))
    shared = [worker(variant, start, 1) for start in range(cores) for variant in VARIANTS]
    rate = running_capacity(shared, of_one, Routing(shares=shares))
    seconds = sum(rate * part / rows_per_s(variant, "1c") for variant, part in shares.items())
    assert seconds == pytest.approx(cores)  # all cores are busy all the time, and none more than that


# --- the floor --------------------------------------------------------------------------------------------------------


def test_the_fastest_way_at_the_floor_counts_on_the_best_layout() -> None:
    alone = floor(profile(), [cpu(2)], 90.0)
    assert alone == pytest.approx(max(2.0 * rows_per_s("medium", "1c"), rows_per_s("medium", "2c")))
    assert floor(profile(), [cpu(2), cpu(2, "cpu1")], 90.0) == pytest.approx(2.0 * alone)
    assert floor(profile(), [cpu(2)], 90.0, share=0.5) == pytest.approx(0.5 * alone)
    assert floor(profile(), [cpu(2)], 99.0) == 0.0
    assert floor(profile(), [], 90.0) == 0.0


def test_two_variants_in_shares_that_meet_the_floor_are_a_way() -> None:
    found = list(shares_at(profile(), 89.0, cascades=False))
    assert {"medium": pytest.approx(0.5), "small": pytest.approx(0.5)} in found
    mixed = 2.0 / (0.5 / rows_per_s("small", "1c") + 0.5 / rows_per_s("medium", "1c"))
    assert floor(profile(), [cpu(2)], 89.0) == pytest.approx(mixed)


def test_a_chain_is_a_way_if_chains_may_be_used() -> None:
    chained = 2.0 / (1.0 / rows_per_s("small", "1c") + 0.25 / rows_per_s("large", "1c"))
    assert floor(with_chain(), [cpu(2)], 91.4) == pytest.approx(chained)
    assert floor(with_chain(), [cpu(2)], 91.4, cascades=False) < chained
    assert floor(with_chain(), [cpu(2)], 91.6) == floor(profile(), [cpu(2)], 91.6) < chained


@given(st.floats(80.0, 95.0), st.floats(80.0, 95.0))
def test_a_higher_floor_never_has_more_capacity(one: float, other: float) -> None:
    low, high = sorted((one, other))
    kept = FloorCapacity()
    measured = with_chain()

    def at(percent: float) -> float:
        return kept.rows_per_s(measured, [cpu(2)], share=1.0, accuracy_floor=percent, cascades=True)

    assert at(high) <= at(low) * (1.0 + 1e-12)
    assert at(high) == floor(measured, [cpu(2)], high)  # what was kept is not another floor's


# --- of a family ------------------------------------------------------------------------------------------------------


def test_a_family_has_both_figures_within_its_utilisation_limit() -> None:
    async def run() -> None:
        one = Rig(max_utilisation=0.5)
        before = capacity_gauges(one.controller.context, one.family)
        assert before["running"] == 0.0
        await one.settled()
        family = one.family
        found = capacity_gauges(one.controller.context, family)
        assert found["floor"] == before["floor"] == pytest.approx(0.5 * floor(family.corrected, [cpu(2)], 91.0))
        assert 0.0 < found["running"] <= found["floor"] * (1.0 + 1e-9)
        assert family.deployed is not None
        expected = running_capacity(family.deployed.deployment, family.capacity(1.0), family.deployed.routing)
        assert found["running"] == pytest.approx(0.5 * expected)

    asyncio.run(run())
