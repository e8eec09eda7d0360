"""The limit of schedules: never above what some schedule of plans does, and close where only capacity limits."""

from __future__ import annotations

import itertools

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.horizon import Hour, spend
from clover.planning.model.frontier import FrontierPoint
from clover.planning.model.objective import held_to, objective_of
from clover.planning.model.problem import Problem, problem_of
from clover.planning.packing.evaluation import evaluate
from clover.planning.packing.formulation import Formulation, PackingMember
from clover.planning.packing.plan_bound import plan_bound
from clover.planning.search.best import with_idle_energy
from clover.planning.search.configurations import best_found, every
from clover.research.simulate.horizon_bound import CostBound, HorizonPart, cost_bound, least_grams
from clover.research.simulate.slo_bound import slo_bound
from clover.types import DeviceShape, ObjectiveConfig, State
from tests.support.mig_fixture import a100s, mig_profile
from tests.support.profiles_fixture import cpu, objective, profile, state

pytestmark = pytest.mark.slow

LAMBDAS = (0.0, 0.05, 1.0)
FLEETS = {
    "cpu": ((cpu(2),), profile((1, 2)), 250.0),
    "gpu": (a100s(1), mig_profile(), 500.0),
    "three": (tuple(cpu(2, name, overlap=False) for name in "abc"), profile((1, 2)), 750.0),
}


def moment(kind: str, load: float, slo_ms: float, spared_w: float | None = None) -> State:
    devices, measured, rate = FLEETS[kind]
    config: ObjectiveConfig = msgspec.structs.replace(objective(slo_ms=slo_ms, floor=0.0), spared_w=spared_w)
    return state(rate=load * rate, devices=devices, measured=measured, config=config)


def plans(now: State) -> list[FrontierPoint]:
    """Every plan there is, on every number of devices, at a handful of lambdas: percent and joules a row."""
    found = []
    spared = now.objective.spared_w is not None
    for number in range(1 if spared else len(now.devices), len(now.devices) + 1):
        part = problem_of(msgspec.structs.replace(now, devices=now.devices[:number]))
        configurations = every(part, 2_000)
        assert configurations is not None
        for configuration, lam in itertools.product(configurations, LAMBDAS):
            scored = objective_of(
                msgspec.structs.replace(now, objective=msgspec.structs.replace(now.objective, lam=lam))
            )
            candidate = with_idle_energy(evaluate(part, scored, configuration), part, scored, number)
            if candidate.feasible:
                found.append(FrontierPoint(accuracy=candidate.prediction.accuracy, grams=candidate.prediction.joules))
    return sorted(set(found), key=lambda point: point.accuracy)


def limit(now: State, steps: list[tuple[float, float]], accuracy: float) -> float:
    own = cost_bound(problem_of(now), objective_of(now))
    return least_grams([HorizonPart(rows, w, own) for rows, w in steps], accuracy)


@settings(max_examples=3, deadline=None)
@given(
    kind=st.sampled_from(["cpu", "gpu"]),
    load=st.floats(0.1, 0.9),
    slo_ms=st.sampled_from([2.5, 4.5, 8.0, 40.0]),
    steps=st.lists(st.tuples(st.floats(1.0, 9.0), st.floats(0.5, 5.0)), min_size=1, max_size=4),
    part=st.floats(0.0, 1.0),
)
def test_no_schedule_undercuts_it(
    kind: str, load: float, slo_ms: float, steps: list[tuple[float, float]], part: float
) -> None:
    now = moment(kind, load, slo_ms)
    known = plans(now)
    if not known:
        return
    accuracy = known[0].accuracy + part * (known[-1].accuracy - known[0].accuracy)
    found = limit(now, steps, accuracy)
    # The best of all schedules, which may change its plan within a step as well.
    hours = [
        Hour(rows=rows, points=tuple(FrontierPoint(accuracy=p.accuracy, grams=w * p.grams) for p in known))
        for rows, w in steps
    ]
    assert found <= spend(hours, accuracy - 1e-9).grams * (1.0 + 1e-9) + 1e-9
    # And those of one plan a step, one by one.
    few = known[:: max(1, len(known) // 6)]
    rows = sum(own for own, _ in steps)
    for schedule in itertools.product(few, repeat=len(steps)):
        reached = sum(own * p.accuracy for (own, _), p in zip(steps, schedule, strict=True)) / rows
        grams = sum(own * w * p.grams for (own, w), p in zip(steps, schedule, strict=True))
        if reached >= accuracy:
            assert found <= grams * (1.0 + 1e-9) + 1e-9


@pytest.mark.parametrize("spared_w", [0.0, 2.0, 40.0])
def test_no_schedule_undercuts_it_where_devices_sleep(spared_w: float) -> None:
    now = moment("three", 0.2, 40.0, spared_w)
    known = plans(now)
    steps = [(3.0, 1.0), (1.0, 4.0)]
    for accuracy in (88.5, 90.0, 91.5):
        hours = [
            Hour(rows=rows, points=tuple(FrontierPoint(accuracy=p.accuracy, grams=w * p.grams) for p in known))
            for rows, w in steps
        ]
        assert limit(now, steps, accuracy) <= spend(hours, accuracy - 1e-9).grams


def test_it_is_close_where_only_capacity_limits() -> None:
    """With an SLO that nothing misses the planner comes within 2 % of it on four GPUs: the limit is not empty."""
    measured = mig_profile()
    measured = msgspec.structs.replace(measured, latency=tuple(m for m in measured.latency if m.batch == 1))
    now = state(rate=800.0, devices=a100s(4), measured=measured, config=objective(slo_ms=40.0, floor=0.0))
    problem, scored = problem_of(now), objective_of(now)
    floors = (0.0, 88.5, 89.0, 90.0, 91.0, 92.0)
    found = [best_found(problem, held_to(scored, floor)).best.prediction for floor in floors]
    steps = [(1.0, 1.0), (1.0, 3.0), (2.0, 2.0)]
    for accuracy in (88.5, 89.5, 90.5, 91.5):
        hours = [
            Hour(rows=rows, points=tuple(FrontierPoint(accuracy=p.accuracy, grams=w * p.joules) for p in found))
            for rows, w in steps
        ]
        least = spend(hours, accuracy - 1e-9).grams
        assert 0.98 * least <= limit(now, steps, accuracy) <= least * (1.0 + 1e-6)


def problems() -> list[tuple[Problem, State, tuple[DeviceShape, ...]]]:
    found = []
    for kind, load, slo_ms in (("cpu", 0.3, 2.5), ("cpu", 0.3, 4.2), ("gpu", 0.3, 4.2)):
        now = moment(kind, load, slo_ms)
        found.append((problem_of(now), now, now.devices))
    return found


@pytest.mark.parametrize(("problem", "now", "devices"), problems())
def test_late_rows_make_a_bound_tighter_and_never_too_tight(
    problem: Problem, now: State, devices: tuple[DeviceShape, ...]
) -> None:
    scored = objective_of(msgspec.structs.replace(now, objective=msgspec.structs.replace(now.objective, lam=0.02)))
    form = Formulation([PackingMember(problem, scored)], devices, slow=True)
    loose, tight = plan_bound(form), slo_bound(form)
    assert tight <= loose + 1e-12
    for configuration in every(problem, 2_000) or ():
        candidate = evaluate(problem, scored, configuration, beat=tight)
        assert not candidate.feasible or candidate.score <= tight + 1e-9


def test_late_rows_matter() -> None:
    """Where one core is too slow for the best variant, plans that would put it there are not hoped for."""
    now = moment("cpu", 0.2, 3.8)
    scored = objective_of(msgspec.structs.replace(now, objective=msgspec.structs.replace(now.objective, lam=0.02)))
    form = Formulation([PackingMember(problem_of(now), scored)], now.devices, slow=True)
    assert slo_bound(form) < plan_bound(form) - 1e-4


def test_chords_lie_below() -> None:
    own = CostBound((0.0, 1.0, 3.0), (2.0, 0.5, -4.0), 3.0)
    assert [own.at(price) for price in (0.0, 0.5, 1.0, 2.0, 3.0)] == pytest.approx([2.0, 1.25, 0.5, -1.75, -4.0])
    assert own.at(5.0) == pytest.approx(-10.0)  # nothing is more accurate than 3 %


def test_a_step_without_emissions_costs_nothing_and_may_be_as_accurate_as_any() -> None:
    now = moment("cpu", 0.5, 40.0)
    dirty = limit(now, [(1.0, 2.0)], 88.0)
    assert limit(now, [(1.0, 2.0), (1.0, 0.0)], 90.0) == pytest.approx(dirty, rel=1e-3)
