"""Memory-full swaps as the controller plans them: by exchange where both do not fit, no failure twice the same way."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Mapping
from typing import Any

import msgspec
import pytest

from clover.control.state.memory_troubles import FailedStart, MemoryTroubles
from clover.errors import PlanError, StartError, WorkerError, says_out_of_memory
from clover.planning.transition.memory import MemoryAware, MemoryNeeds, Room, SliceMemory
from clover.runtime.workers import resident_orders
from clover.types import Assignment, DeviceShape, FamilyProfile, MemoryMeasurement, Placement
from tests.support.control_fixture import FakeDevice, FakeFleet, FakeGpu, Rig
from tests.support.mig_fixture import a100, mig_profile, slice_worker
from tests.support.profiles_fixture import cpu, profile, worker

MIB = 1 << 20
HELD = {"small": 100, "medium": 300, "large": 700}
"""MiB of each variant on a slice."""
OUT_OF_MEMORY = "DeviceError: large does not fit into its slice; because OutOfMemoryError: CUDA out of memory"


class MemoryFleet(FakeFleet):
    """A fleet on slices of `mib` MiB, where a worker that has no room beside the others at its place does not start.
    `seconds`: how long starts took."""

    def __init__(self, mib: int, told: int = 0) -> None:
        super().__init__()
        self.mib = mib
        self.seconds: dict[tuple[str, str, str], float] = {}
        self.drain_s: float | None = None
        self.target: tuple[Assignment, ...] = ()
        self.started: list[tuple[str, set[str]]] = []
        """Each start, and the variants that it was to be prepared for."""
        self.memory = SliceMemory(needs=MemoryNeeds(measured() if told else None), room=lambda place: Room(told * MIB))

    def expect(self, assignments: tuple[Assignment, ...]) -> None:
        if assignments:
            self.calls.append(f"expect {', '.join(item.variant for item in assignments)}")

    def prepare(self, target: tuple[Assignment, ...]) -> None:
        self.target = target

    def start_seconds(self) -> Mapping[tuple[str, str, str], float]:
        return self.seconds

    def drain_seconds(self) -> float | None:
        return self.drain_s

    async def spawn(self, assignment: Assignment) -> None:
        self.started.append((assignment.variant, {item.variant for item in self.target}))
        here = [item for item in self.alive if item.placement == assignment.placement]
        if sum(HELD[item.variant] for item in (*here, assignment)) > self.mib:
            self.calls.append(f"out of memory {assignment.variant}")
            raise WorkerError(f"{assignment.variant} (eager): {OUT_OF_MEMORY}")
        await super().spawn(assignment)


class MemoryRig(Rig):
    """A rig whose slices have `mib` MiB; `told`: what the fleet knows of that, `known`: whether the profile knows what
    variants hold."""

    def __init__(self, mib: int, *, told: int = 0, known: bool = True, **config: Any) -> None:
        super().__init__(measured=measured() if known else profile(), **config)
        self.fleet = MemoryFleet(mib, told)
        self.family.fleet = self.family.applier._fleet = self.fleet


def measured() -> FamilyProfile:
    memory = tuple(
        MemoryMeasurement(variant=name, profile=size, backend="eager", weights_bytes=mib * MIB, peak_bytes=0)
        for name, mib in HELD.items()
        for size in ("1c", "2c")
    )
    return msgspec.structs.replace(profile(), memory=memory)


def slice_shape() -> DeviceShape:
    """One slice that overlaps nothing and is all there is."""
    return DeviceShape(device="cpu0", kind="mig", layouts=cpu(1).layouts, slices=1, overlap=False)


async def apply(rig: Rig, variant: str, profile_name: str = "1c", count: int = 2) -> dict[str, Any]:
    """Ask for `count` workers; the decision, whatever became of it."""
    arguments = {"configuration": {f"{variant}@{profile_name}": count}, "force": True}
    with contextlib.suppress(PlanError):
        await rig.controller.command("apply", arguments, "alice")
    return rig.last


def test_a_fleet_that_knows_memory_is_told_apart_from_one_that_does_not() -> None:
    assert isinstance(MemoryFleet(1), MemoryAware)
    assert not isinstance(FakeFleet(), MemoryAware)


def test_what_does_not_fit_beside_is_exchanged_and_the_decision_says_so() -> None:
    async def story() -> None:
        rig = MemoryRig(800, told=800, allow_capacity_loss=True)
        await apply(rig, "medium")
        del rig.fleet.calls[:]
        decision = await apply(rig, "large")
        assert decision["action"] == "applied"
        # One core after the other, so that something serves throughout: 92 % of 800 MiB do not hold 300 + 700.
        assert rig.fleet.calls == [
            *("route", "drain medium", "spawn large"),
            *("route", "drain medium", "spawn large"),
            "route",
        ]
        assert decision["inputs"]["memory"] == (
            "exchanged at cpu0:1c@0, cpu0:1c@1, as large does not fit beside medium: 1000 MiB, with 736 of the 800 MiB "
            "of the slice to use"
        )
        transition = rig.controller.state()["models"]["toy"]["last_transition"]
        assert transition["memory"] == decision["inputs"]["memory"]
        assert transition["lost_capacity"] == 0.5
        assert transition["loses_how"] == "estimated"
        rig.consistent()
        del rig.fleet.calls[:]
        rig.fleet.seconds["small", "eager", "1c"] = 0.3
        rig.fleet.drain_s = 0.2
        decision = await apply(rig, "small")  # 100 + 700 are too much as well
        assert [call for call in rig.fleet.calls if call != "route"] == ["drain large", "spawn small"] * 2
        assert decision["inputs"]["loses_how"] == "measured"

    asyncio.run(story())


def test_workers_start_with_the_plan_in_view_that_is_coming_and_on_the_way_back_the_one_before() -> None:
    async def story() -> None:
        rig = MemoryRig(5000, told=5000, allow_capacity_loss=True)
        await apply(rig, "medium")
        assert rig.fleet.started == [("medium", {"medium"})] * 2
        del rig.fleet.started[:]
        arguments = {"configuration": {"small@1c": 1, "large@1c": 1}, "force": True}
        await rig.controller.command("apply", arguments, "alice")
        assert sorted(name for name, _ in rig.fleet.started) == ["large", "small"]
        assert all(target == {"small", "large"} for _, target in rig.fleet.started)
        assert rig.fleet.target == ()
        del rig.fleet.started[:]
        rig.fleet.mib = 750
        rig.fleet.fail.add("medium")
        await apply(rig, "medium")  # beside, for which there is no room: the next time it is an exchange
        assert (await apply(rig, "medium"))["action"] == "rolled back"
        back = [target for name, target in rig.fleet.started if name != "medium"]
        assert back
        assert all(target == {"small", "large"} for target in back)
        assert rig.fleet.target == ()

    asyncio.run(story())


def test_what_fits_loads_beside() -> None:
    async def story() -> None:
        rig = MemoryRig(1200, told=1200)
        await apply(rig, "medium")
        del rig.fleet.calls[:]
        decision = await apply(rig, "large")
        assert rig.fleet.calls == ["spawn large", "spawn large", "route", "drain medium", "drain medium"]
        assert "memory" not in decision["inputs"]

    asyncio.run(story())


def test_what_is_not_known_is_tried_beside_once_and_exchanged_from_then_on() -> None:
    """Nothing tells that both do not fit: the first swap fails and goes back, the second is an exchange."""

    async def story() -> None:
        rig = MemoryRig(800, known=False, allow_capacity_loss=True)
        await apply(rig, "medium")
        decision = await apply(rig, "large")
        assert decision["action"] == "rolled back"
        assert "large is not loaded beside medium on 1c any more, but in exchange for it" in decision["detail"]
        assert "memory is not known: large at cpu0:1c@0" in decision["inputs"]["memory"]
        rig.consistent()
        del rig.fleet.calls[:]
        decision = await apply(rig, "large")
        assert decision["action"] == "applied"
        assert "large found no room beside medium before" in decision["inputs"]["memory"]
        assert "out of memory large" not in rig.fleet.calls
        assert "refused" not in decision["inputs"]
        rig.consistent()

    asyncio.run(story())


def test_what_does_not_fit_alone_is_refused_once_and_for_all(caplog: pytest.LogCaptureFixture) -> None:
    async def story() -> None:
        rig = MemoryRig(500, known=False, allow_capacity_loss=True)
        await apply(rig, "medium")
        with caplog.at_level(logging.ERROR, "clover.control"):
            await apply(rig, "large")  # beside
            decision = await apply(rig, "large")  # alone
        assert decision["action"] == "rolled back"
        assert "large is refused on 1c until the devices or the profile change" in decision["detail"]
        rig.consistent()
        alerts = [record.message for record in caplog.records if "does not fit there alone" in record.message]
        assert len(alerts) == 1
        refused = rig.controller.state()["models"]["toy"]["refused"]
        assert {"variant": "large", "profile": "1c"}.items() <= refused[0].items()
        assert "out of memory" in refused[0]["reason"]

        # Whatever happens from now on, it is not tried again: not by an operator, not by the policy, not after an hour.
        del rig.fleet.calls[:]
        decision = await apply(rig, "large")
        assert decision["action"] == "failed"
        assert "large is refused on 1c: large (eager): DeviceError" in decision["detail"]
        assert rig.fleet.calls == []
        for _ in range(40):
            rig.chain.g_per_kwh = 600.0 - rig.chain.g_per_kwh  # clean and dirty in turn
            await rig.look(600.0)
        assert rig.fleet.calls.count("out of memory large") <= 2  # on two cores: beside, then alone
        assert ("large", "1c") in rig.family.memory_troubles.refused

        rig.fleet.mib = 2000  # other devices: it may be tried again
        rig.device._shape = msgspec.structs.replace(rig.device._shape, label="another")
        await rig.look()
        assert (await apply(rig, "large"))["action"] == "applied"
        assert rig.controller.state()["models"]["toy"]["refused"] == []

    asyncio.run(story())


def test_what_is_refused_is_forgotten_if_another_family_moves_in_the_same_memory_only() -> None:
    async def story() -> None:
        cores = Rig()
        gpus = Rig(devices={name: FakeGpu(a100(name)) for name in ("gpu0", "gpu1")}, measured=mig_profile())
        for rig, forgets in ((cores, True), (gpus, False)):
            second, _ = rig.second()
            context, refused = rig.controller.context, rig.family.memory_troubles.refused
            context.device_pool.assign({})
            context.look_at_memory(rig.family)
            refused["large", "1c"] = "out of memory"
            place = slice_worker("small", "1g.5gb", 0, "gpu1") if rig is gpus else worker("small", 1, 1)
            occupied = {**context.occupied(), second.name: {place.placement}}
            context.occupied = lambda found=occupied: found  # type: ignore[method-assign]
            context.look_at_memory(rig.family)
            assert (not refused) is forgets

    asyncio.run(story())


def test_families_on_the_same_cores_plan_with_their_share_of_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    async def story() -> None:
        rig = Rig(family={"resident": "auto"})
        rig.second(share=3.0)
        conditions = await rig.controller.context.conditions(rig.family)
        assert conditions.resident_bytes == {"1c": 70 * MIB // 2 // 2, "2c": 70 * MIB // 2}

    monkeypatch.setattr(resident_orders, "machine_memory", lambda: 200 * MIB)
    asyncio.run(story())


def test_two_that_found_no_room_for_both_are_not_planned_together_again() -> None:
    async def story() -> None:
        rig = MemoryRig(750, known=False, family={"resident": "auto"})
        await apply(rig, "small")
        decision = await apply(rig, "large/small")
        assert decision["action"] == "rolled back"
        assert "large and small are not planned together on 1c any more" in decision["detail"]
        assert rig.family.memory_troubles.refused == {}
        apart = rig.controller.state()["models"]["toy"]["apart"]
        assert [(one["profile"], one["variants"]) for one in apart] == [("1c", ["large", "small"])]
        del rig.fleet.calls[:]
        decision = await apply(rig, "large/small")
        assert decision["action"] == "failed"
        assert "a worker on 1c cannot hold large, small together here" in decision["detail"]
        assert rig.fleet.calls == []
        rig.consistent()

    asyncio.run(story())


def test_plans_know_the_limit_of_a_worker_and_what_workers_hold_alone() -> None:
    async def story() -> None:
        rig = MemoryRig(750, family={"resident": "auto"})
        rig.fleet.memory = SliceMemory(
            limit_bytes=10 * MIB, alone=lambda variant, name: "left out" if (variant, name) == ("large", "1c") else ""
        )
        context = rig.controller.context
        assert (await context.conditions(rig.family)).resident_bytes == {"1c": 7 * MIB, "2c": 7 * MIB}
        assert rig.family.apart(context.devices_of("toy")) == (("1c", "large", "medium"), ("1c", "large", "small"))
        await rig.deploy()
        assert rig.controller.state()["models"]["toy"]["apart"] == [
            {"profile": "1c", "variants": ["large"], "reason": "left out"}
        ]

    asyncio.run(story())


def test_a_first_plan_that_does_not_fit_is_followed_by_one_that_does() -> None:
    async def story() -> None:
        rig = MemoryRig(500, known=False, family={"accuracy_floor": 91.5})
        await rig.deploy()
        assert rig.family.deployed is not None
        assert {item.variant for item in rig.family.desired} <= {"small", "medium"}
        assert rig.actions.count("failed") == len(rig.family.memory_troubles.refused) > 0
        rig.consistent()
        none = MemoryRig(50, known=False)
        with pytest.raises(StartError, match="small is refused on"):
            await none.deploy()
        assert len(none.actions) <= 7  # every variant on each profile at most, then no plan

    asyncio.run(story())


def test_what_is_refused_is_tried_anew_after_a_while_if_nothing_else_can_run(caplog: pytest.LogCaptureFixture) -> None:
    async def story() -> None:
        rig = MemoryRig(500, known=False)
        await rig.deploy()
        rig.fleet.mib = 50  # another program has the rest, and the workers died of it
        rig.fleet.alive.clear()
        rig.family.applier._workers.clear()
        rig.family.deployed = None
        rig.family.triggers.again(rig.clock())
        del rig.fleet.calls[:]
        await rig.look(10.0, looks=60)
        assert rig.family.deployed is None
        anew = sum("is tried again" in record.message for record in caplog.records)
        assert anew in (2, 3)  # in ten minutes: after one, two and four
        assert len([call for call in rig.fleet.calls if call.startswith("out of memory")]) <= 9 * (anew + 1)
        rig.fleet.mib = 500
        await rig.look(10.0, looks=60)
        assert rig.family.deployed is not None

    asyncio.run(story())


def test_other_failures_refuse_nothing() -> None:
    troubles = MemoryTroubles("toy")
    assert troubles.record(FailedStart(worker("large", 0, 1), (), "KeyError: 'weights'")) == ""
    assert troubles.refused == {}
    assert says_out_of_memory("because MemoryError: ")
    assert says_out_of_memory("CUDA error: CUBLAS_STATUS_ALLOC_FAILED")
    assert not says_out_of_memory("was not ready within 60 s")


def test_measurements_of_what_runs_stay_in_the_profile() -> None:
    troubles = MemoryTroubles("toy")
    troubles.record(FailedStart(worker("large", 0, 1), (), OUT_OF_MEMORY))
    left = troubles.without_refused(profile(), ())
    assert {item.variant for item in left.latency if item.profile == "1c"} == {"small", "medium"}
    assert {item.variant for item in left.latency if item.profile == "2c"} == {"small", "medium", "large"}
    assert troubles.without_refused(profile(), (worker("large", 1, 1),)) == profile()


def test_a_state_knows_the_memory_of_slices_that_have_their_own() -> None:
    rooms = {"1c": Room(5 * MIB), "2c": Room(9 * MIB, free=True)}

    def room(place: Placement) -> Room:
        return rooms[place.profile]

    assert SliceMemory(room=room).by_profile((cpu(2),)) == {"1c": 5 * MIB}
    assert FakeDevice(slice_shape()).shape().overlap is False
