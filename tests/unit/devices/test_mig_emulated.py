"""The devices on the emulated driver, through the unmodified bindings: what a fake cannot be trusted to get right.

A process has one NVML and one box, so each test is a small program of its own.  Most of them run in forks of one
process that has imported what they need, and has no NVML.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap

import pytest

from clover.devices import tables
from tests.support.forks import Forks

HEAD = """
import asyncio, logging, os, subprocess, sys, time
from pathlib import Path
from clover import devices
from clover.config import WorkersConfig
from clover.devices import tables
from clover.emulation import emulated
from tests.support import disturb
from tests.support.disturb import Fault
from clover.errors import DeviceError, DeviceLost
from clover.planning.packing import geometry
from clover.types import Placement

CACHE, BOX = Path(sys.argv[1]), sys.argv[2]
STATE = devices.box_path(devices.parse("emulated:" + BOX), CACHE)

def build(**options):
    return devices.build(WorkersConfig(device="emulated:" + BOX), CACHE, **options)

def at(profile, start=0, gpu=0):
    size = next(row.size for row in tables.table(BOX.partition(":")[0]).profiles if row.name == profile)
    return Placement(device=f"gpu{gpu}", profile=profile, start=start, size=size)

def refused(work, *words, error=DeviceError):
    try:
        asyncio.run(work)
    except error as problem:
        assert all(word in str(problem) for word in words), problem
    else:
        raise AssertionError("not refused")

def holder(device, placement):
    program = (
        "import sys\\n"
        "from clover.emulation.emulated import Attachment\\n"
        "held = Attachment(*sys.argv[1:])\\n"
        "print('held', flush=True)\\n"
        "sys.stdin.read()\\n"
    )
    words = [sys.executable, "-c", program, str(emulated.library()), str(STATE), device.visible(placement)]
    process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\\n"
    return process

run = asyncio.run
"""


@pytest.fixture(scope="module", autouse=True)
def servant():
    """The process whose forks run what is given to `script`."""
    global forking
    forking = Forks("pynvml", "clover.devices.mig", "clover.devices.nvml")
    yield
    forking.close()


def start(tmp_path, body, box="a100-40gb:1"):
    """The program as a process of its own, which need not end."""
    words = [sys.executable, "-c", HEAD + textwrap.dedent(body), str(tmp_path), box]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def script(tmp_path, body, box="a100-40gb:1"):
    """Run the program to its end; what it printed."""
    done = forking.run(HEAD + textwrap.dedent(body), [str(tmp_path), box], os.environ)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("name", tables.names())
def test_what_is_discovered_is_what_the_table_says(tmp_path, name):
    script(
        tmp_path,
        """
        device = build()["gpu0"]
        table = tables.table(BOX.partition(":")[0])
        found = {profile.name: profile for profile in device.profiles()}
        assert found == {profile.name: profile for profile in tables.slice_profiles(table, base_only=False)}
        for row in table.profiles:
            for first in row.starts:
                assert device.memory_bytes(at(row.name, first)) == row.memory_mib << 20
        base = tables.slice_profiles(table)
        layouts = geometry.layouts(base, device="gpu0", compute=table.compute_slices)
        assert set(device.shape().layouts) == set(layouts)
        assert (device.product, device.shape().slices) == (table.product, table.compute_slices)
        assert device.shape().emulated and device.shape().label == table.product + ", emulated"
        # Every layout can really be made, in whatever order, because each place is named.
        for layout in device.shape().layouts[:: max(1, len(layouts) // 6)]:
            async def there_and_back():
                await asyncio.gather(*(device.create(place) for place in layout[::-1]))
                assert device.instances() == layout
                assert len({device.visible(place) for place in layout}) == len(layout)
                assert all(device.visible(place).startswith("MIG-") for place in layout)
                await asyncio.gather(*(device.destroy(place) for place in layout))
                assert device.instances() == ()
            run(there_and_back())
        """,
        box=f"{name}:1",
    )


def test_instances_outlive_their_server(tmp_path):
    uuid = script(
        tmp_path,
        """
        device = build()["gpu1"]
        run(device.create(at("2g.10gb", 2, gpu=1)))
        run(device.create(at("1g.5gb", 4, gpu=1)))
        print(device.visible(at("2g.10gb", 2, gpu=1)), flush=True)
        os._exit(0)
        """,
        box="a100-40gb:2",
    )
    again = script(
        tmp_path,
        """
        found = build()
        keep = (at("2g.10gb", 2, gpu=1), at("2g.10gb", 2, gpu=0))
        assert run(found["gpu0"].reconcile(keep)) == ()
        assert run(found["gpu1"].reconcile(keep)) == keep[:1]
        print(found["gpu1"].visible(keep[0]))
        """,
        box="a100-40gb:2",
    )
    assert uuid == again


@pytest.mark.slow
def test_boxes_of_one_cache_do_not_share_gpus(tmp_path):
    uuids = [
        script(tmp_path, "print(*(device.uuid for device in build().values()))", box=box).split()
        for box in ("a100-40gb:1", "a100-40gb:2", "h100-sxm-80gb:1")
    ]
    flat = [uuid for some in uuids for uuid in some]
    assert len(flat) == len(set(flat)) == 4


def test_a_file_that_is_no_such_box_is_refused(tmp_path):
    script(
        tmp_path,
        """
        emulated.create_box(STATE, "a30-24gb", 1)
        try:
            build()
        except DeviceError as error:
            assert "another emulated box" in str(error)
        else:
            raise AssertionError
        """,
    )
    state = next((tmp_path / "emulated").iterdir())
    state.write_bytes(b"no box")
    script(
        tmp_path,
        """
        try:
            build()
        except DeviceError as error:
            assert "is no emulated machine: give another file, or remove it" in str(error)
        else:
            raise AssertionError
        """,
    )


def test_a_box_made_beforehand_is_used_as_it_is(tmp_path):
    script(
        tmp_path,
        """
        emulated.create_box(STATE, "a100-40gb", 1, mig_enabled=False, privileged=False)
        device = build()["gpu0"]
        whole = Placement(device="gpu0", profile="gpu", start=0, size=1)
        assert device.shape().layouts == ((whole,),)
        assert device.visible(whole) == device.uuid
        assert device.uuid.startswith("GPU-")
        assert device.memory_bytes(whole) == tables.table("a100-40gb").memory_mib << 20
        """,
    )


def test_without_permission_nothing_is_made(tmp_path):
    script(
        tmp_path,
        """
        device = build()["gpu0"]
        emulated.set_privileged(STATE, False)
        refused(device.create(at("1g.5gb")), "root")
        assert device.instances() == ()
        emulated.set_privileged(STATE, True)
        run(device.create(at("1g.5gb")))
        emulated.set_privileged(STATE, False)
        refused(device.destroy(at("1g.5gb")), "root")
        assert device.report()["quarantined"][0]["placement"] == "gpu0:1g.5gb@0"
        """,
    )


def test_a_worker_keeps_its_slice_until_it_is_dead(tmp_path):
    script(
        tmp_path,
        """
        device = build()["gpu0"]
        device._work._back_off_s = (0.0, 0.0)
        place = at("3g.20gb", 4)
        run(device.create(place))
        worker = holder(device, place)
        refused(device.destroy(place), "in use", f"held by process {worker.pid}")
        assert all(other.start < 4 for layout in device.shape().layouts for other in layout)
        assert run(device.retry_quarantined()) == ()
        worker.kill()
        worker.wait()
        assert run(device.retry_quarantined()) == (place,)
        assert len(device.shape().layouts) == 19
        run(device.create(place))
        worker = holder(device, place)
        waits = []
        async def killed(seconds):
            waits.append(seconds)
            worker.kill()
            worker.wait()
        device._work._sleep = killed
        run(device.destroy(place))
        assert len(waits) == 1 and device.instances() == ()
        """,
    )


def test_refusals_of_the_driver(tmp_path):
    script(
        tmp_path,
        """
        device = build()["gpu0"]
        async def soon(seconds):
            pass
        device._work._sleep = soon
        disturb.inject(STATE, Fault(symbol="nvmlGpuInstanceCreateComputeInstance", error="INSUFFICIENT_RESOURCES"))
        refused(device.create(at("4g.20gb")), "compute instance")
        assert device.instances() == () and device.report()["quarantined"] == []
        run(device.create(at("7g.40gb")))  # nothing was left behind
        disturb.inject(STATE, Fault(symbol="nvmlGpuInstanceDestroy", error="IN_USE", count=3))
        run(device.destroy(at("7g.40gb")))
        disturb.inject(STATE, Fault(symbol="nvmlDeviceCreateGpuInstanceWithPlacement", error="UNKNOWN"))
        refused(device.create(at("4g.20gb")), "cannot be made")
        run(device.create(at("4g.20gb")))
        refused(device.create(at("7g.40gb")), "gpu0:4g.20gb@0 (made by Clover)")
        disturb.clear_faults(STATE)
        disturb.inject(STATE, Fault(symbol="nvmlGpuInstanceDestroy", error="IN_USE", count=0))
        refused(device.destroy(at("4g.20gb")), "no process is to be seen")
        assert all(place.start >= 4 for layout in device.shape().layouts for place in layout)
        disturb.clear_faults(STATE)
        assert run(device.retry_quarantined()) == (at("4g.20gb"),)
        """,
    )


def test_what_others_made_is_left_alone_and_planned_around(tmp_path):
    script(
        tmp_path,
        """
        build(exclusive=False)
        import ctypes, pynvml
        pynvml.nvmlInit()
        gpu = pynvml.nvmlDeviceGetHandleByIndex(0)
        def made(profile, place):
            place = pynvml.c_nvmlGpuInstancePlacement_t(*place)
            return pynvml.nvmlDeviceCreateGpuInstanceWithPlacement(gpu, profile, ctypes.byref(place))
        pynvml.nvmlGpuInstanceCreateComputeInstance(made(9, (0, 4)), 2)
        made(19, (6, 1))  # and one without a compute instance, which no MIG device shows
        device = build()["gpu0"]
        assert device.report()["foreign"] == ["gpu0:3g.20gb@0", "gpu0:1g.5gb@6"]
        assert run(device.reconcile()) == ()
        best = max(device.shape().layouts, key=len)
        assert best == (at("1g.5gb", 4), at("1g.5gb", 5))
        async def filled():
            for place in best:
                await device.create(place)
        run(filled())
        refused(device.destroy(at("1g.5gb", 6)), "not made by Clover")
        refused(device.create(at("1g.5gb", 6)), "not made by Clover")
        assert device.report()["foreign"] == ["gpu0:3g.20gb@0", "gpu0:1g.5gb@6"]
        """,
    )


def test_a_gpu_is_lost_and_comes_back(tmp_path):
    script(
        tmp_path,
        """
        found = build()
        device, other = found["gpu0"], found["gpu1"]
        run(device.create(at("2g.10gb", 2)))
        disturb.lose(STATE, 0)
        assert run(device.poll()) is False and run(other.poll()) is True
        assert device.shape().layouts == () and len(other.shape().layouts) == 19
        refused(device.create(at("1g.5gb", 0)), "gpu0", error=DeviceLost)
        refused(device.destroy(at("2g.10gb", 2)), "gpu0", error=DeviceLost)
        run(other.create(at("2g.10gb", 2, gpu=1)))
        assert run(device.poll()) is False
        disturb.restore(STATE, 0)
        assert run(device.poll()) is True
        assert device.instances() == () and len(device.shape().layouts) == 19
        run(device.create(at("2g.10gb", 2)))
        assert device.instances() == (at("2g.10gb", 2),)
        # Lost in the middle of making one.
        disturb.inject(STATE, Fault(symbol="nvmlGpuInstanceCreateComputeInstance", error="GPU_IS_LOST", gpu=0))
        refused(device.create(at("1g.5gb", 0)), "gpu0", error=DeviceLost)
        assert run(device.poll()) is True
        assert device.instances() == (at("2g.10gb", 2),)
        assert device.report()["quarantined"] == [] == device.report()["foreign"]
        """,
        box="a100-40gb:2",
    )


def test_instances_that_a_reboot_took_are_made_again(tmp_path):
    script(
        tmp_path,
        """
        device = build()["gpu0"]
        run(device.create(at("4g.20gb")))
        disturb.reboot(STATE)
        run(device.create(at("4g.20gb")))
        disturb.reboot(STATE)
        run(device.destroy(at("4g.20gb")))
        assert device.instances() == ()
        run(device.create(at("7g.40gb")))
        """,
    )


@pytest.mark.slow
def test_a_second_server_is_refused_while_the_first_lives(tmp_path):
    first = start(tmp_path, "build()\nprint('up', flush=True)\ntime.sleep(100)")
    try:
        assert first.stdout.readline() == "up\n", first.stderr.read()
        script(
            tmp_path,
            """
            try:
                build()
            except DeviceError as error:
                assert "another Clover holds GPU-" in str(error)
            else:
                raise AssertionError
            assert list(build(exclusive=False)) == ["gpu0"]
            """,
        )
    finally:
        first.kill()
        first.communicate()
    script(tmp_path, "build()")


@pytest.mark.slow
@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize(
    "symbol",
    [
        "nvmlDeviceCreateGpuInstanceWithPlacement",
        "nvmlGpuInstanceCreateComputeInstance",
        "nvmlComputeInstanceDestroy",
        "nvmlGpuInstanceDestroy",
    ],
)
def test_a_server_killed_inside_a_call_leaves_what_the_next_one_can_clear_up(tmp_path, symbol, kept):
    """The call is slow, and the process dies in it."""
    killed = start(
        tmp_path,
        f"""
        device = build()["gpu0"]
        run(device.create(at("1g.5gb", 6)))
        disturb.inject(STATE, Fault(symbol={symbol!r}, delay_s=60.0))
        async def change():
            await device.create(at("3g.20gb", 0))
            await device.destroy(at("3g.20gb", 0))
        async def told():
            task = asyncio.ensure_future(change())
            while not disturb.faults_fired(STATE):
                await asyncio.sleep(0.01)
            print("inside", flush=True)
            await task
        run(told())
        """,
    )
    try:
        assert killed.stdout.readline() == "inside\n", killed.stderr.read()
        killed.send_signal(signal.SIGKILL)
    finally:
        killed.communicate()
    script(
        tmp_path,
        f"""
        disturb.clear_faults(STATE)
        device = build()["gpu0"]
        kept, steady = at("3g.20gb", 0), at("1g.5gb", 6)
        adopted = run(device.reconcile((steady, kept) if {kept} else (steady,)))
        stood = {symbol!r} != "nvmlDeviceCreateGpuInstanceWithPlacement"
        assert adopted == ((kept, steady) if {kept} and stood else (steady,)) == device.instances(), adopted
        report = device.report()
        assert report["foreign"] == [] == report["quarantined"]
        run(device.reconcile())
        run(device.create(at("7g.40gb")))
        """,
    )


@pytest.mark.slow
def test_ten_gpus_are_built_and_filled(tmp_path):
    script(
        tmp_path,
        """
        found = build()
        assert list(found) == [f"gpu{number}" for number in range(10)]
        async def fill():
            await asyncio.gather(
                *(device.create(place) for device in found.values() for place in max(device.shape().layouts, key=len))
            )
        run(fill())
        seen = [device.visible(place) for device in found.values() for place in device.instances()]
        assert len(seen) == len(set(seen)) == 70
        """,
        box="a100-40gb:10",
    )
