"""What workers are told, on core-sets, on GPUs and on emulated ones; how many start at once; page-locked memory."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from clover.accounting import Account
from clover.accounting.devices import Line
from clover.accounting.usage import Usage, UsageKey
from clover.config import FamilyConfig, WorkersConfig
from clover.emulation import emulated
from clover.errors import DeviceError, WorkerError, WorkerLostInStart
from clover.families import load_family
from clover.interfaces import Device
from clover.profiles import Pace
from clover.runtime.memory import numa
from clover.runtime.served import Served
from clover.runtime.workers import resident_orders
from clover.runtime.workers.pool import Pool
from clover.types import (
    Assignment,
    DeviceShape,
    FamilyProfile,
    FamilySpec,
    LatencyMeasurement,
    Placement,
    RecordedLaunches,
)
from clover.worker import frames
from tests.support import profiles_fixture

TOY = load_family(str(Path(__file__).resolve().parents[2] / "families" / "toy"))
PLACE = Placement(device="gpu0", profile="2g.10gb", start=2, size=2)


class Gpu:
    """A GPU with one instance."""

    def __init__(self, is_emulated: bool) -> None:
        self.emulated = is_emulated
        self.product = "NVIDIA A100-SXM4-40GB"
        self.driver = "1.2"

    def shape(self) -> DeviceShape:
        return DeviceShape(
            device="gpu0", kind="mig", layouts=((PLACE,),), slices=7, overlap=False, emulated=self.emulated
        )

    async def create(self, placement: Placement) -> None: ...

    async def destroy(self, placement: Placement) -> None: ...

    def cores(self, placement: Placement) -> tuple[int, ...]:
        return (0,)

    def threads(self, placement: Placement) -> int:
        return 1

    def visible(self, placement: Placement) -> str:
        return "MIG-1-2-3"

    def memory_bytes(self, placement: Placement) -> int:
        return 10 << 30


def served(
    folder: Path,
    device: Device,
    loop: asyncio.AbstractEventLoop,
    workers: WorkersConfig | None = None,
    account: Account | None = None,
    family: FamilySpec = TOY,
    **config: Any,
) -> Served:
    return Served(
        family,
        FamilyConfig(family="toy", **config),
        pool=None,  # type: ignore[arg-type]
        devices={"gpu0": device},
        account=account or Account(pue=1.0),
        workers=workers or WorkersConfig(memory_bytes=123),
        cache=folder,
        loop=loop,
    )


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    made = asyncio.new_event_loop()
    yield made
    made.close()


def test_rows_are_kept_near_the_workers(
    tmp_path: Path, loop: asyncio.AbstractEventLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    cores = []
    monkeypatch.setattr(numa, "keep_near", lambda memory, devices, name: cores.append((name, numa.cores_of(devices))))
    served(tmp_path, Gpu(False), loop).slab.close()
    assert cores == [("toy", {0})]


def assignment(variant: str = "full") -> Assignment:
    return Assignment(placement=PLACE, family="toy", variant=variant, backend="eager")


def profile_of(*cells: tuple[int, float, float], variants: tuple[str, ...] = ("full",)) -> FamilyProfile:
    """`variants` on 2g.10gb: batch, milliseconds, joules a row."""
    some = profiles_fixture.profile()
    latency = tuple(
        LatencyMeasurement(
            variant=variant,
            profile="2g.10gb",
            backend="eager",
            batch=batch,
            threads=1,
            samples=0,
            mean_ms=ms,
            cv=0.0,
            p50_ms=ms,
            p95_ms=ms,
            p99_ms=ms,
            cpu_s_per_row=0.001,
            energy_j_per_row=joules,
            energy_method="analytical",
        )
        for variant in variants
        for batch, ms, joules in cells
    )
    return msgspec.structs.replace(some, latency=latency, backend=dict.fromkeys(variants, "eager"))


def test_the_observed_p95_is_that_of_clients_over_http_which_the_front_end_delays_once(
    tmp_path: Path, loop: Any
) -> None:
    house = served(tmp_path, Gpu(False), loop)
    try:
        profile = profile_of((1, 10.0, 0.2))
        house.use(profile)
        assert "p95_ms" not in house.fleet.observe(), "nothing was answered"
        now_ns = time.monotonic_ns()
        for _ in range(100):
            house.router.traffic.record_outcome(200, now_ns, now_ns, now_ns + 4_000_000, 0, 0)
        inside = house.fleet.observe()
        house.use(msgspec.structs.replace(profile, front_ms=1.5))
        seen = house.fleet.observe()
        assert seen["p95_ms"] == pytest.approx(inside["p95_ms"] + 1.5)
        assert seen["p95_least_ms"] == pytest.approx(inside["p95_least_ms"] + 1.5)
    finally:
        house.close()


def test_a_worker_on_a_gpu_sees_its_instance_and_nothing_else(tmp_path: Path, loop: Any) -> None:
    house = served(tmp_path, Gpu(False), loop)
    try:
        order = house.order(assignment())
        assert (order.visible_devices, order.emulated, order.place) == ("MIG-1-2-3", None, "gpu0:2g.10gb@2")
        assert (order.cores, order.threads, order.memory_bytes) == ((0,), 1, 123)
        assert order.recording == "check"
        compared = RecordedLaunches(variant="full", profile="2g.10gb", backend="eager")
        house.use(msgspec.structs.replace(profile_of((1, 10.0, 0.2)), recorded=(compared,)))
        assert house.order(assignment()).recording == "trust"
    finally:
        house.close()


def test_a_worker_on_an_emulated_one_is_told_its_pace(
    tmp_path: Path, loop: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(emulated.STATE, "/a/box")
    house = served(tmp_path, Gpu(True), loop)
    try:
        with pytest.raises(DeviceError, match=r"nothing says how long full takes on an emulated 2g\.10gb"):
            house.order(assignment())
        house.use(profile_of((1, 10.0, 0.2), (8, 80.0, 0.5)))
        order = house.order(assignment())
        assert order.visible_devices == "", "what it runs, it runs on the CPU"
        slice_ = order.emulated
        assert slice_ is not None
        assert (slice_.state, slice_.uuid, slice_.memory_bytes) == ("/a/box", "MIG-1-2-3", 10 << 30)
        assert slice_.pace_ms == pytest.approx([10.0 * rows for rows in range(1, 9)])
        assert (slice_.watts[0], slice_.watts[7]) == pytest.approx((20.0, 50.0))
        with pytest.raises(DeviceError, match="nothing says how long half takes"):
            house.order(assignment("half"))
        # What the board draws may not be what the profile expects.
        pace = Pace(batches=(8,), ms=(80.0,), watts=(99.0,))
        house.use(house.profile, {("full", "2g.10gb"): pace})
        slice_ = house.order(assignment()).emulated
        assert slice_ is not None
        assert (slice_.pace_ms, slice_.watts) == ((80.0,) * 8, pytest.approx((99.0,) * 8))
        frame = frames.pack(frames.Spawn(token=1, slots=8, order=house.order(assignment()).trimmed()))
        kind, payload = frames.unpack(frame)
        assert kind is frames.Kind.SPAWN
        assert frames.decode(payload, frames.Spawn).order.emulated == slice_
    finally:
        house.close()


def test_a_worker_is_to_hold_the_other_variants_beside_its_own_one(
    tmp_path: Path, loop: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = profile_of((1, 10.0, 0.2), (8, 80.0, 0.5), variants=("full", "half"))
    monkeypatch.setenv(emulated.STATE, "/a/box")
    monkeypatch.setattr(resident_orders, "MEMORY_PART", 0.5)
    house = served(tmp_path, Gpu(True), loop)
    try:
        house.use(both)
        order = house.order(assignment())
        (half,) = order.also
        assert (half.variant, half.backend, half.threads) == ("half", "eager", 1)
        assert half.pace_ms == pytest.approx([10.0 * rows for rows in range(1, 9)])
        assert (order.resident_bytes, order.also_s) == (5 << 30, 30.0)
        assert [one.name for one in order.trimmed().family.variants] == ["full", "half"]
        assert [one.variant for one in house.order(assignment("half")).also] == ["full"]
        house.use(profile_of((1, 10.0, 0.2)))
        assert house.order(assignment()).also == (), "half was not profiled there"
        assert house.order(assignment()).resident_bytes == 0
    finally:
        house.close()
    settings: tuple[dict[str, Any], ...] = ({"resident": "off"}, {"resident": "1"}, {"variant": "full"})
    for config in settings:
        house = served(tmp_path, Gpu(False), loop, **config)
        house.use(both)
        assert house.order(assignment()).also == ()
        house.close()


class Cores(Gpu):
    """Seven cores, two of them in `PLACE`: no memory of its own."""

    def memory_bytes(self, placement: Placement) -> int:
        return 0


def test_a_worker_that_starts_beside_another_on_cores_fills_its_part_of_what_is_free_at_most(
    tmp_path: Path, loop: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resident_orders, "machine_memory", lambda: 7000 << 20)
    monkeypatch.setattr("clover.runtime.served.free_bytes", lambda: 700 << 20)
    monkeypatch.setattr(resident_orders, "MEMORY_PART", 0.5)
    house = served(tmp_path, Cores(False), loop, WorkersConfig())
    try:
        house.use(profile_of((1, 10.0, 0.2), (8, 80.0, 0.5), variants=("full", "half")))
        assert house.order(assignment()).resident_bytes == 1000 << 20, "two of seven cores, a half"
        house.memory_share = 0.25
        assert house.order(assignment()).resident_bytes == 250 << 20, "the others are of other families"
        there: Any = SimpleNamespace(assignment=assignment("half"), worker=object())
        house.fleet.members.leaving.append(there)
        assert house.order(assignment()).resident_bytes == 46 << 20, "0.92 of two of seven cores' part of 175 MiB"
        house.fleet.members.leaving.clear()
    finally:
        house.close()


def test_a_worker_is_to_hold_what_the_plan_that_comes_has_beside_it(tmp_path: Path, loop: Any) -> None:
    three = msgspec.structs.replace(
        TOY, variants=(*TOY.variants, msgspec.structs.replace(TOY.variants[0], name="quarter"))
    )
    house = served(tmp_path, Gpu(False), loop, resident="2", family=three)
    elsewhere = msgspec.structs.replace(PLACE, start=0)
    running = (assignment("half"), msgspec.structs.replace(assignment("quarter"), placement=elsewhere))
    try:
        profile = profile_of((1, 10.0, 0.2), variants=("full", "half", "quarter"))
        house.use(profile)

        def also(variant: str) -> list[str]:
            return [one.variant for one in house.order(assignment(variant)).also]

        assert also("full") == ["half"], "all cost the same"
        house.fleet.members.routed = (assignment("full"), running[1])
        assert also("half") == ["full"], "quarter is routed elsewhere"
        house.fleet.members.routed = running
        house.fleet.prepare((assignment("full"), assignment("quarter")))
        assert also("full") == ["quarter"], "half is routed here, but is to go"
        house.fleet.prepare(())
        assert also("full") == ["half"]
    finally:
        house.close()


def test_the_fleet_knows_which_devices_take_one_process(tmp_path: Path, loop: Any) -> None:
    gpu = Gpu(False)
    house = served(tmp_path, gpu, loop)
    try:
        alone = house.fleet.members.one_process
        assert not alone(PLACE)
        shape = msgspec.structs.replace(gpu.shape(), one_process=True)
        gpu.shape = lambda: shape  # type: ignore[method-assign]
        assert alone(PLACE)
        assert not alone(msgspec.structs.replace(PLACE, device="gone"))
    finally:
        house.close()


def test_a_variant_beside_that_breaks_a_worker_is_left_out_and_the_first_one_serves(
    tmp_path: Path,
    loop: asyncio.AbstractEventLoop,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Pools:
        def __init__(self, *failures: WorkerError) -> None:
            self.failures = list(failures)
            self.also: list[int] = []

        async def spawn(self, order: frames.WorkerOrder, slab: object, **rest: Any) -> Any:
            self.also.append(len(order.also))
            if self.failures:
                raise self.failures.pop(0)
            return SimpleNamespace(order=order, left_out=left_out)

    left_out: dict[str, str] = {}

    def starting(house: Served, *failures: WorkerError) -> list[int]:
        house._pool = pool = Pools(*failures)  # type: ignore[assignment]
        started = loop.run_until_complete(house._start(assignment()))
        assert started.order.variant == "full"
        return pool.also

    house = served(tmp_path, Gpu(False), loop)
    try:
        house.use(profile_of((1, 10.0, 0.2), variants=("full", "half")))
        assert starting(house) == [1]
        assert starting(house, WorkerLostInStart("not ready", hung=True)) == [1, 0]
        assert starting(house, WorkerLostInStart("killed by SIGSEGV")) == [1, 0], "the one that hung may have been slow"
        assert "to hold half beside full did not start (killed by SIGSEGV)" in caplog.text
        assert starting(house) == [0], "it would only die again"
        died = "a worker died there while it loaded several variants"
        assert [house.fleet.memory.alone("full", name) for name in (PLACE.profile, "7g.40gb")] == [died, ""]
        with monkeypatch.context() as later:
            later.setattr("clover.runtime.served.time.monotonic_ns", lambda: time.perf_counter_ns() + (601 << 30))
            assert starting(house) == [1], "a while later, the reason may be gone"
        house._alone.clear()
        with pytest.raises(WorkerError, match="no weights"):  # of the first one: it would fail again
            starting(house, WorkerError("no weights"))
        with pytest.raises(WorkerError, match="again"):
            starting(house, WorkerLostInStart("died"), WorkerError("again"))
        house._alone.clear()
        left_out["half"] = "too large"
        assert starting(house) == [1]
        assert starting(house) == [0], "it would only be too large again"
        why = [house.fleet.memory.alone(name, PLACE.profile) for name in ("full", "half")]
        assert why == ["", "a worker there left it out"]
        monkeypatch.setattr("clover.runtime.served.time.monotonic_ns", lambda: 1 << 62)
        assert starting(house) == [1], "a while later, it may fit"
    finally:
        house.close()


# --- turns ------------------------------------------------------------------------------------------------------------


def test_workers_take_turns_to_start_and_their_time_starts_with_them(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        pool = Pool(starts=3)
        running, most, begun = 0, 0, 0

        async def spawn(order: Any, slab: Any, on_death: Any, left_out: Any) -> Any:
            nonlocal running, most, begun
            running, begun = running + 1, begun + 1
            most = max(most, running)
            for _ in range(5):
                await asyncio.sleep(0)
            running -= 1
            if order == 4:
                raise WorkerError("it does not start")
            return order

        monkeypatch.setattr(pool, "_spawn", spawn)
        starting = [asyncio.ensure_future(pool.spawn(number, None)) for number in range(10)]  # type: ignore[arg-type]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert begun == 3
        starting[7].cancel()  # one that waits for its turn
        results = await asyncio.gather(*starting, return_exceptions=True)
        assert most == 3
        assert begun == 9
        assert isinstance(results[4], WorkerError)
        assert isinstance(results[7], asyncio.CancelledError)
        assert [result for result in results if isinstance(result, int)] == [0, 1, 2, 3, 5, 6, 8, 9]
        pool.completions.close()
        for fd in (pool._lifeline, pool._lifeline_held):
            os.close(fd)

    asyncio.run(main())


def test_only_what_devices_that_do_nothing_else_cannot_serve_is_refused_for_good(
    tmp_path: Path, loop: asyncio.AbstractEventLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = served(tmp_path, Gpu(is_emulated=False), loop)
    limits: list[float] = []
    router = SimpleNamespace(limit=limits.append, stop=own.router.stop, monitor=own.router.monitor)
    monkeypatch.setattr(own, "router", router)
    try:
        own.set_capacity({"running": 85.0, "floor": 170.0}, 0.85)
        own.set_capacity({}, 0.85)
        assert limits == [pytest.approx(200.0), 0.0]
    finally:
        own.close()


def test_what_a_tenant_sent_and_what_that_cost_stand_together(tmp_path: Path, loop: asyncio.AbstractEventLoop) -> None:
    account = Account(pue=1.0)
    account.usage[UsageKey("toy", "full", "gpu0", "p", "acme")] = Usage(3, {"modelled": Line(joules=2.0, grams=0.5)})
    on_host = Line(joules=1.0, grams=0.5, grids={"forecast": 0.5})
    account.usage[UsageKey("toy", "full", "cpu0", "p", "acme")] = Usage(0, {"measured": on_host})
    account.usage[UsageKey("other", "full", "gpu0", "p", "acme")] = Usage(3, {"modelled": Line(joules=9.0)})
    own = served(tmp_path, Gpu(is_emulated=False), loop, account=account)
    own.traffic.for_tenant("acme").count(200)
    own.traffic.record_refusal(429)
    own.traffic.record_refusal(200)
    try:
        acme, none = own.tenants["acme"], own.tenants[""]
        assert (acme.active_j, acme.active_g, acme.requests) == (3.0, 1.0, {200: 1})
        assert (acme.method, acme.grams_method) == ("measured + modelled", "modelled")
        assert (none.active_j, none.requests, none.method) == (0.0, {429: 1}, "")
        assert own.tenants_json()["acme"]["requests"] == {"200": 1}
    finally:
        own.close()
