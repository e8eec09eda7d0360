"""A server on two emulated A100s, in a process of its own: NVML is one library a process, and this one gets killed.

    python -m tests.support.mig_server CACHE kills     servers one after another, each in its own process: start,
                                                       reconfigure, end; then SIGKILL to itself after one step of that,
                                                       after two, ... after all; then start, reconfigure, end again
    python -m tests.support.mig_server CACHE faults    reconfigure under every kind of fault

Prints one JSON object a line; the tests read them.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import numpy as np

import clover.server
from clover.backends.artifacts import package_version
from clover.control import controller
from clover.control.state.apply import Applier
from clover.devices.mig import MigDevice
from clover.errors import CloverError
from clover.planning.packing import geometry
from clover.types import Placement, Routing, Step
from tests.e2e import forked_zygote
from tests.support import disturb
from tests.support.scene_policies import TWO_GPUS, BaseOnTwoGpus, policy_name

TOY = str(Path(__file__).parents[1] / "families" / "toy")
BOX = "a100-40gb"
BASE = TWO_GPUS
MIXED = {"half@3g.20gb": 3, "full@2g.10gb": 2}


def say(**figures: Any) -> None:
    print(json.dumps(figures), flush=True)


def server(cache: Path, **settings: Any) -> clover.Server:
    return clover.Server(
        TOY,
        http=False,
        cache_dir=str(cache),
        backends=("eager",),
        slo_ms=10_000.0,
        waits=False,
        accuracy_floor=1.0,
        carbon="static:300",
        **{
            "device": f"emulated:{BOX}:2",
            "policy": policy_name(BaseOnTwoGpus),
            "verify_s": 0.2,
            **settings,
        },
    )


async def answers(running: clover.Server, model: str | None = None) -> bool:
    """Whether a row is answered by what a variant says of it."""
    row = np.array([[0.1, 0.2, 3.0, 0.4]], np.float32)
    answer = await running.ainfer({"INPUT0": row}, model=model)
    return bool(np.isclose(answer["OUTPUT0"].sum(), 1.0))


class Load:
    """Asks one row after another, and counts."""

    def __init__(self, running: clover.Server, model: str | None = None) -> None:
        self.asked = self.failed = 0
        self.reasons: list[str] = []
        self._server = running
        self._model = model
        self._task = asyncio.ensure_future(self._run())

    async def _run(self) -> None:
        while True:
            self.asked += 1
            try:
                assert await answers(self._server, self._model)
            except CloverError as error:
                self.failed += 1
                self.reasons.append(str(error))
            await asyncio.sleep(0.02)

    async def end(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


def standing(running: clover.Server) -> dict[str, Any]:
    """What exists, what ought to, and whether that is legal."""
    engine = running.engine
    devices = [device for device in engine.devices.values() if isinstance(device, MigDevice)]
    exist = sorted(place.id for device in devices for place in device.instances())
    wanted = sorted({item.placement.id for item in engine.pick(None).fleet.ready_assignments()})
    legal = all(is_legal(device.instances()) for device in devices)
    return {"instances": exist, "deployment": wanted, "legal": legal}


def gpu(running: clover.Server, name: str) -> MigDevice:
    device = running.engine.devices[name]
    assert isinstance(device, MigDevice)
    return device


def is_legal(places: tuple[Placement, ...]) -> bool:
    from clover.devices import tables

    profiles = {profile.name: profile for profile in tables.slice_profiles(tables.table(BOX))}
    return geometry.legal(places, profiles, compute=7) == ""


async def crash(cache: Path, kill_after: int) -> int:
    """Start on what an earlier run left, say how that went, then reconfigure and die on the way; with 0, end, and
    return how many steps that took."""
    done = 0
    step_of = Applier._do

    async def counted(self: Applier, step: Step, routing: Routing) -> None:
        nonlocal done
        await step_of(self, step, routing)
        done += 1
        if kill_after and started and done >= kill_after:
            os.kill(os.getpid(), signal.SIGKILL)

    started = False
    async with server(cache) as running:
        say(event="ready", answered=await answers(running), **standing(running))
        Applier._do = counted  # type: ignore[method-assign]
        started, done = True, 0
        await running.engine.control().command("apply", {"configuration": MIXED, "force": True}, "a test")
        say(event="done", steps=done, answered=await answers(running), **standing(running))
    return done


def kills(cache: Path) -> None:
    """Servers that end, and between them servers killed after one step, two steps, ...: forked, so that they need not
    import everything again, nor do their zygotes."""
    forked_zygote.import_all()
    package_version("torch")  # remembered: its metadata are long

    steps = forked(cache, 0)
    for kill_after in range(1, steps + 1):
        forked(cache, kill_after)
    forked(cache, 0)


def forked(cache: Path, kill_after: int) -> int:
    """Run `crash` in a fork, say how it ended and what is left of it, and return its steps, if it was not killed."""
    read, write = os.pipe()
    pid = os.fork()
    if not pid:
        os.setsid()
        forked_zygote.adopt()
        code = 1
        try:
            os.write(write, str(asyncio.run(crash(cache, kill_after))).encode())
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    os.close(write)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    end_s = time.monotonic() + 2.0
    while (left := of_session(pid)) and time.monotonic() < end_s:
        time.sleep(0.02)
    say(event="end", after=kill_after, code=code, left=left)
    with open(read) as steps:
        return int(steps.read() or 0)


def of_session(session: int) -> list[int]:
    """Living processes of a session."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError):
                fields = Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()
                if int(fields[3]) == session and fields[0] != "Z":
                    found.append(int(entry))
    return found


def main(cache: str, what: str) -> None:
    controller.INTERVAL_S = 0.1
    if what == "faults":
        asyncio.run(faults(Path(cache)))
    else:
        kills(Path(cache))


FAULTS: dict[str, tuple[disturb.Fault, ...]] = {
    "in use for two tries": (disturb.Fault(symbol="nvmlGpuInstanceDestroy", error="IN_USE", count=2),),
    "in use for ever": (disturb.Fault(symbol="nvmlGpuInstanceDestroy", gpu=0, error="IN_USE", count=0),),
    "compute instance fails": (disturb.Fault(symbol="nvmlGpuInstanceCreateComputeInstance", error="UNKNOWN"),),
    "no resources": (disturb.Fault(symbol="nvmlDeviceCreateGpuInstanceWithPlacement", error="INSUFFICIENT_RESOURCES"),),
    "no permission": (disturb.Fault(symbol="nvmlDeviceCreateGpuInstanceWithPlacement", error="NO_PERMISSION"),),
    "third creation fails": (disturb.Fault(symbol="nvmlDeviceCreateGpuInstanceWithPlacement", error="UNKNOWN", nth=3),),
    "creation fails for ever": (
        disturb.Fault(symbol="nvmlDeviceCreateGpuInstanceWithPlacement", gpu=1, error="UNKNOWN", count=0),
    ),
    "slow": (disturb.Fault(symbol="nvmlDeviceCreateGpuInstanceWithPlacement", error="", delay_s=0.3, count=0),),
    "power stuck": (disturb.Fault(symbol="nvmlDeviceGetTotalEnergyConsumption", error="STUCK", count=0),),
    "energy fails": (disturb.Fault(symbol="nvmlDeviceGetTotalEnergyConsumption", error="UNKNOWN", count=0),),
    "GPU lost in mid-change": (
        disturb.Fault(
            symbol="nvmlDeviceCreateGpuInstanceWithPlacement", gpu=1, error="GPU_IS_LOST", nth=2, count=0, seconds=3.0
        ),
        disturb.Fault(symbol="nvmlDeviceGetPowerUsage", gpu=1, error="GPU_IS_LOST", count=0, seconds=3.0),
    ),
}


async def faults(cache: Path) -> None:
    """One reconfiguration under each kind of fault, with clients asking all the while."""
    state = cache / "emulated" / f"{BOX}-2.nvml"
    async with server(cache) as running:
        control = running.engine.control()
        for name, injected in FAULTS.items():
            disturb.clear_faults(state)
            load = Load(running)
            disturb.inject(state, *injected)
            outcome = "applied"
            try:
                answer = await control.command("apply", {"configuration": MIXED, "force": True}, "a test")
                outcome = str(answer.get("action", answer))
            except CloverError as error:
                outcome = f"{type(error).__name__}: {error}"
            disturb.clear_faults(state)
            reached = sorted(
                f"{item.variant}@{item.placement.profile}"
                for item in running.engine.pick(None).fleet.ready_assignments()
            )
            reports = {name: gpu(running, name).report() for name in running.engine.devices}
            say(fault=name, outcome=outcome, reached=reached, reports=reports, **standing(running))
            await settled(running, BASE)
            await load.end()
            say(after=name, asked=load.asked, failed=load.failed, reasons=load.reasons[:3], **standing(running))
        load = Load(running)
        disturb.lose(state, 1)
        await until(lambda: gpu(running, "gpu1").lost)
        await until(
            lambda: all(i.placement.device == "gpu0" for i in running.engine.pick(None).fleet.ready_assignments())
        )
        lost = standing(running)
        asked, failed = load.asked, load.failed
        await asyncio.sleep(0.3)
        say(fault="GPU lost", served_on=load.asked - asked, failed_since=load.failed - failed, **lost)
        disturb.restore(state, 1)
        await settled(running, BASE)
        await load.end()
        say(after="GPU lost", asked=load.asked, failed=load.failed, reasons=load.reasons[:3], **standing(running))


async def settled(running: clover.Server, groups: dict[str, int]) -> None:
    """Apply `groups`, as often as it takes a quarantined slot to be freed or a GPU to come back."""
    end_s = time.monotonic() + 45.0
    while True:
        try:
            await running.engine.control().command("apply", {"configuration": groups, "force": True}, "a test")
        except CloverError:
            if time.monotonic() > end_s:
                raise
        wanted = sorted(key for key, n in groups.items() for _ in range(n))
        reached = sorted(
            f"{item.variant}@{item.placement.profile}" for item in running.engine.pick(None).fleet.ready_assignments()
        )
        if reached == wanted:
            return
        assert time.monotonic() < end_s, (reached, wanted)
        await asyncio.sleep(0.1)


async def until(what: Any, within_s: float = 20.0) -> None:
    end_s = time.monotonic() + within_s
    while not what():
        assert time.monotonic() < end_s
        await asyncio.sleep(0.02)


if __name__ == "__main__":
    main(*sys.argv[1:])
