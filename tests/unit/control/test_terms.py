"""What a server does without flags, and the line that says what it may cost."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import Any

import msgspec
import pytest

from clover.config import ControllerConfig, FamilyConfig
from clover.control.wording import targets_words
from clover.types import CascadeProfile
from tests.support.chain_points import POINTS
from tests.support.control_fixture import Rig
from tests.support.profiles_fixture import profile, reading

DEFAULTS: dict[str, Any] = {"policy": "budget", "reference_g_per_kwh": None, "waits": None}
CASCADED = msgspec.structs.replace(
    profile(), cascade=CascadeProfile(points=POINTS, quantiles={}, calibration_rows=5000, held_out_rows=5000)
)


def test_the_default_is_a_budget_of_half_a_point_over_a_day() -> None:
    config, family = ControllerConfig(), FamilyConfig(family="toy")
    assert (config.policy, family.accuracy_budget, family.budget_horizon_s) == ("budget", 0.5, 86_400.0)
    assert (config.cascade, config.waits, config.reference_g_per_kwh) == (None, None, None)


@pytest.mark.parametrize(
    ("given", "with_confidence", "without"), [(None, True, False), (True, True, True), (False, False, False)]
)
def test_chains_are_planned_where_a_confidence_is_known_or_as_is_said(
    given: bool | None, with_confidence: bool, without: bool
) -> None:
    for measured, expected in ((CASCADED, with_confidence), (profile(), without)):
        rig = Rig(measured=measured, cascade=given)
        family = rig.family
        assert family.objective(family.targets, rig.controller.context.config).cascade is expected


def test_rows_may_wait_if_an_slo_was_given_or_that_is_asked_for() -> None:
    given, own = Rig(waits=None), Rig(waits=None, family={"slo_ms": None})
    config = own.controller.context.config
    assert given.family.objective(given.family.targets, config).waits
    assert not own.family.objective(own.family.targets, config).waits, "nobody asked for answers that come later"
    targets = dataclasses.replace(own.family.targets, slo_ms=50.0)  # by `ctl`
    assert own.family.may_wait(config, targets)
    for waits in (True, False):
        for rig in (given, own):
            assert rig.family.may_wait(msgspec.structs.replace(config, waits=waits), rig.family.targets) is waits
    given.family.waiting.held = True
    for waits in (True, None):
        assert not given.family.may_wait(msgspec.structs.replace(config, waits=waits), targets), "they missed the SLO"


def test_the_reference_is_the_grids_own_or_the_configured_one() -> None:
    async def story() -> None:
        rig = Rig(reference_g_per_kwh=None)
        rig.chain.foreseen = [
            msgspec.structs.replace(reading(40.0 + hour), at_s=3600.0 * hour) for hour in range(1, 42)
        ]
        await rig.deploy()
        targets = rig.controller.state()["models"]["toy"]["targets"]
        assert targets["reference_g_per_kwh"] == pytest.approx(61.0, abs=1.0)
        assert "41 hours foreseen" in targets["reference_from"]
        config = rig.controller.context.config
        assert rig.family.objective(rig.family.targets, config).reference_g_per_kwh == targets["reference_g_per_kwh"]
        rig = Rig(reference_g_per_kwh=300.0)
        await rig.deploy()
        targets = rig.controller.state()["models"]["toy"]["targets"]
        assert (targets["reference_g_per_kwh"], targets["reference_from"]) == (300.0, "configured")
        assert rig.controller.context.reference().g_per_kwh == 300.0

    asyncio.run(story())


def test_one_line_says_what_accuracy_is_kept_on_average_and_in_every_plan() -> None:
    def line(family: dict[str, float] | None = None, **config: object) -> str:
        rig = Rig(measured=CASCADED, family=family, **{**DEFAULTS, **config})
        return targets_words(rig.controller.state()["models"]["toy"]).removeprefix("p95 <= 30 ms, ")

    assert line() == "accuracy on average at least 91.50 % a day, no plan below 91.00 %"
    week = line({"budget_horizon_s": 7 * 86_400.0, "accuracy_budget": 0.25, "accuracy_floor": 90.0})
    assert week == "accuracy on average at least 91.75 % over 7 days, no plan below 90.00 %"
    assert line({"accuracy_budget": 5.0}).startswith("accuracy on average at least 91.00 % a day"), "the floor holds"
    assert line(policy="static") == "accuracy on average at least 91.50 %, no plan below 91.00 %"
    assert line(policy="objective") == "accuracy >= 91.00 %"


def test_one_line_says_what_may_be_given_up_and_what_ends_that() -> None:
    def line(family: dict[str, float] | None = None, **config: object) -> str:
        rig = Rig(measured=CASCADED, family=family, **{**DEFAULTS, **config})
        return str(rig.controller.state()["models"]["toy"]["terms"])

    whole = line({"slo_ms": 1e4})
    assert whole.startswith("may give up 0.5 points of accuracy on average over a day, asking cheap variants first")
    assert "(--accuracy-budget 0, --no-cascade and --no-waits end that)" in whole
    assert whole.endswith("nothing was served yet to save on")
    plain = line({"budget_horizon_s": 7 * 86_400.0, "accuracy_budget": 1.0}, cascade=False, waits=False)
    assert plain.startswith("may give up 1 point of accuracy on average over 7 days (--accuracy-budget 0 ends that)")
    assert line(policy="objective") == ""
    alone = msgspec.structs.replace(CASCADED, backend={"full": "eager"})
    rig = Rig(measured=alone, family={"slo_ms": 1e4}, **{**DEFAULTS, "waits": False})
    said = rig.controller.state()["models"]["toy"]["terms"]
    assert said == "has one variant, so no accuracy is given up; nothing was served yet to save on"
    assert line({"accuracy_budget": 0.0}) == ""
