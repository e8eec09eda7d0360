"""The controller under a budget with cascades: thresholds every few minutes, workers left alone, both counted."""

from __future__ import annotations

import asyncio
import io

import msgspec
import pytest
from rich.console import Console

from clover.cli.ctl.answers import show
from clover.control.state.context import LeastSaving
from clover.control.state.ledger import Ledger
from clover.policies import SPENDING
from clover.types import CascadeProfile, Reading
from tests.support.chain_points import POINTS
from tests.support.control_fixture import Rig
from tests.support.profiles_fixture import profile, reading

pytestmark = pytest.mark.slow

HOUR = 3600.0


def rig(policy: str = "budget", least_saving: LeastSaving | None = None) -> Rig:
    measured = msgspec.structs.replace(
        profile(), cascade=CascadeProfile(points=POINTS, quantiles={}, calibration_rows=5000, held_out_rows=5000)
    )
    made = Rig(
        policy=policy,
        cascade=True,
        measured=measured,
        family={"accuracy_floor": 88.5, "accuracy_budget": 1.0},
        verify_s=0.0,
        least_saving=least_saving,
    )
    made.clock.now_s = 1000 * HOUR
    made.fleet.figures["arrival_rate"] = 100.0
    return made


def foreseen(made: Rig, grid: list[float]) -> list[Reading]:
    hours = [msgspec.structs.replace(reading(g), at_s=(1000 + at) * HOUR) for at, g in enumerate(grid)]
    made.chain.foreseen = hours
    return hours


async def a_day(made: Rig, grid: list[float], looks: int = 12) -> None:
    """Every hour of `grid` looked at so often; rows are served as the standing plan says."""
    foreseen(made, grid)
    made.chain.g_per_kwh = grid[0]
    await made.deploy()
    for g in grid:
        made.chain.g_per_kwh = g
        for _ in range(looks):
            standing = made.family.deployed
            assert standing is not None
            figures, rows = made.fleet.figures, 100.0 * HOUR / looks
            right = figures["rows"] * figures.get("accuracy_served", 0.0) + rows * standing.plan.prediction.accuracy
            figures["rows"] += rows
            figures["accuracy_served"] = right / figures["rows"]
            await made.look(HOUR / looks)


def test_thresholds_are_turned_and_counted_and_workers_stay() -> None:
    made = rig()
    asyncio.run(a_day(made, [120.0, 450.0, 130.0, 420.0, 110.0, 400.0] * 4))
    family, fleet = made.family, made.fleet
    assert family.turned >= 4
    looks = 24 * 12
    assert family.changes - 1 <= 0.1 * looks, "nine looks of ten leave the configuration"
    assert fleet.figures["accuracy_served"] == pytest.approx(91.0, abs=0.1)
    told = made.controller.state()["models"]["toy"]
    assert told["thresholds_moved"] == family.turned
    assert told["changes"] == family.changes
    assert told["plan"]["permitted"]
    assert {"chain", "thresholds", "prediction"} == set(told["plan"]["permitted"][0])
    spawned = sum(call.startswith("spawn") for call in fleet.calls)
    assert spawned == 2 + sum(call.startswith("drain") for call in fleet.calls), "two cores, two workers"


def test_the_operator_is_told_of_both() -> None:
    made = rig()
    asyncio.run(a_day(made, [120.0, 450.0, 130.0, 420.0], looks=4))
    made.family.turned = 7
    console = Console(width=160, record=True, file=io.StringIO())
    show("state", made.controller.state(), console)
    assert "thresholds 7 times" in console.export_text()


def test_a_new_hour_is_a_reason_to_plan() -> None:
    ledger = Ledger()
    assert ledger.due(10.0), "nothing was planned yet"
    ledger.planned_s = 10.0 * HOUR + 10.0
    assert not ledger.due(11.0 * HOUR - 1.0)
    assert ledger.due(11.0 * HOUR)


@pytest.mark.parametrize("policy", sorted(SPENDING))
def test_both_budgets_hold_to_the_budget(policy: str) -> None:
    made = rig(policy)
    asyncio.run(a_day(made, [120.0, 450.0, 130.0, 420.0, 200.0, 300.0] * 4, looks=6))
    assert made.fleet.figures["accuracy_served"] == pytest.approx(91.0, abs=0.1)
    assert made.controller.state()["models"]["toy"]["budget"]["horizon_s"] == 86_400.0


@pytest.mark.parametrize(
    ("rate", "least", "rests"),
    [
        (0.01, LeastSaving(idle_w=lambda: 40.0), True),
        (100.0, LeastSaving(idle_w=lambda: 40.0), False),
        (0.01, LeastSaving(core_w=2.0), True),
        (0.01, LeastSaving(), False),
    ],
    ids=["a trickle, of idle power", "a load", "a trickle, of what plans take", "anything counts"],
)
def test_where_there_is_nothing_to_save_the_best_variant_answers_and_nothing_is_planned(
    rate: float, least: LeastSaving, rests: bool
) -> None:
    made = rig(least_saving=least)
    made.solver.seconds = 10.0
    made.fleet.figures["arrival_rate"] = rate

    async def day() -> None:
        await made.deploy()
        made.family.triggers.again(made.clock.now_s)  # what a plan takes is known from the first one on
        await made.look()
        planned = len(made.actions)
        for g in [450.0, 130.0, 420.0, 110.0]:
            made.chain.g_per_kwh = g
            await made.look(HOUR)
        assert (len(made.actions) == planned) is rests
        model = made.controller.state()["models"]["toy"]
        assert ("gives up no accuracy" in model["terms"]) is rests
        assert ("no routing saves" in model["plan"]["reason"]) is rests
        assert (model["routing"]["shares"].get("large") == 1.0) is rests, "the best variant answers"
        made.fleet.figures["arrival_rate"] = 300.0
        await made.look(looks=3)
        assert "gives up no accuracy" not in made.controller.state()["models"]["toy"]["terms"]

    asyncio.run(day())
