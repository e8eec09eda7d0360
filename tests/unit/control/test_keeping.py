"""What the controller applies is never predicted worse than keeping what runs: feasibility first, then the objective.

Random days: machines that lose GPUs and get them back, loads that jump, floors and targets that are tight or lax.  The
judge is the queueing model of the simulator (`simulate.fleet.Model`), which shares no code with the planner's own
prediction of keeping, `planning.budget.keeping`.

    CLOVER_DAYS=1000 python -m pytest tests/unit/control/test_keeping.py      # as many days; 6 by default
"""

from __future__ import annotations

import asyncio
import functools
import os
import random
from collections.abc import Sequence
from dataclasses import replace

import msgspec
import pytest

from clover.planning.budget.keeping import keeping, momentary, worth_taking
from clover.planning.cascade.routed import predicted, shortfall
from clover.planning.model.objective import objective_of
from clover.planning.model.planning_input import PlanningInput
from clover.planning.model.problem import problem_of
from clover.planning.search.power_states import best_power_state
from clover.planning.search.sustained import PARTS as PARTS_OF_THE_RATE
from clover.planning.search.sustained import WASTED, best_sustained
from clover.policies import build
from clover.policies.demanded import with_met
from clover.policies.keeping import beside_keeping
from clover.policies.plans import plan_fixed
from clover.research.simulate import families, parametric
from clover.research.simulate.flow import FleetModel
from clover.types import (
    Assignment,
    Candidate,
    Configuration,
    Demand,
    FamilyProfile,
    Plan,
    Routing,
    State,
    configuration_of,
)
from tests.support.control_fixture import FakeDevice, FakeGpu, LocalSolver, Rig
from tests.support.mig_fixture import a100, mig_profile
from tests.support.profiles_fixture import cpu, objective, profile, state, worker

pytestmark = pytest.mark.slow

DAYS = int(os.environ.get("CLOVER_DAYS", "6"))
PARTS = 6
STEPS = 6
SLACK = 1.03  # plays of the same routing at rates that are rounded differently
POLICIES = ("objective", "budget", "budget:flat", "static:mix")


class Witness(LocalSolver):
    """Remembers the last state that a policy was asked about."""

    asked: State | None = None

    async def propose(self, state: State, policy: str, configuration: Configuration | None = None) -> Plan:
        self.asked = state
        return await super().propose(state, policy, configuration)


@functools.cache
def cascading() -> FamilyProfile:
    return families.load("efficientnet", families.gpus(1), parametric.parse("parametric")).profile


def drawn(rng: random.Random) -> Rig:
    """A machine, a family and its targets."""
    kind = rng.choice(["cpu", "cpu", "gpu", "gpu", "gpus"] + ["cascade"] * (rng.random() < 0.15))
    devices: dict[str, FakeDevice]
    if kind == "cpu":
        cores = rng.choice([1, 2, 4])
        sizes = tuple(size for size in (1, 2, 4) if size <= cores)
        shape = msgspec.structs.replace(cpu(cores), core_sleep_w=rng.choice([None, 0.1, 2.0]))
        devices, measured = {"cpu0": FakeDevice(shape)}, profile(sizes)
    else:
        count = 1 if kind == "cascade" else 2 if kind == "gpus" else 1
        devices = {f"gpu{index}": FakeGpu(a100(f"gpu{index}")) for index in range(count)}
        measured = cascading() if kind == "cascade" else mig_profile()
    best = max(item.value for item in measured.accuracy)
    base_p95_ms = measured.base.p95_ms if kind == "cascade" else 10.0
    return Rig(
        solver=Witness(),
        g_per_kwh=rng.uniform(50.0, 500.0),
        devices=devices,
        measured=measured,
        family={
            "slo_ms": base_p95_ms * rng.uniform(0.6, 4.0),
            "accuracy_floor": best - rng.uniform(0.0, 3.0),
            "accuracy_margin": rng.choice([0.0, 0.25]),
            "accuracy_budget": rng.uniform(0.0, 2.0),
        },
        policy=rng.choice(POLICIES),
        objective=rng.choice(["paper", "floor"]),
        cascade=kind == "cascade",
        min_dwell_s=rng.choice([0.0, 5.0]),
    )


def judged(model: FleetModel, now: State, workers: Sequence[Assignment], routing: Routing) -> bool:
    """Whether the simulator's model finds that these workers keep the SLO at the state's rate, with a little slack."""
    flow = model.flow(configuration_of(tuple(workers)), routing, now.arrival_rate)
    overloaded = flow.served < 0.99 * now.arrival_rate
    return not overloaded and flow.p95_ms <= SLACK * now.objective.slo_ms


async def one_day(seed: int) -> None:
    rng = random.Random(seed)
    rig = drawn(rng)
    model = FleetModel(rig.profile, rig.settings.slo_ms or 1.0)
    capacity = sum(rig.family.capacity(1.0)(item) for item in whole_machine(rig))
    rate = capacity * rng.uniform(0.05, 0.7)
    rig.fleet.figures["arrival_rate"] = rate
    await rig.deploy()
    solver = rig.solver
    assert isinstance(solver, Witness)
    for _ in range(STEPS):
        rig.chain.g_per_kwh *= rng.uniform(0.7, 1.4)
        if rng.random() < 0.5:
            rate = max(0.1, min(1.3 * capacity, rate * rng.uniform(0.4, 2.0)))
        rig.fleet.figures["arrival_rate"] = rate
        for device in rig.devices.values():
            if isinstance(device, FakeGpu) and rng.random() < 0.15:
                device.lost = not device.lost
                device.made.clear()
        before, solver.asked = None, None
        if (standing := rig.family.deployed) is not None:
            before = standing
        await rig.look(rng.choice([1.0, 6.0, 600.0]))
        after, asked = rig.family.deployed, solver.asked
        if before is None or after is None or asked is None or not asked.running or asked.routing is None:
            continue
        kept = keeping(PlanningInput.of(asked))
        assert kept is not None
        now = msgspec.structs.replace(asked, running=after.deployment, routing=after.routing)
        chosen = keeping(PlanningInput.of(now))
        assert chosen is not None
        if kept.feasible:
            assert chosen.feasible, f"day {seed}: {rig.last}"
            if judged(model, asked, asked.running, asked.routing) and kept.prediction.p95_ms <= asked.objective.slo_ms:
                assert judged(model, asked, after.deployment, after.routing), f"day {seed}: {rig.last}"
        devices = {item.placement.device for item in after.deployment} == {
            item.placement.device for item in asked.running
        }
        by_moment = rig.controller.context.config.policy in ("objective", "static:mix")
        dealt = asked.routing.shares
        idle = not asked.routing.chain and not all(dealt.get(item.variant, 0.0) for item in asked.running)
        if kept.feasible and by_moment and devices and not idle and rig.last["action"] in ("routed", "applied"):
            scale = momentary(asked, objective_of(asked)).scale
            assert chosen.score >= kept.score - 1e-3 * scale, f"day {seed}: {rig.last}"
    rig.consistent()


def whole_machine(rig: Rig) -> list[Assignment]:
    """The best variant on each device as a whole."""
    base = rig.profile.base
    found = []
    for device in rig.devices.values():
        layout = min(device.shape().layouts, key=len)
        found += [
            Assignment(placement=place, family="toy", variant=base.variant, backend=rig.profile.backend[base.variant])
            for place in layout
        ]
    return found


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("part", range(PARTS))
def test_what_is_applied_is_never_predicted_worse_than_keeping(part: int) -> None:
    for seed in range(part, DAYS, PARTS):
        asyncio.run(one_day(seed))


# --- the prediction of keeping ------------------------------------------------------------------------------------


def test_keeping_is_predicted_as_the_plan_that_brought_it() -> None:
    now = state(rate=100.0)
    plan = build("objective").propose(now)
    kept = keeping(PlanningInput.of(msgspec.structs.replace(now, running=plan.deployment, routing=plan.routing)))
    assert kept is not None
    assert kept.feasible == plan.feasible
    assert kept.prediction.p95_ms == pytest.approx(plan.prediction.p95_ms, rel=0.02)
    assert kept.prediction.energy_j_per_row == pytest.approx(plan.prediction.energy_j_per_row, rel=0.01)
    assert kept.prediction.accuracy == pytest.approx(plan.prediction.accuracy, abs=1e-3)


def test_keeping_with_waits_is_predicted_as_the_plan_that_brought_it() -> None:
    config = msgspec.structs.replace(objective(slo_ms=60.0), waits=True)
    now = state(rate=300.0, config=config)
    plan = build("objective").propose(now)
    assert plan.routing.wait_ms or plan.routing.largest, "the state is one in which waiting pays"
    kept = keeping(PlanningInput.of(msgspec.structs.replace(now, running=plan.deployment, routing=plan.routing)))
    assert kept is not None
    assert kept.feasible
    assert kept.prediction.p95_ms == pytest.approx(plan.prediction.p95_ms, rel=0.05)
    assert kept.prediction.energy_j_per_row == pytest.approx(plan.prediction.energy_j_per_row, rel=0.02)


def test_keeping_a_cascade_is_predicted_as_the_plan_that_brought_it() -> None:
    measured = cascading()
    config = msgspec.structs.replace(
        objective(slo_ms=1.5 * measured.base.p95_ms, floor=83.0), cascade=True, accuracy_budget=None
    )
    now = state(rate=3.0, config=config, measured=measured, devices=families.gpus(1))
    plan = build("objective").propose(now)
    assert plan.routing.chain
    kept = keeping(PlanningInput.of(msgspec.structs.replace(now, running=plan.deployment, routing=plan.routing)))
    assert kept is not None
    assert kept.feasible
    assert kept.prediction.p95_ms == pytest.approx(plan.prediction.p95_ms, rel=0.02)
    unknown = msgspec.structs.replace(plan.routing, thresholds=tuple(0.123 for _ in plan.routing.thresholds))
    assert keeping(PlanningInput.of(msgspec.structs.replace(now, running=plan.deployment, routing=unknown))) is None


def test_keeping_what_the_profile_does_not_know_is_not_predicted() -> None:
    now = state()
    assert keeping(PlanningInput.of(now)) is None, "nothing runs"
    strange = msgspec.structs.replace(worker("large", 0, 2), variant="huge")
    unknown_runs = msgspec.structs.replace(now, running=(strange,), routing=Routing(shares={"huge": 1.0}))
    assert keeping(PlanningInput.of(unknown_runs)) is None


def test_feasibility_comes_first_then_how_bad_then_the_score() -> None:
    now = state(rate=100.0)
    aims = objective_of(now)
    plan = build("objective").propose(now)
    kept = keeping(PlanningInput.of(msgspec.structs.replace(now, running=plan.deployment, routing=plan.routing)))
    assert kept is not None
    worse = msgspec.structs.replace(kept, score=kept.score - 1.0)
    better = msgspec.structs.replace(kept, score=kept.score + 1.0)
    late = msgspec.structs.replace(
        better, feasible=False, prediction=msgspec.structs.replace(kept.prediction, p95_ms=500.0)
    )
    assert worth_taking(plan, worse, aims, by_score=True)
    assert not worth_taking(plan, better, aims, by_score=True)
    assert worth_taking(plan, better, aims, by_score=False)
    assert worth_taking(plan, late, aims, by_score=True)
    bad = msgspec.structs.replace(plan, feasible=False)
    assert not worth_taking(bad, worse, aims, by_score=True)
    bad = msgspec.structs.replace(bad, prediction=msgspec.structs.replace(plan.prediction, p95_ms=400.0))
    assert worth_taking(bad, late, aims, by_score=True)
    bad = msgspec.structs.replace(bad, prediction=msgspec.structs.replace(plan.prediction, p95_ms=600.0))
    assert not worth_taking(bad, late, aims, by_score=True)


def test_a_budget_that_asks_for_more_than_the_workers_can_do_is_approached() -> None:
    config = msgspec.structs.replace(objective("floor", floor=88.0), accuracy_budget=0.0)
    now = state(rate=500.0, config=config)  # two cores do not serve 500 rows/s of `large` within the limit
    mixed: Configuration = configuration_of((worker("small", 0, 1), worker("large", 1, 1)))
    plan = plan_fixed(now, mixed)
    assert plan.feasible, plan.reason
    assert 88.0 <= plan.prediction.accuracy < 92.0


@pytest.mark.parametrize("policy", ["base", "static:small", "co2opt", "clover"])
def test_policies_that_serve_what_their_name_says_are_not_judged(policy: str) -> None:
    now = state(rate=100.0)
    good = build("objective").propose(now)
    running = msgspec.structs.replace(now, running=good.deployment, routing=good.routing)
    found = beside_keeping(running, build(policy).propose(running))
    assert found.keeping is not None
    assert not found.worse_than_keeping


# --- where nothing is feasible ------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [560.0, 600.0, 700.0, 900.0])
def test_where_nothing_is_feasible_what_sustains_most_is_taken(rate: float) -> None:
    now = state(rate=rate, config=objective(slo_ms=8.0, floor=91.9))
    problem, aims = problem_of(now), objective_of(now)
    least_bad, found = best_power_state(problem, aims).best, best_sustained(problem, aims).best
    assert not least_bad.feasible

    def sustains(candidate: Candidate) -> float:
        kept = [part for part in (1.0, *PARTS_OF_THE_RATE) if keeps(candidate, part)]
        return max(kept, default=0.0)

    def keeps(candidate: Candidate, part: float) -> bool:
        fewer = replace(problem, rate=part * rate)
        seen = predicted(fewer, candidate.configuration, candidate.routing)
        return seen is not None and not shortfall(aims, seen)

    assert sustains(found) >= sustains(least_bad)
    if sustains(found) == sustains(least_bad):
        assert found == least_bad, "nothing is gained by another"
    assert found.prediction.utilisation <= WASTED * least_bad.prediction.utilisation


def test_demand_that_a_plan_has_too_few_workers_for_is_not_met() -> None:
    asked = (Demand(variant="large", accuracy=92.0, rate=600.0),)
    now = msgspec.structs.replace(state(rate=700.0), demand=asked)
    plan = plan_fixed(state(rate=700.0), configuration_of((worker("large", 0, 1), worker("medium", 1, 1))))
    assert with_met(now, plan).demand == ()
    few = (Demand(variant="large", accuracy=92.0, rate=10.0),)
    assert with_met(msgspec.structs.replace(now, demand=few), plan).demand == few
