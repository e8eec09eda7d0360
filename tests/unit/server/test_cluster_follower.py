"""A server that follows its cluster's controller while it hears of it, and its own policy else."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client.core import CollectorRegistry
from prometheus_client.exposition import generate_latest

from clover.errors import BadRequest, Conflict
from clover.server.cluster_follower import ClusterFollower
from clover.server.control import ServerControl
from clover.telemetry.metrics.server import cluster
from tests.support.control_fixture import Rig

OTHER_POLICY = "static"
TOTALS = {"energy_j": 30.0, "carbon_g": 2.0}


class Scene:
    def __init__(self, **config: Any) -> None:
        self.rig = Rig(**{"policy": OTHER_POLICY, **config})
        self.follower = ClusterFollower(self.rig.controller.context, lambda name: TOTALS, wall=self.rig.clock)
        rollouts: Any = None
        self.control = ServerControl(self.rig.controller, rollouts, self.follower, dict)

    async def say(self, **arguments: Any) -> dict[str, Any]:
        return await self.control.command("cluster", arguments, "the cluster")

    async def follow(
        self, accuracy: float, rate: float = 10.0, *, epoch: int = 1, lease_s: float = 30.0
    ) -> dict[str, Any]:
        models = {"toy": {"rate": rate, "accuracy": accuracy}}
        return await self.say(action="follow", cluster="demo", node="a", epoch=epoch, lease_s=lease_s, models=models)

    def look(self, seconds: float) -> None:
        self.rig.clock.now_s += seconds
        self.follower.poll()

    @property
    def policy(self) -> str:
        return self.rig.controller.context.policy_of(self.rig.family)


def story(tell: Callable[[], Awaitable[None]]) -> None:
    async def run() -> None:
        await tell()

    asyncio.run(run())


def test_an_order_holds_until_nothing_is_heard_for_the_lease(caplog: pytest.LogCaptureFixture) -> None:
    async def tell() -> None:
        scene = Scene()
        family, own = scene.rig.family, scene.rig.family.targets
        assert (scene.policy, scene.follower.report()["following"]) == (OTHER_POLICY, False)
        answer = await scene.follow(91.5, 400.0, epoch=7)
        assert answer["following"]
        assert answer["epoch"] == 7
        assert scene.policy == "objective"
        assert (family.targets.accuracy_floor, family.targets.form) == (91.5, "floor")
        assert family.rate(scene.rig.controller.context.config) == 400.0
        for _ in range(5):  # the same order again keeps the lease
            scene.look(20.0)
            await scene.follow(91.5, 400.0, epoch=7)
        assert scene.follower.following
        with caplog.at_level(logging.WARNING, "clover.server"):
            scene.look(30.0)
        assert not scene.follower.following
        assert scene.follower.lost == 1
        assert "nothing was heard of the cluster demo for 30 s" in caplog.text
        assert (scene.policy, family.targets, family.order) == (OTHER_POLICY, own, None)
        assert family.rate(scene.rig.controller.context.config) < 400.0
        scene.look(1000.0)
        assert scene.follower.lost == 1
        assert (await scene.follow(92.0, epoch=8))["following"]

    story(tell)


def test_the_lease_begins_again_whenever_the_controller_asks_how_the_server_does() -> None:
    async def tell() -> None:
        scene = Scene()
        await scene.say(action="status", cluster="demo", lease_s=30.0)
        assert not scene.follower.following  # there is no order to renew
        await scene.follow(91.5, epoch=3)
        for _ in range(5):
            scene.look(20.0)
            await scene.say(action="status", cluster="demo", lease_s=30.0)
        assert (scene.follower.following, scene.follower.epoch, scene.follower.lost) == (True, 3, 0)
        for asked in ({}, {"cluster": "other", "lease_s": 30.0}):
            scene.look(9.0)
            await scene.say(action="status", **asked)  # somebody else asks
        scene.look(9.0)
        with pytest.raises(BadRequest, match="lease_s"):
            await scene.say(action="status", cluster="demo", lease_s=float("nan"))
        scene.look(9.0)
        assert not scene.follower.following

    story(tell)


def test_plans_follow_the_order() -> None:
    async def tell() -> None:
        scene = Scene(policy="objective", objective="floor", family={"accuracy_floor": 88.0})
        await scene.rig.settled()
        scene.rig.chain.g_per_kwh = 800.0
        await scene.rig.look(60.0, looks=3)
        least = {item.variant for item in scene.rig.fleet.alive}
        await scene.follow(92.0, lease_s=1000.0)
        await scene.rig.look(60.0, looks=3)
        ordered = {item.variant for item in scene.rig.fleet.alive}
        assert (least, ordered) == ({"small"}, {"large"})
        scene.look(2000.0)
        await scene.rig.look(60.0, looks=3)
        assert {item.variant for item in scene.rig.fleet.alive} == least
        scene.rig.consistent()

    story(tell)


def test_an_older_order_is_ignored() -> None:
    async def tell() -> None:
        scene = Scene()
        await scene.follow(91.2, epoch=5)
        with pytest.raises(Conflict, match="epoch 4 is older than that of epoch 5"):
            await scene.follow(91.8, epoch=4)
        assert scene.rig.family.targets.accuracy_floor == 91.2
        scene.look(31.0)
        with pytest.raises(Conflict, match="older"):  # also once the lease has ended
            await scene.follow(91.8, epoch=4)
        await scene.follow(91.2, epoch=5)
        with pytest.raises(Conflict, match="follows the cluster demo"):
            await scene.say(action="follow", cluster="other", epoch=9, lease_s=1.0)
        await scene.say(action="leave")
        assert not scene.follower.following
        assert scene.follower.lost == 1
        await scene.say(action="follow", cluster="other", epoch=1, lease_s=1.0)
        assert scene.follower.report()["epoch"] == 1

    story(tell)


def test_what_an_operator_sets_meanwhile_is_there_afterwards() -> None:
    async def tell() -> None:
        scene = Scene()
        await scene.rig.settled()
        own = scene.rig.family.targets
        await scene.follow(92.0)
        await scene.rig.controller.command("set", {"slo_ms": 55.0}, "alice")
        await scene.follow(93.0)
        assert scene.rig.family.targets.slo_ms == 55.0
        scene.look(31.0)
        # What the operator did not set is the server's own again, not what the cluster had ordered.
        assert scene.rig.family.targets == replace(own, slo_ms=55.0)
        await scene.follow(93.0)
        await scene.rig.controller.command("set", {"slo_ms": 60.0}, "alice")
        scene.look(31.0)  # without another order in between
        assert scene.rig.family.targets == replace(own, slo_ms=60.0)
        await scene.follow(93.0)
        await scene.rig.controller.command("pin", {"variant": "large"}, "alice")
        assert scene.policy == "static:large"
        assert (await scene.say(action="status"))["models"]["toy"]["pinned"] is True

    story(tell)


def test_an_accuracy_that_no_variant_has_is_the_best_there_is() -> None:
    async def tell() -> None:
        scene = Scene()
        await scene.follow(100.0)
        assert scene.rig.family.targets.accuracy_floor == 92.0

    story(tell)


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ({"action": "fellow"}, "one of follow"),
        ({}, "missing required field `action`"),
        ({"action": "follow", "epoch": 0, "lease_s": 5.0}, "epoch from 1"),
        ({"action": "follow", "epoch": 1}, "lease_s from above 0"),
        ({"action": "follow", "epoch": 1, "lease_s": float("nan")}, "lease_s from above 0"),
        ({"action": "follow", "epoch": 1, "lease_s": 1e9}, "to a day"),
        ({"action": "follow", "epoch": 1, "lease_s": 5.0, "models": {"toys": {"rate": 1, "accuracy": 90}}}, "toys"),
        ({"action": "follow", "epoch": 1, "lease_s": 5.0, "models": {"toy": {"rate": -1, "accuracy": 90}}}, "rate"),
        ({"action": "follow", "epoch": 1, "lease_s": 5.0, "models": {"toy": {"rate": 1}}}, "accuracy"),
        ({"action": "follow", "epoc": 1, "lease_s": 5.0}, "epoc"),
        ({"action": "follow", "epoch": 2**63, "lease_s": 5.0}, "epoch from 1"),
        ({"action": "follow", "epoch": 1.5, "lease_s": 5.0}, "epoch"),
        # Also what the action does not use: /openapi.json says what each member may be, whatever the action.
        ({"action": "leave", "epoch": 0}, "epoch from 1"),
        ({"action": "status", "lease_s": 0}, "lease_s from above 0"),
        ({"action": "profiles", "models": {"toy": {"rate": 0, "accuracy": 101}}}, "accuracy lies between"),
        ({"action": "leave", "models": {"toys": {"rate": 0, "accuracy": 90}}}, "unknown model"),
    ],
)
def test_senseless_orders_are_refused_and_change_nothing(arguments: dict[str, Any], why: str) -> None:
    async def tell() -> None:
        scene = Scene()
        before = scene.rig.family.targets
        with pytest.raises(BadRequest, match=why):
            await scene.say(**arguments)
        assert scene.rig.family.targets == before
        assert not scene.follower.following

    story(tell)


def test_an_epoch_may_be_written_as_a_whole_number_with_a_fraction() -> None:
    async def tell() -> None:
        scene = Scene()
        await scene.say(action="follow", epoch=5194.0, lease_s=5.0)
        assert scene.follower.epoch == 5194

    story(tell)


def test_a_dry_run_changes_nothing() -> None:
    async def tell() -> None:
        scene = Scene()
        await scene.say(action="follow", epoch=1, lease_s=5.0, models={}, dry_run=True)
        assert not scene.follower.following

    story(tell)


def test_rows_that_did_not_count_do_not_weigh_on_those_that_come_later() -> None:
    async def tell() -> None:
        scene = Scene()
        await scene.rig.settled()
        figures = scene.rig.fleet.figures
        figures |= {"rows": 1e6, "left_out_rows": 8e5, "left_out_accuracy_rows": 8e5 * 60.0}
        figures["accuracy_served"] = (2e5 * 93.0 + 8e5 * 60.0) / 1e6
        await scene.rig.look()
        before = (await scene.say(action="status"))["models"]["toy"]["accuracy_rows"]
        assert before == pytest.approx(1e6 * 93.0)
        figures |= {"rows": 1.01e6, "accuracy_served": (2e5 * 93.0 + 8e5 * 60.0 + 1e4 * 91.0) / 1.01e6}
        await scene.rig.look()
        after = (await scene.say(action="status"))["models"]["toy"]["accuracy_rows"]
        assert (after - before) / 1e4 == pytest.approx(91.0)

    story(tell)


def test_report_profiles_and_metrics() -> None:
    async def tell() -> None:
        scene = Scene()
        await scene.rig.settled()
        scene.rig.fleet.figures |= {"rows": 40.0, "accuracy_served": 92.5, "p95_ms": 12.0}
        await scene.rig.look()
        await scene.follow(92.0, 50.0, epoch=3)
        model = (await scene.say(action="status"))["models"]["toy"]
        assert (model["rows"], model["accuracy_rows"], model["p95_ms"]) == (40, 3700.0, 12.0)
        assert (model["joules"], model["grams"], model["order"]) == (30.0, 2.0, {"rate": 50.0, "accuracy": 92.0})
        scene.rig.fleet.figures |= {"rows": 80.0, "repeated_rows": 30.0, "repeated_surplus": -60.0}
        await scene.rig.look()
        model = (await scene.say(action="status"))["models"]["toy"]
        assert model["accuracy_rows"] == pytest.approx(7460.0), "a probe spends a cluster's budget as any row"
        scene.rig.fleet.figures |= {"rows": 120.0, "left_out_rows": 40.0, "left_out_accuracy_rows": 40 * 92.5}
        await scene.rig.look()
        model = (await scene.say(action="status"))["models"]["toy"]
        assert (model["rows"], model["accuracy_rows"]) == (120, pytest.approx(11160.0)), "as served, if no row counts"
        found = await scene.say(action="profiles")
        assert found["models"]["toy"]["profile"]["family"] == "toy"
        assert found["devices"][0]["device"] == "cpu0"

        class Once:
            def collect(self) -> Any:
                return cluster(scene.follower.report())

        registry = CollectorRegistry()
        registry.register(Once())
        text = generate_latest(registry).decode()
        for line in (
            "clover_cluster_following 1.0",
            'clover_cluster_ordered_accuracy_percent{model="toy"} 92.0',
        ):
            assert line in text

    story(tell)


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("follow"), st.integers(1, 5), st.sampled_from([91.0, 93.0, 95.0, 99.0])),
        st.tuples(st.just("wait"), st.integers(0, 40), st.just(0.0)),
        st.tuples(st.just("leave"), st.just(0), st.just(0.0)),
    ),
    max_size=12,
)


@settings(max_examples=40, deadline=None)
@given(STEPS)
def test_epochs_only_grow_and_own_targets_always_come_back(steps: list[tuple[str, int, float]]) -> None:
    async def tell() -> None:
        scene = Scene()
        own, epochs = scene.rig.family.targets, [0]
        for what, number, accuracy in steps:
            if what == "follow":
                try:
                    await scene.follow(accuracy, epoch=number, lease_s=20.0)
                except Conflict:
                    assert number < epochs[-1]
            elif what == "wait":
                scene.look(float(number))
            else:
                await scene.say(action="leave")
            epochs.append(scene.follower.epoch)
            assert scene.follower.following == (scene.rig.family.order is not None)
            if not scene.follower.following:
                assert scene.rig.family.targets == own
                assert scene.policy == OTHER_POLICY
        assert epochs == sorted(epochs)
        scene.look(1000.0)
        assert scene.rig.family.targets == own

    story(tell)
