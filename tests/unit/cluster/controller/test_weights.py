"""Shares of the ingress: rows go where the plan says, to nodes that can answer, and nowhere else."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clover.cluster.controller.capacity import Reach
from clover.cluster.controller.weights import ClusterShares, Seat, share
from clover.cluster.planning.records import FamilyTerms, RegionFlow
from tests.support.cluster_fixture import FAMILY

ORIGINS = ("north", "south")


def reach(**regions: tuple[str, ...]) -> Reach:
    own = FamilyTerms(family=FAMILY, accuracy_floor=90.0, slo_p95_ms=100.0, regions=regions)
    return Reach((own,), ORIGINS, {}, {FAMILY: 20.0})


def seat(name: str, planned: float, most: float = 100.0, ready: bool = True, **other: object) -> Seat:
    region = "north" if name.startswith("n") else "south"
    plan = {FAMILY: planned} if planned else {}
    return Seat(name, region, plan, {FAMILY: most}, ready, **other)  # type: ignore[arg-type]


def flow(origin: str, region: str, rate: float) -> RegionFlow:
    return RegionFlow(family=FAMILY, origin=origin, region=region, rate=rate)


def shares(
    seats: list[Seat], flows: list[RegionFlow] | None, rates: dict[str, float], own: Reach | None = None
) -> ClusterShares:
    return share(seats, flows, {(FAMILY, name): rate for name, rate in rates.items()}, ORIGINS, own or reach())


def test_the_plan_is_followed_if_all_is_as_planned() -> None:
    seats = [seat("n1", 60.0), seat("n2", 30.0), seat("s1", 50.0)]
    flows = [flow("north", "north", 90.0), flow("south", "south", 50.0)]
    found = shares(seats, flows, {"north": 90.0, "south": 50.0})
    assert found.rates[FAMILY, "north"] == pytest.approx({"n1": 60.0, "n2": 30.0})
    assert found.weights()[FAMILY, "south"] == {"s1": 1.0}
    assert found.missing == {}


def test_until_a_node_is_ready_one_that_leaves_keeps_its_rows() -> None:
    seats = [seat("n1", 60.0, ready=False), seat("n2", 0.0), seat("n3", 40.0)]
    found = shares(seats, [flow("north", "north", 100.0)], {"north": 100.0})
    assert found.rates[FAMILY, "north"] == pytest.approx({"n2": 60.0, "n3": 40.0})


def test_rows_of_a_lost_node_go_to_its_neighbours_first_and_then_abroad() -> None:
    seats = [seat("n1", 60.0, ready=False), seat("n2", 60.0), seat("s1", 50.0)]
    found = shares(
        seats, [flow("north", "north", 120.0), flow("south", "south", 50.0)], {"north": 120.0, "south": 50.0}
    )
    assert found.rates[FAMILY, "north"] == pytest.approx({"n2": 100.0, "s1": 20.0})


def test_rows_stay_where_they_must_and_what_is_missing_is_said() -> None:
    seats = [seat("n1", 60.0, ready=False), seat("n2", 60.0), seat("s1", 50.0)]
    found = shares(
        seats, [flow("north", "north", 120.0), flow("south", "south", 50.0)], {"north": 120.0}, reach(north=("north",))
    )
    assert found.rates[FAMILY, "north"] == pytest.approx({"n2": 120.0}), "they are refused there, not sent nowhere"
    assert found.missing == pytest.approx({FAMILY: 20.0})


def test_a_surge_is_laid_on_those_with_room() -> None:
    seats = [seat("n1", 80.0), seat("n2", 0.0)]
    found = shares(seats, [flow("north", "north", 80.0)], {"north": 150.0})
    assert found.rates[FAMILY, "north"] == pytest.approx({"n1": 100.0, "n2": 50.0})


def test_a_slow_node_gets_its_part_of_its_share() -> None:
    seats = [seat("n1", 50.0, pace=0.5), seat("n2", 50.0)]
    found = shares(seats, [flow("north", "north", 100.0)], {"north": 100.0})
    assert found.rates[FAMILY, "north"] == pytest.approx({"n1": 25.0, "n2": 75.0})


def test_a_node_that_does_not_follow_gets_no_more_than_it_may_keep() -> None:
    seats = [seat("n1", 80.0, steady=True, kept={FAMILY: 30.0}), seat("n2", 20.0)]
    found = shares(seats, [flow("north", "north", 100.0)], {"north": 100.0})
    assert found.rates[FAMILY, "north"] == pytest.approx({"n1": 30.0, "n2": 70.0})


def test_an_origin_that_sent_nothing_yet_has_shares() -> None:
    seats = [seat("n1", 50.0), seat("s1", 0.0)]
    found = shares(seats, [flow("north", "north", 50.0)], {"north": 50.0})
    assert found.weights()[FAMILY, "south"] == {"n1": 1.0}


def test_without_a_plan_all_nodes_share_by_what_they_can_do() -> None:
    found = shares([seat("n1", 0.0, most=300.0), seat("s1", 0.0)], None, {"north": 40.0})
    assert found.weights()[FAMILY, "north"] == {"n1": 1.0}
    assert found.weights()[FAMILY, "south"] == pytest.approx({"n1": 0.75, "s1": 0.25})


def test_one_node_stays_for_what_may_come_if_nothing_does() -> None:
    found = shares([seat("n1", 0.0), seat("n2", 0.0), seat("s1", 0.0, most=300.0)], [], {})
    assert found.weights() == {(FAMILY, "north"): {"s1": 1.0}, (FAMILY, "south"): {"s1": 1.0}}


drawn_seats = st.lists(
    st.tuples(
        st.sampled_from(["n", "s"]),
        st.floats(0.0, 100.0),
        st.floats(1.0, 150.0),
        st.booleans(),
        st.floats(0.25, 1.0),
        st.none() | st.floats(0.0, 150.0),
    ),
    max_size=6,
)


@given(drawn_seats, st.floats(0.0, 400.0), st.floats(0.0, 400.0), st.booleans())
def test_no_row_goes_astray(
    drawn: list[tuple[str, float, float, bool, float, float | None]], north: float, south: float, bound: bool
) -> None:
    seats = [
        seat(f"{side}{at}", planned, most, ready, pace=pace, steady=kept is not None, kept={FAMILY: kept or 0.0})
        for at, (side, planned, most, ready, pace, kept) in enumerate(drawn)
    ]
    own = reach(north=("north",), south=("south",)) if bound else reach()
    flows = [
        flow(region, region, sum(one.planned.get(FAMILY, 0.0) for one in seats if one.region == region))
        for region in ORIGINS
    ]
    found = shares(seats, flows, {"north": north, "south": south}, own)
    by_name = {one.name: one for one in seats}
    given_rows: dict[str, float] = {}
    for (_, origin), rates in found.rates.items():
        for name, rate in rates.items():
            assert by_name[name].ready
            assert by_name[name].region in own.regions(FAMILY, origin)
            given_rows[name] = given_rows.get(name, 0.0) + rate
    for origin, rate in (("north", north), ("south", south)):
        able = [one for one in seats if one.ready and one.region in own.regions(FAMILY, origin)]
        if able and rate > 1e-6:
            assert sum(found.rates[FAMILY, origin].values()) >= rate * (1.0 - 1e-6)
    if not found.missing and min(north, south) > 1e-6:
        for name, rate in given_rows.items():
            assert rate <= by_name[name].limit(FAMILY) * (1.0 + 1e-6) + 1e-6
    for weights in found.weights().values():
        assert not weights or sum(weights.values()) == pytest.approx(1.0, abs=1e-6)
