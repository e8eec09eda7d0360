"""A family whose workers hold several variants: what policies are given, pins of shared workers, what is deployed."""

from __future__ import annotations

import asyncio

import pytest

from clover.errors import BadRequest
from clover.types import GroupCount, configuration_of
from tests.support.control_fixture import Rig
from tests.support.profiles_fixture import placement

pytestmark = pytest.mark.slow


async def settled(resident: str) -> Rig:
    rig = Rig(family={"resident": resident})
    await rig.settled()
    return rig


BOTH = {"large/small@1c": 2}


def test_policies_see_what_a_worker_may_hold() -> None:
    async def story() -> None:
        rig = await settled("auto")
        conditions = await rig.controller.context.conditions(rig.family)
        assert set(conditions.resident_bytes) == {"1c", "2c"}

    asyncio.run(story())


def test_a_pin_has_two_variants_share_both_cores() -> None:
    async def story() -> None:
        rig = await settled("auto")
        await rig.controller.command("pin", {"configuration": BOTH, "force": True}, "alice")
        held = rig.family.deployed
        assert held is not None
        assert held.configuration == (GroupCount(variant="large", profile="1c", count=2, beside=("small",)),)
        assert configuration_of(held.deployment) == held.configuration
        assert len(held.deployment) == 4
        assert {item.placement for item in held.deployment} == {placement(0, 1), placement(1, 1)}
        assert set(rig.fleet.routed) == set(held.deployment)
        shown = rig.controller.state()["models"]["toy"]["pin"]
        assert list(shown) == [{"variant": "large", "profile": "1c", "count": 2, "beside": ("small",)}]
        rig.consistent()

    asyncio.run(story())


@pytest.mark.parametrize(
    ("resident", "why"),
    [("off", "holds one variant"), ("2", "holds 2 variants at most")],
)
def test_more_than_a_worker_holds_is_refused(resident: str, why: str) -> None:
    async def story() -> None:
        rig = await settled(resident)
        with pytest.raises(BadRequest, match=why):
            await rig.controller.command("pin", {"configuration": {"large/medium/small@1c": 2}}, "")

    asyncio.run(story())
