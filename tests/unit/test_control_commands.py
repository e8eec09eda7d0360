from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from clover.errors import BadRequest, PlanError
from tests.unit.control_fixture import Rig


def drive(story: Callable[[], Awaitable[None]]) -> None:
    async def run() -> None:
        await story()

    asyncio.run(run())


async def settled(**config: Any) -> tuple[Rig, Callable[..., Awaitable[dict[str, Any]]]]:
    rig = Rig(**config)
    await rig.settled()

    async def say(verb: str, **arguments: Any) -> dict[str, Any]:
        return await rig.controller.command(verb, arguments, "alice")

    return rig, say


@pytest.mark.parametrize(
    ("verb", "arguments", "hint"),
    [
        ("pni", {}, "did you mean pin"),
        ("pin", {"variannt": "small"}, "did you mean variant"),
        ("pin", {}, "either variant or configuration"),
        ("pin", {"variant": "smal"}, "did you mean small"),
        ("pin", {"variant": 3}, "unknown variant"),
        ("pin", {"model": "toys", "variant": "small"}, "did you mean toy"),
        ("pin", {"configuration": {"small@3c": 1}}, "known profiles: 1c, 2c"),
        ("pin", {"configuration": {"small@1c": 1}}, "no layout"),
        ("pin", {"configuration": {"small": 1}}, "a configuration is"),
        ("pin", {"configuration": {"small@1c": True}}, "a configuration is"),
        ("pin", {"configuration": [{"variant": "small"}]}, "a configuration is"),
        ("pin", {"configuration": {"large@1c": 0, "small@1c": 2}}, "at least 1"),
        ("freeze", {}, "takes on"),
        ("guard", {}, "takes reset: true"),
        ("guard", {"reset": False}, "takes reset: true"),
        ("freeze", {"on": "yes"}, "true or false"),
        ("set", {}, "set changes one of"),
        ("set", {"slo_ms": "fast"}, "is a number"),
        ("set", {"slo_ms": float("nan")}, "is a number"),
        ("set", {"slo_ms": True}, "is a number"),
        ("set", {"accuracy_floor": 99.0}, "above the best variant"),
        ("set", {"lambda": 1.5}, "between 0 and 1"),
        ("set", {"mode": "activ"}, "did you mean active"),
        ("set", {"objective": ["paper"]}, "one of paper, floor"),
        ("plan", {"arrival_rate": -1}, "between 0"),
        ("plan", {"dry_run": 1}, "true or false"),
    ],
)
def test_senseless_arguments_are_refused_with_a_hint(verb: str, arguments: dict[str, Any], hint: str) -> None:
    async def story() -> None:
        rig, _ = await settled()
        with pytest.raises(BadRequest, match=hint):
            await rig.controller.command(verb, arguments, "alice")
        assert rig.actions == ["applied"]
        rig.consistent()

    drive(story)


def test_pin_serves_one_variant_until_it_is_lifted() -> None:
    async def story() -> None:
        rig, say = await settled()
        answer = await say("pin", variant="small")
        assert answer["decision"]["operator"] == "alice"
        assert {item.variant for item in rig.fleet.alive} == {"small"}
        rig.consistent()
        rig.chain.g_per_kwh = 500.0
        await rig.look(20.0, looks=2)
        assert {item.variant for item in rig.fleet.alive} == {"small"}
        assert rig.controller.state()["models"]["toy"]["pin"] == "static:small"
        await say("pin", variant=None)
        assert rig.family.pin is None
        assert {item.variant for item in rig.fleet.alive} != {"small"}
        rig.consistent()

    drive(story)


def test_pin_holds_one_configuration() -> None:
    async def story() -> None:
        rig, say = await settled()
        for form in ({"small@1c": 1, "large@1c": 1}, [{"variant": "large", "profile": "2c", "count": 1}]):
            await say("pin", configuration=form)
            rig.consistent()
            held = rig.family.standing.configuration
            rig.chain.g_per_kwh += 300.0
            await rig.look(20.0, looks=2)
            assert rig.family.standing.configuration == held
        assert [item.placement.profile for item in rig.fleet.alive] == ["2c"]

    drive(story)


def test_base() -> None:
    async def story() -> None:
        rig, say = await settled()
        await say("base")
        assert [(item.variant, item.placement.profile) for item in rig.fleet.alive] == [("large", "2c")]
        assert rig.controller.state()["models"]["toy"]["pin"] == "base"

    drive(story)


def test_freezing_holds_everything_and_letting_go_plans_again() -> None:
    async def story() -> None:
        rig, say = await settled()
        await say("freeze", on=True)
        rig.chain.g_per_kwh = 500.0
        await rig.look(10.0, looks=5)
        assert rig.actions == ["applied", "applied"]
        assert rig.last["trigger"] == "operator: freeze"
        await say("freeze", on=False, model="toy")  # lifts the family's own freeze only
        await rig.look()
        assert rig.last["trigger"] == "operator: freeze"
        await say("freeze", on=False)
        await rig.look()
        assert rig.last["trigger"].startswith("intensity moved")

    drive(story)


def test_plan_shows_the_plan_and_the_steps_and_changes_nothing() -> None:
    async def story() -> None:
        rig, say = await settled()
        calls, standing = list(rig.fleet.calls), rig.family.standing
        answer = await say("plan", intensity_g_per_kwh=500.0)
        assert answer["dry_run"]
        assert answer["plan"]["prediction"]["accuracy"] == pytest.approx(91.0, abs=0.01)
        assert answer["transition"]["steps"]
        assert answer["decision"]["inputs"]["intensity_provider"] == "operator"
        assert rig.fleet.calls == calls
        assert rig.family.standing is standing
        answer = await say("plan", configuration={"small@2c": 1}, accuracy_floor=80.0)
        assert list(answer["plan"]["configuration"]) == [{"variant": "small", "profile": "2c", "count": 1}]
        assert rig.family.targets.accuracy_floor == 91.0
        assert rig.actions == ["applied", "dry run", "dry run"]

    drive(story)


@pytest.mark.parametrize(
    ("verb", "arguments"),
    [
        ("pin", {"variant": "small"}),
        ("base", {}),
        ("freeze", {"on": True}),
        ("apply", {"configuration": {"small@1c": 2}}),
        ("set", {"accuracy_floor": 88.0, "mode": "off"}),
    ],
)
def test_every_command_has_a_dry_run(verb: str, arguments: dict[str, Any]) -> None:
    async def story() -> None:
        rig, say = await settled()
        calls, standing, targets = list(rig.fleet.calls), rig.family.standing, rig.family.targets
        answer = await say(verb, **arguments, dry_run=True)
        assert answer["dry_run"]
        assert rig.fleet.calls == calls
        assert (rig.family.standing, rig.family.targets, rig.family.pin) == (standing, targets, None)
        assert rig.controller.mode == "active"
        assert not rig.controller.frozen
        assert rig.last["action"] == "dry run"
        assert rig.last["operator"] == "alice"

    drive(story)


def test_apply_waits_for_nothing_and_works_in_every_mode() -> None:
    async def story() -> None:
        rig = Rig(mode="observe", min_dwell_s=3600.0)
        await rig.deploy()
        for configuration in ({"small@1c": 2}, {"large@2c": 1}):
            answer = await rig.controller.command("apply", {"configuration": configuration}, "")
            assert answer["decision"]["action"] == "applied"
            assert answer["decision"]["operator"] == "operator"
            rig.consistent()

    drive(story)


def test_apply_reports_a_failure_and_keeps_what_ran() -> None:
    async def story() -> None:
        rig, say = await settled()
        rig.fleet.fail = {"small"}
        with pytest.raises(PlanError, match="does not load"):
            await say("apply", configuration={"small@1c": 2})
        rig.consistent()
        assert rig.last["action"] == "rolled back"
        with pytest.raises(PlanError):
            await say("pin", variant="small")
        assert rig.family.pin is None
        rig.consistent()

    drive(story)


def test_set_changes_targets_live() -> None:
    async def story() -> None:
        rig, say = await settled(g_per_kwh=500.0)
        assert rig.family.standing.plan.prediction.accuracy == pytest.approx(91.0, abs=0.01)
        await say("set", accuracy_floor=92.0)
        assert rig.family.standing.plan.prediction.accuracy == pytest.approx(92.0)
        await say("set", model="toy", accuracy_floor=88.0, objective="floor", slo_ms=50.0)
        assert rig.family.standing.plan.prediction.accuracy == pytest.approx(88.0, abs=0.01)
        rig.consistent()
        await say("set", **{"lambda": 0.25})
        assert rig.controller.state()["models"]["toy"]["targets"]["lambda"] == 0.25
        await say("set", **{"lambda": None})
        assert rig.controller.state()["models"]["toy"]["targets"]["lambda_derived"]

    drive(story)


def test_set_mode() -> None:
    async def story() -> None:
        rig, say = await settled()
        await say("set", mode="off")
        rig.chain.g_per_kwh = 500.0
        await rig.look(10.0, looks=3)
        assert rig.last["trigger"] == "operator: set"
        await say("set", mode="observe")
        await rig.look()
        assert rig.last["action"] == "observed"
        await say("set", accuracy_floor=90.0)
        assert rig.last["action"] == "observed"
        await say("set", mode="active")
        await rig.look()
        assert rig.last["action"] in ("applied", "routed")
        rig.consistent()

    drive(story)


def test_a_family_pinned_by_its_configuration_comes_under_control_when_the_pin_is_lifted() -> None:
    async def story() -> None:
        rig = Rig(family={"variant": "medium", "accuracy_floor": 89.0})
        await rig.deploy()
        await rig.controller.command("pin", {"variant": None}, "alice")
        assert rig.controller.mode_of(rig.family) == "active"
        assert {item.variant for item in rig.fleet.alive} != {"medium"}
        rig.consistent()

    drive(story)
