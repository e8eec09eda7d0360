"""Families that nobody asks: their workers end, and the next request starts them again."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import clover
from clover.config import FamilyConfig, ServerConfig
from clover.errors import Overloaded, Unavailable
from clover.runtime.served import Served
from clover.waiting.schedule import PlannedHour, Schedule
from tests.support.servers import children, until
from tests.support.toy_family import TOY, expected, settings
from tests.support.waiting_rows import as_jsonl, ended, keep

ROW = np.array([[0.1, 0.9, 0.3, 0.2]], np.float32)
NIGHT_S = 3600.0

pytestmark = pytest.mark.usefixtures("forked_zygotes", "short_profiling")


class House:
    """A server whose families sleep when a test says that a night has passed."""

    def __init__(self, server: clover.Server) -> None:
        self.server = server
        self.sleeper = server.engine.parts.sleeper
        self.passed_s = 0.0
        clock = self.sleeper._clock
        self.sleeper._clock = lambda: clock() + self.passed_s

    async def pass_night(self) -> None:
        """Let an hour pass in which nobody asks."""
        await self.sleeper.poll()
        self.passed_s += NIGHT_S
        await self.sleeper.poll()

    def served(self, name: str | None = None) -> Served:
        return self.server.engine.pick(name)

    def pids(self, name: str | None = None) -> list[int]:
        return [worker["pid"] for worker in self.served(name).fleet.describe() if worker["pid"]]

    async def ask(self, model: str | None = None, **more: Any) -> clover.Answer:
        answer = await self.server.ainfer({"INPUT0": ROW}, model=model, **more)
        np.testing.assert_allclose(answer["OUTPUT0"], expected(answer.variants[0], ROW), rtol=1e-4, atol=1e-6)
        return answer


def get(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=20) as reply:
        return reply.read()


def asleep(served: Served) -> bool:
    return served.router.state.asleep is not None


def test_a_family_sleeps_and_wakes_with_its_plan_and_nothing_else_wakes_it(toy_cache: Path) -> None:
    before = children()

    async def main() -> None:
        chosen = settings(toy_cache) | {"http": True, "port": 0, "unload_after_s": NIGHT_S, "cache_answers": 1.0}
        async with clover.Server(TOY, **chosen) as server:
            house = House(server)
            served = house.served()
            await house.ask()
            p95_ms = served.traffic.p95_ms(time.monotonic_ns())
            pids, routed, memory = house.pids(), served.fleet.routed, len(os.listdir("/proc/self/fd"))
            await house.pass_night()
            assert asleep(served)
            assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
            assert len(os.listdir("/proc/self/fd")) < memory
            # What looks at it does not wake it, and finds nothing wrong.
            for path in ("/v2/health/ready", "/v2/models/toy", "/v2/models/toy/ready", "/metrics", "/v2/clover/state"):
                await asyncio.to_thread(get, server.url + path)
            await server.engine.controller.poll()
            state = json.loads(await asyncio.to_thread(get, server.url + "/v2/clover/state"))
            assert state["models"]["toy"]["asleep"]
            assert state["totals"]["models"]["toy"]["sleep"]["state"] == "asleep"
            assert b'clover_asleep{model="toy"} 1.0' in await asyncio.to_thread(get, server.url + "/metrics")
            await house.ask()  # an answer that was kept
            assert asleep(served)
            assert not house.pids()
            # Many at once start each worker once.
            rows = [np.random.default_rng(seed).standard_normal((1, 4)).astype(np.float32) for seed in range(64)]
            answers = await asyncio.gather(*(server.ainfer({"INPUT0": row}) for row in rows))
            for row, answer in zip(rows, answers, strict=True):
                sure = float(expected("half", row).max())
                assert abs(sure - 0.6) < 1e-4 or answer.receipt.path == (("half",) if sure >= 0.6 else ("half>full",))
            await until(lambda: not served.fleet.asleep)
            assert served.fleet.routed == routed
            assert len(house.pids()) == len(pids)
            assert (served.fleet.restarts, served.traffic.lost_workers, served.fleet.missing) == (0, 0, 0)
            assert served.traffic.p95_ms(time.monotonic_ns()) in (p95_ms, None)  # the others waited for a start
            await until(lambda: house.sleeper.report()["toy"]["wakes"] == 1)
            report = house.sleeper.report()["toy"]
            assert (report["waited"], report["state"]) == (64, "loaded")
            assert report["waking_j"] > 0.0
            assert served.traffic.codes == {200: 66}
            await server.engine.parts.windows.count()
            account = server.engine.account
            booked_j = sum(line.joules for *_, line in account.lines())
            assert booked_j == pytest.approx(sum(line["measured_j"] for line in account.devices().values()), rel=1e-6)
            # It sleeps again, and an operator's command wakes it.
            await house.pass_night()
            assert asleep(served)
            await server.engine.controller.command("pin", {"variant": "full", "force": True}, "me")
            assert not asleep(served)
            assert (await house.ask()).variants == ("full",)

    asyncio.run(main())
    assert children() == before


def test_waiting_rows_wake_a_family_once_and_only_in_their_hours(toy_cache: Path, tmp_path: Path) -> None:
    line = {"method": "POST", "url": "/v2/models/toy/infer"}
    line["body"] = {"inputs": [{"name": "INPUT0", "datatype": "FP32", "shape": [1, 4], "data": ROW[0].tolist()}]}

    async def main() -> None:
        chosen = settings(toy_cache) | {"state_dir": str(tmp_path), "unload_after_s": NIGHT_S}
        async with clover.Server(TOY, **chosen) as server:
            house = House(server)
            served, parts = house.served(), server.engine.parts

            async def begin() -> str:
                lines = as_jsonl({"custom_id": f"row-{number}", **line} for number in range(200))
                file = await keep(parts.batches, lines)
                job = await parts.batches.create("", file.id, line["url"], window="24h", window_s=86_400.0)
                await until(lambda: any(found["job"] == job.id for found in parts.waiting.state()))
                return job.id

            await house.ask()
            await house.pass_night()
            assert asleep(served)
            job = await begin()
            await until(lambda: served.spare is not None and served.spare.on)
            await house.sleeper.poll()
            await until(lambda: served.spare.answered > 0)
            await house.pass_night()  # nobody but its waiting rows asks it
            assert (await ended(parts.batches, job)).completed == 200
            await until(lambda: house.sleeper.report()["toy"]["wakes"] == 1)
            assert house.sleeper.report()["toy"]["waited"] == 0
            assert served.traffic.codes == {200: 1}
            # The hours of another job come later, and it does not wake the family before.
            await until(lambda: not served.spare.on)
            await house.pass_night()
            assert asleep(served)
            later = time.time() + NIGHT_S
            plans: list[Any] = []

            async def plan(jobs: Any, spare: Any) -> Schedule:
                plans.append(jobs)
                rows = {job.id: job.rows for job in jobs}
                hours = (PlannedHour(later, later + NIGHT_S, rows, 100.0),)
                return Schedule(time.time(), hours, (), {job.id: job for job in jobs}, 300.0)

            parts.waiting._make_plan = plan
            parts.waiting.rates["toy"].seconds = 60.0  # it is known
            await begin()
            await until(lambda: bool(plans and plans[-1]))
            await house.sleeper.poll()
            (found,) = parts.waiting.state()
            assert found["why"].startswith("runs ")
            assert asleep(served)
            assert not house.pids()
            later = time.time()
            parts.waiting._planned = (0.0, 0, ())
            await until(lambda: served.spare.on)
            await house.sleeper.poll()
            await until(lambda: not served.fleet.asleep)
            assert served.traffic.codes == {200: 1}

    asyncio.run(main())


def test_a_deadline_that_a_start_does_not_meet_is_answered_with_when_to_come_back(toy_cache: Path) -> None:
    async def main() -> None:
        async with clover.Server(TOY, **settings(toy_cache), unload_after_s=NIGHT_S, queue_rows=16) as server:
            house = House(server)
            served = house.served()
            hold = asyncio.Event()
            start = served.fleet.members.start

            async def slow(item: Any) -> Any:
                await hold.wait()
                return await start(item)

            served.fleet.members.start = slow
            await house.pass_night()
            with pytest.raises(Unavailable, match="the model is being loaded") as caught:
                await house.ask(timeout_ms=60)
            assert caught.value.retry_after_s >= 1.0
            # What the queue holds waits, the rest is refused.
            asked = [asyncio.ensure_future(house.ask()) for _ in range(32)]
            await until(lambda: sum(item.done() for item in asked) == 16)
            assert {type(item.exception()) for item in asked if item.done()} == {Overloaded}
            hold.set()
            done = await asyncio.gather(*asked, return_exceptions=True)
            assert sum(isinstance(item, clover.Answer) for item in done) == 16
            assert house.sleeper.report()["toy"]["wakes"] == 1

    asyncio.run(main())


@pytest.mark.parametrize("when", ["loading", "falling asleep", "waiting"])
def test_a_kill_loses_nothing(toy_cache: Path, when: str) -> None:
    """Of a worker that loads, of one that ends, and of the zygote while a request waits."""
    before = children()

    async def main() -> None:
        async with clover.Server(TOY, **settings(toy_cache), unload_after_s=NIGHT_S) as server:
            house = House(server)
            served = house.served()
            await house.ask()
            if when == "falling asleep":
                drain = served.fleet.members._part

                def killed(left: Any) -> Any:
                    os.kill(left.worker.pid, signal.SIGKILL)
                    return drain(left)

                served.fleet.members._part = killed
            await house.pass_night()
            assert asleep(served)
            there = children() - before
            asking = asyncio.ensure_future(house.ask())
            if when == "loading":
                await until(lambda: children() - before - there)
                for pid in children() - before - there:
                    os.kill(pid, signal.SIGKILL)
            elif when == "waiting":
                for pid in there:
                    os.kill(pid, signal.SIGKILL)
            assert (await asking).variants
            assert served.traffic.codes == {200: 2}

    asyncio.run(main())
    assert children() == before


def test_unload_and_load_by_hand_and_a_server_that_stops(toy_cache: Path) -> None:
    before = children()

    async def main() -> None:
        async with clover.Server(TOY, **settings(toy_cache), unload_after_s=NIGHT_S) as server:
            house, loading = House(server), server.engine.parts.loading
            served = house.served()
            await house.pass_night()
            await loading.load(served, "")
            assert not asleep(served)
            await until(lambda: not served.fleet.asleep)
            await house.pass_night()
            await loading.unload(served)
            with pytest.raises(Unavailable):
                await house.ask()
            await loading.load(served, "")
            await house.ask()
            await house.pass_night()
            asking = asyncio.ensure_future(house.ask())
            await asyncio.sleep(0)
            await server.stop()  # answers what it received
            assert (await asking).variants

    asyncio.run(main())
    assert children() == before


def test_the_family_asked_longest_ago_makes_room(toy_cache: Path) -> None:
    """Four families where two fit: each request is answered, and no third has workers at any time."""

    async def main() -> None:
        names = [f"toy{number}" for number in range(4)]
        families = tuple(FamilyConfig(family=TOY, name=name) for name in names)
        chosen = settings(toy_cache) | {"config": ServerConfig(families=families), "total_bytes": 250}
        async with clover.Server(**chosen, unload_after_s=NIGHT_S) as server:
            house = House(server)
            loaded: list[int] = []
            fleets = [house.served(name).fleet for name in names]

            def memory(pids: list[int]) -> int:
                """Each family holds 100."""
                return 100 * sum(any(pid in house.pids(name) for pid in pids) for name in names)

            house.sleeper._memory = memory
            for nap in house.sleeper._naps.values():
                nap.held = 100
            for number in np.random.default_rng(1).zipf(1.3, 24) % 4:
                await house.ask(names[number])
                house.passed_s += 10.0
                loaded.append(sum(not fleet.asleep for fleet in fleets))
            assert max(loaded[4:]) == 2
            report = house.sleeper.report()
            assert sum(item["wakes"] for item in report.values()) >= 4
            # One that is busy makes no room, and the reason names it.
            last = next(name for name, fleet in zip(names, fleets, strict=True) if fleet.asleep)
            awake = [name for name, fleet in zip(names, fleets, strict=True) if not fleet.asleep]
            for name in awake:
                house.served(name).router.open(1)  # and its client sends slowly
            with pytest.raises(Unavailable, match=f"once {awake[0]} and {awake[1]} leave it memory"):
                await house.ask(last, timeout_ms=150)

    asyncio.run(main())


def test_memory_is_given_back(toy_cache: Path) -> None:
    """Rows of the slab, too: they lie in the memory of the server."""

    async def main() -> None:
        async with clover.Server(TOY, **settings(toy_cache), unload_after_s=NIGHT_S) as server:
            house = House(server)
            served = house.served()
            served.slab.input(0)[...] = 1.0
            held = os.fstat(served.slab.fd).st_blocks
            await house.pass_night()
            assert 512 * (held - os.fstat(served.slab.fd).st_blocks) > 0.9 * served.slab.input(0).nbytes
            await house.ask()

    asyncio.run(main())
