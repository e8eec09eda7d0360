"""Faults of an emulated box, injected from outside while others use it; holders of its mutex that die; the build."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from clover.emulation import emulated
from clover.errors import DeviceError
from tests.support import disturb
from tests.support.disturb import Fault
from tests.support.nvml_child import ROOT, Child

CREATE = "nvmlDeviceCreateGpuInstanceWithPlacement"


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Child]:
    first = tmp_path_factory.mktemp("first") / "box.nvml"
    emulated.create_box(first, "a30-24gb", 1)
    with Child(first) as started:
        yield started


@pytest.fixture
def box(tmp_path: Path) -> Path:
    path = tmp_path / "box.nvml"
    emulated.create_box(path, "a100-40gb", 2)
    return path


@pytest.fixture
def child(process: Child, box: Path) -> Child:
    return process.move(box)


def outcomes(child: Child, code: str, times: int) -> list[str]:
    return [child(f"outcome(lambda: {code})") for _ in range(times)]


# --- which call, how often, how long ----------------------------------------------------------------------------------


def test_the_nth_call_and_so_many_of_them(box: Path, child: Child) -> None:
    disturb.inject(box, Fault(symbol="nvmlDeviceGetName", error="UNKNOWN", nth=3, count=2))
    assert outcomes(child, "n.nvmlDeviceGetName(gpu())", 6) == ["SUCCESS"] * 2 + ["UNKNOWN"] * 2 + ["SUCCESS"] * 2
    assert disturb.faults_fired(box) == 2


def test_of_one_board_only(box: Path, child: Child) -> None:
    disturb.inject(box, Fault(symbol="nvmlDeviceGetPowerUsage", gpu=1, error="GPU_IS_LOST", count=0))
    assert child("outcome(lambda: n.nvmlDeviceGetPowerUsage(gpu(0)))") == "SUCCESS"
    assert outcomes(child, "n.nvmlDeviceGetPowerUsage(gpu(1))", 3) == ["GPU_IS_LOST"] * 3
    disturb.clear_faults(box)
    assert child("outcome(lambda: n.nvmlDeviceGetPowerUsage(gpu(1)))") == "SUCCESS"


def test_for_a_time(box: Path, child: Child) -> None:
    disturb.inject(box, Fault(symbol="nvmlDeviceGetName", error="TIMEOUT", count=0, seconds=3600))
    assert outcomes(child, "n.nvmlDeviceGetName(gpu())", 2) == ["TIMEOUT"] * 2
    disturb.advance(box, 3601)
    assert outcomes(child, "n.nvmlDeviceGetName(gpu())", 2) == ["SUCCESS"] * 2


def test_with_a_probability_that_a_seed_repeats(child: Child, tmp_path: Path) -> None:
    runs = []
    for number, seed in enumerate((1, 1, 2)):
        box = tmp_path / f"{number}.nvml"
        emulated.create_box(box, "a100-40gb", 1, seed=seed)
        disturb.inject(box, Fault(symbol="nvmlDeviceGetName", error="UNKNOWN", count=0, probability=0.5))
        child.move(box)
        child.run("d = gpu()")
        runs.append(child("[outcome(lambda: n.nvmlDeviceGetName(d)) for _ in range(200)]"))
    assert runs[0] == runs[1] != runs[2]
    assert 60 < runs[0].count("UNKNOWN") < 140


def test_of_all_names_that_begin_so(box: Path, child: Child) -> None:
    disturb.inject(box, Fault(symbol="nvmlDeviceGetPower*", error="GPU_IS_LOST", count=0))
    assert child.refused("n.nvmlDeviceGetPowerUsage(gpu())") == "GPU_IS_LOST"
    assert child.refused("n.nvmlDeviceGetPowerManagementLimit(gpu())") == "GPU_IS_LOST"
    assert child("outcome(lambda: n.nvmlDeviceGetName(gpu()))") == "SUCCESS"
    disturb.inject(box, Fault(symbol="*", error="UNKNOWN"))
    assert child.refused("gpu()") == "UNKNOWN"


def test_a_name_without_its_version(box: Path, child: Child) -> None:
    for name in ("nvmlDeviceGetCount", "nvmlDeviceGetHandleByIndex", "nvmlDeviceGetComputeRunningProcesses"):
        disturb.inject(box, Fault(symbol=name, error="UNKNOWN"))
    assert child.refused("n.nvmlDeviceGetCount()") == "UNKNOWN"
    assert child.refused("gpu()") == "UNKNOWN"
    assert child.refused("processes(gpu())") == "UNKNOWN"
    assert child("processes(gpu())") == []
    disturb.inject(box, Fault(symbol="nvmlGpuInstanceCreateComputeInstance", error="UNKNOWN"))
    child.run("g = create('1g.5gb', 0); p = n.c_nvmlComputeInstancePlacement_t(0, 1)")
    child.run("n.nvmlGpuInstanceCreateComputeInstanceWithPlacement(g, 0, byref(p))")  # is another function
    assert disturb.faults_fired(box) == 3


def test_what_has_no_device_can_fail_too(box: Path, child: Child) -> None:
    for name in ("nvmlSystemGetDriverVersion", "nvmlDeviceGetFanSpeed", "nvmlShutdown"):
        disturb.inject(box, Fault(symbol=name, error="TIMEOUT"))
        call = f"n.{name}({'gpu()' if 'Device' in name else ''})"
        assert child.refused(call) == "TIMEOUT"
        assert child(f"outcome(lambda: {call})") != "TIMEOUT"
    child.run("n.nvmlInit()")


def test_a_session_can_fail_to_start(box: Path, child: Child) -> None:
    disturb.inject(box, Fault(symbol="nvmlInitWithFlags", error="DRIVER_NOT_LOADED"))
    child.run("n.nvmlShutdown()")
    assert child.refused("n.nvmlInit()") == "DRIVER_NOT_LOADED"
    child.run("n.nvmlInit()")


# --- the faults that transitions must survive -------------------------------------------------------------------------


def test_in_use_for_n_tries(box: Path, child: Child) -> None:
    child.run("g = create('2g.10gb', 0)")
    disturb.inject(box, Fault(symbol="nvmlGpuInstanceDestroy", error="IN_USE", count=3))
    assert outcomes(child, "n.nvmlGpuInstanceDestroy(g)", 4) == ["IN_USE"] * 3 + ["SUCCESS"]


def test_a_gpu_instance_without_its_compute_instance(box: Path, child: Child) -> None:
    disturb.inject(box, Fault(symbol="nvmlGpuInstanceCreateComputeInstance*", error="INSUFFICIENT_RESOURCES"))
    assert child.refused("mig('2g.10gb', 0)") == "INSUFFICIENT_RESOURCES"
    assert child("instances()") == [[3, 14, 0, 2]]
    assert child.refused("n.nvmlDeviceGetMigDeviceHandleByIndex(gpu(), 0)") == "NOT_FOUND"


def test_a_refused_creation_leaves_nothing(box: Path, child: Child) -> None:
    disturb.inject(box, Fault(symbol=CREATE, error="INSUFFICIENT_RESOURCES"))
    assert child.refused("create('2g.10gb', 0)") == "INSUFFICIENT_RESOURCES"
    assert child("instances()") == []


@pytest.mark.slow
def test_a_slow_call_keeps_nobody_waiting(box: Path, child: Child) -> None:
    disturb.inject(box, Fault(symbol=CREATE, delay_s=3600))
    with Child(box) as slow:
        slow.tell("create('3g.20gb', 4)")
        while disturb.faults_fired(box) == 0:
            time.sleep(0.01)
        child.run("create('2g.10gb', 0)")  # the fault acted once; this is not held up by the one that sleeps
        assert child("instances()") == [[3, 14, 0, 2]]
    child.run("create('3g.20gb', 4)")  # and the sleeper, killed, made nothing


def test_a_slow_call_succeeds_in_the_end(box: Path, child: Child) -> None:
    disturb.inject(box, Fault(symbol=CREATE, delay_s=0.001), Fault(symbol=CREATE, delay_s=0.001, error="UNKNOWN"))
    assert child.refused("create('2g.10gb', 0)") == "UNKNOWN"
    child.run("create('2g.10gb', 0)")
    assert disturb.faults_fired(box) == 2


def test_a_lost_board_answers_nothing_and_comes_back_empty(box: Path, child: Child) -> None:
    child.run("d = gpu(); u = mig('3g.20gb', 4); a = attach(u); a.draw(100); g = n.nvmlDeviceGetGpuInstanceById(d, 2)")
    disturb.lose(box, 0)
    for call in ("n.nvmlDeviceGetPowerUsage(d)", "n.nvmlDeviceGetTotalEnergyConsumption(d)", "processes(d)", "gpu()",
                 "n.nvmlGpuInstanceGetInfo(g)", "n.nvmlDeviceGetName(d)",
                 "n.nvmlDeviceGetHandleByUUID(u)"):  # fmt: skip
        assert child.refused(call) == "GPU_IS_LOST", call
    assert "GPU_IS_LOST" in child.refused("a.draw(1)")
    assert "GPU_IS_LOST" in child.refused("attach(u)")
    assert child("n.nvmlDeviceGetCount()") == 2
    assert child("n.nvmlDeviceGetPowerUsage(gpu(1))") == 52_000
    disturb.restore(box, 0)
    assert child("n.nvmlDeviceGetMigMode(d)") == [1, 1]
    assert child("n.nvmlDeviceGetPowerUsage(d)") == 52_000
    assert child("instances()") == []
    assert "GPU_IS_LOST" in child.refused("a.draw(1)")
    assert child("mig('3g.20gb', 4)") == child("u")
    disturb.restore(box, 0)  # what is not lost keeps its instances
    assert len(child("instances()")) == 1


def test_a_reset_waits_for_the_users(box: Path, child: Child) -> None:
    child.run("a = attach(mig('3g.20gb', 4))")
    with pytest.raises(DeviceError, match="IN_USE"):
        disturb.reset(box, 0)
    child.run("a.close()")
    disturb.reset(box, 0)
    assert child("instances()") == []


def test_attaching_and_drawing_can_fail(box: Path, child: Child) -> None:
    child.run("u = mig('3g.20gb', 4)")
    disturb.inject(
        box,
        Fault(symbol="clover_nvml_attach", error="UNKNOWN"),
        Fault(symbol="clover_nvml_draw", error="GPU_IS_LOST", nth=2),
    )
    assert "UNKNOWN" in child.refused("attach(u)")
    child.run("a = attach(u); a.draw(1)")
    assert "GPU_IS_LOST" in child.refused("a.draw(2)")
    assert child("n.nvmlDeviceGetPowerUsage(gpu())") == 53_000 + 35_000  # idle, the draw, and what a held board draws


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        (Fault(symbol="nvmlDeviceGetNam", error="UNKNOWN"), "no function"),
        (Fault(symbol="nvmlErrorString", error="UNKNOWN"), "no function"),
        (Fault(symbol="nvmlDeviceGetName", error="WHATEVER"), "known: "),
        (Fault(symbol="nvmlDeviceGetName", error="UNKNOWN", gpu=2), "INVALID_ARGUMENT"),
        (Fault(symbol="nvmlDeviceGetName", error="UNKNOWN", gpu=-2), "INVALID_ARGUMENT"),
        (Fault(symbol="nvmlDeviceGetName", error="UNKNOWN", nth=0), "out of range"),
        (Fault(symbol="nvmlDeviceGetName", error="UNKNOWN", probability=1.5), "out of range"),
        (Fault(symbol="x" * 70 + "*", error="UNKNOWN"), "INVALID_ARGUMENT"),
    ],
)
def test_a_fault_that_makes_no_sense_is_refused(box: Path, fault: Fault, says: str) -> None:
    with pytest.raises(DeviceError, match=says):
        disturb.inject(box, fault)
    assert disturb.faults_fired(box) == 0


def test_a_box_takes_so_many_faults(box: Path) -> None:
    disturb.inject(box, *[Fault(symbol="nvmlDeviceGetName", error="UNKNOWN")] * 32)
    with pytest.raises(DeviceError, match="INSUFFICIENT_RESOURCES"):
        disturb.inject(box, Fault(symbol="nvmlDeviceGetName", error="UNKNOWN"))
    disturb.clear_faults(box)
    disturb.inject(box, Fault(symbol="nvmlDeviceGetName", error="UNKNOWN"))


# --- holders of the mutex that die ------------------------------------------------------------------------------------

HOLD = """
import ctypes, sys
from clover.emulation import emulated
library = ctypes.CDLL(str(emulated.library()))
library.clover_nvml_hold(sys.argv[1].encode(), 0, 1)
"""


@pytest.mark.slow
def test_a_holder_killed_in_the_middle_of_a_change_is_repaired(box: Path, child: Child) -> None:
    child.run("u = mig('3g.20gb', 4); create('1g.5gb', 0, 1)")
    disturb.advance(box, 100)
    energy = child("n.nvmlDeviceGetTotalEnergyConsumption(gpu())")
    for _ in range(2):
        holder = subprocess.Popen([sys.executable, "-c", HOLD, str(box)], stdout=subprocess.PIPE, cwd=ROOT)
        assert holder.stdout is not None
        assert holder.stdout.read(1) == b"!"  # it holds the mutex and has spoilt the board
        holder.kill()
        holder.communicate()
        assert child("instances()") == [[2, 9, 4, 4]]
        assert child("instances(1)") == [[7, 19, 0, 1]]
        assert child("n.nvmlDeviceGetUUID(n.nvmlDeviceGetMigDeviceHandleByIndex(gpu(), 0))") == child("u")
        assert child("n.nvmlDeviceGetTotalEnergyConsumption(gpu())") >= energy
    child.run("destroy(0, 2)")


@pytest.mark.slow
def test_processes_killed_at_random_leave_a_box_that_works(box: Path, child: Child) -> None:
    """Several processes change one board as fast as they can and are killed wherever they are."""
    busy = "while True:\n    outcome(lambda: destroy(0, n.nvmlGpuInstanceGetInfo(create('1g.5gb')).id))"
    for _ in range(3):
        with Child(box) as one, Child(box) as two:
            for process in (one, two):
                process("gpu()")  # it has started
                process.tell(busy, "exec")
            for _ in range(200):
                child("processes(gpu())")
    for identity, *_ in child("instances()"):
        child.run(f"destroy(0, {identity})")
    child.run("create('7g.40gb')")


# --- the build --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_it_compiles_without_a_warning(tmp_path: Path) -> None:
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None:
        pytest.skip("no C compiler here")
    sources = sorted(str(path) for path in (ROOT / "csrc" / "nvml_emulator").glob("*.c"))
    flags = ["-std=c11", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-fvisibility=hidden", "-fPIC", "-O0"]
    done = subprocess.run(
        [compiler, *flags, "-shared", "-pthread", "-o", str(tmp_path / "library.so"), *sources],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_it_shows_nvml_and_its_own_names_only(child: Child) -> None:
    assert child("[hasattr(n.nvmlLib, name) for name in ('nvmlInit_v2', 'clover_nvml_draw', 'box_lock')]") == [
        True, True, False,
    ]  # fmt: skip
    assert b"\0libnvidia-ml.so.1\0" in emulated.library().read_bytes()
