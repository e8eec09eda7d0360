"""The simulated cluster: its serving model, random faults before the production controller."""

from __future__ import annotations

import asyncio
import functools
import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clover.cluster.controller.controller import ClusterController
from clover.cluster.planning.planner import plan_cluster
from clover.cluster.planning.records import ClusterPlan, ClusterProblem, DeviceFrontier, OperatingPoint
from clover.cluster.simulate.scenario import ClusterScenario, play_fixed, simulate
from clover.cluster.simulate.serving import ServingModel
from clover.cluster.simulate.world import (
    ClusterFault,
    SimulatedGrids,
    SimulatedIngress,
    SimulatedNodes,
    SimulatedStore,
    SimulatedWorld,
)
from clover.errors import ConfigError
from tests.support.cluster_fixture import FAMILY, REGIONS, frontier, node, region, scenario, terms, wave

# --- serving ----------------------------------------------------------------------------------------------------------

points = st.lists(
    st.tuples(st.floats(10.0, 400.0), st.floats(85.0, 95.0), st.floats(1.0, 200.0)), min_size=1, max_size=4
)


@settings(max_examples=25)
@given(points, st.floats(0.02, 1.2), st.floats(85.0, 95.0))
def test_no_mix_of_points_serves_for_less(drawn: list[tuple[float, float, float]], part: float, floor: float) -> None:
    """Beside all mixes of three points in steps of a tenth of the device's time."""
    made = tuple(
        OperatingPoint(rate=rate, accuracy=accuracy, watts=watts, p95_ms=10.0) for rate, accuracy, watts in drawn
    )
    model = ServingModel([DeviceFrontier(kind="gpu", family=FAMILY, points=made, idle_w=10.0)])
    most = model.most("gpu", FAMILY)
    served = model.serve("gpu", FAMILY, part * most, floor)
    assert served.rate == pytest.approx(min(part, 1.0) * most)
    kept = served.accuracy  # it may be below the floor only if the floor cannot be kept
    for trio in itertools.combinations_with_replacement(made, 3):
        for one, two in itertools.product(range(11), repeat=2):
            times = (one / 10.0, two / 10.0, 1.0 - one / 10.0 - two / 10.0)
            rate = sum(time * point.rate for time, point in zip(times, trio, strict=True))
            if times[2] < -1e-9 or rate < served.rate:
                continue
            scale = served.rate / rate
            accuracy = sum(time * point.rate * point.accuracy for time, point in zip(times, trio, strict=True)) / rate
            watts = scale * sum(time * point.watts for time, point in zip(times, trio, strict=True))
            if accuracy >= max(kept, math.ceil(floor * 50.0) / 50.0):
                assert watts >= served.watts * (1.0 - 2.0 / 256.0) - 1e-6


def test_a_node_with_too_much_to_do_gives_up_accuracy_first_and_then_rows() -> None:
    model = ServingModel([frontier()])
    assert model.serve("gpu", FAMILY, 100.0, 90.0).accuracy == pytest.approx(90.0, abs=0.03)
    hard = model.serve("gpu", FAMILY, 300.0, 90.0)
    assert (hard.rate, 88.0 < hard.accuracy < 90.0) == (300.0, True)
    over = model.serve("gpu", FAMILY, 1000.0, 90.0)
    assert (over.rate, over.accuracy) == (400.0, 88.0)
    assert model.serve("tpu", FAMILY, 10.0, 90.0).rate == 0.0


# --- runs -------------------------------------------------------------------------------------------------------------


def test_the_controller_beats_all_nodes_awake_and_loses_nothing() -> None:
    own = scenario(hours=3.0, each=2, step_s=180.0)
    run = simulate(own, plan_cluster)
    assert run.misdeeds == []
    assert run.sums.refused + run.sums.in_flight == 0.0
    assert run.sums.accuracy(FAMILY) == pytest.approx(90.0, abs=0.1)
    assert run.sums.grams < min(play_fixed(own, how).sums.grams for how in ("alone", "equal"))
    assert run.planned_g == pytest.approx(run.sums.grams, rel=0.3)
    assert run.sums.active_g + run.sums.idle_g + run.sums.wake_g == pytest.approx(run.sums.grams)
    assert sum(own[0] for own in run.hours) == pytest.approx(run.sums.grams)


def test_a_killed_node_loses_at_most_what_it_had_in_flight() -> None:
    run = simulate(
        scenario(hours=0.7, each=2, faults=[ClusterFault(at_s=1200.0, kind="kill", name="west0")]), plan_cluster
    )
    assert run.sums.refused == 0.0
    assert run.sums.in_flight < 20.0
    assert run.misdeeds == []


def test_a_straggler_gets_less() -> None:
    fault = ClusterFault(at_s=600.0, kind="slow", name="west0", seconds=1e6, factor=5.0)
    run = simulate(scenario(hours=0.7, each=2, faults=[fault]), plan_cluster)
    assert run.status is not None
    (slow,) = [own for own in run.status.nodes if own.name == "west0"]
    assert slow.pace < 1.0
    assert run.sums.late < 0.5 * run.sums.answered


@pytest.mark.parametrize(
    ("fault", "why"),
    [
        (ClusterFault(at_s=0.0, kind="kill", name="east0"), "names the node 'east0'"),
        (ClusterFault(at_s=0.0, kind="region", name="north0"), "names the region 'north0'"),
        (ClusterFault(at_s=-1.0, kind="controller"), "a time from 0 s on"),
        (ClusterFault(at_s=0.0, kind="slow", name="north0", factor=0.0), "a factor above 0"),
    ],
)
def test_a_scenario_that_cannot_be_played_says_why(fault: ClusterFault, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        scenario(faults=[fault]).world()
    with pytest.raises(ConfigError, match="more than 0 s"):
        scenario(hours=0.0).world()


# --- random faults ----------------------------------------------------------------------------------------------------

NAMES = [f"{name}{number}" for name in REGIONS for number in range(2)]
faults = st.lists(
    st.one_of(
        st.builds(
            ClusterFault,
            at_s=st.integers(5, 30).map(lambda at: at * 60.0),
            kind=st.sampled_from(["kill", "partition", "slow"]),
            name=st.sampled_from(NAMES),
            seconds=st.sampled_from([60.0, 300.0, 900.0]),
        ),
        st.builds(
            ClusterFault,
            at_s=st.integers(5, 30).map(lambda at: at * 60.0),
            kind=st.sampled_from(["controller", "store", "grids", "region"]),
            name=st.sampled_from(REGIONS),
            seconds=st.sampled_from([60.0, 300.0]),
        ),
    ),
    max_size=5,
)


class Watched:
    """A scenario played step by step, with all promises checked at each."""

    def __init__(self, own: ClusterScenario) -> None:
        self.own, self.world, self.count = own, own.world(), 0
        self.store = SimulatedStore(self.world)
        self.epochs: list[int] = []

    def controller(self) -> ClusterController:
        self.count += 1

        async def solve(problem: ClusterProblem) -> ClusterPlan:
            return plan_cluster(problem)

        return ClusterController(
            self.own.terms, SimulatedNodes(self.world), SimulatedIngress(self.world), self.store,
            SimulatedGrids(self.world), solve, lambda: self.world.now_s, f"holder {self.count}",
        )  # fmt: skip

    def able(self, world: SimulatedWorld) -> float:
        """Rows/s that the nodes that serve could answer, whatever the accuracy, as far as their reports say."""
        serving = [node for node in world.nodes.values() if node.state == "serving"]
        return sum(400.0 * sum(node.machine.devices.values()) for node in serving)

    async def play(self, restart_at: int = -1) -> ClusterController:
        controller, down_until_s = self.controller(), -math.inf
        world, start_s, step_s = self.world, self.own.start_s, self.own.step_s
        for step in range(int(self.own.seconds // step_s)):
            if step == restart_at:
                controller = self.controller()
            if world.now_s >= down_until_s:
                able = self.able(world)
                look = await controller.step()
                if look.steps:
                    self.epochs.append(look.epoch)
                # What the controller did by itself left as much as it needs, or all there was.
                sent = sum(rate for one in world.regions.values() for rate in one.demand(world.now_s).values())
                assert self.able(world) >= min(able, sent) - 1e-6
            before = world.sums.refused
            world.advance(step_s)
            if not self.hurt(world.now_s - start_s):
                assert world.sums.refused == before
            for fault in self.own.faults:
                if world.now_s - start_s == fault.at_s:
                    if fault.kind == "controller":
                        controller, down_until_s = self.controller(), world.now_s + fault.seconds
                    else:
                        world.strike(fault)
                if world.now_s - start_s == fault.at_s + fault.seconds:
                    world.heal(fault)
        assert world.misdeeds == []
        assert self.epochs == sorted(self.epochs)
        return controller

    def hurt(self, at_s: float) -> bool:
        """Whether something is, or was a moment ago, wrong enough to cost rows."""
        hard = ("kill", "region", "slow", "partition", "controller")
        return any(one.kind in hard and one.at_s < at_s <= one.at_s + one.seconds + 600.0 for one in self.own.faults)


def quiet(own: list[ClusterFault]) -> ClusterScenario:
    """Return an hour and a half with these faults in the first 45 minutes, of a steady load and grid."""
    nodes = [node(f"{name}{number}", name) for name in REGIONS for number in range(2)]
    regions = [region(name, 100.0 + 150.0 * at, 150.0) for at, name in enumerate(REGIONS)]
    given_terms = terms(nodes, release_after_s=120.0, dwell_s=120.0)
    return ClusterScenario(given_terms, regions, 5400.0, 60.0, faults=tuple(own))


@pytest.mark.slow
@settings(max_examples=settings().max_examples // 12)
@given(faults)
def test_whatever_goes_wrong_no_rule_is_broken_and_all_ends_as_planned(own: list[ClusterFault]) -> None:
    watched = Watched(quiet(own))
    controller = asyncio.run(watched.play())
    status = controller.status()
    assert controller.stopped == ""
    for one in status.nodes:
        awake = one.target is not None and one.target.awake
        assert one.phase == ("ready" if awake else "released"), one
        assert watched.world.nodes[one.name].state == ("serving" if awake else "off")
        if awake and status.decisions[-1].at_s < status.at_s - 2.0 * watched.own.step_s:
            assert one.epoch == status.epoch


@functools.cache
def undisturbed() -> SimulatedWorld:
    """Return the world after a run in which nothing happens."""
    watched = Watched(quiet([]))
    asyncio.run(watched.play())
    return watched.world


@pytest.mark.slow
@settings(max_examples=settings().max_examples // 15)
@given(st.integers(0, 25))
def test_a_restart_at_any_step_leads_to_the_same_end(at: int) -> None:
    plain, restarted = undisturbed(), Watched(quiet([]))
    asyncio.run(restarted.play(restart_at=at))
    for name, one in plain.nodes.items():
        assert restarted.world.nodes[name].state == one.state
        assert sum(restarted.world.nodes[name].rates.values()) == pytest.approx(sum(one.rates.values()), rel=0.05)
    assert restarted.world.sums.refused == 0.0


def test_a_region_follows_its_wave() -> None:
    own = wave(100.0, 300.0, 6.0)
    assert own(6 * 3600.0) == pytest.approx(300.0)
    assert own(18 * 3600.0) == pytest.approx(100.0)
