from __future__ import annotations

import asyncio
import json
import logging
import threading
from collections.abc import Awaitable, Callable
from dataclasses import replace
from types import SimpleNamespace

import msgspec
import pytest

from clover.config import FamilyConfig
from clover.control.state.request import ClusterOrder, Pin
from clover.errors import PlanError, StartError, Unavailable
from clover.types import Assignment, Decision, configuration_of
from tests.support.control_fixture import FakeFleet, Rig, spec
from tests.support.impatient import Impatient
from tests.support.profiles_fixture import VARIANTS, cpu, profile


def drive(story: Callable[[], Awaitable[None]]) -> None:
    async def run() -> None:
        await story()

    asyncio.run(run())


def accuracy(rig: Rig) -> float:
    return rig.last["plan"]["prediction"]["accuracy"]


# --- the first plan ---------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["active", "observe", "off"])
def test_the_first_plan_is_applied_in_every_mode(mode: str) -> None:
    async def story() -> None:
        rig = Rig(mode=mode)
        await rig.deploy()
        rig.consistent()
        assert rig.actions == ["applied"]
        assert rig.last["trigger"] == "start"
        assert configuration_of(tuple(rig.fleet.alive)) == rig.family.deployed.configuration
        assert accuracy(rig) == pytest.approx(92.0)

    drive(story)


def test_a_failing_first_plan_stops_the_start_and_leaves_nothing() -> None:
    async def story() -> None:
        rig = Rig()
        rig.fleet.fail = {"large"}
        with pytest.raises(StartError, match="large does not load"):
            await rig.controller.start()
        assert rig.fleet.alive == []
        assert rig.device.made == set()
        rig = Rig()
        rig.solver.fail = "no plan today"
        with pytest.raises(StartError, match="no plan today"):
            await rig.controller.start()
        assert rig.actions == ["failed"]

    drive(story)


def test_a_first_plan_that_takes_long_is_named(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        rig = Rig()
        await rig.controller.start()
        await rig.controller.stop()

    monkeypatch.setattr(threading, "Timer", Impatient)
    caplog.set_level(logging.INFO, "clover.control")
    asyncio.run(main())
    assert "waiting for the first plan of toy and its workers" in caplog.messages


def test_the_task_looks_until_it_is_stopped() -> None:
    async def story() -> None:
        rig = Rig()
        looks = 0
        turn = asyncio.Event()

        async def sleep(seconds: float) -> None:
            nonlocal looks
            looks += 1
            if looks >= 3:
                turn.set()
            await asyncio.sleep(0)

        rig.controller._sleep = sleep
        await rig.controller.start()
        await turn.wait()
        await rig.controller.stop()
        assert rig.solver.orders[-1] == "close"
        rig.consistent()

    drive(story)


# --- triggers ---------------------------------------------------------------------------------


def test_a_command_is_broken_off_where_the_server_stops() -> None:
    """What it would go on to make, nobody would remove."""

    async def story() -> None:
        rig = Rig()
        await rig.settled()
        begun, spawn = asyncio.Event(), rig.fleet.spawn

        async def slow(item: Assignment) -> None:
            begun.set()
            await asyncio.sleep(3600)
            await spawn(item)

        rig.fleet.spawn = slow  # type: ignore[method-assign]
        order = {"model": "toy", "configuration": {"small@1c": 2}, "force": True}
        asking = asyncio.ensure_future(rig.controller.command("apply", order, "alice"))
        await begun.wait()
        await rig.controller.stop()
        with pytest.raises(Unavailable, match="shutting down"):
            await asking
        assert "small" not in {item.variant for item in rig.fleet.alive}
        with pytest.raises(Unavailable, match="shutting down"):
            await rig.controller.command("base", {"model": "toy"}, "alice")

    drive(story)


def test_who_gives_up_waiting_breaks_a_command_off() -> None:
    async def story() -> None:
        rig = Rig()
        await rig.settled()
        await rig.controller.context.lock.acquire()
        asking = asyncio.ensure_future(rig.controller.command("base", {"model": "toy"}, "alice"))
        await asyncio.sleep(0)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        rig.controller.context.lock.release()
        await rig.controller.stop()

    drive(story)


def test_nothing_moves_nothing_is_planned() -> None:
    async def story() -> None:
        rig = Rig()
        await rig.settled()
        rig.chain.g_per_kwh = 104.0  # within 5 %
        rig.fleet.figures["arrival_rate"] = 60.0  # within 25 %
        await rig.look(looks=20)
        assert rig.actions == ["applied"]

    drive(story)


def test_a_dirty_grid_saves_and_a_clean_one_buys_accuracy_back() -> None:
    async def story() -> None:
        rig = Rig()
        await rig.settled()
        for g_per_kwh, expected in ((500.0, 91.0), (100.0, 92.0), (500.0, 91.0)):
            rig.chain.g_per_kwh = g_per_kwh
            await rig.look(10.0, looks=2)
            assert accuracy(rig) == pytest.approx(expected, abs=0.01)
            assert rig.last["trigger"].startswith("intensity moved")
            assert rig.last["action"] in ("applied", "routed")
            rig.consistent()
            assert rig.fleet.shares == rig.family.deployed.routing.shares

    drive(story)


def test_slow_drift_counts_in_full() -> None:
    async def story() -> None:
        rig = Rig()
        await rig.settled()
        for step in range(1, 7):
            rig.chain.g_per_kwh = 100.0 + step
            await rig.look()
        assert len(rig.actions) == 2
        assert rig.last["trigger"] == "intensity moved from 100.0 to 106.0 g/kWh"

    drive(story)


def test_a_rate_that_moves_is_planned_for() -> None:
    async def story() -> None:
        rig = Rig()
        await rig.settled()
        rig.fleet.figures["arrival_rate"] = 200.0
        await rig.look()
        # Each with what a window of counts leaves to chance (`clover.control.state.arrivals`).
        assert rig.last["trigger"] == "rate moved from 59.0 to 217.2 rows/s"
        assert rig.last["inputs"]["arrival_rate"] == pytest.approx(217.2, abs=0.1)
        assert rig.last["inputs"]["observed_rate"] == 200.0

    drive(story)


def test_the_design_rate_is_planned_for_at_least() -> None:
    async def story() -> None:
        rig = Rig(design_rate=300.0)
        await rig.settled()
        assert rig.last["inputs"]["arrival_rate"] == 300.0
        rig.fleet.figures["arrival_rate"] = 290.0
        await rig.look(looks=3)
        assert len(rig.actions) == 1

    drive(story)


def test_a_worker_that_stays_away_leads_to_another_configuration() -> None:
    async def story() -> None:
        rig = Rig()
        await rig.settled()
        before = rig.family.deployed.configuration
        rig.fleet.dead = {rig.fleet.alive[0]}
        await rig.look(looks=5)
        assert rig.last["trigger"] == "worker capacity changed: 1 missing"
        assert rig.last["action"] == "applied"
        assert rig.family.deployed.configuration != before
        rig.consistent()

    drive(story)


# --- modes and freezing -----------------------------------------------------------------------


def test_observing_records_and_changes_nothing() -> None:
    async def story() -> None:
        rig = Rig(mode="observe")
        await rig.deploy()
        calls = list(rig.fleet.calls)
        rig.chain.g_per_kwh = 500.0
        await rig.look(10.0, looks=3)
        assert rig.actions == ["applied", "observed"]
        assert accuracy(rig) == pytest.approx(91.0, abs=0.01)
        assert rig.fleet.calls == calls

    drive(story)


def test_off_does_not_even_plan_and_a_pinned_variant_is_off() -> None:
    async def story() -> None:
        for rig in (Rig(mode="off"), Rig(family={"variant": "medium"})):
            await rig.deploy()
            orders = len(rig.solver.orders)
            rig.chain.g_per_kwh = 500.0
            await rig.look(10.0, looks=3)
            assert len(rig.solver.orders) == orders
        assert {item.variant for item in rig.fleet.alive} == {"medium"}

    drive(story)


# --- capacity, failures ----------------------------------------------------------------


def test_waits_and_batches_turn_like_shares() -> None:
    async def story() -> None:
        rig = Rig()
        await rig.settled()
        routed = rig.fleet.calls.count("route")
        for knobs in (
            {"wait_ms": {"large": 4.0}},
            {"wait_ms": {"large": 0.0}},
            {"wait_ms": {}, "largest": {"large": 2}},
        ):
            rig.solver.knobs = knobs
            await rig.controller.command("apply", {"arrival_rate": 50.0}, "alice")
            assert rig.last["action"] == "routed"
            assert rig.fleet.routing.wait_ms == knobs["wait_ms"]
            assert rig.fleet.routing.largest == knobs.get("largest", {})
        assert rig.fleet.calls.count("route") == routed + 3
        assert rig.controller.state()["models"]["toy"]["routing"]["largest"] == {"large": 2}
        rig.solver.knobs = {"wait_ms": {}, "largest": {"large": 2}}
        await rig.controller.command("apply", {"arrival_rate": 50.0}, "alice")
        assert rig.last["action"] == "kept"
        rig.consistent()

    drive(story)


@pytest.mark.parametrize(
    ("knobs", "why"),
    [
        ({"wait_ms": {"huge": 1.0}}, "unknown variant 'huge'"),
        ({"largest": {"huge": 1}}, "unknown variant 'huge'"),
        ({"largest": {"large": 0}}, "batches without rows"),
        ({"wait_ms": {"large": -1.0}}, "below the SLO of 30 ms"),
        ({"wait_ms": {"large": 30.0}}, "below the SLO of 30 ms"),
        ({"wait_ms": {"large": float("nan")}}, "below the SLO of 30 ms"),
    ],
)
def test_waits_and_batches_that_make_no_sense_are_refused(knobs: dict[str, dict[str, float]], why: str) -> None:
    async def story() -> None:
        rig = Rig()
        await rig.settled()
        routing = rig.fleet.routing
        rig.solver.knobs = knobs
        with pytest.raises(PlanError, match=why):
            await rig.controller.command("apply", {}, "alice")
        assert rig.fleet.routing is routing

    drive(story)


def test_a_failing_spawn_returns_to_what_ran() -> None:
    async def story() -> None:
        rig = Rig()
        rig.solver.knobs = {"wait_ms": {"large": 4.0}, "largest": {"large": 4}}
        await rig.settled()
        before, shares = rig.family.deployed, dict(rig.fleet.shares)
        rig.fleet.fail = {"small", "medium"}
        rig.chain.g_per_kwh = 500.0
        await rig.look(10.0)
        assert rig.last["action"] == "rolled back"
        assert "does not load" in rig.last["detail"]
        assert "the previous deployment is restored" in rig.last["detail"]
        assert rig.family.deployed is before
        assert rig.fleet.shares == shares
        assert (rig.fleet.routing.wait_ms, rig.fleet.routing.largest) == ({"large": 4.0}, {"large": 4})
        rig.consistent()
        # The configuration is left alone: the next reason does not try it again.
        spawned = len([call for call in rig.fleet.calls if call.startswith("spawn")])
        rig.chain.g_per_kwh = 100.0
        await rig.look(10.0)
        assert len([call for call in rig.fleet.calls if call.startswith("spawn")]) == spawned
        rig.consistent()

    drive(story)


def test_a_failing_instance_returns_to_what_ran() -> None:
    async def story() -> None:
        rig = Rig(family={"slo_ms": 12.0}, allow_capacity_loss=True, shape=cpu(2, overlap=False))
        await rig.settled()
        sizes = {item.placement.size for item in rig.fleet.alive}
        other = {1: "2c", 2: "1c"}[sizes.pop()]
        rig.device.fail = {other}
        count = 1 if other == "2c" else 2
        with pytest.raises(Exception, match="the previous deployment is restored"):
            await rig.controller.command("apply", {"configuration": {f"small@{other}": count}, "force": True}, "alice")
        rig.consistent()
        assert rig.last["action"] == "rolled back"

    drive(story)


def test_a_family_that_lost_everything_starts_anew() -> None:
    async def story() -> None:
        rig = Rig(family={"slo_ms": 12.0}, allow_capacity_loss=True, shape=cpu(2, overlap=False))
        await rig.settled()
        other = {1: {"small@2c": 1}, 2: {"small@1c": 2}}[rig.fleet.alive[0].placement.size]
        rig.device.fail = {"1c", "2c"}  # the new instance cannot be made, nor the old one again
        with pytest.raises(Exception, match="could not be restored"):
            await rig.controller.command("apply", {"configuration": other, "force": True}, "alice")
        assert rig.fleet.alive == []
        json.dumps(rig.controller.state())
        await rig.look(10.0)
        assert rig.last["action"] == "failed"
        rig.device.fail = set()
        await rig.look(60.0, looks=2)
        assert rig.last["action"] == "applied"
        assert rig.fleet.alive
        rig.consistent()

    drive(story)


def test_trouble_with_one_family_does_not_keep_the_controller_from_others(caplog: pytest.LogCaptureFixture) -> None:
    async def story() -> None:
        rig = Rig()
        await rig.settled()
        broken = rig.controller.add(spec(), profile(), rig.fleet, FamilyConfig(family="toy", name="broken"))
        rig.controller.context.families = {"broken": broken, **rig.controller.context.families}
        broken.fleet = SimpleNamespace(asleep=False)  # type: ignore[assignment]
        rig.chain.g_per_kwh = 500.0
        await rig.look(10.0)
        assert (rig.last["family"], len(rig.actions)) == ("toy", 2)
        assert "broken: the controller's poll" in caplog.text

    drive(story)


def test_a_loss_of_capacity_is_refused_unless_allowed() -> None:
    async def story() -> None:
        rig = Rig(shape=cpu(2, overlap=False))
        await rig.settled()
        other = {1: {"small@2c": 1}, 2: {"small@1c": 2}}[rig.fleet.alive[0].placement.size]
        with pytest.raises(Exception, match="allow_capacity_loss"):
            await rig.controller.command("apply", {"configuration": other, "force": True}, "alice")
        assert rig.last["action"] == "refused"
        rig.consistent()

    drive(story)


def test_a_solver_without_a_plan_is_recorded_and_asked_again_later() -> None:
    async def story() -> None:
        rig = Rig()
        await rig.settled()
        rig.solver.fail = "the solver gave no plan within 30 s"
        rig.chain.g_per_kwh = 500.0
        await rig.look(looks=5)
        assert rig.actions == ["applied", "failed"]
        rig.solver.fail = ""
        await rig.look(10.0)
        assert rig.last["trigger"] == "the last plan was held back or failed"
        assert rig.last["action"] in ("applied", "routed")
        rig.consistent()

    drive(story)


# --- verification -----------------------------------------------------------------------------


async def _changed() -> Rig:
    """A rig whose configuration has just changed."""
    rig = Rig()
    rig.solver.knobs = {"wait_ms": {"large": 4.0}, "largest": {"large": 4}}
    await rig.settled()
    rig.solver.knobs = {"wait_ms": {"small": 2.0}, "largest": {}}
    rig.chain.g_per_kwh = 500.0
    await rig.look(10.0)
    assert rig.last["action"] == "applied"
    assert rig.fleet.routing.wait_ms == {"small": 2.0}
    return rig


def test_a_deployment_much_worse_than_predicted_is_rolled_back_and_left_alone() -> None:
    async def story() -> None:
        rig = await _changed()
        good, bad = rig.family.good, rig.family.deployed
        rig.fleet.figures.update(p95_ms=90.0, rows=500.0)
        await rig.look(4.0)
        assert rig.family.deployed is bad
        await rig.look(2.0)  # verify_s is over, but the observed window still holds rows of before
        assert rig.family.deployed.deployment == bad.deployment
        await rig.look(5.0)
        assert rig.last["action"] == "rolled back"
        assert "far above the predicted" in rig.last["detail"]
        assert rig.family.deployed.deployment == good.deployment
        assert rig.fleet.routing == good.routing
        assert rig.fleet.routing.wait_ms == {"large": 4.0}
        assert rig.family.rollbacks == 1
        rig.consistent()
        rig.fleet.figures["p95_ms"] = 5.0
        rig.chain.g_per_kwh = 600.0
        await rig.look(10.0)
        assert rig.family.deployed.configuration != bad.configuration
        assert rig.controller.state()["models"]["toy"]["backed_off"]

    drive(story)


def test_more_load_than_planned_for_is_no_reason_to_roll_back() -> None:
    async def story() -> None:
        rig = await _changed()
        rig.fleet.figures.update(p95_ms=90.0, rows=500.0, arrival_rate=5000.0)
        await rig.look(11.0)
        assert rig.last["action"] != "rolled back"
        assert rig.last["trigger"].startswith("rate moved")

    drive(story)


def test_workers_that_keep_dying_roll_back_at_once() -> None:
    async def story() -> None:
        rig = await _changed()
        rig.fleet.figures["restarts"] = 2.0
        await rig.look()
        assert rig.last["action"] == "rolled back"
        assert "die" in rig.last["detail"]
        rig.consistent()

    drive(story)


def test_a_good_deployment_becomes_the_last_good_one() -> None:
    async def story() -> None:
        rig = await _changed()
        rig.fleet.figures.update(p95_ms=8.0, rows=500.0)
        await rig.look(6.0)
        assert rig.family.good is rig.family.deployed
        assert rig.family.watch is None

    drive(story)


# --- records ----------------------------------------------------------------------------------


def test_decisions_hold_inputs_candidates_and_reason() -> None:
    async def story() -> None:
        rig = await _changed()
        decision = msgspec.convert(rig.last, Decision)
        assert decision.id == 2
        assert decision.plan is not None
        assert 1 < len(decision.plan.candidates) <= 10
        assert "g/kWh" in decision.plan.reason
        assert decision.inputs["intensity_g_per_kwh"] == 500.0
        assert decision.inputs["accuracy_floor"] == 91.0
        assert 0.0 < decision.inputs["lambda"] < 1.0
        assert decision.at == "1970-01-01T00:16:56.000+00:00"
        assert [item["id"] for item in rig.controller.decisions(2)] == [2, 1]
        newer = [rig.controller.context.decisions.after(last) for last in range(3)]
        assert [[item.id for item in items] for items in newer] == [[1, 2], [2], []]
        json.dumps(rig.controller.decisions(10), allow_nan=False)

    drive(story)


def test_the_state_is_json_and_tells_what_runs() -> None:
    async def story() -> None:
        rig = Rig()
        json.dumps(rig.controller.state(lambda: {"energy_j": 1.0}), allow_nan=False)
        await rig.settled()
        state = rig.controller.state(lambda: {"energy_j": 1.0})
        json.dumps(state, allow_nan=False)
        assert state["mode"] == "active"
        assert state["intensity"]["label"] == "configured, fresh"
        assert state["totals"] == {"energy_j": 1.0}
        model = state["models"]["toy"]
        assert {item["placement"] for item in model["deployment"]} == rig.device.made
        assert all(item["ready"] for item in model["deployment"])
        assert model["targets"]["slo_ms"] == 30.0
        assert model["targets"]["slo_source"] == "given"
        assert model["targets"]["lambda_derived"]
        assert model["last_decision"]["action"] == "applied"
        assert sum(model["routing"]["shares"].values()) == pytest.approx(1.0)

    drive(story)


# --- several families -------------------------------------------------------------------------


def test_families_share_instances_and_the_machine() -> None:
    async def story() -> None:
        rig = Rig()
        fleet = FakeFleet()
        config = msgspec.structs.replace(rig.family.config, name="second", share=3.0)
        second = rig.controller.add(spec("other"), profile(), fleet, config)
        await rig.controller.start()
        await rig.controller.stop()
        first = {item.placement.id for item in rig.family.desired}
        assert rig.device.made == first | {item.placement.id for item in second.desired}
        assert all(item.family == "second" for item in second.desired)
        await rig.controller.release("second")
        assert fleet.alive == []
        assert rig.device.made == first
        await rig.controller.release("toy")
        assert rig.device.made == set()

    drive(story)


def test_a_family_that_joins_late_and_fails_is_dropped() -> None:
    async def story() -> None:
        rig = Rig()
        await rig.settled()
        fleet = FakeFleet()
        fleet.fail = {"small", "medium", "large"}
        config = msgspec.structs.replace(rig.family.config, name="second")
        with pytest.raises(StartError):
            await rig.controller.adopt(spec("other"), profile(), fleet, config)
        assert list(rig.controller.context.families) == ["toy"]
        rig.consistent()
        fleet.fail = set()
        await rig.controller.adopt(spec("other"), profile(), fleet, config)
        assert fleet.alive

    drive(story)


def test_what_an_operator_has_set_outlives_an_unload() -> None:
    async def story() -> None:
        rig = Rig(family={"accuracy_floor": None, "accuracy_margin": None})
        await rig.settled()
        await rig.controller.command("set", {"model": "toy", "slo_ms": 40.0, "mode": "observe"}, "alice")
        await rig.controller.command("pin", {"variant": "large"}, "alice")
        better = profile(variants={name: (accuracy + 1.0, ms) for name, (accuracy, ms) in VARIANTS.items()})
        for measured, floor in ((rig.profile, 91.0), (better, 92.0)):
            await rig.controller.release("toy")
            await rig.controller.adopt(rig.family.spec, measured, rig.fleet, rig.settings)
            family = rig.controller.context.families["toy"]
            assert (family.targets.slo_ms, family.mode, family.pin) == (40.0, "observe", Pin(policy="static:large"))
            assert family.targets.accuracy_floor == floor, "what follows from the profile follows from the new one"
            assert {item.variant for item in rig.fleet.alive} == {"large"}
        await rig.controller.release("toy")
        less = profile(variants={name: VARIANTS[name] for name in ("small", "medium")})
        await rig.controller.adopt(spec("toy", less.backend), less, rig.fleet, rig.settings)
        assert rig.controller.context.families["toy"].pin is None, "its variant is not there any more"

    drive(story)


def test_what_a_cluster_asked_for_ends_with_an_unload() -> None:
    async def story() -> None:
        rig = Rig()
        await rig.settled()
        rig.family.order = ClusterOrder(accuracy=89.0, rate=5.0)
        own = rig.family.targets
        rig.family.targets = replace(own, accuracy_floor=89.0, form="floor", slo_ms=40.0)
        await rig.controller.release("toy")
        await rig.controller.adopt(rig.family.spec, rig.profile, rig.fleet, rig.settings)
        assert rig.controller.context.families["toy"].targets == replace(own, slo_ms=40.0)

    drive(story)


def test_freezing_holds_back_a_first_plan_in_place_of_workers_that_run() -> None:
    async def story() -> None:
        rig = Rig(g_per_kwh=900.0, family={"accuracy_floor": 88.0})
        await rig.controller.command("pin", {"variant": "large"}, "alice")
        running = rig.family.desired
        context, calls = rig.controller.context, len(rig.fleet.calls)
        del context.families["toy"]
        await rig.controller.command("freeze", {"on": True}, "alice")
        await rig.controller.adopt(rig.family.spec, rig.profile, rig.fleet, rig.settings, running)
        await rig.look(looks=3)
        assert context.families["toy"].desired == running
        assert len(rig.fleet.calls) == calls
        await rig.controller.command("freeze", {"on": False}, "alice")
        await rig.look()
        assert context.families["toy"].desired != running

    drive(story)
