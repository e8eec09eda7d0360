"""A cluster's controller that dies, is slow, or finds its world changed: nothing is lost, doubled, or left for ever."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Mapping
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clover.cluster.controller.controller import ClusterController
from clover.cluster.planning.planner import plan_cluster
from clover.cluster.planning.records import ClusterPlan, ClusterProblem
from clover.cluster.ports import NodeReport
from clover.cluster.simulate.world import SimulatedWorld
from clover.errors import ClusterError
from clover.types import Reading
from tests.support.cluster_fixture import node
from tests.support.cluster_scene import NODES, Scene, play

# --- a death between any two calls ------------------------------------------------------------------------------------


class Killed(BaseException):
    """The controller's process is gone."""


class Axe:
    """Kills a controller at its `at`th call of a port, before or after the call has done its work."""

    def __init__(self, at: int, *, after: bool) -> None:
        self.at, self.after, self.calls, self.fell = at, after, 0, False
        self.looks: list[int] = []
        """Calls before each look."""


class Chopped:
    """A port of a controller that dies at a call, and makes no call any more."""

    def __init__(self, port: Any, axe: Axe) -> None:
        self._port, self._axe = port, axe

    def __getattr__(self, name: str) -> Any:
        axe, real = self._axe, getattr(self._port, name)

        async def call(*given: Any) -> Any:
            if axe.fell:
                raise Killed
            axe.calls += 1
            axe.fell = axe.calls == axe.at
            if axe.fell and not axe.after:
                raise Killed
            found = await real(*given)
            if axe.fell:
                raise Killed
            return found

        return call


@functools.cache
def plan_of(problem: bytes) -> ClusterPlan:
    return plan_cluster(msgspec.json.decode(problem, type=ClusterProblem))


def same_plan(problem: ClusterProblem) -> ClusterPlan:
    """Plan as ever; nearly equal moments are planned once."""
    demands = tuple(msgspec.structs.replace(own, forecast=()) for own in problem.demands)
    return plan_of(msgspec.json.encode(msgspec.structs.replace(problem, at_s=0.0, demands=demands)))


def chopped(axe: Axe) -> tuple[SimulatedWorld, ClusterController]:
    """Play half an hour in which nodes are released, woken and released again; the controller dies and is replaced."""
    scene = Scene(survive="none")
    scene.plan = same_plan

    async def solve(problem: ClusterProblem) -> ClusterPlan:
        return same_plan(problem)

    async def story() -> ClusterController:
        ports = [Chopped(one, axe) for one in (scene.nodes, scene.ingress, scene.store, scene.grids)]
        controller, down = ClusterController(scene.terms, *ports, solve, lambda: scene.world.now_s, "one"), False
        for step in range(32):
            if step == 8:
                scene.intensity = {"north": 400.0, "south": 100.0}
            axe.looks.append(axe.calls)
            try:
                await controller.step()
                if axe.fell and not down:  # it was an order to a node, which runs by itself
                    raise Killed
            except Killed:
                controller, down = scene.controller("two"), True
            scene.world.advance(60.0)
        return controller

    return scene.world, asyncio.run(story())


@functools.cache
def unharmed() -> tuple[SimulatedWorld, float, list[int]]:
    axe = Axe(-1, after=False)
    world, controller = chopped(axe)
    assert {own.state for own in world.nodes.values()} == {"off", "serving"}
    return world, controller.status().totals.rows, axe.looks


@settings(max_examples=max(3, settings().max_examples // 30), deadline=None)
@given(st.data())
def test_a_death_after_any_call_of_a_port_leads_to_the_same_end(data: st.DataObject) -> None:
    plain, rows, looks = unharmed()
    at = data.draw(st.integers(looks[1] + 1, looks[-1]), label="after the first look, before the last")
    world, controller = chopped(Axe(at, after=data.draw(st.booleans(), label="after")))
    assert {name: own.state for name, own in world.nodes.items()} == {
        name: own.state for name, own in plain.nodes.items()
    }
    assert world.admitted == plain.admitted, "no node is left in the ingress, and none is missing"
    for key, own in plain.weights.items():
        assert world.weights[key] == pytest.approx(own, abs=0.01)
    assert world.misdeeds == []
    assert world.sums.refused == 0.0
    assert controller.stopped == ""
    # Status has the rows of the look before; a look that died is one later.
    assert controller.status().totals.rows >= rows - 60.0 * 300.0 - 1.0


# --- what a new controller knows --------------------------------------------------------------------------------------


class Late:
    """Nodes of which some do not answer."""

    def __init__(self, scene: Scene, *silent: str) -> None:
        self._nodes, self.silent = scene.nodes, set(silent)
        for name in ("follow", "wake", "release"):
            setattr(self, name, getattr(scene.nodes, name))

    async def reports(self) -> Mapping[str, NodeReport]:
        return {name: own for name, own in (await self._nodes.reports()).items() if name not in self.silent}


def test_a_node_that_is_slow_to_answer_a_new_controller_keeps_its_rows() -> None:
    async def story() -> None:
        scene = Scene(plan_s=1e6)
        await scene.steps(scene.controller(), 10)
        weights = {key: dict(own) for key, own in scene.world.weights.items()}
        slow, *_ = sorted(scene.serving())
        late = Late(scene, slow)
        other = scene.controller("two", nodes=late)
        await scene.steps(other, 1)
        for key, own in weights.items():
            assert scene.world.weights[key] == pytest.approx(own, abs=0.01)
        late.silent.clear()
        (look,) = await scene.steps(other, 1)
        assert look.trigger == "", "nothing has happened that asks for a plan"
        assert slow in scene.serving()

    play(story)


def test_a_node_out_of_reach_of_two_controllers_keeps_its_rows() -> None:
    async def story() -> None:
        scene = Scene()
        controller = scene.controller()
        await scene.steps(controller, 6)
        far, *_ = sorted(scene.serving())
        scene.fault("partition", far)
        await scene.steps(controller, 2)
        for holder in ("two", "three"):
            controller = scene.controller(holder)
            await scene.steps(controller, 2)
            (own,) = [one for one in controller.status().nodes if one.name == far]
            assert own.phase == "partitioned"
            assert far in scene.serving()
        assert scene.world.sums.refused == 0.0

    play(story)


def test_rows_of_a_node_that_only_the_controller_does_not_reach_count_on() -> None:
    async def story() -> None:
        scene = Scene()
        controller = scene.controller()
        await scene.steps(controller, 6)
        far, *_ = sorted(scene.serving())
        scene.fault("partition", far)
        await scene.steps(controller, 12)
        assert far in scene.serving()
        assert controller.status().families[0].rate == pytest.approx(300.0, rel=0.1)
        scene.fault("kill", far)
        scene.world.nodes[far].cut_off = True
        await scene.steps(controller, 6)
        assert controller.status().families[0].rate == pytest.approx(300.0, rel=0.1), "and not twice"

    play(story)


def test_grams_are_said_of_the_hours_in_which_a_plan_was_in_force() -> None:
    async def story() -> None:
        scene = Scene()
        await scene.steps(scene.controller(), 6)
        scene.world.advance(7200.0)  # without a controller
        other = scene.controller("two")
        await scene.steps(other, 2)
        totals = other.status().totals
        assert totals.planned_s == pytest.approx(5 * 60.0)
        assert totals.planned_g <= totals.awake_g

    play(story)


def test_an_ingress_that_began_anew_with_the_controller_is_given_all_nodes_again() -> None:
    async def story() -> None:
        scene = Scene()
        await scene.steps(scene.controller(), 6)
        serving = scene.serving()
        scene.world.admitted.clear()
        scene.world.weights.clear()
        await scene.steps(scene.controller("two"), 1)
        assert scene.serving() == serving
        assert scene.world.misdeeds == []

    play(story)


def test_a_controller_that_restarts_goes_on_with_the_grids_and_the_plan_it_had() -> None:
    async def story() -> None:
        scene = Scene(survive="none", plan_s=1e6)
        await scene.steps(scene.controller(), 10)
        scene.fault("grids", seconds=1e6)
        other = scene.controller("two")
        looks = await scene.steps(other, 4)
        status = other.status()
        assert {own.name: own.intensity for own in status.regions} == {"north": 100.0, "south": 400.0}
        assert all(own.age_s >= 60.0 for own in status.regions), "and says how old that is"
        assert {look.trigger for look in looks[:2]} == {""}
        scene.world.grids_down_s = 0.0
        scene.intensity = {"north": 150.0, "south": 400.0}
        third = scene.controller("three")
        (look,) = await scene.steps(third, 1)
        assert "the intensity of north moved from 100 to 150" in look.trigger

    play(story)


def test_a_node_that_the_file_has_no_more_is_forgotten() -> None:
    async def story() -> None:
        scene = Scene(rate=300.0)
        await scene.steps(scene.controller(), 6)
        assert "n1" in scene.serving()
        scene.terms = msgspec.structs.replace(scene.terms, nodes=tuple(own for own in NODES if own.name != "n1"))
        other = scene.controller("two", nodes=Late(scene, "n1"))
        looks = await scene.steps(other, 6)
        assert "n1" not in {own.name for own in other.status().nodes}
        assert ("wake", "n1") not in {(step.kind, step.node) for look in looks for step in look.steps}
        assert b'"n1"' not in (scene.world.state or b"").partition(b'"decisions"')[0]

    play(story)


# --- epochs -----------------------------------------------------------------------------------------------------------


def test_a_node_that_answers_late_after_the_state_was_lost_stops_no_controller() -> None:
    async def story() -> None:
        scene = Scene()
        await scene.steps(scene.controller(), 6)
        late = Late(scene, "n1")
        scene.world.nodes["n1"].epoch = 50  # of a controller whose disk is gone
        scene.world.state = None
        other = scene.controller("two", nodes=late)
        await scene.steps(other, 1)
        late.silent.clear()
        await scene.steps(other, 2)
        assert other.stopped == ""
        assert other.status().epoch > 50
        assert scene.world.nodes["n1"].epoch == other.status().epoch
        scene.world.nodes["n1"].epoch += 10  # what follows another one now was given that by another controller
        await other.step()
        assert "newer than" in other.stopped

    play(story)


def test_a_node_that_took_a_newer_epoch_before_its_lease_ended_follows_again_though_the_plan_stays() -> None:
    async def story() -> None:
        scene = Scene()
        controller = scene.controller()
        await scene.steps(controller, 8)
        name, *_ = sorted(scene.serving())
        scene.world.nodes[name].epoch, scene.world.nodes[name].seen_epoch = 0, 70
        (look, _) = await scene.steps(controller, 2)
        assert look.decision is None or look.decision.action == "kept"
        assert scene.world.nodes[name].epoch == controller.status().epoch > 70
        assert b'"epoch":' + str(controller.status().epoch).encode() in (scene.world.state or b"")

    play(story)


def test_a_controller_that_was_replaced_while_it_took_a_higher_epoch_gives_no_shares() -> None:
    async def story() -> None:
        scene = Scene()
        older = scene.controller("older")
        await scene.steps(older, 3)
        first, *_ = scene.world.nodes.values()
        first.seen_epoch, first.epoch = 90, 0  # of a controller that was in charge meanwhile
        state = msgspec.json.decode(scene.world.state or b"")
        late = msgspec.json.encode({**state, "holder": "newer", "epoch": 95})
        scene.world.advance(60.0)
        load, asked = scene.store.load, 0

        async def replaced() -> bytes | None:
            nonlocal asked
            asked += 1
            return late if asked > 1 else await load()

        given: list[str] = []

        async def weigh(origin: str, weights: Mapping[str, float]) -> None:
            given.append(origin)

        scene.store.load = replaced  # type: ignore[method-assign]
        scene.ingress.weigh = weigh  # type: ignore[method-assign]
        look = await older.step()
        assert "another controller (newer) saved epoch 95" in older.stopped
        assert (look.steps, given, look.trigger) == ((), [], "")

    play(story)


def test_what_the_ingress_gives_is_not_known_before_it_took_any_shares() -> None:
    async def story() -> None:
        scene = Scene(survive="none")
        await scene.steps(scene.controller(), 10)

        async def fail(name: str, url: str, grpc_url: str) -> None:
            raise ClusterError("it does not answer")

        scene.ingress.admit = fail  # type: ignore[method-assign]
        other = scene.controller("two")
        await scene.steps(other, 1)
        assert not other._memory.in_force, "it still has the shares of the controller before"

    play(story)


# --- operators, clocks, grids -----------------------------------------------------------------------------------------


def test_what_an_operator_asked_outlives_the_controller() -> None:
    async def story() -> None:
        scene = Scene(rate=700.0)  # nobody can take over, so that nothing else happens
        controller = scene.controller()
        await scene.steps(controller, 4)
        controller.hold("n2", "drained")
        await scene.steps(controller, 1)
        assert any("n2 is to be drained and serves on" in text for text in controller.status().troubles)
        other = scene.controller("two")
        other.hold("n1", "released")  # before the state was read
        await scene.steps(other, 1)
        assert {own.name: own.hold for own in other.status().nodes if own.hold} == {"n1": "released", "n2": "drained"}

    play(story)


def test_a_clock_that_is_set_back_keeps_nothing_waiting() -> None:
    async def story() -> None:
        scene = Scene(survive="none")
        controller = scene.controller()
        await scene.steps(controller, 10)
        (busy,) = scene.serving()
        scene.plan = lambda problem: 1 / 0  # type: ignore[assignment, return-value]
        scene.intensity = {"north": 400.0, "south": 100.0}
        await scene.steps(controller, 1)
        scene.world.now_s -= 7200.0
        for own in scene.world.nodes.values():
            own.started_s -= 7200.0
        scene.plan = plan_cluster
        scene.fault("kill", busy)
        look, after = await scene.steps(controller, 2)
        assert any("the clock was set back" in text for text in look.troubles)
        assert ("wake", busy) in [(step.kind, step.node) for step in after.steps], "it is lost, and not in two hours"
        await scene.steps(controller, 20)
        assert scene.serving() <= {"s1", "s2"}, "the plan that failed was made again"
        assert {own.state for own in scene.world.nodes.values()} == {"off", "serving"}

    play(story)


def test_a_state_from_the_future_keeps_nothing_waiting() -> None:
    async def story() -> None:
        scene = Scene(survive="none")
        await scene.steps(scene.controller(), 3)
        scene.world.now_s -= 7200.0
        for own in scene.world.nodes.values():
            own.started_s -= 7200.0
        await scene.steps(scene.controller("two"), 10)
        assert len(scene.serving()) == 1
        assert {own.state for own in scene.world.nodes.values()} == {"off", "serving"}

    play(story)


def test_a_region_whose_grid_was_never_read_is_not_taken_for_a_clean_one_and_is_named() -> None:
    class North:
        def __init__(self, scene: Scene) -> None:
            self._grids = scene.grids

        async def readings(self, at_s: float) -> Mapping[str, Reading]:
            return {"north": (await self._grids.readings(at_s))["north"]}

        async def forecasts(self, at_s: float, horizon_s: float) -> Mapping[str, Any]:
            return {}

    async def story() -> None:
        scene = Scene(rate=250.0)
        scene.terms = msgspec.structs.replace(
            scene.terms,
            families=tuple(msgspec.structs.replace(own, regions={"south": ("south",)}) for own in scene.terms.families),
        )
        scene.grids = North(scene)  # type: ignore[assignment]
        controller = scene.controller()
        await scene.steps(controller, 10)
        assert scene.serving() & {"s1", "s2"}, "rows that have to stay in the south are answered there"
        assert scene.world.sums.refused == 0.0
        targets = {own.name: own.target for own in controller.status().nodes}
        assert any(own is not None and own.awake for name, own in targets.items() if name.startswith("s"))
        assert any(text.startswith("the intensity of south is not known") for text in controller.status().troubles)

    play(story)


# --- one node's trouble is not the others' ----------------------------------------------------------------------------


def test_a_node_that_died_as_it_drained_keeps_no_other_awake() -> None:
    class Dead(Late):
        async def release(self, name: str) -> None:
            if name in self.silent:
                raise ClusterError("its machine is gone")
            await self._nodes.release(name)

    async def story() -> None:
        scene = Scene(survive="none")
        nodes = Dead(scene)
        nodes.release = Dead.release.__get__(nodes)  # type: ignore[method-assign]
        controller = scene.controller(nodes=nodes)
        while not scene.world.drained:
            await scene.steps(controller, 1)
        nodes.silent.update(scene.world.drained)
        await scene.steps(controller, 12)
        awake = {name for name, own in scene.world.nodes.items() if own.state == "serving"} - nodes.silent
        assert len(awake) == 1
        assert any("its machine is gone" in text for text in controller.status().troubles)

    play(story)


def test_the_last_node_that_could_answer_is_taken_back_though_no_plan_can_be_made() -> None:
    async def story() -> None:
        scene = Scene(nodes=[node("n1", "north"), node("s1", "south")], rate=100.0, survive="none")
        controller = scene.controller()
        while not scene.world.drained:
            await scene.steps(controller, 1)
        (drained,), (busy,) = scene.world.drained, set(scene.world.nodes) - scene.world.drained
        scene.plan = lambda problem: 1 / 0  # type: ignore[assignment, return-value]
        scene.fault("region", scene.world.nodes[busy].machine.region, seconds=1e6)
        await scene.steps(controller, 6)
        assert scene.world.nodes[drained].state == "serving"
        assert scene.serving() == {drained}
        assert scene.world.sums.refused == 0.0

    play(story)


def test_an_ingress_that_fails_for_one_node_in_an_unknown_way_serves_the_others(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def story() -> None:
        scene = Scene(rate=250.0)
        admit = scene.ingress.admit

        async def odd(name: str, url: str, grpc_url: str) -> None:
            if name == "n1":
                raise KeyError("nobody thought of this")
            await admit(name, url, grpc_url)

        scene.ingress.admit = odd  # type: ignore[method-assign]
        controller = scene.controller()
        await scene.steps(controller, 4)
        assert scene.serving() >= {"n2"}
        assert any("nobody thought of this" in text for text in controller.status().troubles)
        assert "a call to a node or the ingress failed" in caplog.text

    play(story)


def test_a_look_that_fails_is_said_until_one_does_not() -> None:
    async def story() -> None:
        scene = Scene()
        controller = scene.controller()
        failing = True

        async def sleep(seconds: float) -> None:
            nonlocal failing
            scene.world.advance(60.0)
            if failing:
                (first, *_) = controller.status().troubles
                assert "the last look failed" in first
                assert "no such thing" in first
                failing = False
            elif controller.status().epoch > 1:
                assert not any("look failed" in text for text in controller.status().troubles)
                raise asyncio.CancelledError

        reports = scene.nodes.reports

        async def broken() -> Mapping[str, NodeReport]:
            if failing:
                raise LookupError("no such thing")
            return await reports()

        scene.nodes.reports = broken  # type: ignore[method-assign]
        with pytest.raises(asyncio.CancelledError):
            await controller.run(sleep)

    play(story)


def test_a_server_that_a_dead_controller_started_is_seen_while_it_starts_and_one_that_was_ended_is_started_again() -> (
    None
):
    class Says(Late):
        """Nodes whose server is in a state of its own."""

        states: Mapping[str, str] = {}

        async def reports(self) -> Mapping[str, NodeReport]:
            found = dict(await super().reports())
            for name, state in self.states.items():
                given = node(name, "north", state=state)
                found[name] = NodeReport(
                    node=given, at_s=self._nodes._world.now_s, started_s=0.0, url="", healthy=False
                )
            return found

    async def story() -> None:
        scene = Scene(survive="none")
        nodes = Says(scene)
        controller = scene.controller(nodes=nodes)
        await scene.steps(controller, 10)
        (asleep, *_) = [own.name for own in controller.status().nodes if own.phase == "released"]
        nodes.states = {asleep: "starting"}
        await scene.steps(controller, 1)
        assert {own.name: own.phase for own in controller.status().nodes}[asleep] == "waking"
        nodes.states = {}
        await scene.steps(controller, 8)
        (busy,) = scene.serving()
        nodes.states = {busy: "released"}
        scene.world.nodes[busy].state = "off"
        looks = await scene.steps(controller, 1)
        assert ("wake", busy) in {(step.kind, step.node) for look in looks for step in look.steps}

    play(story)
