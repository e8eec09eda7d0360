"""Whole servers with real workers: embedded, over HTTP, swapped, wounded and stopped."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

import clover
from clover.backends import child_environment
from clover.http.loop_lag import LEAST_WINDOWS, WINDOW
from clover.runtime.workers.zygote_link import ZygoteLink
from clover.types import Assignment, Routing
from tests.e2e.forked_zygote import Nursery
from tests.support.forks import Forks
from tests.support.mig_runs import BEGIN, environment
from tests.support.servers import ROOT, children, descriptors, family, run, serve, until

quick_start = pytest.mark.usefixtures("forked_zygotes")

# --- embedding --------------------------------------------------------------------------------------------------------


@pytest.mark.alone  # it waits for a deadline of 5 ms
@quick_start
def test_in_this_loop(tmp_path: Path) -> None:
    async def main() -> None:
        async with serve("slow", tmp_path, variant="slow") as server:
            answer = await server.ainfer({"INPUT0": np.array([[1.0], [2.0]], np.float32)})
            assert answer["INPUT0".replace("INPUT", "OUTPUT")].tolist() == [[1.0], [2.0]]
            assert answer["VARIANT"].tolist() == [[1], [1]]
            assert answer.variants == ("slow", "slow")
            assert (answer.receipt.variant, answer.receipt.accuracy) == ("slow", 90.0)
            assert answer.receipt.energy_j > 0.0
            assert answer.receipt.intensity_g_per_kwh == 300.0
            one = await server.ainfer({"INPUT0": [3.0]})  # a row without the row axis
            assert one["OUTPUT0"].tolist() == [[3.0]]
            with pytest.raises(clover.BadRequest, match="missing"):
                await server.ainfer({})
            with pytest.raises(clover.BadRequest, match="unknown input"):
                await server.ainfer({"INPUT0": [3.0], "other": [1.0]})
            with pytest.raises(clover.BadRequest):
                await server.ainfer({"INPUT0": ["no number"]})
            with pytest.raises(clover.BadRequest, match="accuracy"):
                await server.ainfer({"INPUT0": [3.0]}, min_accuracy=95.0)
            with pytest.raises(clover.BadRequest, match="in percent"):
                await server.ainfer({"INPUT0": [3.0]}, min_accuracy=0.9)
            assert (await server.ainfer({"INPUT0": [3.0]}, min_accuracy=90.0)).receipt.accuracy == 90.0
            with pytest.raises(clover.DeadlineMissed):
                await server.ainfer({"INPUT0": [3.0]}, timeout_ms=5)
            with pytest.raises(clover.DeadlineMissed):
                await server.ainfer({"INPUT0": [3.0]}, timeout_ms=-1)
            with pytest.raises(clover.NotFound):
                await server.ainfer({"INPUT0": [3.0]}, model="other")
            with pytest.raises(RuntimeError, match="ainfer"):
                server.infer({"INPUT0": [3.0]})
            with pytest.raises(clover.StartError):
                await server.start()
        with pytest.raises(clover.Unavailable):
            await server.ainfer({"INPUT0": [3.0]})

    run(main())


@quick_start
def test_the_energy_until_the_stop_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clover.server.periodic.TICK_S", 3600.0)  # no window is closed while it serves

    async def main() -> None:
        async with serve("identity_bytes", tmp_path, variant="echo") as server:
            account = server.engine.account
            before = account.devices()["cpu0"]
            await server.ainfer({"INPUT0": np.array([[b"one", b"two"]], dtype=object)})
            assert account.devices()["cpu0"] == before
        after = account.devices()["cpu0"]
        assert float(after["measured_j"]) > float(before["measured_j"])
        assert float(after["active_j"]) > float(before["active_j"]), "and whose it is"

    run(main())


@quick_start
def test_in_a_thread_over_http_and_from_another_loop(tmp_path: Path) -> None:
    before = children()
    with serve("simple", tmp_path, variant="exact", http=True) as server:
        rows = np.arange(16, dtype=np.int32)[np.newaxis]
        answer = server.infer({"INPUT0": rows, "INPUT1": rows}, model="simple")
        assert answer["OUTPUT0"].tolist() == (rows + rows).tolist()
        other = asyncio.run(server.ainfer({"INPUT0": rows, "INPUT1": rows}))
        assert other["OUTPUT1"].tolist() == (rows - rows).tolist()
        body = {
            "inputs": [
                {"name": name, "shape": [1, 16], "datatype": "INT32", "data": rows.ravel().tolist()}
                for name in ("INPUT0", "INPUT1")
            ]
        }
        request = urllib.request.Request(f"{server.url}/v2/models/simple/infer", json.dumps(body).encode())
        with urllib.request.urlopen(request, timeout=10) as reply:
            assert json.load(reply)["outputs"][0]["data"] == (2 * rows).ravel().tolist()
            assert 'variant="exact"' in reply.headers["Clover-Receipt"]
        with urllib.request.urlopen(f"{server.url}/v2/health/ready", timeout=10) as reply:
            assert json.load(reply) == {"live": True, "ready": True}
        with urllib.request.urlopen(f"{server.url}/metrics", timeout=10) as reply:
            text = reply.read().decode()
        assert 'clover_requests_total{code="200",model="simple",tenant=""} 3.0' in text
        assert 'clover_rows_total{model="simple",tenant="",variant="exact"} 3.0' in text
        assert 'clover_carbon_intensity{method="configured"' in text or "clover_carbon_intensity{" in text
        with urllib.request.urlopen(f"{server.url}/v2/models/simple/stats", timeout=10) as reply:
            assert json.load(reply)["model_stats"][0]["inference_count"] == 3
        assert children() > before
    assert children() == before
    server.close()
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(f"{server.url or 'http://127.0.0.1:9'}/v2", timeout=2)


@quick_start
def test_strings_and_rows_of_any_length(tmp_path: Path) -> None:
    async def main() -> None:
        async with serve("identity_bytes", tmp_path, variant="echo") as server:
            rows = np.array([[b"one", b""], [b"two", b"three"]], dtype=object)
            answer = await server.ainfer({"INPUT0": rows})
            assert answer["OUTPUT0"].tolist() == rows.tolist()
            several = [server.ainfer({"INPUT0": np.array([["x"] * count], object)}) for count in (1, 2, 3)]
            shapes = [each["OUTPUT0"].shape for each in await asyncio.gather(*several)]
            assert shapes == [(1, 1), (1, 2), (1, 3)]
            with pytest.raises(clover.BadRequest):
                await server.ainfer({"INPUT0": np.array([["x"] * 65], object)})

    run(main())


@quick_start
def test_a_planned_family_serves_labels(toy_cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "clover")
    settings: dict[str, Any] = {"http": False, "cache_dir": str(toy_cache), "carbon": "static:300", "mode": "off"}
    settings["backends"] = ("eager",)
    with clover.Server(family("toy"), **settings) as server:
        if server.engine.machine.meters["cpu0"].method == "modelled":
            assert caplog.text.count("energy is modelled") == 1
        answer = server.infer({"INPUT0": np.eye(4, dtype=np.float32)})
        assert answer.labels()[0] == "a"
        assert 0.0 < answer.receipt.accuracy <= 100.0
        assert server.infer({"INPUT0": [0.0, 9.0, 0.0, 0.0]}, min_accuracy=90).label == "b"
        assert server.infer({"INPUT0": [0.0, 9.0, 0.0, 0.0]}, min_accuracy=90).receipt.variant == "full"
        state = server.engine.control().state()
        assert state["mode"] == "off"
        assert state["models"]["toy"]["deployment"]
        assert state["totals"]["models"]["toy"]["rows"]["full"] >= 2
        assert [item["action"] for item in server.engine.control().decisions(5)] == ["applied"]
        moving = asyncio.run_coroutine_threadsafe(_pin_and_reload(server), server.engine.loop)
        assert moving.result(60) == ["half", "full"]
        best = max(item.value for item in server.engine.served["toy"].profile.accuracy)
    floor = (best + 100) / 2
    with (
        pytest.raises(
            clover.ConfigError, match=f"toy: accuracy_floor {floor:g} is above the best variant's {best:.2f} %"
        ),
        clover.Server(family("toy"), accuracy_floor=floor, **settings),
    ):
        raise AssertionError("it must not start")
    assert "torch" not in sys.modules or "pytest" in sys.modules  # other tests may have imported it


@quick_start
def test_a_profile_is_corrected_by_what_the_front_end_shows(toy_cache: Path) -> None:
    """HTTP adds a millisecond or so by the profile, and 39 more as the server sees it."""

    async def main() -> None:
        settings = {"port": 0, "cache_dir": str(toy_cache), "carbon": "static:300", "backends": ("eager",)}
        async with clover.Server(family("toy"), slo_ms=30.0, **settings) as server:
            engine = server.engine
            assert engine.frontend is not None
            control, lag = engine.controller, engine.frontend.lag
            context = control.context
            router = server.engine.served["toy"].router

            def model() -> Any:
                return control.state()["models"]["toy"]

            known = server.engine.served["toy"].profile
            assert known is not None
            assert router.front_ms == known.front_ms
            planned_ms = model()["plan"]["prediction"]["p95_ms"]
            for number in range(LEAST_WINDOWS * WINDOW):  # what probes see in a minute
                lag.record(100_000 + (39_000_000 if number % 10 == 0 else 0))
            for minutes in (1, 2, 3):  # in the first its workers were started just now
                context.monotonic = lambda ahead_s=60.0 * minutes: time.monotonic() + ahead_s
                await control.poll()
            told = model()["profile_correction"]
            assert told["front"]["profile_ms"] == known.front_ms
            assert told["front"]["ms"] == pytest.approx(known.front_ms + 39.0, abs=1.0)
            assert told["words"].startswith("HTTP: ")
            await server.ainfer({"INPUT0": [1.0, 0.0, 0.0, 0.0]})
            assert router.observe()["p95_ms"] > router.front_ms == told["front"]["ms"] > 38.0
            triggers = [one["trigger"] for one in control.decisions(9)]
            assert any(trigger.startswith("profile corrected: HTTP adds") for trigger in triggers), triggers
            assert model()["plan"]["prediction"]["p95_ms"] > max(38.0, planned_ms)

    run(main())


async def _pin_and_reload(server: clover.Server) -> list[str]:
    """Pin one variant, unload, pin the other, load: who answers after each pin."""
    engine = server.engine
    found = []
    await engine.control().command("pin", {"variant": "half", "force": True}, "a test")
    found.append((await server.ainfer({"INPUT0": [1.0, 0.0, 0.0, 0.0]})).receipt.variant)
    await engine.unload("toy")
    assert engine.control().state()["models"] == {}
    assert not engine.ready()
    await engine.load("toy", "")
    await engine.control().command("pin", {"variant": "full", "force": True}, "a test")
    found.append((await server.ainfer({"INPUT0": [1.0, 0.0, 0.0, 0.0]})).receipt.variant)
    async with asyncio.timeout(20):
        while not (engine.totals()["saved"] or {}).get("base"):  # until a window is closed that has rows of this worker
            await server.ainfer({"INPUT0": [1.0, 0.0, 0.0, 0.0]})
            await asyncio.sleep(0.1)
    told = engine.control().state()["models"]["toy"]["saved"]["base"]
    assert told["against"].startswith("BASE: full on 1 x ")
    assert told["shadow_g"] == pytest.approx(told["emitted_g"] + told["grams"])
    shown = re.search(
        r'clover_saved_carbon_grams\{against="base",estimate="likely",.*,model="toy"\} (\S+)', engine.metrics().decode()
    )
    assert shown is not None
    assert float(shown[1]) == told["grams"]
    return found


@quick_start
@pytest.mark.usefixtures("short_profiling")
def test_two_families_share_a_server(tmp_path: Path) -> None:
    spec = clover.load_family(family("simple"))

    async def main() -> None:
        server = clover.Server(
            family("slow"), spec, http=False, cache_dir=str(tmp_path), carbon="static:300", energy_meter="modelled"
        )
        # Each is pinned to a variant of its own, which one keyword for all cannot say.
        pinned = [
            msgspec.structs.replace(item, variant=variant)
            for item, variant in zip(server.config.families, ("fast", "exact"), strict=True)
        ]
        config = msgspec.structs.replace(server.config, families=tuple(pinned))
        async with clover.Server(spec, config=config, http=False) as one:
            assert list(one.engine.served) == ["simple"]
        config = msgspec.structs.replace(
            config, families=(pinned[0], msgspec.structs.replace(pinned[1], family=family("simple"), name="adder"))
        )
        async with clover.Server(config=config, http=False) as both:
            with pytest.raises(clover.BadRequest, match="which model"):
                await both.ainfer({"INPUT0": [1.0]})
            rows = np.ones(16, np.int32)
            slow, adder = await asyncio.gather(
                both.ainfer({"INPUT0": [1.0]}, model="slow"),
                both.ainfer({"INPUT0": rows, "INPUT1": rows}, model="adder"),
            )
            assert slow["OUTPUT0"].tolist() == [[1.0]]
            assert adder["OUTPUT0"].tolist() == [[2] * 16]
            with pytest.raises(clover.NotFound):
                await both.ainfer({"INPUT0": rows, "INPUT1": rows}, model="simple")
            assert both.engine.models()["adder"].spec.name == "adder"

    run(main())


# --- wounds -----------------------------------------------------------------------------------------------------------


@quick_start
def test_kill_9_under_load_loses_nothing(tmp_path: Path) -> None:
    async def main() -> None:
        async with serve("slow", tmp_path) as server:
            served = server.engine.pick("slow")
            killed = 0
            for turn in range(240):
                batch = [server.ainfer({"INPUT0": [float(number)]}) for number in range(8)]
                asking = asyncio.gather(*batch)
                if turn in (40, 140):
                    await asyncio.sleep(0.001)
                    ready = [item["pid"] for item in served.fleet.describe() if item["state"] == "ready"]
                    for pid in ready[: 1 if turn == 40 else None]:  # one of them, then all there are
                        os.kill(pid, signal.SIGKILL)
                        killed += 1
                for number, answer in enumerate(await asking):
                    assert answer["OUTPUT0"].tolist() == [[float(number)]]
            await until(lambda: served.fleet.observe()["workers"] == len(served.default_deployment()))
            assert served.traffic.lost_workers == killed
            assert served.fleet.restarts >= killed
            assert server.engine.ready()
            assert served.router.observe()["free_slots"] == served.slab.layout.slots

    run(main())


@quick_start
def test_poison_is_refused_and_others_are_served(tmp_path: Path) -> None:
    async def main() -> None:
        async with serve("crashy", tmp_path, variant="always") as server:
            served = server.engine.pick(None)
            with pytest.raises(clover.ModelFailed):
                await server.ainfer({"INPUT0": np.array([1], np.int32)})
            with pytest.raises(clover.ModelFailed):
                await server.ainfer({"INPUT0": np.array([5], np.int32)})
            with pytest.raises(clover.Unavailable) as refused:
                await server.ainfer({"INPUT0": np.array([2], np.int32)})
            assert refused.value.retry_after_s is None
            assert served.traffic.poisoned == 1
            assert (await server.ainfer({"INPUT0": np.array([0], np.int32)}))["OUTPUT0"].tolist() == [[0]]
            assert 'clover_poison_requests_total{model="crashy"} 1.0' in server.engine.metrics().decode()

    run(main())


@quick_start
def test_a_stuck_worker_is_killed_and_replaced(tmp_path: Path) -> None:
    async def main() -> None:
        async with serve("crashy", tmp_path, variant="always", silent_s=0.3) as server:
            served = server.engine.pick(None)
            with pytest.raises(clover.DeadlineMissed):
                await server.ainfer({"INPUT0": np.array([4], np.int32)}, timeout_ms=100)
            await until(lambda: served.fleet.restarts >= 1)
            await until(server.engine.ready)
            assert (await server.ainfer({"INPUT0": np.array([0], np.int32)}))["OUTPUT0"].tolist() == [[0]]
            assert any("silent" in event["reason"] for event in served.fleet.events)

    run(main())


# --- changes ----------------------------------------------------------------------------------------------------------


@quick_start
def test_swaps_under_load_fail_nothing(tmp_path: Path) -> None:
    async def main() -> None:
        async with serve("slow", tmp_path) as server:
            served = server.engine.pick(None)
            fleet = served.fleet
            stopped = False
            seen: list[str] = []

            async def load(number: float) -> None:
                while not stopped:
                    answer = await server.ainfer({"INPUT0": [number]})
                    assert answer["OUTPUT0"].tolist() == [[number]]
                    index = int(answer["VARIANT"][0, 0])
                    assert answer.variants == (("fast", "slow")[index],)  # the receipt says who really answered
                    seen.append(answer.variants[0])

            asking = [asyncio.ensure_future(load(float(number))) for number in range(4)]
            current = served.default_deployment()
            for turn in range(6):
                variant = ("slow", "fast")[turn % 2]
                target = tuple(msgspec.structs.replace(item, variant=variant) for item in current)
                for item in target:
                    await fleet.spawn(item)
                fleet.route(target, Routing(shares={variant: 1.0}))
                for item in current:
                    await fleet.drain(item)
                assert fleet.ready_assignments() == target
                current = target
                await asyncio.sleep(0.05)
            stopped = True
            await asyncio.gather(*asking)
            assert set(seen) == {"fast", "slow"}
            assert fleet.swaps == 6 * len(current)
            assert fleet.repartitions == 0
            assert served.traffic.codes == {200: len(seen)}
            assert served.traffic.lost_workers == 0
            with pytest.raises(clover.PlanError):
                fleet.route((msgspec.structs.replace(current[0], variant="slow"),), Routing(shares={"slow": 1.0}))
            with pytest.raises(clover.PlanError):
                fleet.route(current, Routing(shares={"huge": 1.0}))
            with pytest.raises(clover.WorkerError):
                await fleet.spawn(msgspec.structs.replace(current[0], variant="huge"))

    run(main())


@quick_start
def test_a_wait_of_the_routing_forms_larger_batches_and_none_does_not(tmp_path: Path) -> None:
    async def main() -> None:
        async with serve("slow", tmp_path) as server:
            served = server.engine.pick("slow")
            workers = served.default_deployment()

            def turn(**knobs: Any) -> None:
                served.fleet.route(workers, Routing(shares={"fast": 1.0}, **knobs))

            def batches() -> dict[int, int]:
                found = served.router.stats()["batch_stats"]
                return {row["batch_size"]: row["compute_infer"]["count"] for row in found}

            async def one_by_one(rows: int) -> list[asyncio.Future[clover.Answer]]:
                """Each in a turn of the loop of its own, so that only a wait can bring them together."""
                asked = []
                for number in range(rows):
                    asked.append(asyncio.ensure_future(server.ainfer({"INPUT0": [float(number)]})))
                    await until(lambda: served.router.observe()["queue_rows"] == len(asked) % 4)
                return asked

            turn(wait_ms={"fast": 20_000.0}, largest={"fast": 4})
            answers = await asyncio.gather(*await one_by_one(4))
            assert [answer["OUTPUT0"].tolist() for answer in answers] == [[[float(number)]] for number in range(4)]
            assert batches() == {4: 1}
            waiting = await one_by_one(3)
            turn(wait_ms={"fast": 0.0})  # what waits goes at once
            await asyncio.gather(*waiting)
            assert batches() == {3: 1, 4: 1}
            for number in range(4):
                await server.ainfer({"INPUT0": [float(number)]})
            assert batches() == {1: 4, 3: 1, 4: 1}
            turn(wait_ms={"fast": 50.0})
            started_s = time.monotonic()
            await server.ainfer({"INPUT0": [1.0]})
            assert 0.045 < time.monotonic() - started_s < 20.0

    run(main())


@quick_start
def test_unload_and_load(tmp_path: Path) -> None:
    async def main() -> None:
        async with serve("slow", tmp_path) as server:
            engine = server.engine
            assert engine.state_of("slow") == ("READY", "")
            asked = asyncio.ensure_future(server.ainfer({"INPUT0": [1.0]}))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            await engine.unload("slow")
            assert (await asked)["OUTPUT0"].tolist() == [[1.0]]
            assert engine.state_of("slow") == ("UNAVAILABLE", "unloaded")
            assert not engine.ready()
            with pytest.raises(clover.Unavailable):
                await server.ainfer({"INPUT0": [1.0]})
            with pytest.raises(clover.BadRequest):
                await engine.load("slow", "{")
            await engine.load("slow", '{"name": "slow"}')
            assert engine.ready()
            assert (await server.ainfer({"INPUT0": [1.0]}))["OUTPUT0"].tolist() == [[1.0]]
            with pytest.raises(clover.NotFound):
                await engine.load("other", "")

    run(main())


# --- ends -------------------------------------------------------------------------------------------------------------


@quick_start
@pytest.mark.parametrize("ending", ["stop", "unload"])
def test_what_was_received_is_answered_before_the_workers_go(tmp_path: Path, ending: str) -> None:
    async def main() -> None:
        async with serve("slow", tmp_path, variant="slow", cores="0") as server:
            # Far more than the credits of a worker: most of it still waits in the queue.
            asked = [asyncio.ensure_future(server.ainfer({"INPUT0": [float(n)]})) for n in range(60)]
            await until(lambda: server.engine.pick(None).router.observe()["queue_rows"] > 20)
            if ending == "stop":
                assert await server.stop()
            else:
                await server.engine.unload("slow")
                with pytest.raises(clover.Unavailable, match="unloaded"):
                    await server.ainfer({"INPUT0": [1.0]})
            answers = await asyncio.gather(*asked)
            assert [float(answer["OUTPUT0"][0, 0]) for answer in answers] == [float(n) for n in range(60)]

    run(main())


@contextlib.contextmanager
def quickly(nursery: Nursery) -> Iterator[None]:
    """Fork zygotes for what comes first, and is not what is looked at."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ZygoteLink, "launch", nursery.launch)
        yield


def test_a_stopped_server_leaves_nothing(nursery: Nursery, tmp_path: Path) -> None:
    async def once() -> None:
        async with serve("slow", tmp_path, http=True) as server:
            await server.ainfer({"INPUT0": [1.0]})

    before = children()
    with quickly(nursery):
        run(once())
    open_before = descriptors()
    run(once())
    assert children() == before
    assert descriptors() == open_before


@pytest.mark.parametrize("name", ["unloadable", "no_such_variant"])
def test_a_failed_start_leaves_nothing(tmp_path: Path, name: str) -> None:
    async def once() -> None:
        with pytest.raises((clover.WorkerError, clover.ConfigError)):
            async with serve("crashy", tmp_path, variant=name):
                raise AssertionError("it must not start")

    before = children()
    run(once())
    assert children() == before


def test_a_second_family_that_cannot_be_used_leaves_nothing_of_the_first(nursery: Nursery, tmp_path: Path) -> None:
    async def once() -> None:
        server = clover.Server(family("slow"), str(tmp_path / "nowhere"), http=False, cache_dir=str(tmp_path))
        with pytest.raises(clover.ConfigError, match="no family"):
            await server.start()

    with quickly(nursery):
        run(once())
    before = descriptors()
    run(once())
    assert descriptors() == before


@quick_start
def test_a_taken_port_fails_at_once(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        before = children()
        with pytest.raises(clover.StartError, match="cannot listen"):
            serve("slow", tmp_path, http=True, port=port).start_background()
        assert children() == before


def test_unknown_settings_are_refused_with_a_hint() -> None:
    with pytest.raises(clover.ConfigError, match=r"did you mean.*slo_ms"):
        clover.Server("fashion", slo_mss=3)


SCRIPT = """
import sys
import clover
server = clover.Server(sys.argv[1], variant="fast", port=0, carbon="static:300", cache_dir=sys.argv[2])
code = server.run(on_ready=lambda server: print(server.url, flush=True))
assert "torch" not in sys.modules
sys.exit(code)
"""


def test_run_ends_on_sigterm_with_all_answered(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, family("slow"), str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, **child_environment()},
    )
    try:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        body = {"inputs": [{"name": "INPUT0", "shape": [1, 1], "datatype": "FP32", "data": [4.0]}]}
        request = urllib.request.Request(f"{url}/v2/models/slow/infer", json.dumps(body).encode())
        with urllib.request.urlopen(request, timeout=10) as reply:
            assert json.load(reply)["outputs"][0]["data"] == [4.0]
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


FORKED = """
import clover
server = clover.Server(sys.argv[1], variant="fast", port=0, carbon="static:300", cache_dir=sys.argv[2])
sys.exit(server.run(on_ready=lambda server: print(server.url, flush=True)))
"""


@pytest.mark.alone  # within two seconds
def test_sigkill_of_the_server_leaves_no_process(scenes: Forks, tmp_path: Path) -> None:
    before = children()
    with scenes.talk(BEGIN + FORKED, [family("slow"), str(tmp_path)], environment()) as (process, _, prints):
        assert prints.readline().startswith("http://")
        below = children() - before - {process.pid}
        assert len(below) >= 3, "what forks zygotes, a zygote and a worker"
        process.kill()
        process.wait(20)
        end_s = time.monotonic() + 2.0
        while any(Path(f"/proc/{pid}").exists() and not _is_zombie(pid) for pid in below):
            assert time.monotonic() < end_s, "a child outlived the server"
            time.sleep(0.02)


def _is_zombie(pid: int) -> bool:
    """Ended, and waiting for whoever inherited it to look."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


@quick_start
def test_an_assignment_names_what_runs(tmp_path: Path) -> None:
    async def main() -> None:
        async with serve("slow", tmp_path) as server:
            served = server.engine.pick(None)
            (first, *_) = served.fleet.ready_assignments()
            assert isinstance(first, Assignment)
            described = served.fleet.describe()[0]
            assert (described["variant"], described["state"], described["routed"]) == ("fast", "ready", True)
            order = served.order(first)
            assert order.cores == server.engine.devices["cpu0"].cores(first.placement)
            assert order.max_batch == served.spec.max_batch

    run(main())
