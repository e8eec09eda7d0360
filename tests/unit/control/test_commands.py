from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from clover.errors import BadRequest, Conflict, PlanError, PolicyFault
from tests.support.control_fixture import Rig
from tests.support.profiles_fixture import cpu, profile


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
        answer = await say("pin", variant="small", force=True)
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
            await say("pin", configuration=form, force=True)
            rig.consistent()
            held = rig.family.deployed.configuration
            rig.chain.g_per_kwh += 300.0
            await rig.look(20.0, looks=2)
            assert rig.family.deployed.configuration == held
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


def test_the_plan_of_a_family_stays_while_a_new_version_is_tried_beside_it() -> None:
    async def story() -> None:
        rig, say = await settled()
        rig.family.frozen, rig.family.trial = True, "2"
        for verb, given in (
            ("pin", {"variant": "small"}),
            ("base", {}),
            ("apply", {}),
            ("freeze", {"on": False}),
            ("freeze", {"on": True, "model": "toy"}),
        ):
            with pytest.raises(Conflict, match="version 2 of toy is being rolled out"):
                await say(verb, **given)
        await say("base", dry_run=True)
        await say("freeze", on=True)
        assert rig.family.frozen
        rig.family.trial = ""
        await say("freeze", on=False)
        assert not rig.family.frozen

    drive(story)


def test_plan_shows_the_plan_and_the_steps_and_changes_nothing() -> None:
    async def story() -> None:
        rig, say = await settled()
        calls, standing = list(rig.fleet.calls), rig.family.deployed
        answer = await say("plan", intensity_g_per_kwh=500.0)
        assert answer["dry_run"]
        assert answer["plan"]["prediction"]["accuracy"] == pytest.approx(91.0, abs=0.01)
        assert answer["transition"]["steps"]
        assert answer["decision"]["inputs"]["intensity_provider"] == "operator"
        assert rig.fleet.calls == calls
        assert rig.family.deployed is standing
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
        calls, standing, targets = list(rig.fleet.calls), rig.family.deployed, rig.family.targets
        answer = await say(verb, **arguments, dry_run=True)
        assert answer["dry_run"]
        assert rig.fleet.calls == calls
        assert (rig.family.deployed, rig.family.targets, rig.family.pin) == (standing, targets, None)
        assert rig.controller.context.mode == "active"
        assert not rig.controller.context.frozen
        assert rig.last["action"] == "dry run"
        assert rig.last["operator"] == "alice"

    drive(story)


def test_apply_waits_for_nothing_and_works_in_every_mode() -> None:
    async def story() -> None:
        rig = Rig(mode="observe")
        await rig.deploy()
        for configuration in ({"small@1c": 2}, {"large@2c": 1}):
            answer = await rig.controller.command("apply", {"configuration": configuration, "force": True}, "")
            assert answer["decision"]["action"] == "applied"
            assert answer["decision"]["operator"] == "operator"
            rig.consistent()

    drive(story)


def test_apply_reports_a_failure_and_keeps_what_ran() -> None:
    async def story() -> None:
        rig, say = await settled()
        rig.fleet.fail = {"small"}
        with pytest.raises(PlanError, match="does not load"):
            await say("apply", configuration={"small@1c": 2}, force=True)
        rig.consistent()
        assert rig.last["action"] == "rolled back"
        with pytest.raises(PlanError):
            await say("pin", variant="small", force=True)
        assert rig.family.pin is None
        rig.consistent()

    drive(story)


def test_set_changes_targets_live() -> None:
    async def story() -> None:
        rig, say = await settled(g_per_kwh=500.0)
        assert rig.family.deployed.plan.prediction.accuracy == pytest.approx(91.0, abs=0.01)
        await say("set", accuracy_floor=92.0)
        assert rig.family.deployed.plan.prediction.accuracy == pytest.approx(92.0)
        await say("set", model="toy", accuracy_floor=88.0, objective="floor", slo_ms=50.0)
        assert rig.family.deployed.plan.prediction.accuracy == pytest.approx(88.0, abs=0.01)
        rig.consistent()
        await say("set", **{"lambda": 0.25})
        assert rig.controller.state()["models"]["toy"]["targets"]["lambda"] == 0.25
        await say("set", **{"lambda": None})
        assert rig.controller.state()["models"]["toy"]["targets"]["lambda_derived"]

    drive(story)


@pytest.mark.parametrize("raises", [PlanError, PolicyFault])
def test_a_target_that_no_plan_can_be_made_for_is_set_with_a_warning(raises: type[PlanError]) -> None:
    """An answer says that a command is in force, an error that it is not."""

    async def story() -> None:
        rig, say = await settled()
        rig.solver.fail, rig.solver.raises = "no plan today", raises
        done = await say("set", slo_ms=200.0)
        assert rig.family.targets.slo_ms == 200.0
        assert done["models"] == {}
        assert done["warnings"] == ["toy: it is in force, but no plan for it runs yet: no plan today"]
        for verb, arguments in (
            ("set", {"slo_ms": 20.0}),  # stricter, so it is planned for before it is in force
            ("pin", {"variant": "small"}),
            ("base", {}),
            ("apply", {}),
            ("plan", {}),
            ("set", {"slo_ms": 300.0, "dry_run": True}),
        ):
            with pytest.raises(raises):
                await say(verb, **arguments)
        assert rig.family.targets.slo_ms == 200.0
        assert rig.family.pin is None
        rig.solver.fail = ""
        assert (await say("set", slo_ms=201.0))["warnings"] == []
        rig.consistent()

    drive(story)


def test_a_pin_that_cannot_be_lifted_stays() -> None:
    async def story() -> None:
        rig, say = await settled()
        await say("pin", variant="large")
        rig.solver.fail = "no plan today"
        with pytest.raises(PlanError):
            await say("pin", variant=None)
        assert rig.family.pin is not None

    drive(story)


def test_the_log_says_who_changed_what_and_from_what_to_what(caplog: pytest.LogCaptureFixture) -> None:
    async def story() -> None:
        _, say = await settled()
        caplog.clear()
        with caplog.at_level("INFO", "clover.control"):
            await say("pin", variant="small", force=True)
            await say("set", mode="observe")
            await say("set", model="toy", accuracy_floor=89.5, slo_ms=40)
            await say("freeze", on=True)
        lines = [record.getMessage() for record in caplog.records]
        assert any(line.startswith("toy: operator: pin: applied, from 2 x large@1c to ") for line in lines), lines
        assert "toy: pin from none to static:small by alice" in lines
        assert "toy: mode from active to observe by alice" in lines
        assert "toy: slo_ms from 30.0 to 40.0, accuracy_floor from 91.0 to 89.5 by alice" in lines
        assert "toy: freeze applied by alice: on: true" in lines

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
        assert rig.controller.context.mode_of(rig.family) == "active"
        assert {item.variant for item in rig.fleet.alive} != {"medium"}
        rig.consistent()

    drive(story)


# --- what would break a promise ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("verb", "arguments", "words"),
    [
        ("pin", {"variant": "small"}, r"accuracy of 88\.00 % is predicted, below the floor of 91\.00 %"),
        ("pin", {"configuration": {"small@1c": 2}}, r"below the floor of 91\.00 %"),
        ("apply", {"configuration": {"small@1c": 1, "medium@1c": 1}}, r"below the floor of 91\.00 %"),
        ("apply", {"accuracy_floor": 80.0}, r"below the floor of 91\.00 %"),
        ("apply", {"slo_ms": 0.01}, r"p95 .* is predicted, above the SLO of 0\.01 ms"),
        ("apply", {"arrival_rate": 1e6}, r"a p95 without bound is predicted, above the SLO of 30 ms"),
        ("set", {"slo_ms": 0.01}, r"above the SLO of 0\.01 ms"),
        ("set", {"model": "toy", "slo_ms": 0.01, "mode": "off"}, r"above the SLO of 0\.01 ms"),
    ],
)
@pytest.mark.parametrize("frozen", [False, True])
def test_a_change_that_would_break_the_targets_is_refused_without_force(
    verb: str, arguments: dict[str, Any], words: str, frozen: bool
) -> None:
    async def story() -> None:
        rig, say = await settled(g_per_kwh=500.0)
        family = rig.family
        family.frozen = frozen
        before = (
            family.targets,
            family.pin,
            family.deployed,
            family.mode,
            rig.controller.context.mode,
            list(rig.fleet.calls),
        )
        family.news = "gpu7 is back"  # which a change that was refused has not planned for
        with pytest.raises(Conflict, match=words) as refused:
            await say(verb, **arguments)
        assert "nothing was changed; `--force`" in refused.value.message
        assert family.news == "gpu7 is back"
        after = (family.targets, family.pin, family.deployed, family.mode, rig.controller.context.mode, rig.fleet.calls)
        assert after == before
        assert (rig.last["action"], rig.last["operator"]) == ("refused", "alice")
        assert "is predicted" in rig.last["detail"]
        # A dry run shows it, and says what would become of it.
        answer = await say(verb, **arguments, dry_run=True)
        assert answer["dry_run"]
        assert rig.last["action"] == "dry run"
        assert rig.last["detail"].startswith("would be refused: ")
        # Force does it all the same, and that stays to be seen.
        await say(verb, **arguments, force=True)
        state = rig.controller.state()["models"]["toy"]
        assert state["pin_forced"] == (verb == "pin")
        assert "forced" in rig.last["detail"]
        rig.consistent()

    drive(story)


def test_a_pin_that_holds_the_targets_needs_no_force_and_lifting_one_never_does() -> None:
    async def story() -> None:
        rig, say = await settled()
        await say("pin", variant="large", force=True)
        assert not rig.controller.state()["models"]["toy"]["pin_forced"]  # there was nothing to force
        await say("pin", variant=None)
        await say("pin", configuration={"large@2c": 1})
        rig.fleet.figures["arrival_rate"] = 1e5
        await say("pin", variant=None)
        assert rig.family.pin is None
        rig.consistent()

    drive(story)


def test_base_is_never_refused_but_says_what_it_breaks() -> None:
    async def story() -> None:
        rig, say = await settled()
        rig.fleet.figures["arrival_rate"] = 1e5
        answer = await say("base", dry_run=True)
        assert answer["decision"]["detail"].startswith("BASE does not hold the targets either: a p95 without bound")
        answer = await say("base")
        assert "BASE does not hold the targets either" in answer["decision"]["detail"]
        assert rig.controller.state()["models"]["toy"]["pin"] == "base"

    drive(story)


def test_under_more_load_than_any_plan_serves_an_operator_is_not_locked_out() -> None:
    async def story() -> None:
        rig, say = await settled()
        rig.fleet.figures["arrival_rate"] = 1e5
        await say("set", slo_ms=40.0)  # not enough, and no worse
        await say("set", accuracy_floor=88.0, slo_ms=40.0)
        await say("set", objective="floor")
        await say("apply")
        assert (rig.family.targets.slo_ms, rig.family.targets.accuracy_floor) == (40.0, 88.0)
        with pytest.raises(Conflict, match="without bound"):
            await say("set", slo_ms=39.0)
        assert rig.family.targets.slo_ms == 40.0

    drive(story)


def test_targets_for_all_families_are_set_for_all_or_none() -> None:
    async def story() -> None:
        rig = Rig(shape=cpu(4), measured=profile(cores=(1, 2, 4)))
        other, _ = rig.second(slo_ms=60.0)
        await rig.deploy()
        await rig.controller.deploy("second")
        other.fleet.figures["arrival_rate"] = 1e5
        with pytest.raises(Conflict, match=r"^second: "):
            await rig.controller.command("set", {"slo_ms": 25.0}, "alice")
        assert (rig.family.targets.slo_ms, other.targets.slo_ms) == (30.0, 60.0)
        assert not any(
            decision["action"] == "applied" and decision["operator"] for decision in rig.controller.decisions(9)
        )

    drive(story)


def test_neither_the_margin_nor_the_guard_keeps_an_operator_from_a_pin_above_the_floor() -> None:
    async def story() -> None:
        rig = Rig(family={"accuracy_floor": 89.9, "accuracy_margin": 0.5})
        await rig.settled()
        rig.fleet.figures["guard"] = 3.0
        await rig.controller.command("pin", {"variant": "medium"}, "alice")
        assert {item.variant for item in rig.fleet.alive} == {"medium"}

    drive(story)


def test_force_is_true_or_false_and_only_for_what_may_be_refused() -> None:
    async def story() -> None:
        _, say = await settled()
        with pytest.raises(BadRequest, match="true or false"):
            await say("pin", variant="small", force="yes")
        for verb in ("base", "plan", "freeze", "guard"):
            with pytest.raises(BadRequest, match="has no argument 'force'"):
                await say(verb, force=True)

    drive(story)


def test_a_command_without_a_planned_model_says_so() -> None:
    async def story() -> None:
        rig, say = await settled()
        await rig.controller.release("toy")
        for verb, words in (("guard", {"reset": True}), ("base", {}), ("set", {"slo_ms": 20.0})):
            with pytest.raises(Conflict, match="no model is loaded"):
                await say(verb, **words)
            rig.controller.context.unplanned["toy"] = set()
            with pytest.raises(Conflict, match="toy: served without a plan"):
                await say(verb, **words)
            del rig.controller.context.unplanned["toy"]

    drive(story)
