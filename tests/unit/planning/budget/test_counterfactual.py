"""What would have been: BASE, and the best fixed mixes."""

from __future__ import annotations

import io
import math

import msgspec
import pytest

from clover.control.solver.process import serve
from clover.control.solver.protocol import ALTERNATIVES, HEAD, SolverAnswer, SolverOrder, pack, unpack
from clover.planning.budget.counterfactual import Fixed, Frontier, Mix, base, mix_from
from clover.planning.budget.frontiers import fixed_mixes
from clover.planning.model.problem import base_capacity
from clover.planning.model.queueing import energy_j_per_row
from tests.support.profiles_fixture import cpu, fixed, objective, profile, state

RATE = 50.0


def mix(item: Fixed) -> Mix:
    made = mix_from(profile(), item)
    assert made is not None
    return made


def test_base_is_the_best_variant_on_whole_devices_as_the_queueing_model_has_it() -> None:
    found = base(profile(), (cpu(2), cpu(2, "cpu1")))
    assert found is not None
    assert (found.words, found.accuracy) == ("large on 2 x 2 cores", 92.0)
    [(lane, share)] = found.lanes
    assert share == 1.0
    rate = math.exp(140 * math.log(1.03))
    assert found.joules(rate) == pytest.approx(energy_j_per_row(lane.workers, rate))
    assert found.joules(1.01 * rate) == found.joules(rate), "rates within a step are one question"
    capacity = base_capacity(profile(), (cpu(2), cpu(2, "cpu1")))
    assert found.holds(0.99 * capacity)
    assert not found.holds(1.01 * capacity)


def test_there_is_no_base_where_it_was_not_measured_or_there_is_no_device() -> None:
    assert base(profile(cores=(1,)), (cpu(2),)) is None
    assert base(profile(), ()) is None
    assert base(profile(), (msgspec.structs.replace(cpu(2), layouts=()),)) is None


def test_the_solver_finds_the_fixed_mixes_of_a_load() -> None:
    now = state(rate=RATE, config=objective(floor=89.0))
    found = fixed_mixes(now, RATE)
    told = [mix(item) for item in found]
    assert told[0].accuracy == pytest.approx(89.0, abs=0.01)
    assert told[-1].accuracy == pytest.approx(92.0)
    assert [item.joules(RATE) for item in told] == sorted(item.joules(RATE) for item in told)
    answers = io.BytesIO()
    serve(io.BytesIO(pack(SolverOrder(id=3, policy=ALTERNATIVES, state=now))), answers)
    answer = unpack(answers.getvalue()[HEAD.size :], SolverAnswer)
    assert answer.alternatives == found
    assert answer.plan is None
    assert fixed_mixes(state(rate=1e6), 1e6) == ()


def test_the_corners_of_a_frontier_are_the_fixed_mixes_that_no_line_between_two_others_beats() -> None:
    ends = [fixed(("small", "1c", 2), small=1.0), fixed(("large", "2c", 1), large=1.0)]
    frontier = Frontier.from_fixed(profile(), ends)
    low, high = (mix(item).joules(RATE) for item in ends)
    accuracy, joules = frontier.hull(RATE)
    assert (accuracy.tolist(), joules.tolist()) == ([88.0, 92.0], [[low, 0.0, 0.0], [0.0, 0.0, high]])
    medium = fixed(("medium", "1c", 2), medium=1.0)
    accuracy, joules = Frontier.from_fixed(profile(), [*ends, medium]).hull(RATE)
    assert accuracy.tolist() == [88.0, 90.0, 92.0]
    assert joules[1].tolist() == [0.0, mix(medium).joules(RATE), 0.0]
    assert not Frontier.from_fixed(profile(), [fixed(("huge", "1c", 1), huge=1.0)]), "what was never measured is no mix"
