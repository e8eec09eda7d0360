from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from types import SimpleNamespace

import pynvml
import pytest

from clover.devices import nvml
from clover.devices.nvml import Nvml, NvmlError
from clover.errors import DeviceError, DeviceLost
from tests.support.fake_nvml import FakeNvml


@pytest.fixture
def fake():
    return FakeNvml()


@pytest.fixture
def session(fake):
    session = Nvml(fake)
    yield session
    session.close()


def test_the_session_is_opened_by_the_first_call_and_once(session, fake):
    assert fake.calls == []
    assert session.call_sync("nvmlDeviceGetCount") == 1
    assert session.call_sync(fake.nvmlDeviceGetCount) == 1
    assert fake.calls == ["nvmlInit", "nvmlDeviceGetCount", "nvmlDeviceGetCount"]
    session.close()
    session.close()
    assert fake.calls[-1] == "nvmlShutdown"
    assert fake.calls.count("nvmlShutdown") == 1
    with pytest.raises(DeviceError, match="closed"):
        session.call_sync("nvmlDeviceGetCount")


def test_a_session_that_was_never_used_never_starts(fake):
    Nvml(fake).close()
    assert fake.calls == []


def test_a_start_that_fails_is_tried_again_by_the_next_call(session, fake):
    fake.faults["nvmlInit"] = [nvml.DRIVER_NOT_LOADED]
    with pytest.raises(NvmlError, match="driver is not loaded"):
        session.call_sync("nvmlDeviceGetCount")
    assert session.call_sync("nvmlDeviceGetCount") == 1


def test_everything_runs_in_one_thread_one_after_the_other(session):
    seen, running = [], []

    def work(number):
        assert not running
        running.append(number)
        seen.append(threading.get_ident())
        running.pop()
        return number

    async def several():
        return await asyncio.gather(*(session.call(work, number) for number in range(20)))

    assert asyncio.run(several()) == list(range(20))
    assert session.call_sync(work, 7) == 7
    assert len(set(seen)) == 1
    assert seen[0] != threading.get_ident()


def test_the_loop_turns_while_the_driver_takes_its_time(session):
    go = threading.Event()

    async def both():
        slow = asyncio.ensure_future(session.call(go.wait, 30))
        await asyncio.sleep(0)
        assert not slow.done()
        go.set()  # only a loop that turns gets here
        return await slow

    assert asyncio.run(both())


def test_lanes_do_not_wait_for_each_other_and_end_with_the_session(session, fake):
    go = threading.Event()

    async def both():
        slow = asyncio.ensure_future(session.lane("gpu0").call(go.wait, 30))
        assert await session.lane("meters").call("nvmlDeviceGetCount") == 1
        assert await session.call("nvmlDeviceGetCount") == 1
        assert not slow.done()
        go.set()
        return await slow

    assert asyncio.run(both())
    lane = session.lane("gpu0")
    assert lane is session.lane("gpu0")
    session.close()
    assert fake.calls.count("nvmlInit") == fake.calls.count("nvmlShutdown") == 1, "lanes share the session"
    with pytest.raises(DeviceError, match="closed"):
        lane.call_sync("nvmlDeviceGetCount")


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (nvml.NO_PERMISSION, "root"),
        (nvml.NOT_SUPPORTED, "turned on"),
        (nvml.DRIVER_NOT_LOADED, "load it"),
        (nvml.LIBRARY_NOT_FOUND, "install the NVIDIA driver"),
        (nvml.FUNCTION_NOT_FOUND, "too old"),
        (nvml.MISMATCH, "reboot"),
        (nvml.IN_USE, "still holds it"),
        (nvml.INSUFFICIENT_RESOURCES, "no room"),
        (pynvml.NVML_ERROR_UNKNOWN, r"Unknown Error \(NVML code 999\)"),
    ],
)
def test_refusals_say_what_to_do(session, fake, code, words):
    fake.faults["nvmlDeviceGetCount"] = [code]
    with pytest.raises(NvmlError, match=words) as caught:
        session.call_sync("nvmlDeviceGetCount")
    assert caught.value.code == code
    assert not isinstance(caught.value, DeviceLost)
    assert isinstance(caught.value.__cause__, pynvml.NVMLError)


def test_the_codes_are_those_of_the_bindings():
    names = {
        "INVALID_ARGUMENT",
        "NOT_SUPPORTED",
        "NO_PERMISSION",
        "NOT_FOUND",
        "DRIVER_NOT_LOADED",
        "TIMEOUT",
        "LIBRARY_NOT_FOUND",
        "FUNCTION_NOT_FOUND",
        "GPU_IS_LOST",
        "RESET_REQUIRED",
        "OPERATING_SYSTEM",
        "IN_USE",
        "INSUFFICIENT_RESOURCES",
    }
    for name in names:
        assert getattr(nvml, name) == getattr(pynvml, f"NVML_ERROR_{name}")
    assert nvml.MISMATCH == pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH


@pytest.mark.parametrize("code", [15, 16, 28])
def test_a_lost_gpu_is_told_from_a_refusal(session, fake, code):
    fake.faults["nvmlDeviceGetPowerUsage"] = [code]
    with pytest.raises(DeviceLost, match="gpu-reset, or reboot"):
        session.call_sync("nvmlDeviceGetPowerUsage", 0)


def test_a_handle_that_stays_unknown_is_that_of_a_lost_gpu(session, fake):
    slept = []

    def look_up():
        return nvml.look_up(fake, lambda: fake.nvmlDeviceGetHandleByIndex(0), slept.append)

    fake.faults["nvmlDeviceGetHandleByIndex"] = [nvml.UNKNOWN] * (nvml.LOOK_UPS - 1)
    assert session.call_sync(look_up) == 0
    assert len(slept) == nvml.LOOK_UPS - 1
    fake.faults["nvmlDeviceGetHandleByIndex"] = [nvml.UNKNOWN] * nvml.LOOK_UPS
    with pytest.raises(DeviceLost):
        session.call_sync(look_up)
    fake.faults["nvmlDeviceGetHandleByIndex"] = [nvml.NO_PERMISSION]
    with pytest.raises(NvmlError, match="not permitted"):
        session.call_sync(look_up)


def test_bindings_newer_than_the_driver_are_named(session, fake):
    def mismatched():
        raise pynvml.NVMLLibraryMismatchError("no such version")

    with pytest.raises(NvmlError, match="too old") as caught:
        session.call_sync(mismatched)
    assert caught.value.code == nvml.FUNCTION_NOT_FOUND


def test_mistakes_of_our_own_are_not_taken_for_the_drivers(session):
    with pytest.raises(ZeroDivisionError):
        session.call_sync(lambda: 1 // 0)


def test_a_machine_without_the_library_says_so():
    bare = SimpleNamespace(NVMLError=pynvml.NVMLError, nvmlInit=lambda: (_ for _ in ()).throw(pynvml.NVMLError(12)))
    session = Nvml(bare)
    try:
        with pytest.raises(DeviceError, match=r"libnvidia-ml\.so\.1"):
            session.call_sync("nvmlDeviceGetCount")
    finally:
        session.close()


def test_missing_bindings_are_named():
    program = (
        "import sys; sys.modules['pynvml'] = None\n"
        "from clover.devices.nvml import Nvml\n"
        "from clover.errors import DeviceError\n"
        "try:\n    Nvml().library\nexcept DeviceError as error:\n    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert "pip install nvidia-ml-py" in done.stdout


@pytest.mark.slow
def test_the_bindings_are_imported_by_the_first_call_only():
    program = "import sys, clover.devices; from clover.devices.nvml import Nvml; Nvml(); print('pynvml' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "False"


def test_a_gpu_that_hangs_does_not_hold_up_another(session, fake):
    go = threading.Event()
    one, two = session.of_gpu(0), session.of_gpu(1)
    assert session.of_gpu(0) is one.of_gpu(0) is two.of_gpu(0) is one
    assert one.library is fake

    async def both():
        slow = asyncio.ensure_future(one.call(go.wait, 30))
        assert await two.call("nvmlDeviceGetCount") == 1
        assert await session.call("nvmlDeviceGetCount") == 1
        assert not slow.done()
        go.set()
        return await slow

    assert asyncio.run(both())
    assert fake.calls.count("nvmlInit") == 1, "one session for all"
    two.close()
    assert fake.calls[-1] == "nvmlShutdown"
    for closed in (session, one, two):
        with pytest.raises(DeviceError, match="closed"):
            closed.call_sync("nvmlDeviceGetCount")
