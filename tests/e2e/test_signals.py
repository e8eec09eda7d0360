"""SIGTERM from outside: to one worker, to each under load, and to the whole process group of a server."""

from __future__ import annotations

import asyncio
import http.client
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import orjson
import pytest

from clover.ancestry import descends_from
from clover.backends import child_environment
from clover.server.stop_limit import STOP_S
from tests.support import worker_pools as workers
from tests.support.forks import Forks
from tests.support.mig_runs import BEGIN, environment
from tests.support.servers import family, run, serve, until


@pytest.mark.usefixtures("forked_zygotes")
def test_a_worker_passes_it_on_and_serves_until_it_is_told_to_exit() -> None:
    async def main() -> None:
        async with workers.started() as pool, workers.client_of(pool) as client:
            with workers.slab_of("slow") as (spec, slab):
                slab.input(0)[...] = np.arange(32, dtype=np.float32)[:, None]
                deaths: list[str] = []
                asked: list[int] = []
                worker = await pool.spawn(
                    workers.order(spec, "slow"), slab, on_death=lambda worker, reason: deaths.append(reason)
                )
                worker.on_end_asked = lambda worker: asked.append(worker.pid)
                number = client.submit(worker, 3)
                for _ in range(5):  # in the middle of a batch
                    os.kill(worker.pid, signal.SIGTERM)
                await until(lambda: asked)
                assert (await client.answer(worker))[:2] == (number, 0)
                assert await client.infer(worker, 4) == 0
                assert slab.output(0)[[3, 4]].ravel().tolist() == [3.0, 4.0]
                await worker.drain_and_exit()
                assert (asked, deaths) == ([worker.pid], [])
                # One that was asked before anybody listened.
                worker = await pool.spawn(workers.order(spec, "slow"), slab)
                os.kill(worker.pid, signal.SIGTERM)
                await until(lambda: worker._end_asked)
                worker.on_end_asked = lambda worker: asked.append(worker.pid)
                await until(lambda: len(asked) == 2)

    workers.run(main())


FORKED = """
import os, signal, socket, sys, time
from clover.worker import frames
from clover.worker.main import _pass_on_sigterm

ours, theirs = frames.socket_pair()
ours.setblocking(False)
_pass_on_sigterm(theirs, os.pipe()[0])
child = os.fork()
if child == 0:
    print("up", flush=True)
    for _ in range(1200):  # a signal just before a long sleep would be seen after it only
        time.sleep(0.05)
os.read(0, 1)
os.kill(child, signal.SIGTERM)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGTERM
try:
    frames.receive(ours)
except BlockingIOError:
    print("nothing was said")
os.kill(os.getpid(), signal.SIGTERM)
assert frames.receive(ours)[0] is frames.Kind.END_ASKED
"""


def test_it_ends_a_child_that_a_model_forked() -> None:
    command = [sys.executable, "-c", FORKED]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=child_environment()) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        out, _ = process.communicate("x", timeout=30)
    assert (process.returncode, out) == (0, "nothing was said\n")


@pytest.mark.alone
@pytest.mark.usefixtures("forked_zygotes")
def test_each_worker_under_load_is_replaced_and_nothing_fails(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")

    async def main() -> None:
        async with serve("slow", tmp_path) as server:
            served = server.engine.pick("slow")
            stopped = False

            async def ask(first: int) -> int:
                count = 0
                while not stopped:
                    answer = await server.ainfer({"INPUT0": [float(first + count)]})
                    assert answer["OUTPUT0"].tolist() == [[float(first + count)]]
                    count += 1
                return count

            asking = [asyncio.ensure_future(ask(1000 * index)) for index in range(8)]
            pids = [item["pid"] for item in served.fleet.describe()]
            took_s = []
            for pid in pids:  # one after another, then all of the new ones at once
                took_s.append(await replaced(pid))
            every = [item["pid"] for item in served.fleet.describe() if item["state"] == "ready"]
            took_s += await asyncio.gather(*map(replaced, every))
            stopped = True
            answered = sum(await asyncio.gather(*asking))
            print(f"{answered} answers; replaced within {max(took_s):.3f} s")
            assert max(took_s) < 1.0
            assert answered > 100
            assert served.traffic.lost_workers == served.traffic.retried_rows == 0
            assert served.fleet.restarts == 2 * len(pids)
            assert set(served.traffic.codes) == {200}

    async def replaced(pid: int) -> float:
        begun_s = time.monotonic()
        os.kill(pid, signal.SIGTERM)
        await until(lambda: not Path(f"/proc/{pid}").exists())
        return time.monotonic() - begun_s

    run(main())
    assert "was asked to end (SIGTERM): another is started in its place" in caplog.text
    assert "died" not in caplog.text


SCRIPT = """
import clover
server = clover.Server(sys.argv[1], variant="slow", port=0, carbon="static:300", cache_dir=sys.argv[2], cores="0")
sys.exit(server.run(on_ready=lambda server: print(server.url, flush=True)))
"""


def test_to_the_whole_group_everything_received_is_answered(scenes: Forks, tmp_path: Path) -> None:
    """As a service manager stops a unit: server, zygote, spare and workers get it at once."""
    words = [family("slow"), str(tmp_path)]

    def ask(number: int) -> tuple[int, list[float]]:
        connection = http.client.HTTPConnection(address, timeout=20)
        row = {"name": "INPUT0", "shape": [1, 1], "datatype": "FP32", "data": [float(number)]}
        connection.request("POST", "/v2/models/slow/infer", orjson.dumps({"inputs": [row]}))
        answer = connection.getresponse()
        body = orjson.loads(answer.read())
        connection.close()
        return answer.status, body["outputs"][0]["data"] if answer.status == 200 else [body]

    def received() -> float:
        """How many rows wait, are being computed or are answered."""
        with urllib.request.urlopen(f"http://{address}/metrics", timeout=20) as reply:
            lines = reply.read().decode().splitlines()
        names = ("clover_pending_rows{", "clover_rows_total{")
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(names))

    with (
        tempfile.TemporaryFile("w+") as errors,
        scenes.talk(BEGIN + SCRIPT, words, environment(), errors.fileno()) as (process, _, prints),
    ):
        address = prints.readline().strip().removeprefix("http://")
        with ThreadPoolExecutor(192) as threads:
            asked = [threads.submit(ask, number) for number in range(192)]
            end_s = time.monotonic() + 20.0
            while received() < 192:
                assert time.monotonic() < end_s
            os.killpg(process.pid, signal.SIGTERM)
            assert sum(not item.done() for item in asked) > 8, "they were answered before"
            answers = [item.result() for item in asked]
        code = process.wait(20)
        errors.seek(0)
        said = errors.read()
        assert answers == [(200, [float(number)]) for number in range(192)]
        assert code == 0, said
        assert "died" not in said


def test_a_stop_ends_in_time_though_workers_and_zygote_are_stopped(scenes: Forks, tmp_path: Path) -> None:
    """By SIGSTOP, as a debugger or a frozen control group leaves them: they answer nothing, and exit by no frame."""
    words = [family("slow"), str(tmp_path)]
    script = SCRIPT.replace('cores="0"', 'cores="0", limit_drain_s=0.5')

    with (
        tempfile.TemporaryFile("w+") as errors,
        scenes.talk(BEGIN + script, words, environment(), errors.fileno()) as (process, _, prints),
    ):
        address = prints.readline().strip().removeprefix("http://")
        pids = [int(name) for name in os.listdir("/proc") if name.isdecimal()]
        ours = [pid for pid in pids if pid != process.pid and descends_from(pid, process.pid)]
        made = [pid for pid in ours if Path(f"/proc/{pid}/comm").read_text().startswith("clover")]
        zygotes = {int(Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()[1]) for pid in made}
        assert len(zygotes) == 1
        below = [*zygotes, *made]
        assert len(below) >= 2, "a zygote and a worker, and mostly a spare"
        for pid in below:
            os.kill(pid, signal.SIGSTOP)
        connection = http.client.HTTPConnection(address, timeout=60)
        row = {"name": "INPUT0", "shape": [1, 1], "datatype": "FP32", "data": [1.0]}
        connection.request("POST", "/v2/models/slow/infer", orjson.dumps({"inputs": [row]}))
        begun_s = time.monotonic()
        process.send_signal(signal.SIGTERM)
        code = process.wait(60)
        took_s = time.monotonic() - begun_s
        connection.close()
        errors.seek(0)
        assert code in (0, 1), errors.read()
        assert took_s < 0.5 + STOP_S
        end_s = time.monotonic() + 20.0
        while any(Path(f"/proc/{pid}").exists() for pid in below):
            assert time.monotonic() < end_s, "what it started ends with it"
            time.sleep(0.01)
