"""Who sleeps, who makes room, and what is said of it: with fleets that keep books and a clock that stands."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from clover.runtime.router.state import Asleep
from clover.server.sleeper import Sleeper
from clover.types import DeviceShape, Placement
from tests.support.servers import until

MB = 1_000_000
NO_PROCESS = (1 << 22) + 1
"""More than Linux numbers processes."""


class Fleet:
    """Workers of one family: one process, while it is awake."""

    def __init__(self, state: Any, place: Placement) -> None:
        self.state = state
        self.awake = True
        self.settled = True
        self.empty = True
        self.routed = (SimpleNamespace(placement=place),)
        self.events: list[str] = []

    @property
    def asleep(self) -> bool:
        return not self.awake

    @property
    def may_sleep(self) -> bool:
        return self.awake and self.settled and not self.state.company.here

    async def put_to_sleep(self, wanted: Callable[[], None]) -> None:
        self.awake, self.state.asleep = False, Asleep(wanted)

    def start_again(self) -> None:
        self.awake = True
        self.state.asleep.awake.set()
        self.state.asleep = None

    def describe(self) -> list[dict[str, Any]]:
        return [{"pid": NO_PROCESS if self.awake else None}]

    def record(self, what: str, reason: str) -> None:
        self.events.append(f"{what}: {reason}")


class Family:
    """A family as the sleeper sees it."""

    def __init__(self, name: str, unload_after_s: float, device: str) -> None:
        self.name = name
        self.state, self.unmeasured = "READY", ""
        self.config = SimpleNamespace(unload_after_s=unload_after_s)
        self.traffic = SimpleNamespace(codes={200: 0})
        self.router = SimpleNamespace(
            state=SimpleNamespace(asleep=None, company=SimpleNamespace(here=0)), end_sleep=lambda: None
        )
        self.fleet = Fleet(self.router.state, Placement(device=device, profile="1c", start=0, size=1))
        self.slab = SimpleNamespace(release=lambda: None)
        self.spare: Any = None


class House:
    """Families, each of which holds 100 MB, on one device or on one each."""

    def __init__(self, *names: str, limit: int = 0, after_s: float = 60.0, shape: DeviceShape | None = None) -> None:
        self.now_s = 1000.0
        self.each = 100 * MB
        shape = shape or DeviceShape(device="cpu0", kind="cpu", slices=2, layouts=(), overlap=True)
        self.served: dict[str, Any] = {name: Family(name, after_s, shape.device) for name in names}
        self.frozen: set[str] = set()
        self.rolled_out: set[str] = set()
        families = {name: SimpleNamespace(name=name, fleet=one.fleet) for name, one in self.served.items()}
        context = SimpleNamespace(
            families=families,
            lock=asyncio.Lock(),
            frozen_of=lambda family: family.name in self.frozen,
            occupied=lambda: {name: {one.fleet.routed[0].placement} for name, one in self.served.items()},
            device_pool=SimpleNamespace(shapes=lambda: {shape.device: shape}),
        )
        self.sleeper = Sleeper(
            self.served,
            SimpleNamespace(context=context),  # type: ignore[arg-type]
            limit_bytes=limit,
            core_w=4.0,
            held=self.rolled_out.__contains__,
            clock=lambda: self.now_s,
            memory=lambda pids: self.each * len(pids),
        )

    async def pass_s(self, seconds: float) -> None:
        self.now_s += seconds
        await self.sleeper.poll()

    def ask(self, name: str) -> None:
        one = self.served[name]
        one.traffic.codes[200] += 1
        if one.router.state.asleep is not None:
            one.router.state.company.here += 1
            one.router.state.asleep.ask()

    @property
    def awake(self) -> set[str]:
        return {name for name, one in self.served.items() if not one.fleet.asleep}


def night(test: Callable[[], Any]) -> Callable[[], None]:
    def run() -> None:
        asyncio.run(test())

    run.__name__ = test.__name__
    return run


@night
async def test_a_family_sleeps_after_its_time_without_a_request() -> None:
    house = House("a", "b")
    await house.pass_s(1.0)
    await house.pass_s(50.0)
    house.ask("a")
    await house.pass_s(10.0)
    assert house.awake == {"a"}
    await house.pass_s(60.0)
    assert house.awake == set()
    report = house.sleeper.report()
    assert [report[name]["state"] for name in "ab"] == ["asleep", "asleep"]
    assert (report["b"]["slept_s"], report["b"]["memory_bytes"]) == (60.0, 100 * MB)


@night
async def test_families_that_are_kept_measured_frozen_or_rolled_out_stay_awake() -> None:
    house = House("frozen", "rolled", "measured", "busy", "unloaded", "sleepy")
    kept = House("kept", after_s=0.0)
    house.frozen.add("frozen")
    house.rolled_out.add("rolled")
    house.served["measured"].unmeasured = "is being measured"
    house.served["busy"].fleet.settled = False
    house.served["unloaded"].state = "UNAVAILABLE"
    for one in (house, kept):
        await one.pass_s(1.0)
        await one.pass_s(1000.0)
    assert house.awake == {"frozen", "rolled", "measured", "busy", "unloaded"}
    assert kept.awake == {"kept"}
    words = kept.sleeper.report()["kept"]["words"]
    assert words == "never; unload_after_s would give back 100 MB and no watts that are known while nobody asks it"


@night
async def test_the_one_asked_longest_ago_makes_room_once_it_has_stayed() -> None:
    house = House("a", "b", "c", limit=220 * MB, after_s=9e9)
    house.served["c"].fleet.awake = False  # it starts as the last one
    for name in "ab":
        await house.sleeper.prepare(name)
        await house.pass_s(1.0)
        house.ask(name)
    await house.sleeper.prepare("c")
    house.served["c"].fleet.awake = True
    assert house.awake == {"b", "c"}
    await house.pass_s(5.0)
    house.ask("b")
    await house.pass_s(5.0)
    house.ask("a")
    await until(lambda: "a" in house.awake)
    assert house.awake == {"a", "b"}
    house.served["a"].router.state.company.here = 0
    # Both have just been asked, and "a" has just come: it stays for five times the seconds of its start.
    house.sleeper._naps["a"].load_s = house.sleeper._naps["b"].load_s = 10.0
    house.sleeper._naps["b"].loaded_s = house.now_s
    house.ask("c")
    await asyncio.sleep(0.2)
    assert house.awake == {"a", "b"}
    refusal = house.served["c"].router.state.asleep.refusal
    assert refusal.why == "the model sleeps, and is loaded once a and b leave it memory"
    house.now_s += 51.0
    await until(lambda: "c" in house.awake)
    assert len(house.awake) == 2
    await house.sleeper.stop()


@night
async def test_workers_that_grow_stay_within_the_memory() -> None:
    house = House("a", "b", "c", limit=320 * MB, after_s=9e9)
    await house.pass_s(1.0)
    house.ask("a")
    await house.pass_s(5.0)
    assert house.awake == {"a", "b", "c"}
    house.each = 110 * MB
    house.ask("b")
    await house.pass_s(4.0)
    assert house.awake == {"a", "b", "c"}
    await house.pass_s(1.0)
    assert house.awake == {"a", "b"}
    # What has just started holds less than it will: the others make room for what they held the last time.
    house.served["a"].router.state.company.here = house.served["b"].router.state.company.here = 0
    for name in "ab":
        house.sleeper._naps[name].held = 110 * MB
    house.each = 90 * MB
    house.ask("c")
    await until(lambda: "c" in house.awake)
    assert house.awake == {"b", "c"}
    await house.sleeper.stop()


class Spare:
    """Waiting rows of a family: some are computed while they are to run, unless they gave way."""

    def __init__(self, family: Any) -> None:
        self.on = False
        self.gave_up: list[str] = []
        self._family = family

    def give_up(self, why: str) -> None:
        self.gave_up.append(why)
        self._family.fleet.settled = True


@night
async def test_waiting_rows_wake_a_family_once_in_their_hours_and_keep_it_awake() -> None:
    house = House("a")
    one = house.served["a"]
    spare = one.spare = Spare(one)
    await house.pass_s(1.0)
    await house.pass_s(60.0)
    assert house.awake == set()
    await house.pass_s(600.0)  # outside their hours
    await asyncio.sleep(0.0)
    assert house.awake == set()
    spare.on = True
    for _ in range(5):
        await house.pass_s(100.0)
        await until(lambda: house.awake == {"a"} and house.sleeper.report()["a"]["wakes"] == 1)
    assert house.sleeper.report()["a"]["waited"] == 0  # no client did
    spare.on = False
    await house.pass_s(59.0)
    assert house.awake == {"a"}
    await house.pass_s(2.0)
    assert house.awake == set()


@night
async def test_waiting_rows_take_no_memory_from_others_and_give_way() -> None:
    house = House("a", "b", limit=120 * MB, after_s=3600.0)
    one, other = house.served["a"], house.served["b"]
    await house.pass_s(1.0)
    await house.sleeper._put_to_sleep(one, house.sleeper._naps["a"])
    assert house.awake == {"b"}
    spare = one.spare = Spare(one)
    spare.on = True
    for _ in range(3):
        await house.pass_s(100.0)
        await until(lambda: not house.sleeper._waking)
    assert house.awake == {"b"}
    await house.pass_s(3600.0)  # nobody asked "b", which sleeps
    await until(lambda: not house.sleeper._waking)
    await house.pass_s(1.0)
    await until(lambda: house.awake == {"a"} and not house.sleeper._waking)
    one.fleet.settled = False  # rows are being computed
    house.ask("b")
    await until(lambda: house.awake == {"b"})
    assert spare.gave_up == ["b needs the memory"]
    await house.pass_s(1.0)
    assert house.awake == {"b"}
    assert other.router.state.company.here == 1


@night
async def test_what_sleep_spares_and_waking_costs_is_counted() -> None:
    gpu = DeviceShape(device="gpu0", kind="mig", slices=7, layouts=(), overlap=False, sleep_w=30.0)
    house = House("a", shape=gpu)
    await house.pass_s(1.0)
    await house.pass_s(61.0)
    assert house.awake == set()
    await house.pass_s(100.0)
    report = house.sleeper.report()["a"]
    assert (report["spares_w"], report["spared_j"]) == (30.0, pytest.approx(3000.0))
    house.ask("a")
    await until(lambda: house.sleeper.report()["a"]["wakes"] == 1)
    await house.pass_s(100.0)
    report = house.sleeper.report()["a"]
    assert (report["spared_j"], report["slept_s"], report["waited"]) == (pytest.approx(3000.0), 100.0, 1)
    assert house.served["a"].fleet.events[0].startswith("woken: slept for 1 min 40 s")


@night
async def test_two_on_one_gpu_spare_its_watts_once_both_sleep() -> None:
    gpu = DeviceShape(device="gpu0", kind="mig", slices=7, layouts=(), overlap=False, sleep_w=30.0)
    house = House("a", "b", shape=gpu)
    await house.pass_s(1.0)
    await house.pass_s(30.0)
    house.ask("b")
    await house.pass_s(1.0)
    await house.pass_s(35.0)
    assert house.awake == {"b"}
    await house.pass_s(60.0)
    report = house.sleeper.report()
    assert [report[name]["spares_w"] for name in "ab"] == [0.0, 30.0]
