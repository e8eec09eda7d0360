"""A server whose plan runs a cheap variant, and requests that ask for the accurate one."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path

import msgspec
import pytest

import clover
from clover.devices.cpu import CpuDevice
from clover.errors import BadRequest, Unavailable, WorkerError
from clover.families import load_family
from clover.profiles import ProfileStore
from clover.profiling import key_of
from clover.runtime.workers.members import FleetWorker
from clover.types import Assignment, FamilyProfile
from tests.support import profiles_fixture as synthetic
from tests.support.servers import until
from tests.support.toy_family import TOY, settings


def with_a_frugal_half(folder: Path) -> None:
    """Make `full` take ten times what was measured in the profile below `folder`: of so small networks chance decides
    which one takes less."""
    for path in (folder / "profiles").glob("toy-*.json"):  # other tests may have measured it on other terms, too
        profile = msgspec.json.decode(path.read_bytes(), type=FamilyProfile)
        rows = tuple(
            msgspec.structs.replace(row, energy_j_per_row=row.energy_j_per_row * 10) if row.variant == "full" else row
            for row in profile.latency
        )
        ProfileStore(folder).put(msgspec.structs.replace(profile, latency=rows))


@pytest.mark.usefixtures("forked_zygotes")
def test_requests_that_ask_for_an_accuracy_get_the_variant_that_has_it(toy_cache: Path) -> None:
    with_a_frugal_half(toy_cache)

    async def main() -> None:
        server = clover.Server(
            TOY,
            cache_dir=str(toy_cache),
            http=False,
            port=0,
            carbon="static:700",
            energy_meter="modelled",
            backends=("eager",),
            policy="objective",
            objective="floor",
            accuracy_floor=10.0,
            slo_ms=1000.0,
            waits=False,
        )
        async with server as serving:
            free = await serving.ainfer({"INPUT0": [1.0, 2.0, 3.0, 4.0]})
            assert free.variants == ("half",)
            better = free.receipt.accuracy + 0.01
            began_s = time.monotonic()
            answers = [await serving.ainfer({"INPUT0": [1.0, 2.0, 3.0, 4.0]}, min_accuracy=better) for _ in range(40)]
            assert {answer.variants for answer in answers} == {("full",)}
            assert time.monotonic() - began_s < 25.0  # a plan and the start of a worker

    asyncio.run(main())


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="two variants need two cores")
@pytest.mark.usefixtures("forked_zygotes")
def test_a_pin_strands_no_row_that_asked_for_what_it_takes_away(toy_cache: Path) -> None:
    async def main() -> None:
        async with clover.Server(TOY, **settings(toy_cache)) as server:
            row = {"INPUT0": [1.0, 2.0, 3.0, 4.0]}
            served = server.engine.pick(None)
            full = served.router.accuracy[1]
            assert served.router.accuracy[0] < full
            answered, refused = 0, []

            async def ask() -> None:
                """Ask for what only `full` reaches, with a timeout that does not end, until it is refused."""
                nonlocal answered
                while not refused or len(refused) < 40:
                    try:
                        answer = await server.ainfer(row, min_accuracy=full, timeout_ms=1e9)
                    except Unavailable as error:
                        refused.append(str(error))
                        return
                    assert answer.receipt.accuracy >= full
                    answered += 1

            asking = [asyncio.ensure_future(ask()) for _ in range(40)]
            await asyncio.sleep(0)
            pinned = server.engine.controller.command("pin", {"variant": "half", "force": True}, "me")
            _, *ended = await asyncio.wait_for(asyncio.gather(pinned, *asking), 60.0)
            assert len(ended) == len(refused) == 40
            assert answered > 0
            assert {reason for reason in refused if "static:half" not in reason} == set()
            assert {item["variant"] for item in served.fleet.describe()} == {"half"}
            assert (await server.ainfer(row)).variants == ("half",)
            began_s = time.monotonic()
            assert await server.drain()
            assert time.monotonic() - began_s < 5.0

    asyncio.run(main())


@pytest.mark.usefixtures("forked_zygotes")
def test_a_server_that_stops_does_not_wait_for_workers_that_do_not_come(tmp_path: Path) -> None:
    async def main() -> None:
        async with clover.Server(TOY, **settings(tmp_path) | {"policy": "objective", "variant": "half"}) as server:
            served = server.engine.pick(None)

            async def no_memory(assignment: Assignment) -> FleetWorker:
                raise WorkerError(f"no memory for {assignment.variant}")

            served.fleet.members.start = no_memory
            for worker in served.fleet.describe():
                os.kill(worker["pid"], signal.SIGKILL)
            await until(lambda: served.router.hold and not served.router.ready)
            asking = asyncio.ensure_future(server.ainfer({"INPUT0": [1.0, 2.0, 3.0, 4.0]}, timeout_ms=1e9))
            await until(lambda: not served.router.hold)
            assert not asking.done(), "its worker may yet come"
            began_s = time.monotonic()
            assert await server.drain()
            assert time.monotonic() - began_s < 5.0
            with pytest.raises(Unavailable, match="shutting down"):
                await asking

    asyncio.run(main())


@pytest.mark.usefixtures("forked_zygotes")
def test_the_default_policy_plans_for_rows_of_which_some_ask_for_an_accuracy(tmp_path: Path) -> None:
    """Its plans are weighed beside workers that hold several variants, and a row may ask for any of these."""
    server = clover.Server(
        "fashion",
        cache_dir=str(tmp_path),
        http=False,
        port=0,
        carbon="static:300",
        energy_meter="modelled",
        backends=("eager",),
        slo_ms=500.0,
    )
    cores = tuple(2**power for power in range(9) if 2**power <= len(os.sched_getaffinity(0)))
    profile = msgspec.structs.replace(
        synthetic.profile(cores, synthetic.FASHION),
        family="fashion",
        key=key_of(load_family("fashion"), CpuDevice(), server.config),
    )
    ProfileStore(tmp_path).put(profile)

    async def main() -> None:
        async with server as serving:
            control, row = serving.engine.control(), {"image": [[[0.5] * 28] * 28]}

            def planned() -> bool:
                return any("ask for 91.20 % or more" in item["trigger"] for item in control.decisions(100))

            while not planned():
                for least in (0.0, 0.0, 90.0, 0.0, 93.0):
                    answer = await serving.ainfer(row, min_accuracy=least)
                    assert all(synthetic.FASHION[variant][0] >= least for variant in answer.variants)
                with pytest.raises(BadRequest, match="no variant of this model reaches an accuracy of 99 %"):
                    await serving.ainfer(row, min_accuracy=99.0)
            said = await control.command("set", {"slo_ms": 600.0}, "me")
            assert said["warnings"] == []
            made = control.decisions(100)
            assert {item["action"] for item in made} <= {"applied", "routed", "kept", "observed"}, made

    asyncio.run(asyncio.wait_for(main(), 60.0))
