"""Carrying out transitions of GPUs that refuse, get stuck and get lost."""

from __future__ import annotations

import asyncio
import math
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clover.control.state.apply import ApplyError, possible
from clover.errors import CloverError, DeviceError, DeviceLost, WorkerError
from clover.planning.transition.steps import plan_transition
from clover.types import Assignment, Routing
from tests.support.apply_fixture import Deployment, Rig, always, standing
from tests.support.examples import examples
from tests.support.geometry_fixture import A30, a30, a100, filled, runs

BOTH = ("gpu0", "gpu1")


def base(*names: str) -> Deployment:
    return tuple(runs("large", "7g.40gb", 0, name) for name in names)


def finest(*names: str) -> Deployment:
    return tuple(runs("small", "1g.5gb", start, name) for name in names for start in range(7))


def failing(rig: Rig, before: Deployment, target: Deployment) -> ApplyError:
    async def story() -> None:
        await rig.change(before, target)

    with pytest.raises(ApplyError) as caught:
        asyncio.run(story())
    return caught.value


# --- forward ------------------------------------------------------------------------------------


def test_the_steps_of_a_stage_run_at_once_and_one_gpu_serves_throughout() -> None:
    async def story() -> None:
        rig = await standing(base(*BOTH))
        assert await rig.change(base(*BOTH), finest(*BOTH)) == ()
        rig.consistent()
        assert set(rig.workers) == set(finest(*BOTH))
        assert rig.routing.shares == {"small": 1.0}
        assert rig.busy == {"drain": 1, "destroy": 1, "create": 7, "spawn": 7}
        assert min(rig.served) == 7
        rig.served, rig.busy = [], Counter()
        await rig.change(finest(*BOTH), base(*BOTH))
        assert rig.busy == {"drain": 7, "destroy": 7, "create": 1, "spawn": 1}
        assert min(rig.served) == 7
        await rig.applier.clear()
        assert not rig.workers
        assert not any(gpu.standing for gpu in rig.gpus.values())

    asyncio.run(story())


def test_an_old_instance_that_stays_is_noted_and_the_new_deployment_stands() -> None:
    async def story() -> None:
        before = (runs("large", "4g.20gb", 0, "gpu0"), runs("large", "3g.20gb", 4, "gpu0"))
        rig = await standing(before)
        rig.fault = always("destroy", "gpu0:3g.20gb@4", DeviceError("in use by process 17"))
        notes = await rig.change(before, (before[0], *base("gpu1")))
        assert len(notes) == 1
        assert "destroy gpu0:3g.20gb@4 failed: in use by process 17" in notes[0]
        rig.consistent()
        assert set(rig.workers) == {before[0], *base("gpu1")}
        assert rig.gpus["gpu0"].stuck.keys() == {"gpu0:3g.20gb@4"}

    asyncio.run(story())


def test_a_worker_that_does_not_drain_is_gone_all_the_same() -> None:
    async def story() -> None:
        rig = await standing(base("gpu0"))
        rig.fault = always("drain", "gpu0:7g.40gb@0", WorkerError("it had to be killed"))
        assert "had to be killed" in (await rig.change(base("gpu0"), finest("gpu0")))[0]
        rig.consistent()

    asyncio.run(story())


def test_lanes_that_stay_keep_their_batches_on_the_way_and_nobody_waits() -> None:
    async def story() -> None:
        names = tuple(f"gpu{index}" for index in range(4))
        old = Routing(shares={"large": 1.0}, largest={"large": 4}, wait_ms={"large": 9.0})
        new = Routing(shares={"small": 1.0}, largest={"small": 2}, wait_ms={"small": 7.0})
        rig = await standing(base(*names), gpus=4)
        rig.seen.clear()
        floor = 21.0  # slices: the GPUs change one after the other
        await rig.change(base(*names), finest(*names), floor, old, new)
        assert rig.seen[-1] == new
        assert any(routing.shares.keys() == {"small", "large"} for routing in rig.seen[:-1])
        for routing in rig.seen[:-1]:
            stays = "large" in routing.shares
            assert routing.largest == ({"large": 4} if stays else {})
            assert routing.wait_ms == ({"large": 0.0} if stays else {}), "sized for workers that are gone by now"

    asyncio.run(story())


def test_what_goes_back_forms_batches_as_before() -> None:
    async def story() -> None:
        old = Routing(shares={"large": 1.0}, largest={"large": 4}, wait_ms={"large": 9.0})
        rig = await standing(base(*BOTH))
        rig.fault = always("spawn", "gpu1:1g.5gb@6", WorkerError("it does not load"))
        with pytest.raises(ApplyError) as caught:
            await rig.change(base(*BOTH), finest(*BOTH), routing_before=old)
        assert caught.value.restored
        assert rig.routing == old

    asyncio.run(story())


# --- back ---------------------------------------------------------------------------------------


def test_a_failing_worker_lets_the_others_of_its_stage_finish_and_everything_goes_back() -> None:
    rig = asyncio.run(standing(base(*BOTH)))
    rig.fault = always("spawn", "gpu0:1g.5gb@2", WorkerError("it does not load"))
    error = failing(rig, base(*BOTH), finest(*BOTH))
    assert error.restored
    assert "it does not load" in str(error)
    assert "the previous deployment is restored" in str(error)
    assert set(rig.workers) == set(base(*BOTH))
    rig.consistent()
    assert sum(done.startswith("spawn gpu0:1g") for done in rig.done) == 7
    assert min(rig.served) == 7


def test_a_late_failure_goes_back_without_a_moment_in_which_nobody_serves() -> None:
    """gpu0 has been exchanged and gpu1 is under way: gpu0 serves until gpu1 is what it was."""
    rig = asyncio.run(standing(base(*BOTH)))
    rig.fault = always("spawn", "gpu1:1g.5gb@6", WorkerError("it does not load"))
    error = failing(rig, base(*BOTH), finest(*BOTH))
    assert error.restored
    assert set(rig.workers) == set(base(*BOTH))
    assert min(rig.served) == 7
    rig.consistent()


def test_an_instance_that_cannot_make_room_is_used_again() -> None:
    rig = asyncio.run(standing(base(*BOTH)))
    rig.fault = always("destroy", "gpu0:7g.40gb@0", DeviceError("in use, and nobody knows by whom"))
    error = failing(rig, base(*BOTH), finest(*BOTH))
    assert error.restored
    assert "nobody knows by whom" in str(error)
    assert not rig.gpus["gpu0"].stuck
    assert set(rig.workers) == set(base(*BOTH))
    rig.consistent()


def test_a_new_instance_that_stays_in_the_way_leaves_the_rest_serving() -> None:
    rig = asyncio.run(standing(base(*BOTH)))

    def fault(kind: str, place: str) -> CloverError | None:
        if (kind, place) == ("spawn", "gpu0:1g.5gb@3"):
            return WorkerError("it does not load")
        if (kind, place) == ("destroy", "gpu0:1g.5gb@5"):
            return DeviceError("in use by process 4711")
        return None

    rig.fault = fault
    error = failing(rig, base(*BOTH), finest(*BOTH))
    assert not error.restored
    assert "gpu0:7g.40gb@0 cannot exist any more" in str(error)
    assert "in use by process 4711" in str(error)
    assert set(rig.workers) == set(base("gpu1"))
    assert rig.gpus["gpu0"].stuck.keys() == {"gpu0:1g.5gb@5"}
    assert min(rig.served) == 7
    rig.consistent()


def test_a_gpu_that_is_lost_on_the_way_leaves_what_serves_alone() -> None:
    rig = asyncio.run(standing(base(*BOTH)))

    def fault(kind: str, place: str) -> CloverError | None:
        if kind == "create" and place.startswith("gpu1:1g"):
            rig.gpus["gpu1"].lost = True
            return DeviceLost("gpu1 is lost")
        return None

    rig.fault = fault
    error = failing(rig, base(*BOTH), finest(*BOTH))
    assert not error.restored
    assert "gpu1 is lost" in str(error)
    # gpu0 has been exchanged; going back would take down the only one that serves.
    assert set(rig.workers) == set(finest("gpu0"))
    assert min(rig.served) == 7
    rig.consistent()


def test_a_lost_gpu_is_left_behind() -> None:
    async def story() -> None:
        rig = await standing(base(*BOTH))
        rig.gpus["gpu1"].lost = True
        notes = await rig.change(base(*BOTH), base("gpu0"))
        assert any("gpu1 is lost" in note for note in notes)
        assert rig.workers == list(base("gpu0"))
        rig.consistent()

    asyncio.run(story())


def test_a_first_start_that_fails_leaves_nothing() -> None:
    rig = Rig()
    rig.fault = always("spawn", "gpu1:7g.40gb@0", WorkerError("it does not load"))
    error = failing(rig, (), base(*BOTH))
    assert error.restored
    assert "nothing ran before" in str(error)
    assert rig.workers == []
    rig.consistent()


def test_what_devices_allow_of_a_deployment() -> None:
    item = filled(a100("gpu0").layouts[0])
    assert possible(item, (a100("gpu1"),), ()) == ()
    assert possible(item, (a100("gpu0"),), ()) == item
    both = (*item, *filled(a100("gpu0").layouts[-1]))
    assert set(possible(both, (a100("gpu0"),), item)) == set(item)
    assert set(possible(both, (a100("gpu0"),), both[1:])) == set(both[1:])


# --- any fault ----------------------------------------------------------------------------------


@pytest.mark.slow
@settings(max_examples=examples(150), deadline=None)
@given(data=st.data())
def test_every_fault_ends_in_the_target_in_the_deployment_before_or_named(data: st.DataObject) -> None:
    devices = (a30("gpu0"), a30("gpu1"))

    def draw() -> Deployment:
        return tuple(
            Assignment(placement=place, family="toy", variant=data.draw(st.sampled_from("ab")), backend="eager")
            for device in devices
            for place in data.draw(st.sampled_from(device.layouts))
        )

    before, target = draw(), draw()
    numbers = data.draw(st.dictionaries(st.integers(1, 30), st.sampled_from(("refuse", "lose")), max_size=3))
    rig = asyncio.run(standing(before, profiles=A30, compute=4))
    calls = 0

    def fault(kind: str, place: str) -> CloverError | None:
        nonlocal calls
        calls += 1
        what = numbers.get(calls)
        if what is None or kind == "route":
            return None
        if what == "lose" and kind in ("create", "destroy"):
            rig.gpus[place.partition(":")[0]].lost = True
            return DeviceLost(f"{place} is lost")
        return WorkerError("refused") if kind in ("spawn", "drain") else DeviceError("refused")

    rig.fault = fault
    shapes = rig.shapes()
    lowest = plan_transition(before, target, shapes, floor=math.inf).lowest_capacity

    async def story() -> tuple[str, ApplyError | None]:
        try:
            return "; ".join(await rig.change(before, target)), None
        except ApplyError as error:
            return str(error), error

    said, error = asyncio.run(story())
    if error is None:
        assert Counter(rig.workers) == Counter(target)
    elif error.restored:
        assert Counter(rig.workers) == Counter(before)
    else:
        assert "could not be restored" in said
    rig.consistent()
    for gpu in rig.gpus.values():
        assert all(place in said for place in gpu.stuck)
        assert not gpu.lost or gpu.name in said
    if lowest and not any(gpu.lost or gpu.stuck for gpu in rig.gpus.values()):
        assert min(rig.served, default=1) > 0
