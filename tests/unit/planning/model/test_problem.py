"""A problem is derived from a state once, never changes, and is the key of what was solved."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, replace

import msgspec
import pytest

from clover.errors import PlanError
from clover.planning.budget.frontiers import frontier
from clover.planning.model.objective import PlanningInput
from clover.types import Demand, State
from tests.support.profiles_fixture import cpu, objective, profile, reading, state


def again(now: State) -> State:
    """The same state, as it comes out of a frame: equal, and no object of it the same."""
    return msgspec.json.decode(msgspec.json.encode(now), type=State)


def test_equal_states_pose_equal_problems_of_one_hash() -> None:
    now = state(config=objective("floor"))
    one, other = PlanningInput.from_state(now), PlanningInput.from_state(again(now))
    assert one.problem == other.problem
    assert hash(one.problem) == hash(other.problem)
    assert (one.problem, one.objective) in {(other.problem, other.objective)}


@pytest.mark.parametrize(
    "changed",
    [
        state(rate=101.0),
        state(config=objective(slo_ms=31.0)),
        state(devices=(cpu(4),), measured=profile((1, 2, 4))),
        state(share=0.5),
        msgspec.structs.replace(state(), demand=(Demand(variant="large", accuracy=92.0, rate=1.0),)),
    ],
    ids=["rate", "SLO", "devices", "share", "demand"],
)
def test_what_a_plan_depends_on_makes_another_problem(changed: State) -> None:
    assert PlanningInput.from_state(changed).problem != PlanningInput.from_state(state()).problem


def test_a_lost_device_makes_another_problem() -> None:
    both = (cpu(), cpu(device="cpu1"))
    lost = (both[0], msgspec.structs.replace(both[1], layouts=()))
    assert (
        PlanningInput.from_state(state(devices=both)).problem != PlanningInput.from_state(state(devices=lost)).problem
    )


def test_a_problem_cannot_be_changed() -> None:
    problem = PlanningInput.from_state(state()).problem
    with pytest.raises(FrozenInstanceError):
        problem.rate = 1.0  # type: ignore[misc]
    assert replace(problem, rate=7.0).rate == 7.0


def test_a_solved_frontier_is_remembered_whatever_the_grid_and_the_moment_are() -> None:
    now = state(rate=90.0)
    later = msgspec.structs.replace(again(now), intensity=reading(410.0), grid_s=7200.0, queue_rows=3, served_rows=9.0)
    one, other = PlanningInput.from_state(now), PlanningInput.from_state(later)
    found = frontier(one.problem, one.objective, 90.0)
    assert found
    assert frontier(other.problem, other.objective, 90.0) is found
    assert frontier(other.problem, other.objective, 90.0, seed=1) is not found


def test_devices_that_cannot_be_used_pose_no_problem() -> None:
    with pytest.raises(PlanError, match="no device that can be used"):
        PlanningInput.from_state(state(devices=(msgspec.structs.replace(cpu(), layouts=()),)))
