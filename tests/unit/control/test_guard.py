"""The controller where a guard climbs its ladder: what it plans by, when, and the operator's way back."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from clover.control.state.request import Pin, PlanRequest
from clover.runtime.guard.guard import CASCADE_OFF, OK, TIGHTENED
from tests.support.control_fixture import Rig


def drive(story: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(story(), 30.0))


async def standing(mode: str = "active") -> Rig:
    rig = Rig(mode=mode)
    await rig.deploy()
    await rig.look(10.0)
    return rig


def test_a_plan_follows_at_once_and_gives_up_less_and_then_nothing() -> None:
    async def story() -> None:
        rig = await standing()
        rig.chain.g_per_kwh = 600.0  # a grid in which accuracy is given up
        await rig.look(10.0, looks=3)
        before = rig.family.deployed
        assert before is not None
        assert before.plan.prediction.accuracy < 91.9
        rig.fleet.figures["guard"] = float(TIGHTENED)
        await rig.look(10.0)
        assert rig.last["trigger"] == "guard: tightened"
        tight = rig.family.deployed
        assert tight is not None
        assert tight.plan.prediction.accuracy > before.plan.prediction.accuracy
        rig.fleet.figures["guard"] = float(CASCADE_OFF)
        await rig.look(10.0)
        assert rig.last["trigger"] == "guard: aside"
        aside = rig.family.deployed
        assert aside is not None
        assert aside.routing.shares["large"] == pytest.approx(1.0)
        assert rig.family.targets.accuracy_floor == 91.0  # the operator's target is as it was
        decisions = len(rig.actions)
        await rig.look(1.0)
        assert len(rig.actions) == decisions  # once is enough
        rig.consistent()

    drive(story)


@pytest.mark.parametrize("budgeted", [False, True])
def test_what_is_planned_by(budgeted: bool) -> None:
    async def story() -> None:
        rig = await standing()
        context, family = rig.controller.context, rig.family
        config, conditions = context.config, await context.conditions(family)
        request = PlanRequest(trigger="test", pin=Pin(policy="budget") if budgeted else None)

        def objective(level: int) -> tuple[float, float | None, bool, float | None]:
            family.observed["guard"] = float(level)
            found = family.state(conditions, config, request).objective
            return found.accuracy_floor, found.accuracy_budget, found.cascade, found.lam

        lam = family.lam(config)
        budget = family.config.accuracy_budget if budgeted else None
        assert objective(OK) == (91.0, budget, family.cascades(config), None)
        assert objective(TIGHTENED) == (91.5, budget / 2 if budget else None, family.cascades(config), lam)
        assert objective(CASCADE_OFF) == (92.0, 0.0 if budgeted else None, False, lam)

    drive(story)


def test_an_operator_has_it_begin_anew() -> None:
    async def story() -> None:
        rig = await standing()
        rig.fleet.figures["guard"] = float(CASCADE_OFF)
        await rig.look(10.0)
        shown = await rig.controller.command("guard", {"reset": True, "dry_run": True}, "alice")
        assert shown == {"reset": True, "before": {"toy": "aside"}, "dry_run": True}
        assert "reset guard" not in rig.fleet.calls
        answer = await rig.controller.command("guard", {"reset": True, "model": "toy"}, "alice")
        assert answer["before"] == {"toy": "aside"}
        assert "reset guard" in rig.fleet.calls
        assert (rig.last["trigger"], rig.last["operator"]) == ("operator: guard", "alice")
        await rig.look(10.0)
        assert rig.last["trigger"] == "guard: ok"
        assert rig.controller.state()["models"]["toy"]["guard"] == {"state": "ok"}

    drive(story)


def test_in_mode_observe_the_router_acts_alone() -> None:
    async def story() -> None:
        rig = await standing("observe")
        calls = list(rig.fleet.calls)
        rig.fleet.figures["guard"] = float(CASCADE_OFF)
        await rig.look(10.0)
        assert rig.last["action"] == "observed"
        assert rig.fleet.calls == calls

    drive(story)
