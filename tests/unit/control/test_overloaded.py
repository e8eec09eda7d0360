"""What the controller gives up when it cannot have everything: capacity for a moment, or a margin against chance."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from clover.control.plan import planner
from tests.support.control_fixture import Rig, cpu


async def on_one_large_worker() -> Rig:
    """Return a rig on which one worker has both cores, so that none could serve while they are cut in two."""
    family = {"accuracy_floor": 92.0, "slo_ms": 45.0}
    rig = Rig(
        shape=cpu(2, overlap=False),
        family=family,
        max_utilisation=0.97,
        allow_capacity_loss=True,
    )
    await rig.settled()
    await rig.controller.command("apply", {"configuration": {"large@2c": 1}, "force": True}, "alice")
    context = rig.controller.context
    context.config = msgspec.structs.replace(context.config, allow_capacity_loss=False)
    await rig.look(6.0)
    return rig


def test_capacity_is_lost_for_a_moment_rather_than_the_slo_for_an_hour() -> None:
    async def story() -> None:
        rig = await on_one_large_worker()
        rig.fleet.figures["arrival_rate"] = 720.0
        await rig.look(10.0)
        assert rig.last["action"] == "applied"
        assert rig.last["detail"].endswith("; to stay would miss more rows")
        assert [(group.count, group.profile) for group in rig.family.deployed.configuration] == [(2, "1c")]
        rig.consistent()

    asyncio.run(story())


def test_a_loss_that_does_not_pay_is_not_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planner, "PAYBACK_S", 0.0)

    async def story() -> None:
        rig = await on_one_large_worker()
        rig.fleet.figures["arrival_rate"] = 720.0
        await rig.look(10.0)
        assert rig.last["action"] == "kept"
        assert "controller.allow_capacity_loss allows it" in rig.last["detail"]
        assert not rig.last["plan"]["feasible"]

    asyncio.run(story())


@pytest.mark.parametrize(
    ("rate", "margin", "without", "feasible"),
    [
        (500.0, 0.51, "", True),
        (900.0, 0.0, "without the margin for what chance does to accuracy,", True),
        (1100.0, 0.0, "without the margins for what chance does to accuracy and rate,", True),
        (1300.0, 0.51, "", False),
    ],
)
def test_a_margin_gives_way_to_the_slo_and_only_to_that(
    rate: float, margin: float, without: str, feasible: bool
) -> None:
    """That of the accuracy goes first: what it costs evens out over hours."""

    async def story() -> None:
        rig = Rig(family={"accuracy_floor": 90.5, "accuracy_margin": None}, max_utilisation=0.95)
        await rig.settled()
        rig.fleet.figures["arrival_rate"] = rate
        await rig.look(10.0)
        plan = rig.last["plan"]
        assert plan["feasible"] is feasible
        assert plan["prediction"]["accuracy"] >= 90.5 + margin - 0.005
        assert without in plan["reason"]
        assert ("without the margin" in plan["reason"]) is bool(without)
        assert (rig.last["inputs"]["arrival_rate"] == rate) is ("and rate" in without), "as it was counted"

    asyncio.run(story())


def test_a_margin_that_the_operator_gave_stays() -> None:
    async def story() -> None:
        rig = Rig(family={"accuracy_floor": 90.5, "accuracy_margin": 0.5}, max_utilisation=0.95)
        await rig.settled()
        rig.fleet.figures["arrival_rate"] = 900.0
        await rig.look(10.0)
        assert not rig.last["plan"]["feasible"]
        assert rig.last["plan"]["prediction"]["accuracy"] >= 91.0 - 0.005

    asyncio.run(story())
