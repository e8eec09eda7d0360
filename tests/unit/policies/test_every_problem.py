"""Every policy has an answer to every problem: a plan, or in words why there is none."""

from __future__ import annotations

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from clover.control.solver.process import solve
from clover.control.solver.protocol import SolverOrder
from clover.planning.model.problem import accuracies, met_by
from clover.policies import POLICIES
from clover.policies.demanded import with_met
from clover.types import Ahead, Demand, Routing, State
from tests.support.chains_fixture import cascading, point
from tests.support.examples import examples
from tests.support.profiles_fixture import VARIANTS, cpu

POINTS = [
    point(91.5),
    point(91.8, reach=(1.0, 0.5)),
    point(90.6, chain=("small", "medium"), reach=(1.0, 0.6)),
    point(91.4, chain=("small", "medium", "large"), reach=(1.0, 0.4, 0.1)),
]
HOUR_S = 3600.0


@st.composite
def problems(draw: st.DrawFn) -> State:
    """A family with or without cascades, whose rows may ask for accuracies (the last one above every variant's), on
    workers that hold up to three variants, on one device or two."""
    rate, ahead = draw(st.sampled_from([2.0, 40.0, 300.0])), draw(st.booleans())
    devices = tuple(cpu(draw(st.sampled_from([1, 2])), f"cpu{number}") for number in range(draw(st.integers(1, 2))))
    posed = cascading(POINTS, on=draw(st.booleans()), rate=rate, floor=90.0, devices=devices)
    asked = {name: accuracy for name, (accuracy, _) in VARIANTS.items() if name != "small"} | {"none": 97.0}
    budget = draw(st.sampled_from([None, 0.5]))
    return msgspec.structs.replace(
        posed,
        objective=msgspec.structs.replace(posed.objective, accuracy_budget=budget),
        resident=draw(st.integers(1, 3)),
        ahead=tuple(Ahead(seconds=HOUR_S, g_per_kwh=g, rows=HOUR_S * rate) for g in (100.0, 400.0)) if ahead else (),
        demand=tuple(
            Demand(
                variant="large" if name == "none" else name, accuracy=accuracy, rate=draw(st.sampled_from([1.0, 50.0]))
            )
            for name, accuracy in asked.items()
            if draw(st.booleans())
        ),
    )


@settings(max_examples=examples(120), deadline=None)
@given(
    policy=st.sampled_from([*POLICIES, "static:small"]),
    before=st.sampled_from([None, "objective", "budget", "base"]),
    lost=st.booleans(),
    posed=problems(),
)
def test_every_problem_gets_a_plan_or_is_said_to_have_none(
    policy: str, before: str | None, lost: bool, posed: State
) -> None:
    """What runs is the plan of a moment without demand, whose first device may be lost since."""
    if before is not None:
        answer = solve(SolverOrder(id=1, policy=before, state=msgspec.structs.replace(posed, demand=())))
        assert not answer.traceback, answer.traceback
        if answer.plan is not None:
            posed = msgspec.structs.replace(posed, running=answer.plan.deployment, routing=answer.plan.routing)
    if lost:
        gone, *left = posed.devices
        running = tuple(item for item in posed.running if item.placement.device != gone.device)
        gone = msgspec.structs.replace(gone, layouts=())
        routing = posed.routing if running else None
        posed = msgspec.structs.replace(posed, devices=(gone, *left), running=running, routing=routing)
    answer = solve(SolverOrder(id=2, policy=policy, state=posed))
    assert not answer.traceback, answer.traceback
    plan = answer.plan
    if plan is None:
        assert answer.error
        return
    assert plan.feasible or "no feasible plan" in plan.reason
    assert isinstance(plan.routing, Routing)
    met = with_met(posed, plan).demand
    assert met_by(met, plan.deployment, accuracies(posed.profile)) == met
