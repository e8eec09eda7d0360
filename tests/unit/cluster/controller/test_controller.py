"""A cluster's controller before a simulated world: what it does about losses, faults, restarts and operators."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import msgspec
import pytest

from clover.cluster.controller.controller import ClusterController, in_thread
from clover.cluster.controller.dry import NoIngress
from clover.cluster.planning.planner import plan_cluster
from clover.cluster.planning.records import ClusterPlan, ClusterProblem, NodeTarget, RegionFlow
from clover.cluster.ports import NodeReport
from clover.cluster.simulate.world import (
    SimulatedGrids,
    SimulatedIngress,
    SimulatedNodes,
    SimulatedStore,
    SimulatedWorld,
    WorldRules,
)
from clover.errors import ClusterError
from tests.support.cluster_fixture import FAMILY, frontier, node, region
from tests.support.cluster_scene import NODES, Scene, play


def test_rows_follow_the_clean_region_and_the_others_are_released() -> None:
    async def story() -> None:
        scene = Scene(survive="none")
        controller = scene.controller()
        await scene.steps(controller, 10)
        assert scene.serving() == {"n1"}, "300 rows/s fit on one node"
        assert {name: own.state for name, own in scene.world.nodes.items()} == {
            "n1": "serving", "n2": "off", "s1": "off", "s2": "off",
        }  # fmt: skip
        scene.intensity = {"north": 400.0, "south": 100.0}
        await scene.steps(controller, 14)
        assert scene.serving() <= {"s1", "s2"}
        assert scene.world.sums.refused == 0.0
        assert scene.world.misdeeds == []
        status = controller.status()
        assert status.totals.planned_g < status.totals.alone_g
        assert [own.name for own in status.regions] == ["north", "south"]
        assert status.families[0].accuracy == pytest.approx(90.0, abs=0.05)

    play(story)


def test_a_lost_node_has_no_rows_at_once_and_is_started_again() -> None:
    async def story() -> None:
        scene = Scene()
        controller = scene.controller()
        await scene.steps(controller, 6)
        (lost, *_) = sorted(scene.serving())
        scene.fault("kill", lost)
        look = await controller.step()
        assert lost not in {name for own in scene.world.weights.values() for name in own}
        assert ("wake", lost) in [(step.kind, step.node) for step in look.steps]
        assert any(lost in text for text in [look.trigger, *controller.status().troubles])
        scene.world.advance(60.0)
        await scene.steps(controller, 4)
        assert scene.world.sums.refused == 0.0
        assert scene.world.nodes[lost].state == "serving"

    play(story)


def test_a_partition_is_told_from_a_loss_by_the_ingress() -> None:
    async def story() -> None:
        scene = Scene()
        controller = scene.controller()
        await scene.steps(controller, 6)
        (far, *_) = sorted(scene.serving())
        started_s = scene.world.nodes[far].started_s
        scene.fault("partition", far)
        await scene.steps(controller, 3)
        assert far in scene.serving(), "clients reach it, whatever the controller does"
        (status,) = [own for own in controller.status().nodes if own.name == far]
        assert status.phase == "partitioned"
        assert (
            f"{far} is partitioned: it does not report, and the ingress finds it healthy"
            in controller.status().troubles
        )
        before = controller.status().families[0].rows
        scene.world.nodes[far].cut_off = False
        await scene.steps(controller, 1)
        assert scene.world.nodes[far].started_s == started_s
        assert controller.status().families[0].rows > before + 60.0 * 300.0, "what it served meanwhile counts"

    play(story)


def test_an_ingress_that_knows_no_health_leaves_only_the_report() -> None:
    class Plain:
        def __init__(self, ingress: SimulatedIngress) -> None:
            for name in ("admit", "weigh", "drain", "open_connections", "remove"):
                setattr(self, name, getattr(ingress, name))

    async def story() -> None:
        scene = Scene()
        controller = scene.controller(ingress=Plain(scene.ingress))
        await scene.steps(controller, 6)
        (far, *_) = sorted(scene.serving())
        scene.fault("partition", far)
        await scene.steps(controller, 2)
        assert far not in scene.serving()
        assert scene.world.sums.refused == 0.0

    play(story)


def test_a_region_that_is_lost_is_served_from_the_other() -> None:
    async def story() -> None:
        scene = Scene(survive="region")
        controller = scene.controller()
        await scene.steps(controller, 8)
        scene.fault("region", "north", 1800.0)
        await scene.steps(controller, 6)
        assert scene.serving() <= {"s1", "s2"}
        assert scene.world.sums.refused == 0.0
        await scene.steps(controller, 40)
        assert scene.serving() & {"n1", "n2"}, "it is started again once it can be"

    play(story)


def test_more_than_all_nodes_can_serve_wakes_them_all_and_is_said() -> None:
    async def story() -> None:
        scene = Scene(survive="none")
        controller = scene.controller()
        await scene.steps(controller, 8)
        scene.rate = 2000.0
        await scene.steps(controller, 8)
        assert scene.serving() == {"n1", "n2", "s1", "s2"}
        status = controller.status()
        assert any("rows/s of digits" in text for text in status.troubles)
        assert status.families[0].unserved > 0.0

    play(story)


def planned(problem: ClusterProblem, *names: str) -> ClusterPlan:
    """Return a plan of these nodes, with all rows on the first of them."""
    rates = {own.origin: own.rate for own in problem.demands}
    targets = [
        NodeTarget(
            node=own.name, awake=own.name in names, rates={FAMILY: sum(rates.values())} if own.name == names[0] else {}
        )
        for own in problem.nodes
    ]
    region_of = {own.name: own.region for own in problem.nodes}
    flows = [
        RegionFlow(family=FAMILY, origin=origin, region=region_of[names[0]], rate=rate)
        for origin, rate in rates.items()
    ]
    return ClusterPlan(
        at_s=problem.at_s, targets=tuple(targets), flows=tuple(flows), grams_h=1.0, bound_g_h=1.0, alone_g_h=2.0,
        awake_g_h=2.0, reason=f"{names} as they are wanted",
    )  # fmt: skip


def test_the_reserve_stays_awake_until_what_replaces_it_is_ready() -> None:
    async def story() -> None:
        scene = Scene([node("n1", "north"), node("n2", "north"), node("s1", "south", wake_s=900.0)], rate=50.0)
        scene.plan = lambda problem: planned(problem, "n1", "n2")
        controller = scene.controller()
        await scene.steps(controller, 10)
        assert scene.world.nodes["s1"].state == "off"
        scene.plan = lambda problem: planned(problem, "n1", "s1")
        for _ in range(30):
            await scene.steps(controller, 1)
            ready = [name for name, own in scene.world.nodes.items() if own.state == "serving"]
            assert len(ready) >= 2, "the loss of any node has to be survived at any time"
        assert sorted(ready) == ["n1", "s1"]

    play(story)


def test_a_plan_that_asks_too_much_of_a_node_does_not_get_it() -> None:
    async def story() -> None:
        scene = Scene(rate=600.0, survive="none")
        scene.plan = lambda problem: planned(problem, "n1")
        controller = scene.controller()
        await scene.steps(controller, 12)
        assert sum(scene.world.nodes["n1"].rates.values()) <= 800.0 + 1e-6, "two devices serve 800 rows/s at most"
        assert scene.world.sums.refused == 0.0

    play(story)


def test_a_cluster_that_sleeps_and_of_which_nothing_is_known_wakes_one_node_to_learn() -> None:
    async def story() -> None:
        asleep = [msgspec.structs.replace(own, state="released") for own in NODES]
        scene = Scene(asleep, frontiers=())
        controller = scene.controller()
        (look,) = await scene.steps(controller, 1)
        assert [step.node for step in look.steps if step.kind == "wake"] == ["n1"]
        await scene.steps(controller, 10)
        assert controller.status().decisions, "plans are made once it is known what a device does"
        assert scene.serving()

    play(story)


def test_a_cluster_that_nobody_asks_keeps_a_node_awake_for_the_first_row() -> None:
    """Rows are counted by nodes: with none awake, none would come to be known, and nothing would wake one."""

    async def story() -> None:
        scene = Scene(rate=0.0)
        controller = scene.controller()
        await scene.steps(controller, 60)
        awake = {name for name, report in (await scene.nodes.reports()).items() if report.node.state == "ready"}
        assert 1 <= len(awake) < len(NODES)
        plan = controller._memory.plan
        assert plan is not None
        assert {own.node for own in plan.targets if own.awake} == awake, "so that one that is lost is started again"
        scene.rate = 50.0
        await scene.steps(controller, 5)
        assert scene.serving(), "who is awake counts the first rows, and the others are woken for them"

    play(story)


def test_a_node_that_plans_do_without_counts_for_as_long_as_it_is_awake() -> None:
    async def story() -> None:
        sums = []
        for held in (False, True):
            scene = Scene()
            controller = scene.controller()
            await scene.steps(controller, 10)
            idle = next(name for name, own in scene.world.nodes.items() if own.state == "off" and name.startswith("s"))
            if held:
                controller.hold(idle, "awake")
            before = controller.status().totals
            await scene.steps(controller, 30)
            after = controller.status()
            assert held == any(own.name == idle and own.phase == "ready" for own in after.nodes)
            sums.append(after.totals.planned_g - before.planned_g)
        # 100 W and two devices of 50 W at 400 g/kWh, from when it has woken on.
        assert sums[1] - sums[0] == pytest.approx(80.0 * 29.0 / 60.0, rel=0.1)

    play(story)


# --- restart and takeover ---------------------------------------------------------------------------------------------


def test_a_controller_that_restarts_changes_nothing_and_forgets_nothing() -> None:
    async def story() -> None:
        scene = Scene()
        controller = scene.controller()
        await scene.steps(controller, 10)
        weights, before = dict(scene.world.weights), controller.status()
        other = scene.controller("two")
        (look,) = await scene.steps(other, 1)
        assert look.epoch == before.epoch + 1
        assert {step.kind for step in look.steps} <= {"follow", "admit", "weigh"}
        after = other.status()
        assert after.families[0].rows >= before.families[0].rows
        assert after.totals.planned_g >= before.totals.planned_g
        for key, own in weights.items():
            assert scene.world.weights[key] == pytest.approx(own, abs=0.01)
        assert not [step for own in await scene.steps(other, 4) for step in own.steps if step.kind in ("wake", "drain")]
        assert {own.epoch for own in scene.world.nodes.values() if own.rates} == {other.status().epoch}

    play(story)


def test_the_older_of_two_controllers_stops_and_says_so() -> None:
    async def story() -> None:
        scene = Scene()
        older = scene.controller("older")
        await scene.steps(older, 3)
        newer = scene.controller("newer")
        await scene.steps(newer, 1)
        look = await older.step()
        assert look.steps == ()
        assert "another controller (newer) saved epoch" in older.stopped
        assert older.status().controlling is False
        assert older.status().reason.startswith("another controller is in charge")
        assert (await newer.step()).epoch > 0
        assert newer.stopped == ""
        await older.run()  # returns

    play(story)


def test_shares_whose_answer_was_lost_are_given_again_at_the_next_look() -> None:
    async def story() -> None:
        scene = Scene()
        controller = scene.controller()
        await scene.steps(controller, 6)
        weigh, given = scene.ingress.weigh, []

        async def lost(origin: str, weights: Mapping[str, float]) -> None:
            given.append(origin)
            await weigh(origin, weights)
            raise ClusterError("no answer in time")

        async def noted(origin: str, weights: Mapping[str, float]) -> None:
            given.append(origin)
            await weigh(origin, weights)

        scene.ingress.weigh = lost  # type: ignore[method-assign]
        await controller.step()
        assert set(given) == {"north", "south"}, "all are given again after a minute"
        scene.world.advance(1.0)
        given.clear()
        scene.ingress.weigh = noted  # type: ignore[method-assign]
        await controller.step()
        assert set(given) == {"north", "south"}, "what the ingress has is not known"
        given.clear()
        scene.world.advance(1.0)
        await controller.step()
        assert given == []

    play(story)


def test_a_state_that_an_older_controller_saved_late_is_replaced_at_once() -> None:
    async def story() -> None:
        scene = Scene()
        older = scene.controller("older")
        await scene.steps(older, 3)
        late = await scene.store.load()
        newer = scene.controller("newer")
        await scene.steps(newer, 3)
        await newer.step()
        assert late is not None
        await scene.store.save(late)
        scene.world.advance(1.0)
        await newer.step()
        state = await scene.store.load()
        assert state is not None
        assert msgspec.json.decode(state)["holder"] == "newer"
        assert newer.stopped == ""

    play(story)


def test_a_controller_that_was_replaced_while_it_planned_does_nothing_of_it() -> None:
    async def story() -> None:
        scene = Scene()
        older = scene.controller("older")
        await scene.steps(older, 3)
        newer = scene.controller("newer")
        made = []

        async def solve(problem: ClusterProblem) -> ClusterPlan:
            made.append(await newer.step())
            return planned(problem, "s1")

        older._solve = solve
        scene.intensity = {"north": 400.0, "south": 100.0}
        epoch = older.status().epoch
        look = await older.step()
        assert made
        assert {step.kind for step in look.steps} <= {"weigh"}
        assert "another controller (newer) saved epoch" in older.stopped
        assert older.status().epoch == epoch
        state = await scene.store.load()
        assert state is not None
        assert msgspec.json.decode(state)["holder"] == "newer"

    play(story)


def test_a_newer_epoch_in_a_report_stops_a_controller_whose_store_does_not_answer() -> None:
    async def story() -> None:
        scene = Scene()
        older = scene.controller("older")
        await scene.steps(older, 3)
        for own in scene.world.nodes.values():
            own.epoch += 7
        scene.fault("store", seconds=1e6)
        look = await older.step()
        assert look.steps == ()
        assert "newer than" in older.stopped

    play(story)


def test_a_controller_without_the_state_begins_above_what_nodes_took_before_their_leases_ended() -> None:
    async def story() -> None:
        scene = Scene()
        for own in scene.world.nodes.values():
            own.seen_epoch = 40
        controller = scene.controller()
        await scene.steps(controller, 3)
        assert controller.status().epoch > 41
        first, *_ = scene.world.nodes.values()
        first.seen_epoch, first.epoch = 90, 0  # it answers late, with what a controller before had it follow
        scene.intensity["north"] = 900.0
        await scene.steps(controller, 10)
        assert controller.stopped == ""
        assert controller.status().epoch > 90
        assert {own.epoch for own in scene.world.nodes.values() if own.rates} == {controller.status().epoch}

    play(story)


def test_nothing_is_controlled_before_the_state_was_read() -> None:
    async def story() -> None:
        scene = Scene()
        scene.fault("store", seconds=90.0)
        controller = scene.controller()
        (look, *_) = await scene.steps(controller, 2)
        assert look.steps == ()
        assert "before the saved state can be read" in controller.status().troubles[0]
        await scene.steps(controller, 2)
        assert controller.status().epoch > 0

    play(story)


def test_a_damaged_state_is_said_and_the_cluster_taken_as_it_stands() -> None:
    async def story() -> None:
        scene = Scene()
        await scene.steps(scene.controller(), 4)
        epoch = max(own.epoch for own in scene.world.nodes.values())
        scene.world.state = b'{"format": 1, "holder": '
        other = scene.controller("two")
        (look,) = await scene.steps(other, 1)
        assert look.epoch > epoch
        assert "damaged" in " ".join(other.status().troubles)
        assert scene.world.state.startswith(b'{"format":1,"holder":"two"')
        assert scene.world.sums.refused == 0.0

    play(story)


# --- faults of what it stands on --------------------------------------------------------------------------------------


def test_a_controller_that_reaches_no_node_leaves_everything_as_it_is() -> None:
    class Deaf:
        def __init__(self, nodes: SimulatedNodes) -> None:
            self.nodes, self.deaf = nodes, False

        async def reports(self) -> Mapping[str, NodeReport]:
            if self.deaf:
                raise ClusterError("the head does not answer")
            return await self.nodes.reports()

        def __getattr__(self, name: str) -> Any:
            return getattr(self.nodes, name)

    async def story() -> None:
        scene = Scene()
        deaf = Deaf(scene.nodes)
        controller = scene.controller(nodes=deaf)
        await scene.steps(controller, 8)
        weights = {key: dict(own) for key, own in scene.world.weights.items()}
        deaf.deaf = True
        looks = await scene.steps(controller, 5)
        assert not [step for look in looks for step in look.steps]
        assert scene.world.weights.keys() == weights.keys()
        assert all(scene.world.weights[key].keys() == own.keys() for key, own in weights.items())
        assert "the head does not answer" in " ".join(controller.status().troubles)

    play(story)


def test_a_planner_that_fails_leaves_the_plan_in_force() -> None:
    async def story() -> None:
        scene = Scene()
        controller = scene.controller()
        await scene.steps(controller, 4)
        epoch = controller.status().epoch

        def fail(problem: ClusterProblem) -> ClusterPlan:
            raise RuntimeError("no such luck")

        scene.plan = fail
        scene.rate = 250.0
        looks = await scene.steps(controller, 3)
        assert looks[-1].decision is not None
        assert looks[-1].decision.action == "failed"
        assert looks[-1].decision.count > 1
        assert controller.status().epoch == epoch
        assert "no such luck" in " ".join(controller.status().troubles)
        assert scene.world.sums.refused == 0.0
        scene.world.advance(1.0)
        assert (await controller.step()).decision is not None
        scene.world.advance(1.0)
        assert (await controller.step()).decision is None, "not again at once"

    play(story)


def test_a_trouble_is_logged_once_while_it_lasts(caplog: pytest.LogCaptureFixture) -> None:
    async def story() -> None:
        scene = Scene()
        controller = scene.controller()
        await scene.steps(controller, 3)
        scene.fault("grids", seconds=150.0)
        await scene.steps(controller, 5)
        scene.fault("grids", seconds=50.0)
        await scene.steps(controller, 2)

    play(story)
    assert sum("the grids cannot be read" in text for text in caplog.messages) == 2


def test_grids_that_cannot_be_read_leave_the_last_intensities() -> None:
    async def story() -> None:
        scene = Scene()
        controller = scene.controller()
        await scene.steps(controller, 3)
        scene.fault("grids")
        await scene.steps(controller, 2)
        assert controller.status().regions[0].intensity == 100.0
        assert "last intensities hold" in " ".join(controller.status().troubles)

    play(story)


def test_a_node_that_takes_no_target_is_not_given_more() -> None:
    async def story() -> None:
        scene = Scene()
        controller = scene.controller()
        await scene.steps(controller, 6)

        async def refuse(target: object, epoch: int) -> None:
            raise ClusterError("it refuses")

        scene.nodes.follow = refuse  # type: ignore[method-assign]
        before = {name: sum(own.rates.values()) for name, own in scene.world.nodes.items()}
        scene.intensity = {"north": 500.0, "south": 90.0}
        await scene.steps(controller, 4)
        assert "it refuses" in " ".join(controller.status().troubles)
        after = {name: sum(own.rates.values()) for name, own in scene.world.nodes.items()}
        status = controller.status()
        refused = [own.name for own in status.nodes if own.target and own.target.awake and own.epoch < status.epoch]
        assert refused
        for name in refused:
            assert after[name] <= before[name] * 1.01 + 1e-6
        assert scene.world.sums.refused == 0.0

    play(story)


def test_a_node_without_rows_is_asked_for_the_floor_and_to_be_ready_for_the_rows_of_another() -> None:
    async def story() -> None:
        scene = Scene(rate=50.0)
        controller = scene.controller()
        told: dict[str, NodeTarget] = {}
        follow = scene.nodes.follow

        async def note(target: NodeTarget, epoch: int) -> None:
            told[target.node] = target
            await follow(target, epoch)

        scene.nodes.follow = note  # type: ignore[method-assign]
        await scene.steps(controller, 8)
        targets = {own.name: own.target for own in controller.status().nodes if own.target and own.target.awake}
        (spare,) = [name for name, own in targets.items() if not own.rates]
        (busy,) = [name for name, own in targets.items() if own.rates]
        assert told[spare].accuracy == {FAMILY: pytest.approx(90.0, abs=0.5)}
        assert told[spare].rates == told[busy].rates == targets[busy].rates

    play(story)


def test_a_node_that_follows_an_older_epoch_is_asked_again_and_named() -> None:
    async def story() -> None:
        scene = Scene()
        controller = scene.controller()
        await scene.steps(controller, 4)
        (name, *_) = sorted(scene.serving())
        scene.world.nodes[name].epoch, follow = 1, scene.nodes.follow

        async def ignore(target: NodeTarget, epoch: int) -> None:
            """Take a target, and forget it."""

        scene.nodes.follow = ignore  # type: ignore[method-assign]
        (look,) = await scene.steps(controller, 1)
        assert ("follow", name) in [(step.kind, step.node) for step in look.steps]
        await scene.steps(controller, 1)
        epoch = controller.status().epoch
        assert f"{name} took epoch {epoch}, and follows epoch 1: asked again" in controller.status().troubles
        scene.nodes.follow = follow  # type: ignore[method-assign]
        await scene.steps(controller, 2)
        assert scene.world.nodes[name].epoch == controller.status().epoch

    play(story)


def test_a_node_that_takes_long_to_end_keeps_no_look_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clover.cluster.controller.orders.PROMPT_S", 0.0)

    async def story() -> None:
        scene, ended = Scene(survive="none"), asyncio.Event()

        async def slowly(name: str) -> None:
            await ended.wait()
            await SimulatedNodes(scene.world).release(name)

        scene.nodes.release = slowly  # type: ignore[method-assign]
        controller = scene.controller()
        looks = await scene.steps(controller, 12)
        released = [step.node for look in looks for step in look.steps if step.kind == "release"]
        assert len(released) == len(set(released)) >= 1, "ordered once, while it is under way"
        (name, *_) = released
        controller.hold(name, "awake")  # wanted again: but it is ending
        await scene.steps(controller, 2)
        assert name in scene.world.drained
        ended.set()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        await scene.steps(controller, 4)
        assert scene.world.nodes[name].state == "serving"
        assert name in scene.world.admitted
        await controller.close()

    play(story)


def test_a_node_that_comes_back_at_another_address_is_admitted_there() -> None:
    async def story() -> None:
        scene = Scene()
        controller = scene.controller()
        await scene.steps(controller, 2)
        asked: list[tuple[str, str]] = []
        reports = scene.nodes.reports

        async def elsewhere() -> Mapping[str, NodeReport]:
            return {name: msgspec.structs.replace(own, url=own.url + ":81") for name, own in (await reports()).items()}

        async def admit(name: str, url: str, grpc_url: str) -> None:
            asked.append((name, url))

        scene.nodes.reports = elsewhere  # type: ignore[method-assign]
        scene.ingress.admit = admit  # type: ignore[method-assign]
        await scene.steps(controller, 2)
        assert sorted(asked) == [(name, f"http://{name}:81") for name in ("n1", "n2", "s1", "s2")]

    play(story)


def test_a_look_that_fails_is_logged_and_the_next_one_is_taken(caplog: pytest.LogCaptureFixture) -> None:
    async def story() -> None:
        scene, looks = Scene(), 0
        controller = scene.controller()
        reports = scene.nodes.reports

        async def sometimes() -> Mapping[str, NodeReport]:
            if looks == 2:
                raise RuntimeError("a bug")
            return await reports()

        async def sleep(seconds: float) -> None:
            nonlocal looks
            assert seconds == scene.terms.look_s
            looks += 1
            scene.world.advance(seconds)
            if looks == 6:
                controller.stopped = "that is enough"

        scene.nodes.reports = sometimes  # type: ignore[method-assign]
        await controller.run(sleep)
        assert looks == 6
        assert scene.serving()

    play(story)
    assert "a look at the cluster failed" in caplog.text


def test_an_ingress_that_does_not_say_who_can_answer_lets_no_node_leave() -> None:
    async def story() -> None:
        scene = Scene(survive="none")

        async def silent(name: str) -> bool:
            raise ClusterError("it does not answer")

        scene.ingress.healthy = silent  # type: ignore[method-assign]
        controller = scene.controller()
        looks = await scene.steps(controller, 10)
        assert not [step for look in looks for step in look.steps if step.kind in ("drain", "release")]
        assert any(
            text.startswith("the ingress does not say whether n1, n2, s1, s2 can answer, so no node leaves")
            for text in controller.status().troubles
        )

    play(story)


# --- targets that are taken late --------------------------------------------------------------------------------------


def shared(problem: ClusterProblem, part: float, accuracy: float) -> ClusterPlan:
    """Return a plan in which n1 has a part of all rows, of an accuracy of its own, and s1 the rest."""
    parts = {"n1": (part, accuracy), "s1": (1.0 - part, 90.5)}
    total = sum(own.rate for own in problem.demands)
    targets = tuple(
        NodeTarget(node=name, awake=True, rates={FAMILY: own * total}, accuracy={FAMILY: points})
        for name, (own, points) in parts.items()
    )
    flows = tuple(
        RegionFlow(family=FAMILY, origin=own.origin, region=where, rate=own.rate * rest)
        for own in problem.demands
        for where, rest in (("north", part), ("south", 1.0 - part))
    )
    return ClusterPlan(
        at_s=problem.at_s, targets=targets, flows=flows, grams_h=1.0, bound_g_h=1.0, alone_g_h=2.0, awake_g_h=2.0,
        reason=f"n1 has {part:.0%}",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("taken", "asked", "part"),
    [
        (90.5, 91.0, 0.75),  # as accurate as all rows together have to be
        (88.0, 88.0, 0.75),  # as accurate as it is asked to now
        (88.0, 91.0, 0.2),  # those rows would be answered less accurately than any plan in force wants
    ],
)
def test_a_node_that_takes_plans_more_slowly_than_they_come_has_the_rows_that_it_took_a_target_for(
    monkeypatch: pytest.MonkeyPatch, taken: float, asked: float, part: float
) -> None:
    monkeypatch.setattr("clover.cluster.controller.orders.PROMPT_S", 0.0)

    async def story() -> None:
        scene = Scene([node("n1", "north"), node("s1", "south")], survive="none")
        now, follow, may = (0.2, 90.5), scene.nodes.follow, asyncio.Event()

        async def slowly(target: NodeTarget, epoch: int) -> None:
            await may.wait()
            await follow(target, epoch)

        async def look(g_per_kwh: float) -> dict[str, float]:
            scene.intensity["north"] = g_per_kwh
            await scene.steps(controller, 1)
            return scene.world.weights["", "north"]

        async def take() -> None:
            may.set()
            for _ in range(5):
                await asyncio.sleep(0)
            may.clear()

        scene.nodes.follow = slowly  # type: ignore[method-assign]
        scene.plan = lambda problem: shared(problem, *now)
        controller = scene.controller()
        for _ in range(3):
            await look(100.0)
            await take()
        now = (0.8, taken)
        assert (await look(150.0))["n1"] == pytest.approx(0.2, abs=0.01), "it has taken no target for more"
        await take()
        now = (0.75, asked)
        assert (await look(200.0))["n1"] == pytest.approx(part, abs=0.01)
        await controller.close()

    play(story)


# --- operators --------------------------------------------------------------------------------------------------------


def test_a_dry_look_says_what_it_would_do_and_does_nothing() -> None:
    async def story() -> None:
        scene = Scene()
        controller = scene.controller()
        await scene.steps(controller, 4)
        scene.intensity = {"north": 500.0, "south": 50.0}
        state, weights = scene.world.state, dict(scene.world.weights)
        epochs = {name: own.epoch for name, own in scene.world.nodes.items()}
        epoch = controller.status().epoch
        look = await controller.step(dry=True)
        assert look.dry
        assert look.plan is not None
        assert look.decision is not None
        assert look.decision.action == "dry run"
        assert {step.kind for step in look.steps} >= {"follow"}
        assert (scene.world.state, scene.world.weights) == (state, weights)
        assert {name: own.epoch for name, own in scene.world.nodes.items()} == epochs
        assert controller.status().epoch == epoch

    play(story)


def test_a_dry_look_says_who_would_be_drained_also_before_an_ingress_that_knows_no_health() -> None:
    async def story() -> None:
        scene = Scene(survive="none")
        controller = scene.controller(ingress=NoIngress())
        drained: list[str] = []
        for _ in range(8):
            dry = await controller.step(dry=True)
            (look,) = await scene.steps(controller, 1)
            own = [step.node for step in look.steps if step.kind == "drain"]
            assert own == [step.node for step in dry.steps if step.kind == "drain"]
            drained += own
        assert drained

    play(story)


def test_an_operator_drains_a_node_and_gives_it_back() -> None:
    async def story() -> None:
        scene = Scene()
        controller = scene.controller()
        await scene.steps(controller, 6)
        (name, *_) = sorted(scene.serving())
        controller.hold(name, "drained")
        await scene.steps(controller, 4)
        assert name not in scene.serving()
        assert scene.world.nodes[name].state == "serving", "it keeps running"
        assert name in scene.world.drained
        assert scene.world.sums.refused == 0.0
        controller.hold(name, None)
        await scene.steps(controller, 6)
        assert name not in scene.world.drained
        with pytest.raises(ClusterError, match="there is no node 'n9'"):
            controller.hold("n9", "drained")

    play(story)


def test_an_operator_keeps_a_node_awake() -> None:
    async def story() -> None:
        scene = Scene(survive="none")
        controller = scene.controller()
        controller.hold("s2", "awake")
        await scene.steps(controller, 10)
        assert scene.world.nodes["s2"].state == "serving"
        assert scene.world.nodes["s1"].state == "off"

    play(story)


def test_a_drain_that_the_others_cannot_take_over_waits() -> None:
    async def story() -> None:
        scene = Scene([node("n1", "north"), node("s1", "south")], rate=300.0, survive="none")
        controller = scene.controller()
        await scene.steps(controller, 4)
        controller.hold("n1", "drained")
        await scene.steps(controller, 4)
        assert scene.world.sums.refused == 0.0
        assert "n1" in scene.serving()

    play(story)


def test_status_and_looks_survive_json() -> None:
    async def story() -> None:
        scene = Scene()
        controller = scene.controller()
        looks = await scene.steps(controller, 3)
        for record in (controller.status(), *looks):
            assert msgspec.json.decode(msgspec.json.encode(record), type=type(record)) == record
        assert scene.world.state is not None
        assert len(scene.world.state) < 20_000

    play(story)


def test_each_family_is_shared_by_itself_if_the_ingress_can() -> None:
    async def story() -> None:
        scene = Scene(survive="none")
        other = msgspec.structs.replace(scene.terms.families[0], family="letters", regions={"south": ("south",)})
        scene.terms = msgspec.structs.replace(
            scene.terms, families=(*scene.terms.families, other), frontiers=(frontier(), frontier(family="letters"))
        )
        rules = WorldRules(scene.terms.families, scene.terms.frontiers)
        regions = [region(name, 100.0 if name == "north" else 400.0) for name in ("north", "south")]
        for own in regions:
            own.demand = lambda _: {FAMILY: 100.0, "letters": 50.0}
        scene.world = SimulatedWorld(regions, NODES, rules, 1_640_995_200.0)
        scene.nodes, scene.ingress = SimulatedNodes(scene.world), SimulatedIngress(scene.world)
        scene.store, scene.grids = SimulatedStore(scene.world), SimulatedGrids(scene.world)
        controller = scene.controller()
        await scene.steps(controller, 12)
        for (family, origin), weights in scene.world.weights.items():
            if (family, origin) == ("letters", "south"):
                assert {scene.world.nodes[name].machine.region for name in weights} == {"south"}
        assert scene.world.sums.refused == 0.0
        for family in (FAMILY, "letters"):
            assert scene.world.sums.accuracy(family) == pytest.approx(90.0, abs=0.1)
        assert {own.family for own in controller.status().families} == {FAMILY, "letters"}

    play(story)


def test_regions_say_what_their_nodes_use() -> None:
    async def story() -> None:
        scene = Scene(survive="none")
        controller = scene.controller()
        await scene.steps(controller, 12)
        north, south = controller.status().regions
        assert (north.awake, south.awake) == (1, 0)
        assert north.watts == pytest.approx(200.0 + 255.0, abs=30.0), "idle, and 300 rows/s at 0.85 J"
        assert north.grams_h == pytest.approx(north.watts * 0.1, rel=0.01)
        assert south.watts == 0.0

    play(story)


def test_plans_are_made_in_a_thread() -> None:
    async def story() -> None:
        scene = Scene()
        problems: list[ClusterProblem] = []
        controller = ClusterController(
            scene.terms, scene.nodes, scene.ingress, scene.store, scene.grids,
            in_thread(lambda problem: problems.append(problem) or plan_cluster(problem)),  # type: ignore[func-returns-value]
            lambda: scene.world.now_s,
        )  # fmt: skip
        await scene.steps(controller, 2)
        assert problems[0].terms[0].family == FAMILY
        assert controller.status().epoch == 2

    play(story)
