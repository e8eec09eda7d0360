"""The controller's side of an accuracy budget: what was, what will be, and what was served."""

from __future__ import annotations

import msgspec
import pytest

from clover.control.state.ledger import Ledger
from clover.planning.model.problem import accuracies
from clover.policies import BUDGETED
from clover.types import Configuration, Plan, State
from tests.support.budget_fixture import HOUR, on_a_loop, served
from tests.support.control_fixture import LocalSolver, Rig
from tests.support.profiles_fixture import reading


class Watching(LocalSolver):
    """Keeps the states it was asked about."""

    def __init__(self) -> None:
        super().__init__()
        self.states: list[State] = []

    async def propose(self, state: State, policy: str, configuration: Configuration | None = None) -> Plan:
        self.states.append(state)
        return await super().propose(state, policy, configuration)


def rig(policy: str = "budget", **config: object) -> tuple[Rig, Watching]:
    solver = Watching()
    made = Rig(policy=policy, family={"accuracy_floor": 89.0, "accuracy_budget": 1.0}, solver=solver, **config)
    made.clock.now_s = 1000 * HOUR
    return made, solver


@on_a_loop
async def test_a_budget_is_planned_hour_by_hour_with_what_was_served() -> None:
    made, solver = rig()
    await made.deploy()
    first = solver.states[-1]
    assert first.objective.accuracy_budget == 1.0
    assert sum(part.seconds for part in first.ahead) == pytest.approx(24 * HOUR)
    assert first.forecast == "persistence"
    assert "budget of 91.00 %" in made.last["plan"]["reason"]
    await served(made, 0.5, 1000.0, 90.0)
    assert solver.states[-1] is first, "nothing moved within the hour"
    await served(made, 0.6, 3000.0, 92.0)
    now = solver.states[-1]
    assert made.last["trigger"] == "forecast step"
    assert now.served_rows == pytest.approx(4000.0)
    assert now.served_accuracy_rows / now.served_rows == pytest.approx(91.5)
    assert sum(part.seconds for part in now.ahead) == pytest.approx(22.9 * HOUR)
    assert made.last["inputs"]["served_accuracy"] == pytest.approx(91.5)
    told = made.controller.state()["models"]["toy"]["budget"]
    assert told["accuracy"] == pytest.approx(91.5)
    assert told["forecast"] == "persistence"


@on_a_loop
async def test_a_horizon_that_ends_is_followed_by_another() -> None:
    made, solver = rig()
    await made.deploy()
    await served(made, 20.0, 5000.0, 90.0)
    await served(made, 5.0, 1000.0, 90.0)
    assert solver.states[-1].served_rows == 0.0
    assert sum(part.seconds for part in solver.states[-1].ahead) == pytest.approx(23 * HOUR)
    await served(made, 2.0, 1000.0, 92.0)
    assert solver.states[-1].served_rows == pytest.approx(1000.0)


@on_a_loop
async def test_a_day_of_readings_becomes_seasons_and_a_provider_is_preferred() -> None:
    made, solver = rig()
    await made.deploy()
    for hour in range(30):
        made.chain.g_per_kwh = 100.0 if hour % 2 else 400.0
        await served(made, 1.0, 100.0, 91.0)
    assert solver.states[-1].forecast.startswith("seasonal")
    assert {round(part.g_per_kwh) for part in solver.states[-1].ahead} == {100, 400}
    now_s = made.clock.now_s
    made.chain.foreseen = [
        msgspec.structs.replace(reading(50.0 + k), at_s=now_s + k * HOUR, provider="p") for k in range(48)
    ]
    await served(made, 1.0, 100.0, 91.0)
    assert solver.states[-1].forecast == "provider p"
    assert solver.states[-1].ahead[2].g_per_kwh == pytest.approx(53.0)
    made.chain.foreseen = []  # it fails: what it said still holds as far as it reaches
    await served(made, 1.0, 100.0, 91.0)
    assert "provider p" in solver.states[-1].forecast


@pytest.mark.parametrize("policy", ["objective", "base", "static:large", "static"])
@on_a_loop
async def test_other_policies_get_no_forecast_and_only_the_mix_a_budget(policy: str) -> None:
    made, solver = rig(policy)
    await made.deploy()
    await served(made, 2.0, 1000.0, 92.0)
    assert all(not state.ahead and not state.served_rows for state in solver.states)
    assert (solver.states[0].objective.accuracy_budget is not None) == (policy in BUDGETED)
    best = max(accuracies(made.family.profile).values())
    assert made.controller.state()["models"]["toy"]["budget"] == (
        {"accuracy_budget": 1.0, "accuracy_target": max(89.0, best - 1.0)} if policy == "static" else None
    )
    assert "forecast step" not in {decision["trigger"] for decision in made.controller.decisions(100)}


def test_the_same_hard_row_again_and_again_spends_no_budget() -> None:
    ledger, usual = Ledger(), 92.9
    for rows in (0.0, 400.0):
        hard = {"rows": rows, "accuracy_served": 77.58, "repeated_surplus": (77.58 - usual) * rows}
        ledger.observe(rows, hard if rows else {"rows": 0.0}, 86_400.0)
    assert ledger.accuracy_rows / ledger.rows == pytest.approx(usual)


def test_a_router_that_begins_anew_is_not_a_debt() -> None:
    ledger = Ledger()
    for at, rows, accuracy in ((0.0, 500.0, 90.0), (10.0, 700.0, 90.0), (20.0, 100.0, 92.0), (30.0, 100.0, 92.0)):
        ledger.observe(at, {"rows": rows, "accuracy_served": accuracy}, 86_400.0)
    assert ledger.rows == pytest.approx(300.0)
    assert ledger.accuracy_rows == pytest.approx(200.0 * 90.0 + 100.0 * 92.0)
    ledger.observe(-5.0, {"rows": 150.0, "accuracy_served": 92.0}, 86_400.0)
    assert (ledger.since_s, ledger.rows) == (-5.0, 0.0), "the grid clock was set back: another horizon"
