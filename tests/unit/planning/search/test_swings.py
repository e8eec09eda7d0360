"""How far shares may swing: never above the utilisation limit nor beyond the SLO, and not at all in a cascade."""

from __future__ import annotations

import msgspec
import pytest

from clover.planning.cascade.routed import predicted
from clover.planning.model.planning_input import PlanningInput
from clover.planning.model.swings import Move, moved
from clover.planning.search.swings import LEAST, MOST, swings
from clover.types import Assignment, Demand, DeviceShape, Routing, State, configuration_of
from tests.support.profiles_fixture import objective, placement, state

SHARES = {"small": 0.5, "medium": 0.3, "large": 0.2}


def at(rate: float, *, slo_ms: float = 30.0, shares: dict[str, float] = SHARES, resident: bool = False) -> State:
    """Return the state of one worker a variant, each on a core of its own or all on the same three."""
    places = tuple(placement(at, 1, "gpu0") for at in range(3))
    shape = DeviceShape(device="gpu0", kind="mig", layouts=(places,), slices=3, overlap=False)
    running = tuple(
        Assignment(family="toy", variant=variant, placement=place, backend="eager")
        for number, variant in enumerate(SHARES)
        for place in (places if resident else places[number : number + 1])
    )
    made = state(rate=rate, config=objective(slo_ms=slo_ms), devices=(shape,), running=running)
    routing = Routing(shares=shares)
    return msgspec.structs.replace(made, routing=routing, resident=3 if resident else 1)


def ends(given: State, found: tuple[Move, ...]) -> list[dict[str, float]]:
    assert given.routing is not None
    return [moved(given.routing.shares, move, sign) for move in found for sign in (1.0, -1.0)]


@pytest.mark.parametrize("resident", [False, True])
@pytest.mark.parametrize("rate", [50.0, 400.0, 900.0, 1100.0, 1400.0, 1800.0])
def test_at_either_end_of_a_move_workers_have_time_left_and_p95_is_within_the_slo(rate: float, resident: bool) -> None:
    given = at(rate, slo_ms=20.0, resident=resident)
    problem = PlanningInput.of(given)
    for shares in ends(given, swings(problem)):
        found = predicted(problem.problem, configuration_of(given.running), Routing(shares=shares))
        assert found is not None
        assert found.utilisation <= problem.objective.max_utilisation + 1e-6
        assert found.p95_ms <= 20.0


@pytest.mark.parametrize("resident", [False, True])
def test_with_little_load_all_move_by_half_of_their_rows(resident: bool) -> None:
    found = swings(PlanningInput.of(at(50.0, resident=resident)))
    assert len(found) == 3
    for variant, share in SHARES.items():
        assert max(abs(move[variant]) for move in found) == pytest.approx(MOST * share)


def test_a_variant_whose_workers_are_busy_stays_while_others_move() -> None:
    busy = {"small": 0.5, "medium": 0.2, "large": 0.3}
    given = at(400.0, slo_ms=1000.0, shares=busy)  # 120 rows/s of 444 that one core serves in batches of eight
    assert all("large" in move for move in swings(PlanningInput.of(given)))
    given = at(1220.0, slo_ms=1000.0, shares=busy)
    found = swings(PlanningInput.of(given))
    assert found
    assert all("large" not in move for move in found)


@pytest.mark.parametrize("slo_ms", [0.5, 4.0])
def test_without_room_within_the_slo_nothing_moves(slo_ms: float) -> None:
    assert swings(PlanningInput.of(at(400.0, slo_ms=slo_ms))) == ()


def test_rows_that_ask_for_an_accuracy_of_their_own_take_room() -> None:
    """`large` serves 444 rows/s at most."""
    most = []
    for rate in (100.0, 300.0):
        given = msgspec.structs.replace(at(400.0), demand=(Demand(variant="large", accuracy=92.0, rate=rate),))
        pose = PlanningInput.of(given)
        found = swings(pose)
        most.append(max(abs(move["large"]) for move in found))
        for shares in ends(given, found):
            there = predicted(pose.problem, configuration_of(given.running), Routing(shares=shares))
            assert there is not None
            assert there.p95_ms <= pose.objective.slo_ms
    assert most[0] == pytest.approx(MOST * SHARES["large"])
    assert most[1] < most[0]


def test_moves_that_tell_little_are_not_made() -> None:
    for move in swings(PlanningInput.of(at(1100.0, slo_ms=1000.0))):
        assert max(abs(more) / SHARES[variant] for variant, more in move.items()) >= LEAST


def test_a_cascade_does_not_swing() -> None:
    given = at(50.0)
    routing = Routing(shares={"small": 1.0}, chain=("small", "large"), thresholds=(0.5,))
    assert swings(PlanningInput.of(msgspec.structs.replace(given, routing=routing))) == ()
    assert swings(PlanningInput.of(msgspec.structs.replace(given, routing=None))) == ()


def test_one_variant_alone_does_not_swing() -> None:
    assert swings(PlanningInput.of(at(50.0, shares={"large": 1.0, "small": 0.0}))) == ()
