"""The controller on GPUs: whose they are, what happens when one is lost or cut short, how low capacity may go."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable, Sequence

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clover.control.state.device_pool import DevicePool, assign
from clover.control.state.family import Family
from clover.errors import BadRequest, PlanError, StartError
from clover.types import Assignment, DeviceShape, Placement, Routing, configuration_of
from tests.support.control_fixture import FakeDevice, FakeGpu, Rig
from tests.support.examples import examples
from tests.support.mig_fixture import a100, mig_profile, slice_worker
from tests.support.profiles_fixture import cpu


def drive(story: Callable[[], Awaitable[None]]) -> None:
    async def run() -> None:
        await story()

    asyncio.run(run())


def gpus(count: int) -> dict[str, FakeDevice]:
    return {f"gpu{i}": FakeGpu(a100(f"gpu{i}"), without_front) for i in range(count)}


def without_front(shape: DeviceShape) -> DeviceShape:
    """Its first two memory slices are quarantined."""
    return a100(shape.device, blocked=((0, 2),))


def rig(count: int = 2, **config: object) -> Rig:
    return Rig(devices=gpus(count), measured=mig_profile(), **config)  # type: ignore[arg-type]


def gpu(of: Rig, name: str) -> FakeGpu:
    device = of.devices[name]
    assert isinstance(device, FakeGpu)
    return device


async def apply(of: Rig, **configuration: int) -> None:
    groups = {key.replace("__", "@").replace("_", "."): count for key, count in configuration.items()}
    await of.controller.command("apply", {"model": "toy", "configuration": groups, "force": True}, "alice")


# --- whose a GPU is -------------------------------------------------------------------------------


@pytest.mark.slow
@settings(max_examples=examples(200), deadline=None)
@given(
    count=st.integers(0, 8),
    shares=st.lists(st.floats(0.1, 9.0), min_size=1, max_size=4),
    data=st.data(),
)
def test_gpus_are_assigned_in_proportion_and_stay_where_they_are(
    count: int, shares: list[float], data: st.DataObject
) -> None:
    names = [f"gpu{i}" for i in range(count)]
    families = {f"f{i}": share for i, share in enumerate(shares)}
    before = {family: data.draw(st.lists(st.sampled_from(names), unique=True)) if names else [] for family in families}
    assigned = assign(names, families, before)
    assert sorted(gpu for own in assigned.values() for gpu in own) == names, "each to one family"
    if count >= len(families):
        assert all(assigned.values())
        for one, share in families.items():
            for other, less in families.items():
                if share > less:
                    assert len(assigned[one]) >= len(assigned[other])
    else:
        assert max((len(own) for own in assigned.values()), default=0) <= 1
    assert assign(names, families, assigned) == assigned


def test_shares_and_losses_move_as_few_gpus_as_possible() -> None:
    assigned = assign(["gpu0", "gpu1", "gpu2", "gpu3"], {"a": 3.0, "b": 1.0}, {})
    assert assigned == {"a": ("gpu0", "gpu1", "gpu2"), "b": ("gpu3",)}
    after = assign(["gpu0", "gpu1", "gpu2"], {"a": 3.0, "b": 1.0}, assigned)
    assert {len(own) for own in after.values()} == {1, 2}
    assert assign(["gpu1", "gpu2"], {"a": 1.0, "b": 1.0}, {"a": ["gpu1", "gpu2"]})["b"] == ("gpu2",)
    assert assign(["gpu1"], {"a": 1.0, "b": 1.0}, {"b": ["gpu1"]}) == {"a": (), "b": ("gpu1",)}


def test_cores_are_shared_and_gpus_are_not() -> None:
    pool = DevicePool({"cpu0": FakeDevice(cpu(2))})
    pool.name("a", 1.0)
    pool.name("b", 3.0)
    pool.assign({})
    (here,) = cpu(2).layouts[0][:1]
    assert [shape.device for shape in pool.devices_for("a", {"b": [here]})] == ["cpu0"]
    assert (pool.share("a"), pool.share("b"), pool.owners("cpu0"), pool.short()) == (0.25, 0.75, (), "")
    assert (pool.part("b", "cpu0"), pool.shared) == (0.75, False)
    pool = DevicePool(gpus(2))
    pool.name("a", 1.0)
    pool.name("b", 3.0)
    pool.assign({})
    assert [shape.device for shape in pool.devices_for("a", {})] == ["gpu0"]
    there = slice_worker("small", "2g.10gb", 2).placement
    assert pool.devices_for("a", {"b": [there]}) == (), "that one moves first"
    assert (pool.share("a"), pool.owners("gpu1"), pool.short()) == (1.0, ("b",), "")
    assert (pool.part("a", "gpu0"), pool.part("a", "gpu1"), pool.shared) == (1.0, 0.0, False)


def without_mig(name: str) -> FakeGpu:
    place = Placement(device=name, profile="gpu", start=0, size=1)
    return FakeGpu(msgspec.structs.replace(a100(name), layouts=((place,),), slices=1))


def test_gpus_without_mig_are_not_shared() -> None:
    pool = DevicePool({name: without_mig(name) for name in ("gpu0", "gpu1")})
    for name in ("a", "b", "c"):
        pool.name(name, 1.0)
    text = "3 families (a, b, c) need a GPU each, or a part of one that MIG splits, but there are 2 (gpu0, gpu1)"
    short = pool.short()
    assert short.startswith(f"{text} with room for 2: ")
    assert "switch MIG on" not in short, "these have none"
    pool.assign({})
    assert [len(pool.assigned(name)) for name in ("a", "b", "c")] == [1, 1, 0]


def test_too_few_gpus_are_told_apart_by_what_would_help() -> None:
    switched_off, split = without_mig("gpu0"), FakeGpu(a100("gpu0"))
    switched_off.can_mig = True  # type: ignore[attr-defined]
    for gpu, helps in ((switched_off, ("switch MIG on",)), (split, ())):
        pool = DevicePool({"gpu0": gpu})
        for number in range(8):
            pool.name(f"family{number}", 1.0)
        short = pool.short()
        assert short
        assert [words for words in ("switch MIG on",) if words in short] == list(helps)


def test_two_families_on_two_gpus() -> None:
    async def story() -> None:
        of = rig(2)
        second, fleet = of.second()
        await of.controller.start()
        assert {item.placement.device for item in of.fleet.alive} == {"gpu0"}
        assert {item.placement.device for item in fleet.alive} == {"gpu1"}
        of.consistent()
        first, other = of.controller.state()["devices"]
        assert (first["family"], other["family"]) == ("toy", "second")
        assert {item["family"] for item in other["layout"]} == {"second"}
        # Planned as if the GPU were all there is, and it is: no share of its time is taken off.
        assert of.family.deployed.plan.prediction.utilisation == second.deployed.plan.prediction.utilisation
        before = list(fleet.alive)
        await of.controller.command("apply", {"model": "toy", "configuration": {"large@1g.5gb": 7}}, "alice")
        assert fleet.alive == before
        with pytest.raises(BadRequest, match="no layout of gpu0"):
            await of.controller.command("apply", {"model": "toy", "configuration": {"large@1g.5gb": 14}}, "alice")
        await of.controller.stop()

    drive(story)


def test_fewer_gpus_than_families_is_said_at_the_start() -> None:
    async def story() -> None:
        of = Rig(devices={"gpu0": without_mig("gpu0")}, measured=mig_profile())
        of.second()
        with pytest.raises(StartError, match=r"2 families \(toy, second\) need a GPU each, .* there is 1 \(gpu0\)"):
            await of.controller.start()
        assert of.fleet.alive == []

    drive(story)


def test_an_unloaded_family_finds_its_gpu_again() -> None:
    async def story() -> None:
        of = rig(2)
        second, _fleet = of.second()
        await of.controller.start()
        await of.controller.release("toy")
        assert of.fleet.alive == []
        assert gpu(of, "gpu0").made == set()
        await of.look(10.0, looks=2)
        assert second.devices == {"gpu1"}
        family = await _adopted(of)
        assert family.devices == {"gpu0"}
        await of.controller.stop()

    drive(story)


async def _adopted(of: Rig) -> Family:
    await of.controller.adopt(of.family.spec, of.profile, of.fleet, of.settings)
    return of.controller.context.families["toy"]


# --- what an earlier run left ---------------------------------------------------------------------


def test_what_stands_from_an_earlier_run_is_adopted_or_removed() -> None:
    async def story() -> None:
        of = rig(1)
        await of.deploy()
        placements = [item.placement for item in of.fleet.alive]
        later = rig(1)
        stale = slice_worker("x", "2g.10gb", 0).placement
        gpu(later, "gpu0").left = [placements[-1], stale]
        await later.deploy()
        assert gpu(later, "gpu0").left == []
        later.consistent()

    drive(story)


def test_what_an_earlier_run_left_and_cannot_be_removed_is_planned_around() -> None:
    """A slot is found stuck only when the ground is cleared, which is after the first plan was made."""

    class Haunted(FakeGpu):
        async def reconcile(self, keep: Sequence[Placement] = ()) -> tuple[Placement, ...]:
            self.quarantined = ["gpu0:1g.5gb@0"]
            return await super().reconcile(keep)

    async def story() -> None:
        haunted = Haunted(a100(), lambda shape: a100(shape.device, blocked=[(0, 1)]))
        of = Rig(devices={"gpu0": haunted}, measured=mig_profile())
        await of.deploy()
        assert haunted.quarantined
        assert of.fleet.alive
        assert not any(item.placement.start == 0 for item in of.fleet.alive)
        assert of.actions == ["failed", "applied"]
        of.consistent()

    drive(story)


# --- losing a GPU ---------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_lost_gpu_is_given_up_at_once_and_planned_around() -> None:
    async def story() -> None:
        of = rig(2, g_per_kwh=400.0)
        await of.settled()
        assert {item.placement.device for item in of.fleet.alive} == {"gpu0", "gpu1"}
        kept = [item for item in of.fleet.alive if item.placement.device == "gpu1"]
        gpu(of, "gpu0").lost = True
        calls = len(of.fleet.calls)
        await of.look()
        made = of.fleet.calls[calls:]
        assert made[0] == "route", "rows go to the others before anything else"
        assert not any(call.startswith("drain") and "gpu0" in call for call in made)
        assert [call for call in made if call.startswith("forget")]
        assert [decision["trigger"] for decision in of.controller.decisions(2)] == ["gpu0 is lost", "gpu0 is lost"]
        given_up = of.controller.decisions(2)[1]
        assert given_up["action"] == "routed"
        assert "workers given up" in given_up["detail"]
        assert of.last["inputs"]["devices"] == "gpu1, gpu0 (lost)"
        assert of.last["action"] in ("applied", "kept", "routed")
        assert of.family.devices == {"gpu1"}
        assert set(kept) & set(of.fleet.alive), "nothing on the other GPU was touched without need"
        gpu(of, "gpu0").made.clear()
        of.consistent()
        report = of.controller.state()
        json.dumps(report, allow_nan=False)
        assert [item["lost"] for item in report["devices"]] == [True, False]
        await of.look(looks=10)
        assert not any("gpu0" in call for call in of.fleet.calls[calls + len(made) :]), "and it is left alone"
        gpu(of, "gpu0").lost = False
        await of.look()
        assert of.last["trigger"] == "gpu0 is back"
        assert of.family.devices == {"gpu0", "gpu1"}
        of.consistent()

    drive(story)


@pytest.mark.parametrize("gpus", [1, 2])
def test_a_gpu_that_was_lost_and_is_back_between_two_looks_gets_new_workers(gpus: int) -> None:
    async def story() -> None:
        of = rig(gpus, g_per_kwh=400.0)
        await of.settled()
        there = [item for item in of.fleet.alive if item.placement.device == "gpu0"]
        assert there
        gpu(of, "gpu0").losses += 1
        calls = len(of.fleet.calls)
        await of.look()
        made = of.fleet.calls[calls:]
        assert len([call for call in made if call.startswith("forget")]) == len(there)
        assert not any(call.startswith("drain") and "gpu0" in call for call in made)
        assert of.last["trigger"] == "gpu0 was lost and is back"
        assert of.last["action"] == "applied"
        assert "gpu0" in of.family.devices
        of.consistent()
        calls = len(of.fleet.calls)
        await of.look(looks=3)
        assert not any(call.startswith("forget") for call in of.fleet.calls[calls:]), "once is enough"

    drive(story)


@pytest.mark.parametrize("mode", ["off", "observe"])
def test_workers_on_a_lost_gpu_are_given_up_in_every_mode(mode: str) -> None:
    async def story() -> None:
        of = rig(2, mode=mode)
        await of.deploy()
        gpu(of, "gpu1").lost = True
        await of.look(looks=3)
        assert of.family.devices == {"gpu0"}
        assert set(of.fleet.routed) == set(of.fleet.alive) == set(of.family.desired)
        assert sum(of.fleet.shares.values()) == pytest.approx(1.0)

    drive(story)


@pytest.mark.parametrize("mode", ["off", "active"])
def test_a_family_whose_only_gpu_is_lost_starts_anew_when_it_is_back(mode: str) -> None:
    async def story() -> None:
        of = rig(1, mode=mode)
        await of.deploy()
        gpu(of, "gpu0").lost = True
        await of.look()
        assert of.fleet.alive == []
        assert of.family.deployed is None
        assert of.last["action"] == "failed"
        decisions = len(of.actions)
        await of.look(30.0, looks=5)
        assert len(of.actions) == decisions, "there is nothing to plan with, and nothing is tried"
        json.dumps(of.controller.state(), allow_nan=False)
        with pytest.raises(PlanError, match=r"no device is left for toy \(gpu0 lost\)"):
            await of.controller.command("apply", {}, "alice")
        gpu(of, "gpu0").lost = False
        await of.look(11.0)
        assert of.last["trigger"] == "gpu0 is back"
        assert of.last["action"] == "applied"
        of.consistent()

    drive(story)


def test_a_pinned_variant_follows_its_devices() -> None:
    async def story() -> None:
        of = rig(2, family={"variant": "medium"})
        await of.deploy()
        assert of.controller.context.mode_of(of.family) == "off"
        for lost, expected in ((True, {"gpu0"}), (False, {"gpu0", "gpu1"})):
            gpu(of, "gpu1").lost = lost
            await of.look(looks=2)
            assert of.family.devices == expected
            assert {item.variant for item in of.fleet.alive} == {"medium"}
        gpu(of, "gpu1").lost = False
        of.consistent()

    drive(story)


def test_what_is_frozen_loses_a_gpu_and_takes_it_up_when_let_go() -> None:
    async def story() -> None:
        of = rig(2)
        await of.settled()
        await of.controller.command("freeze", {"on": True}, "alice")
        gpu(of, "gpu1").lost = True
        await of.look()
        assert of.family.devices == {"gpu0"}
        before = of.family.desired
        gpu(of, "gpu1").lost = False
        await of.look(looks=5)
        assert of.family.desired == before
        await of.controller.command("freeze", {"on": False}, "alice")
        await of.look()
        assert "gpu1 is back" in of.last["trigger"]
        assert of.family.devices == {"gpu0", "gpu1"}

    drive(story)


def test_the_family_of_a_lost_gpu_gets_one_of_another_after_that_moved() -> None:
    async def story() -> None:
        of = rig(3)
        second, fleet = of.second(share=2.0)
        await of.controller.start()
        await of.controller.stop()
        assert (of.family.devices, second.devices) == ({"gpu0"}, {"gpu1", "gpu2"})
        gpu(of, "gpu0").lost = True
        await of.look()
        assert second.devices == {"gpu1"}
        assert of.family.devices == {"gpu2"}
        gpu(of, "gpu0").made.clear()
        assert set(fleet.alive) == set(second.desired)
        of.consistent()

    drive(story)


def test_a_gpu_that_is_lost_in_a_change_does_not_end_the_family() -> None:
    async def story() -> None:
        of = rig(2, g_per_kwh=100.0)
        await of.settled()
        spawn = of.fleet.spawn

        async def losing(assignment: Assignment) -> None:
            gpu(of, "gpu1").lost = True
            await spawn(assignment)

        of.fleet.spawn = losing  # type: ignore[method-assign]
        with contextlib.suppress(PlanError):
            await of.controller.command("apply", {"configuration": {"small@1g.5gb": 14}, "force": True}, "alice")
        of.fleet.spawn = spawn  # type: ignore[method-assign]
        await of.look(11.0, looks=3)
        assert of.fleet.alive
        assert of.family.devices == {"gpu0"}
        assert set(of.fleet.routed) == set(of.fleet.alive) == set(of.family.desired)

    drive(story)


# --- slots that cannot be used --------------------------------------------------------------------


def test_a_quarantined_slot_is_planned_around() -> None:
    async def story() -> None:
        of = rig(1, allow_capacity_loss=True)
        await of.deploy()
        await apply(of, large__1g_5gb=7)
        gpu(of, "gpu0").stuck = True
        with pytest.raises(PlanError, match="in use"):
            await apply(of, large__7g_40gb=1)
        gpu(of, "gpu0").stuck = False
        assert gpu(of, "gpu0").quarantined
        await of.look(11.0)
        assert "what fits on gpu0 changed" in of.controller.decisions(1)[0]["trigger"]
        assert "quarantined" in of.controller.decisions(1)[0]["trigger"]
        used = {item.placement.start for item in of.family.desired}
        assert of.fleet.alive
        assert not used & {0, 1}
        assert of.controller.state()["devices"][0]["quarantined"]

    drive(story)


def test_a_last_good_deployment_that_cannot_exist_any_more_is_no_way_back() -> None:
    async def story() -> None:
        of = rig(1)
        await of.settled()
        assert of.family.good is not None
        gpu(of, "gpu0").quarantined.append("gpu0:1g.5gb@0")
        await of.look()
        good = of.family.good
        assert good is None or not {0, 1} & {item.placement.start for item in good.deployment}

    drive(story)


# --- the capacity floor ---------------------------------------------------------------------------


def capacity_of(of: Rig) -> float:
    rows_per_s = of.family.capacity(1.0)
    return sum(rows_per_s(item) for item in of.family.desired)


def test_a_single_full_gpu_is_not_emptied_unless_allowed() -> None:
    async def story() -> None:
        of = rig(1)
        await of.deploy()
        of.fleet.figures["arrival_rate"] = 0.0
        sizes = {item.placement.profile for item in of.fleet.alive}
        other = {"large@7g.40gb": 1} if sizes != {"7g.40gb"} else {"large@1g.5gb": 7}
        with pytest.raises(PlanError) as refused:
            await of.controller.command("apply", {"configuration": other, "force": True}, "alice")
        text = str(refused.value)
        assert "could only be reached with 0.0 rows/s for about" in text, "even where nothing arrives"
        assert "controller.allow_capacity_loss" in text
        assert of.last["action"] == "refused"
        assert of.last["inputs"]["lowest_capacity"] == 0.0
        assert of.last["inputs"]["loses_s"] > 0.0
        of.consistent()
        dry = await of.controller.command("plan", {"configuration": other}, "alice")
        assert dry["transition"]["holds"] is False
        context = of.controller.context
        context.config = msgspec.structs.replace(context.config, allow_capacity_loss=True)
        await of.controller.command("apply", {"configuration": other, "force": True}, "alice")
        of.consistent()
        state = of.controller.state()["models"]["toy"]["last_transition"]
        assert state["holds"] is False
        assert state["lowest_capacity"] == 0.0

    drive(story)


def test_two_gpus_change_one_after_the_other_above_the_floor() -> None:
    async def story() -> None:
        of = rig(2)
        await of.deploy()
        await apply(of, large__7g_40gb=2)
        base = capacity_of(of)
        of.fleet.figures["arrival_rate"] = 0.45 * base
        lowest = base
        route = of.fleet.route

        def watching(assignments: tuple[Assignment, ...], routing: Routing) -> None:
            nonlocal lowest
            rows_per_s = of.family.capacity(1.0)
            lowest = min(lowest, sum(map(rows_per_s, assignments)))
            route(assignments, routing)

        of.fleet.route = watching  # type: ignore[method-assign]
        await apply(of, large__1g_5gb=14)
        assert lowest >= 0.45 * base
        assert lowest == pytest.approx(of.last["inputs"]["lowest_capacity"])
        assert of.last["inputs"]["capacity_floor"] == pytest.approx(0.45 * base, rel=1e-3)
        assert of.last["action"] == "applied"
        of.consistent()

    drive(story)


def test_what_arrives_now_is_a_floor_too() -> None:
    async def story() -> None:
        of = rig(2)
        await of.deploy()
        await apply(of, small__7g_40gb=2)
        before = configuration_of(of.family.desired)
        of.fleet.figures["arrival_rate"] = 0.9 * capacity_of(of)
        with pytest.raises(PlanError, match="below the capacity floor of"):
            await apply(of, small__1g_5gb=14)
        assert configuration_of(of.family.desired) == before
        of.fleet.figures["arrival_rate"] = 0.3 * capacity_of(of)
        await apply(of, small__1g_5gb=14)
        of.consistent()

    drive(story)


def test_a_faster_variant_helps_out_where_an_exchange_would_leave_too_few_workers() -> None:
    async def story() -> None:
        of = rig(2)
        await of.deploy()
        await apply(of, large__7g_40gb=2)
        of.fleet.calls.clear()
        of.fleet.figures["arrival_rate"] = rate = 0.9 * capacity_of(of)
        await apply(of, large__1g_5gb=14)
        assert of.last["inputs"]["lowest_capacity"] >= rate
        calls = of.fleet.calls
        assert calls.index("spawn small") < calls.index("drain large"), "it loads beside what runs"
        assert calls.count("drain small") == calls.count("spawn small")
        assert {item.variant for item in of.family.desired} == {"large"}
        of.consistent()

    drive(story)


def test_a_plan_that_would_break_the_floor_is_held_back_and_routed_instead() -> None:
    async def story() -> None:
        of = rig(1, g_per_kwh=100.0)
        await of.settled()
        before = of.family.desired
        for g_per_kwh in (500.0, 30.0, 700.0):
            of.chain.g_per_kwh = g_per_kwh
            await of.look(10.0)
            moved = configuration_of(of.family.desired) != configuration_of(before)
            held = "could only be reached with" in of.last["detail"]
            assert of.last["action"] in ("kept", "routed", "applied")
            assert not (moved and held)
            if {item.placement.id for item in of.family.desired} != {item.placement.id for item in before}:
                pytest.fail("a full GPU was repartitioned under live traffic without leave")
        of.consistent()

    drive(story)
