"""Real zygote, real workers: what they answer, how they die, and that nothing of them stays behind."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import numpy as np
import pytest

from clover import families
from clover.backends import child_environment
from clover.errors import StartError, WorkerError
from clover.runtime.memory.bytes_codec import pack_row, split_row
from clover.runtime.workers.pool import Pool
from tests.support.mig_runs import BEGIN, environment
from tests.support.worker_pools import CORE, FAMILIES, client_of, gone, order, run, slab_of, started, until


def open_fds():
    gc.collect()  # what an earlier test left to the collector is not a leak of this one
    return sorted(os.listdir("/proc/self/fd"), key=int)


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


async def eventually(condition):
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.01)


def proc(pid, name):
    return Path(f"/proc/{pid}/{name}").read_bytes().decode()


def state(pid):
    try:
        return proc(pid, "stat").rpartition(")")[2].split()[0]
    except OSError:
        return ""


def links(pid):
    """What a process's descriptors beyond the standard streams are, the sockets by number."""
    return sorted(os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd") if int(fd) > 2)


def spares(pool):
    """Children of the zygote that wait for an order."""
    below = map(int, proc(pool.zygote_pid, f"task/{pool.zygote_pid}/children").split())
    return [pid for pid in below if proc(pid, "comm") == "clover-spare\n"]


async def spare(pool):
    """The one spare of the pool, once it waits."""
    await eventually(lambda: [state(pid) for pid in spares(pool)] == ["S"])
    return spares(pool)[0]


def uvloop_loop():
    import uvloop

    return uvloop.new_event_loop()


@pytest.mark.usefixtures("forked_zygotes")
@pytest.mark.parametrize("loop_factory", [asyncio.new_event_loop, uvloop_loop], ids=["asyncio", "uvloop"])
def test_families_of_every_kind_answer(loop_factory):
    async def main():
        async with started() as pool, client_of(pool) as client:
            await numbers(pool, client)
            await strings(pool, client)
            await shapes(pool, client)
            await toys(pool, client)

    async def numbers(pool, client):
        with slab_of("simple") as (spec, slab):
            worker = await pool.spawn(order(spec), slab)
            assert worker.state == "ready"
            assert worker.ready_ms > 0
            assert os.sched_getaffinity(worker.pid) == {CORE}
            slab.input(0)[...] = np.arange(32)[:, None]
            slab.input(1)[...] = 1
            for slots in ((0,), (1, 2, 3), (9, 4), tuple(range(8, 16))):
                assert await client.infer(worker, *slots) == 0
                for slot in slots:
                    assert (slab.output(0)[slot] == slot + 1).all()
                    assert (slab.output(1)[slot] == slot - 1).all()
            await worker.drain_and_exit()
            assert worker.state == "dead"

    async def strings(pool, client):
        with slab_of("simple_string") as (spec, slab):
            worker = await pool.spawn(order(spec), slab)
            for slot in (3, 1):
                slab.put_bytes("input", 0, slot, pack_row([b"%d" % slot] * 16))
                slab.put_bytes("input", 1, slot, pack_row([b"-2"] * 16))
            assert await client.infer(worker, 3, 1) == 0
            assert split_row(slab.get_bytes("output", 0, 3)) == [b"1"] * 16
            assert split_row(slab.get_bytes("output", 1, 1)) == [b"3"] * 16
            slab.put_bytes("input", 0, 3, pack_row([b"x"] * 16))
            assert await client.infer(worker, 3) == 1
            slab.put_bytes("input", 0, 3, b"\xff\xff\xff\xff")
            assert await client.infer(worker, 3) == 1
            assert await client.infer(worker, 1) == 0

    async def shapes(pool, client):
        with slab_of("identity_fp32") as (spec, slab):
            worker = await pool.spawn(order(spec), slab)
            tensor = spec.inputs[0]
            dims = tuple(axis if axis >= 0 else 1 for axis in tensor.shape)
            for slot in (5, 6):
                slab.set_dims("input", 0, slot, dims)
                slab.input(0)[(slot, *(slice(axis) for axis in dims))] = slot
            assert await client.infer(worker, 5, 6) == 0
            for slot in (5, 6):
                assert slab.dims("output", 0, slot) == dims
                assert (slab.output(0)[(slot, *(slice(axis) for axis in dims))] == slot).all()

    async def toys(pool, client):
        with slab_of("toy") as (spec, slab):
            inputs, labels = families.load_evaluation(spec, "held_out")
            workers = [await pool.spawn(order(spec, variant.name), slab) for variant in spec.variants]
            slab.input(0)[:32] = inputs[0][:32]
            right = []
            for worker in workers:
                for first in range(0, 32, 8):
                    assert await client.infer(worker, *range(first, first + 8)) == 0
                right.append((slab.output(0)[:32].argmax(axis=1) == labels[:32]).mean())
            assert right[1] > 0.8 > right[0]

    run(main(), loop_factory=loop_factory)


@pytest.mark.usefixtures("forked_zygotes")
def test_fashion_recognises_clothes(capsys):
    async def main():
        async with started() as pool, client_of(pool) as client:
            with slab_of("fashion", 64) as (spec, slab):
                inputs, labels = families.load_evaluation(spec, "held_out")
                slab.input(0)[:] = inputs[0][:64]
                report, workers = [], []
                for variant in spec.variants:
                    worker = await pool.spawn(order(spec, variant.name), slab)
                    for first in (0, 32):
                        assert await client.infer(worker, *range(first, first + 32)) == 0
                    assert (slab.output(0).argmax(axis=1) == labels[:64]).mean() > 0.7
                    np.testing.assert_allclose(slab.output(0).sum(axis=1), 1.0, atol=1e-4)
                    workers.append(worker)
                    report.append(
                        f"{variant.name}: ready {worker.ready_ms:.0f} ms "
                        f"(fork {worker.fork_ms:.0f}, load {worker.load_ms:.0f}, warm {worker.warm_ms:.0f}), "
                        f"own memory {own_mb(worker.pid)} MB"
                    )
                # Two threads in a child of a zygote that never had any: a region of two must not hang.
                both = tuple(sorted(os.sched_getaffinity(0))[:2])
                workers.append(await pool.spawn(order(spec, "xlarge", cores=both, threads=len(both)), slab))
                assert await client.infer(workers[-1], *range(32)) == 0
                assert (slab.output(0)[:32].argmax(axis=1) == labels[:32]).mean() > 0.7
        return report

    report = run(main())
    with capsys.disabled():
        print("\n" + "\n".join(report))


@pytest.mark.usefixtures("forked_zygotes")
def test_a_worker_that_is_not_ready_in_time_is_ended():
    async def main():
        async with started() as pool:
            with slab_of("slow") as (spec, slab):
                worker = await pool.spawn(order(spec), slab)
                assert list(worker.said_ns) == ["loading", "warming", "ready"]
                assert worker.started_at_ns < worker.said_ns["loading"] <= worker.said_ns["ready"]
                endless = msgspec.structs.replace(spec.variants[0], parameters={"milliseconds": 60_000, "index": 0})
                never = msgspec.structs.replace(spec, variants=(endless,))
                pool.start_s = 1.0
                with pytest.raises(WorkerError, match=r"within 1 s: still (loading|warming)"):
                    await pool.spawn(order(never), slab)
                await eventually(lambda: pool.workers == {worker})

    run(main())


def own_mb(pid):
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Private_Dirty:"):
            return int(line.split()[1]) // 1024
    raise AssertionError("no Private_Dirty")


@pytest.mark.usefixtures("forked_zygotes")
def test_deaths_and_failures_are_told_once():
    async def main():
        deaths = []
        died = asyncio.Event()

        def on_death(worker, reason):
            deaths.append((worker.pid, reason, worker.state))
            died.set()

        async def death():
            async with asyncio.timeout(5):
                await died.wait()
            died.clear()
            return deaths.pop()

        async with started(start_s=10, silent_s=0.3) as pool, client_of(pool) as client:
            with slab_of("crashy") as (spec, slab):
                for slot in range(6):
                    slab.input(0)[slot] = slot  # 0 echoes, 1 raises, 2 kills, 3 exits, 4 hangs, 5 answers misshapen

                worker = await pool.spawn(order(spec, "always"), slab, on_death=on_death)
                assert [await client.infer(worker, slot) for slot in (0, 1, 5, 0)] == [0, 1, 1, 0]
                assert await client.infer(worker, 0, 31, 1) == 1
                # Gone before anybody listens for it: no death is missed.
                os.kill(worker.pid, signal.SIGKILL)
                assert await death() == (worker.pid, "killed by SIGKILL", "dead")
                worker.bell()
                worker.kill()
                await worker.drain_and_exit()

                for slot, reason in ((2, "killed by SIGKILL"), (3, "exited with status 3")):
                    worker = await pool.spawn(order(spec, "always"), slab)
                    client.submit(worker, slot)
                    assert await worker.dead(5)
                    worker.on_death = on_death
                    assert await death() == (worker.pid, reason, "dead")
                    assert worker.ring.reap() is None

                worker = await pool.spawn(order(spec, "always"), slab, on_death=on_death)
                client.submit(worker, 0)
                client.submit(worker, 0, 0)
                await worker.drain_and_exit()  # answers what is in its ring first
                assert worker.ring.reap()[1] == worker.ring.reap()[1] == 0
                assert not deaths

                worker = await pool.spawn(order(spec, "always"), slab, on_death=on_death)
                client.submit(worker, 4)
                await worker.drain_and_exit()  # hangs, so it is killed: its rows are lost, and that is told
                assert await death() == (worker.pid, "killed by SIGKILL", "dead")

                with pytest.raises(WorkerError, match="asked not to load"):
                    await pool.spawn(order(spec, "unloadable"), slab, on_death=on_death)
                with pytest.raises(WorkerError, match="not compiled for aoti"):
                    await pool.spawn(order(spec, "always", backend="aoti"), slab)
                with pytest.raises(WorkerError, match="Invalid argument"):
                    await pool.spawn(order(spec, "always", cores=(4095,)), slab)
                with pytest.raises(WorkerError, match=r"Cannot allocate|MemoryError"):
                    await pool.spawn(order(spec, "always", memory_bytes=1 << 20), slab)
                with slab_of("simple") as (_, other), pytest.raises(WorkerError, match="shared memory has"):
                    await pool.spawn(order(spec, "always"), other)
                pool.start_s = 0.001
                with pytest.raises(WorkerError, match=r"not ready within|made no worker within"):
                    await pool.spawn(order(spec, "always"), slab)
                pool.start_s = 10
                pool._zygote.kill()  # as if it had not carried an order out in time: the next goes to another
                worker = await pool.spawn(order(spec, "always"), slab)
                await worker.drain_and_exit()
                spawning = asyncio.create_task(pool.spawn(order(spec, "always"), slab))
                await asyncio.sleep(0)  # ordered, and the answer not looked at
                spawning.cancel()
                await asyncio.gather(spawning, return_exceptions=True)
                assert spawning.cancelled()
                await eventually(lambda: not pool.workers)
                assert not deaths

    run(main())


@pytest.mark.usefixtures("forked_zygotes")
def test_twenty_spawns_leave_nothing():
    async def main():
        before = open_fds()
        with slab_of("simple") as (spec, slab):
            pool = Pool()
            await pool.start()
            zygote = pool.zygote_pid
            base = None
            for turn in range(20):
                worker = await pool.spawn(order(spec), slab)
                pid = worker.pid
                if turn % 2:
                    worker.kill()
                    assert await worker.dead(5)
                else:
                    await worker.drain_and_exit()
                del worker
                base = base or open_fds()
                assert gone(pid)
            assert open_fds() == base
            kept = [await pool.spawn(order(spec), slab) for _ in range(2)]
            assert len({worker.pid for worker in kept}) == 2
            await pool.stop()
            await pool.stop()
            assert all(worker.state == "dead" for worker in kept)
            assert gone(zygote)
            with pytest.raises(WorkerError, match="stopped"):
                await pool.spawn(order(spec), slab)
            kept.clear()
            pool = Pool.launch()  # started and never used
            await pool.stop()
        return before, open_fds()

    before, after = run(main())
    assert len(after) <= len(before)


@pytest.mark.usefixtures("forked_zygotes")
def test_the_next_worker_is_forked_before_it_is_ordered():
    async def main():
        async with started() as pool, client_of(pool) as client:
            with slab_of("simple") as (spec, slab):
                slab.input(0)[...] = np.arange(32)[:, None]
                slab.input(1)[...] = 1
                workers = [await pool.spawn(order(spec), slab)]
                for _ in range(2):
                    waiting = await spare(pool)
                    # It has what it waits on, and nothing of the workers' or the server's.
                    (own,) = links(waiting)
                    assert own.startswith("socket:")
                    # The zygote closes its end after the fork.
                    await eventually(lambda own=own: own not in links(pool.zygote_pid))
                    workers.append(await pool.spawn(order(spec, memory_bytes=64 << 30), slab))
                    assert workers[-1].pid == waiting
                    assert 0 < workers[-1].fork_ms < workers[-1].ready_ms
                    assert own not in links(waiting)
                    assert "NoNewPrivs:\t1" in proc(waiting, "status")
                    assert os.sched_getaffinity(waiting) == {CORE}
                for slot, worker in enumerate(workers):
                    assert await client.infer(worker, slot) == 0
                    assert (slab.output(0)[slot] == slot + 1).all()
                    assert (slab.output(1)[slot] == slot - 1).all()
                # Two at once, and one spare.
                waiting = await spare(pool)
                both = await asyncio.gather(*(pool.spawn(order(spec), slab) for _ in range(2)))
                assert waiting in {worker.pid for worker in both}
                assert [await client.infer(worker, 9) for worker in both] == [0, 0]
                # Its death is heard like that of any worker.
                died = asyncio.get_running_loop().create_future()
                workers[1].on_death = lambda worker, reason: died.set_result(reason)
                os.kill(workers[1].pid, signal.SIGTERM)  # for the server to decide
                os.kill(workers[1].pid, signal.SIGKILL)
                assert await asyncio.wait_for(died, 5) == "killed by SIGKILL"
                assert gone(workers[1].pid)
            waiting, zygote = await spare(pool), pool.zygote_pid
        assert gone(waiting)
        assert gone(zygote)

    run(main())


@pytest.mark.usefixtures("forked_zygotes")
@pytest.mark.parametrize("known", [True, False], ids=["reaped", "not reaped yet"])
def test_a_spare_that_died_is_missed_by_nobody(known, caplog, capfd):
    async def main():
        async with started() as pool, client_of(pool) as client:
            with slab_of("simple") as (spec, slab):
                told = []
                first = await pool.spawn(order(spec), slab)
                pool._zygote._on_exit = lambda pid, code: told.append(pid)
                waiting, zygote = await spare(pool), pool.zygote_pid
                if known:
                    os.kill(waiting, signal.SIGKILL)
                    await eventually(lambda: gone(waiting))
                    second = await pool.spawn(order(spec), slab)
                else:  # The zygote finds the order before the death.
                    os.kill(zygote, signal.SIGSTOP)
                    os.kill(waiting, signal.SIGKILL)
                    await eventually(lambda: state(waiting) == "Z")
                    spawning = asyncio.create_task(pool.spawn(order(spec), slab))
                    await eventually(lambda: pool._zygote._asked)
                    os.kill(zygote, signal.SIGCONT)
                    second = await spawning
                    await eventually(lambda: gone(waiting))
                assert waiting not in (first.pid, second.pid)
                assert [await client.infer(worker, 0) for worker in (first, second)] == [0, 0]
                assert pool.zygote_pid == zygote
                assert await spare(pool) != waiting
                assert not told

    run(main())
    assert not caplog.records
    assert capfd.readouterr().err == ""


@pytest.mark.usefixtures("forked_zygotes")
def test_a_spare_ends_with_its_zygote():
    async def main():
        async with started() as pool:
            with slab_of("simple") as (spec, slab):
                workers = [await pool.spawn(order(spec), slab)]
                await spare(pool)
                workers.append(await pool.spawn(order(spec), slab))
                waiting = await spare(pool)  # beside a worker that was one, and one that was not
                os.kill(pool.zygote_pid, signal.SIGKILL)
                await eventually(lambda: not alive(waiting))
                assert [worker.state for worker in workers] == ["ready", "ready"]

    run(main())


@pytest.mark.usefixtures("forked_zygotes")
def test_a_dead_zygote_takes_nobody_along_and_is_replaced():
    async def main():
        async with started() as pool, client_of(pool) as client:
            with slab_of("simple") as (spec, slab):
                deaths = []
                worker = await pool.spawn(order(spec), slab, on_death=lambda w, reason: deaths.append(reason))
                zygote = pool.zygote_pid
                os.kill(zygote, signal.SIGKILL)
                await eventually(lambda: pool.zygote_pid not in (zygote, None))  # though no worker waits for one
                assert await client.infer(worker, 0) == 0
                another = await pool.spawn(order(spec), slab)
                assert await client.infer(another, 1) == 0
                assert not deaths
                worker.kill()
                assert await worker.dead(5)
                assert deaths == ["ended with unknown status"]

    run(main())


@pytest.mark.usefixtures("forked_zygotes")
def test_a_zygote_that_hangs_is_replaced_and_takes_nobody_along():
    async def main():
        async with started() as pool, client_of(pool) as client:
            with slab_of("simple") as (spec, slab):
                worker = await pool.spawn(order(spec), slab)
                zygote = pool.zygote_pid
                os.kill(zygote, signal.SIGSTOP)
                pool.start_s = 0.5
                with pytest.raises(WorkerError, match="made no worker"):
                    await pool.spawn(order(spec), slab)
                await eventually(lambda: pool.zygote_pid != zygote)
                assert await client.infer(worker, 0) == 0
                pool.start_s = 30.0
                another = await pool.spawn(order(spec), slab)
                assert await client.infer(another, 1) == 0

    run(main())


@pytest.mark.usefixtures("forked_zygotes")
def test_without_descriptors_a_spawn_fails_as_one_and_leaves_nothing():
    async def main():
        async with started() as pool, client_of(pool) as client:
            with slab_of("simple") as (spec, slab):
                before = open_fds()
                soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
                resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
                try:
                    with pytest.raises(WorkerError, match="cannot be started"):
                        await pool.spawn(order(spec), slab)
                finally:
                    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
                assert open_fds() == before
                worker = await pool.spawn(order(spec), slab)
                assert await client.infer(worker, 0) == 0

    run(main())


def test_a_zygote_that_has_threads_does_not_fork(monkeypatch, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(
        "import sys, threading, time\n"
        "if 'clover.worker.zygote' in ' '.join(sys.orig_argv):\n"
        "    threading.Thread(target=time.sleep, args=(60,), daemon=True).start()\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))

    async def main():
        pool = Pool(start_s=20)
        try:
            with pytest.raises(StartError, match="2 threads"):
                await pool.start()
        finally:
            await pool.stop()

    run(main())


def test_a_thread_between_forks_is_noticed():
    from clover.worker import frames, zygote

    ours, theirs = frames.socket_pair()
    with slab_of("simple") as (spec, _), contextlib.ExitStack() as stack:
        stack.callback(ours.close)
        stack.callback(theirs.close)
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patch.setattr(zygote, "thread_count", lambda: 3)
        patch.setattr(zygote.orphans, "children", list)  # it would end the children of this process
        pipes = [os.open(os.devnull, os.O_RDWR) for _ in range(frames.SPAWN_FDS)]
        frames.send(ours, frames.Spawn(token=7, slots=4, order=order(spec)), tuple(pipes))
        frames.close_all(pipes)
        frames.send(ours, frames.Stop())
        zygote.Zygote(theirs).forever()
        kind, payload, _ = frames.receive(ours)
        assert kind is frames.Kind.REFUSED
        refused = frames.decode(payload, frames.SpawnRefused)
        assert refused.token == 7
        assert "3 threads" in refused.reason


SERVER = """
import asyncio, os, sys
import numpy as np
from clover import families
from clover.worker.frames import WorkerOrder
from clover.runtime.workers.pool import Pool
from clover.runtime.memory.slab import Layout, Slab

async def main():
    spec = families.load_family(sys.argv[1])
    slab = Slab.create(Layout(spec, 8))
    pool = Pool()
    await pool.start()
    assert "torch" not in sys.modules or "orphan" in sys.argv
    order = WorkerOrder(
        family=spec, variant="always", backend="eager", cores=(min(os.sched_getaffinity(0)),), max_batch=4
    )
    workers = [await pool.spawn(order, slab) for _ in range(3)]
    slab.input(0)[0] = 4  # hangs: this worker is in the middle of a batch
    if workers[0].ring.submit(1, np.zeros(1, np.uint32), 1) == 2:
        workers[0].bell()
    zygote, spare = pool.zygote_pid, []
    while not spare:
        await asyncio.sleep(0.01)
        below = map(int, open(f"/proc/{zygote}/task/{zygote}/children").read().split())
        spare = [pid for pid in below if open(f"/proc/{pid}/comm").read() == "clover-spare\\n"]
    if "orphan" in sys.argv:
        os.kill(zygote, 9)
        await asyncio.sleep(0.1)
    orphans = "orphan" in sys.argv
    print(os.getpid(), *[worker.pid for worker in workers], *([] if orphans else [zygote, *spare]), flush=True)
    await asyncio.sleep(60)

asyncio.run(main())
"""


@contextlib.contextmanager
def begun(*arguments):
    """`SERVER` as a process of an interpreter of its own, whose zygote is one, too."""
    with subprocess.Popen(
        [sys.executable, "-P", "-c", SERVER, *arguments],
        stdout=subprocess.PIPE,
        env=child_environment() | {"PYTHONWARNINGS": "default"},
        text=True,
    ) as process:
        yield process, None, process.stdout


@pytest.mark.parametrize("ending", ["killed", "killed without a zygote"])
def test_no_worker_outlives_a_killed_server(ending, scenes):
    name = str(FAMILIES / "crashy")
    whole = ending == "killed"
    with begun(name) if whole else scenes.talk(BEGIN + SERVER, [name, "orphan"], environment()) as (_, _, prints):
        server, *children = map(int, prints.readline().split())
        assert len(children) == (5 if whole else 3)
        assert all(alive(pid) for pid in children)
        for pid in children:  # what a terminal or a service manager sends to everybody
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                os.kill(pid, number)
        time.sleep(0.05)
        assert all(alive(pid) for pid in children)
        os.kill(server, signal.SIGKILL)
        start = time.monotonic()
        assert until(lambda: not any(alive(pid) for pid in children), 2.0)
        print(f"{len(children)} processes gone {1e3 * (time.monotonic() - start):.0f} ms after the server")


def test_workers_are_hardened():
    async def main():
        async with started() as pool:
            with slab_of("simple") as (spec, slab):
                worker = await pool.spawn(order(spec, memory_bytes=64 << 30), slab)
                assert "NoNewPrivs:\t1" in proc(worker.pid, "status")
                limits = proc(worker.pid, "limits").splitlines()
                assert next(line for line in limits if "core file" in line).split()[4:6] == ["0", "0"]
                for name in ("address space", "file size"):  # a file may lie in memory, and count for no other limit
                    assert next(line for line in limits if name in line).split()[-3:-1] == [str(64 << 30)] * 2
                environment = proc(worker.pid, "environ").split("\0")
                assert not [item for item in environment if "SECRET" in item]
                assert "OMP_WAIT_POLICY=PASSIVE" in environment
                # Only what it was given: standard streams, control, slab (and its map), ring's map, bells, lifeline.
                assert len(os.listdir(f"/proc/{worker.pid}/fd")) <= 11

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("A_SECRET", "x")
        run(main())


@pytest.mark.usefixtures("forked_zygotes")
def test_a_model_that_overwrote_the_head_of_its_slab_keeps_no_worker_from_starting():
    async def main():
        async with started() as pool, client_of(pool) as client:
            with slab_of("simple") as (spec, slab):
                slab.memory[:4096] = b"\xff" * 4096  # any worker of the family could
                worker = await pool.spawn(order(spec), slab)
                assert await client.infer(worker, 0) == 0
                await worker.drain_and_exit()

    run(main())


@pytest.mark.usefixtures("forked_zygotes")
def test_who_leaves_a_core_set_ends_beside_its_successor():
    """What the end of a worker looks like, while its zygote, which would reap it, stands still."""
    allowed = os.sched_getaffinity(0)

    async def main():
        async with started() as pool:
            with slab_of("simple") as (spec, slab):
                worker = await pool.spawn(order(spec), slab)
                nice = os.getpriority(os.PRIO_PROCESS, 0)
                assert os.getpriority(os.PRIO_PROCESS, worker.pid) == nice
                zygote = pool.zygote_pid
                os.kill(zygote, signal.SIGSTOP)
                try:
                    worker.request_exit()
                    await eventually(lambda: state(worker.pid) == "Z")
                    assert os.getpriority(os.PRIO_PROCESS, worker.pid) == min(nice + 10, 19)
                    assert os.sched_getaffinity(worker.pid) == (allowed - {CORE} or allowed)
                finally:
                    os.kill(zygote, signal.SIGCONT)

    run(main())
