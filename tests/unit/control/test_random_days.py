"""What the controller applies keeps the targets if the workers that run can.

Random days: machines that lose GPUs and get them back, loads that jump, floors and targets that are tight or lax.  The
judges are the planner's prediction and the queueing model of the simulator (`simulate.flow.FleetModel`), which shares
no code with it.

    CLOVER_DAYS=1000 python -m pytest tests/unit/control/test_random_days.py      # as many days; 6 by default
"""

from __future__ import annotations

import asyncio
import functools
import os
import random
from collections.abc import Sequence

import msgspec
import pytest

from clover.planning.cascade.evaluation import predict_routing, shortfall
from clover.planning.model.objective import objective_of
from clover.planning.model.problem import problem_of
from clover.policies.plans import plan_fixed
from clover.research.simulate import families, parametric
from clover.research.simulate.flow import FleetModel
from clover.types import Assignment, Configuration, FamilyProfile, Plan, Routing, State, configuration_of
from tests.support.control_fixture import FakeDevice, FakeGpu, LocalSolver, Rig
from tests.support.mig_fixture import a100, mig_profile
from tests.support.profiles_fixture import cpu, profile

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
        kept = plan_fixed(asked, configuration_of(asked.running))
        if not kept.feasible:
            continue
        chosen = predict_routing(problem_of(asked), configuration_of(after.deployment), after.routing)
        assert chosen is not None
        lacks = shortfall(objective_of(asked), chosen, chained=len(after.routing.chain) > 1)
        assert not lacks, f"day {seed}: {lacks}, {rig.last}"
        if judged(model, asked, asked.running, kept.routing):
            assert judged(model, asked, after.deployment, after.routing), f"day {seed}: {rig.last}"
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
def test_what_is_applied_keeps_the_targets_if_what_runs_can(part: int) -> None:
    for seed in range(part, DAYS, PARTS):
        asyncio.run(one_day(seed))
