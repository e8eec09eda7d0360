"""A worker whose model is hostile: what it does to what it holds harms itself, not the server nor other workers."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest

from clover import families
from clover.accounting import HostProcess, WorkerMeter
from clover.errors import WorkerError
from clover.runtime.memory.slab import Layout, Slab
from tests.support import hostile_family
from tests.support.forks import Forks
from tests.support.hostile_family import BLOCK, ECHO, FILL, FORK, LIE, left_behind
from tests.support.mig_runs import BEGIN, environment
from tests.support.worker_pools import client_of, gone, order, run, slab_of, started, until


@pytest.mark.usefixtures("forked_zygotes")
@pytest.mark.parametrize("attack", [BLOCK, FILL])
def test_what_it_does_to_its_descriptors_stops_nobody(tmp_path: Path, attack: int) -> None:
    spec = families.load_family(hostile_family.write(tmp_path / "hostile"))

    async def main() -> None:
        slab = Slab.create(Layout(spec, 8))
        async with started() as pool, client_of(pool) as client:
            with slab_of("simple") as (simple, other):
                other.input(0)[...] = other.input(1)[...] = 1
                hostile = await pool.spawn(order(spec), slab)
                honest = await pool.spawn(order(simple), other)
                slab.input(0)[0], slab.input(0)[1] = ECHO, attack
                assert await client.infer(hostile, 0) == 0
                client.submit(hostile, 1)
                beats = 0

                async def heart() -> None:
                    nonlocal beats
                    while True:
                        await asyncio.sleep(0.001)
                        beats += 1

                beating = asyncio.create_task(heart())
                for _ in range(200):
                    assert await client.infer(honest, 0, 1) == 0
                for _ in range(100):
                    hostile.bell()
                rung = beats
                async with asyncio.timeout(10.0):  # the loop goes on, however quickly all this went
                    while beats <= rung + 5:
                        await asyncio.sleep(0.001)
                beating.cancel()
        slab.close()

    run(main())


@pytest.mark.usefixtures("forked_zygotes")
@pytest.mark.parametrize("ending", ["drained", "killed"])
def test_no_child_of_a_worker_outlives_it(tmp_path: Path, ending: str) -> None:
    spec = families.load_family(hostile_family.write(tmp_path / "hostile"))

    async def main() -> None:
        slab = Slab.create(Layout(spec, 8))
        async with started() as pool, client_of(pool) as client:
            ends, stays = [await pool.spawn(order(spec), slab) for _ in range(2)]
            slab.input(0)[0] = FORK
            for worker in (ends, stays):
                assert await client.infer(worker, 0) == 0
            theirs, others = left_behind(tmp_path / "hostile")
            assert not gone(theirs)
            if ending == "killed":
                ends.kill()
                assert await ends.dead(5)
            else:
                await ends.drain_and_exit()
            async with asyncio.timeout(5):
                while not gone(theirs):
                    await asyncio.sleep(0.01)
            assert not gone(others), "a worker that serves keeps what it forked"
            assert await client.infer(stays, 0) == 0
            assert pool.zygote_pid is not None
        slab.close()
        assert until(lambda: all(gone(pid) for pid in left_behind(tmp_path / "hostile")), 5)

    run(main())


SERVER = """
import asyncio
from clover.runtime.memory.slab import Layout, Slab
from clover import families
from tests.support.worker_pools import client_of, order, started

async def main():
    spec = families.load_family(sys.argv[1])
    slab = Slab.create(Layout(spec, 8))
    async with started() as pool, client_of(pool) as client:
        worker = await pool.spawn(order(spec), slab)
        slab.input(0)[0] = 3
        await client.infer(worker, 0)
        print("ready", flush=True)
        await asyncio.sleep(60)

asyncio.run(main())
"""


def test_no_child_of_a_worker_outlives_a_killed_server(scenes: Forks, tmp_path: Path) -> None:
    name = hostile_family.write(tmp_path / "hostile")
    with scenes.talk(BEGIN + SERVER, [name], environment()) as (process, _, prints):
        assert prints.readline() == "ready\n"
        (pid,) = left_behind(tmp_path / "hostile")
        assert not gone(pid)
        process.kill()
    assert until(lambda: gone(pid), 5)


@pytest.mark.usefixtures("forked_zygotes")
def test_the_reason_of_its_failure_is_one_short_line(tmp_path: Path) -> None:
    spec = families.load_family(hostile_family.write(tmp_path / "hostile"))

    async def main() -> None:
        slab = Slab.create(Layout(spec, 8))
        async with started() as pool:
            with pytest.raises(WorkerError, match="all is well") as caught:
                await pool.spawn(order(spec, "forger"), slab)
            assert str(caught.value).isprintable()
            assert len(str(caught.value)) < 3000
        slab.close()

    run(main())


@pytest.mark.usefixtures("forked_zygotes")
def test_cpu_time_that_it_makes_up_is_not_billed(tmp_path: Path) -> None:
    spec = families.load_family(hostile_family.write(tmp_path / "hostile"))

    async def main() -> None:
        slab = Slab.create(Layout(spec, 8))
        async with started() as pool, client_of(pool) as client:
            worker = await pool.spawn(order(spec), slab)
            assert worker.cores == 1
            slab.input(0)[...] = np.array([[LIE], [ECHO]] * 4)
            assert await client.infer(worker, 0) == 0
            client.submit(worker, 1)
            _, _, rows, start_ns, end_ns, cpu_ns = await client.answer(worker)
            assert cpu_ns == 1 << 58, "288 million seconds"
            meter = WorkerMeter(
                family="hostile",
                variant="always",
                device="cpu0",
                placement="p0",
                slices=1,
                core_w=8.0,
                process=HostProcess(worker.pid, worker.cores),
            )
            assert meter.add(rows, end_ns - start_ns, cpu_ns) < 8.0 * ((end_ns - start_ns) / 1e9 + 0.021)
        slab.close()

    run(main())
