"""Rows of a cascade that wait for fuller batches: what that is worth, how long, and that the router does the same."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from bench.stages import draw
from clover.planning.cascade import evaluation
from clover.planning.cascade.evaluation import Stages, energy_j, evaluate, play_latencies_ms, routing_of, wait_of, worth
from clover.planning.cascade.permitted import joint, on_hull, point_of, points_on
from clover.planning.model.objective import Objective, objective_of
from clover.planning.model.problem import Problem, problem_of
from clover.planning.model.queueing import Service, lane_of, play_batches
from clover.planning.packing.waits import COMPANY, TICK_MS, least_company
from clover.planning.search.chains import best_chains
from clover.planning.search.configurations import every
from clover.policies import build
from clover.types import CascadeProfile, ChainPoint, GroupCount, Plan
from tests.support.chains_fixture import both, point
from tests.support.profiles_fixture import objective, profile, state
from tests.support.row_by_row import play

pytestmark = pytest.mark.slow

CALL = Service((1, 2, 4, 8), (1.0, 1.1, 1.3, 1.7), (0.01, 0.0055, 0.00325, 0.0021), 0.05)
"""Most of what a batch costs is the call."""
ROWS = Service((1, 2, 4, 8), (4.0, 8.0, 16.0, 32.0), (0.04,) * 4, 0.05)
"""A row costs what it costs."""


def posed(*, waits: bool = True, slo_ms: float = 30.0, rate: float = 200.0) -> tuple[Problem, Objective]:
    """A cheap first stage that is a call and little more, and a dear one without anything to gain."""
    config = msgspec.structs.replace(objective("floor", slo_ms=slo_ms, floor=91.0), waits=waits)
    given_ = state(rate=rate, config=config)
    problem = problem_of(given_)
    services = {**problem.services, ("small", "1c"): CALL, ("large", "1c"): ROWS}
    return replace(problem, services=services), objective_of(given_)


def test_rows_wait_at_the_stage_where_a_batch_is_a_call() -> None:
    problem, aim = posed()
    plain = evaluate(*posed(waits=False), both(problem), point())
    found = evaluate(problem, aim, both(problem), point())
    assert not plain.routing.wait_ms
    assert found.feasible, found.why
    assert found.routing.wait_ms["small"] >= TICK_MS
    assert found.score > plain.score
    assert plain.prediction.p95_ms < found.prediction.p95_ms <= aim.slo_ms
    gathered = 1.0 + 200.0 * found.routing.wait_ms["small"] / 1e3
    assert found.prediction.energy_j_per_row == pytest.approx(CALL.energy_j(gathered) + 0.2 * 0.04)


def test_without_room_nobody_waits() -> None:
    plain = evaluate(*posed(waits=False, slo_ms=7.5, rate=60.0), both(posed()[0]), point())
    found = evaluate(*posed(slo_ms=7.5, rate=60.0), both(posed()[0]), point())
    assert plain.feasible, plain.why
    assert found == plain


def test_where_the_longest_wait_is_late_a_shorter_one_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    problem, aim = posed()
    hoped = evaluate(problem, aim, both(problem), point(), play=False)
    longest_ms = hoped.routing.wait_ms["small"]

    def played(stages: Stages, rate: float, reach: tuple[float, ...], wait_ms: float = 0.0) -> NDArray[np.float64]:
        return np.full(100, 100.0 if wait_ms == longest_ms else 5.0)

    monkeypatch.setattr(evaluation, "play_latencies_ms", played)
    found = evaluate(problem, aim, both(problem), point())
    assert found.feasible
    assert 0.0 < found.routing.wait_ms["small"] < longest_ms
    assert found.score < hoped.score
    assert evaluate(problem, aim, both(problem), point(), play=False) == hoped


def test_on_cores_a_wait_brings_another_row_or_there_is_none() -> None:
    lanes, reach = [lane_of(((CALL, 1),)), lane_of(((ROWS, 1),))], (1.0, 0.2)
    assert worth(lanes, 100.0, reach, 16.0, 0.0), "it saves the worker something"
    assert not worth(lanes, 100.0, reach, 16.0, 0.0, COMPANY)
    for rate in (150.0, 200.0, 400.0):
        found = worth(lanes, rate, reach, 30.0, 0.0, COMPANY)
        assert found
        assert all(1e-3 * wait_ms * rate >= COMPANY for _, wait_ms in found)
    problem, aim = posed(slo_ms=16.0, rate=100.0)
    assert not evaluate(problem, aim, both(problem), point()).routing.wait_ms
    cores, gpu = (GroupCount(variant="small", profile=name, count=1) for name in ("2c", "1g.5gb"))
    assert least_company((cores,)) == COMPANY
    assert least_company((gpu,)) == 0.0


def test_a_longer_wait_has_to_be_worth_it() -> None:
    lanes, reach = [lane_of(((CALL, 1),)), lane_of(((ROWS, 1),))], (1.0, 0.2)
    plain_j = energy_j(lanes, 200.0, reach)
    for least_j in (1e-6, 0.1 * plain_j, 0.3 * plain_j):
        found = worth(lanes, 200.0, reach, 60.0, least_j)
        ladder = [joules for joules, _ in found] + [plain_j]
        assert all(above - below >= least_j for below, above in itertools.pairwise(ladder))
        assert [wait_ms for _, wait_ms in found] == sorted((wait_ms for _, wait_ms in found), reverse=True)
    assert not worth(lanes, 200.0, reach, 60.0, plain_j)
    assert not worth(lanes, 200.0, reach, 4.0, 1e-6), "no room"


@settings(max_examples=30)
@given(st.floats(0.05, 0.7), st.floats(1.0, 30.0), st.integers(1, 3))
def test_the_energy_of_rows_that_wait_is_that_of_a_play(load: float, wait_ms: float, workers: int) -> None:
    lane = lane_of(((CALL, workers),))
    rate = load * lane.capacity
    told = energy_j([lane], rate, (1.0,), wait_ms)
    assert told == pytest.approx(play_batches(lane, rate, wait_ms=wait_ms).energy_j_per_row, rel=0.12)


@pytest.mark.parametrize("seed", range(8))
def test_the_router_makes_rows_wait_as_the_model_does(seed: int) -> None:
    drawn, rng = draw(random.Random(seed)), random.Random(seed)
    wait_ms = rng.choice((0.5, 1.0, 3.0)) * max(worker.mean_ms[0] for worker in drawn.stages[0])
    longer_ms = wait_ms + TICK_MS  # as the model takes timers to be
    found = play(drawn.stages, drawn.rate, drawn.reach, rows=20_000, warm_up=2_000, seed=seed, wait_ms=longer_ms)
    told = play_latencies_ms(drawn.stages, drawn.rate, drawn.reach, wait_ms)
    for q in (0.5, 0.95):
        assert np.quantile(told, q) == pytest.approx(np.quantile(found.latency_ms, q), rel=0.1), q


# --- which ------------------------------------------------------------------------------------------------------------

CHAINS = (
    point(91.2, reach=(1.0, 0.15)),
    point(91.6, reach=(1.0, 0.3)),
    point(91.8, chain=("medium", "large"), reach=(1.0, 0.2)),
    point(91.4, chain=("small", "medium"), reach=(1.0, 0.4)),
)


def space_of(problem: Problem) -> list[tuple[GroupCount, ...]]:
    found = every(problem)
    assert found is not None
    return found


@pytest.mark.parametrize("slo_ms", [9.0, 15.0, 30.0])
def test_on_a_small_machine_the_best_that_waits_is_found(slo_ms: float) -> None:
    problem, aim = posed(slo_ms=slo_ms)
    problem = replace(problem, points=CHAINS)
    space = space_of(problem)
    played = [
        evaluate(problem, aim, configuration, how)
        for configuration in space
        for how in CHAINS
        if {group.variant for group in configuration} == set(how.chain)
    ]
    best = max((item.score for item in played if item.feasible), default=None)
    found = best_chains(problem, aim, CHAINS, space=space)
    assert (found[0].score if found else None) == best


@pytest.mark.parametrize("slo_ms", [9.0, 15.0, 30.0])
def test_what_is_permitted_is_the_hull_of_what_was_played(slo_ms: float) -> None:
    problem, aim = posed(slo_ms=slo_ms)
    problem, aim = replace(problem, points=CHAINS), replace(aim, accuracy_floor=0.0, planned_floor=0.0)
    space = space_of(problem)
    played = [
        evaluate(problem, aim, configuration, how)
        for configuration in space
        for how in points_on(problem, configuration)
    ]
    best = on_hull(item for item in played if item.feasible)
    assert best
    assert [point_of(item) for item in joint(problem, aim, space)] == [point_of(item) for item in best]


def planned(*, waits: bool) -> Plan:
    measured = profile()
    calls = dict(zip(CALL.batches, zip(CALL.mean_ms, CALL.energy_j_per_row, strict=True), strict=True))
    latency = tuple(
        msgspec.structs.replace(m, mean_ms=calls[m.batch][0], energy_j_per_row=calls[m.batch][1])
        if m.variant == "small"
        else m
        for m in measured.latency
    )
    cascade = CascadeProfile(points=CHAINS[:2], quantiles={}, calibration_rows=5000, held_out_rows=5000)
    measured = msgspec.structs.replace(measured, latency=latency, cascade=cascade)
    config = msgspec.structs.replace(objective("floor", slo_ms=30.0, floor=91.0), cascade=True, waits=waits)
    return build("objective").propose(state(rate=150.0, config=config, measured=measured))


def test_a_plan_waits_only_where_it_may() -> None:
    plain, found = planned(waits=False), planned(waits=True)
    assert plain.routing.chain
    assert not plain.routing.wait_ms
    assert found.routing.wait_ms
    assert found.prediction.energy_j_per_row < plain.prediction.energy_j_per_row
    assert found.feasible


def test_routings_keep_their_wait() -> None:
    chained: ChainPoint = CHAINS[0]
    configuration = both(posed()[0])
    assert routing_of(chained, configuration, 2.0).wait_ms == {"small": 2.0}
    assert wait_of(chained.chain, routing_of(chained, configuration, 2.0)) == 2.0
    assert wait_of(chained.chain, routing_of(chained, configuration)) == 0.0


def test_a_mix_is_weighed_with_its_waits_beside_a_cascade() -> None:
    """Where the second stage is not worth what it costs, what all rows would wait for alone is."""
    chained = planned(waits=True)
    mixes = [item for item in chained.candidates if not item.routing.chain]
    assert any(item.routing.wait_ms for item in mixes)
