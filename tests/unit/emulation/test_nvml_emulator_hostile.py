"""What the field does to users of a driver, on the emulated one: monitors, modes, lost boards, errors, waiting."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from clover.devices import clients, tables
from clover.emulation import emulated
from clover.errors import DeviceError
from tests.support import disturb
from tests.support.nvml_child import ROOT, Child

CODES = {"GPU_IS_LOST": 15, "RESET_REQUIRED": 16, "GPU_NOT_FOUND": 28, "UNKNOWN": 999}


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Child]:
    first = tmp_path_factory.mktemp("first") / "box.nvml"
    emulated.create_box(first, "a30-24gb", 1)
    with Child(first) as started:
        yield started


def made(path: Path, name: str, count: int = 1, **options: bool) -> Path:
    emulated.create_box(path, name, count, **options)
    return path


@pytest.fixture
def box(tmp_path: Path) -> Path:
    return made(tmp_path / "box.nvml", "a100-40gb", 2)


@pytest.fixture
def child(process: Child, box: Path) -> Child:
    return process.move(box)


@pytest.fixture
def plain(process: Child, tmp_path: Path) -> Child:
    return process.move(made(tmp_path / "plain.nvml", "rtx-4090", 2))


# --- lost boards ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", disturb.LOSSES)
def test_a_lost_board_answers_the_chosen_error_to_everything(box: Path, child: Child, error: str) -> None:
    child.run("held = gpu(1); uuid = n.nvmlDeviceGetUUID(held)")
    disturb.lose(box, 1, error)
    for call in ("gpu(1)", "n.nvmlDeviceGetPowerUsage(held)", "n.nvmlDeviceGetHandleByUUID(uuid)"):
        assert child.refused(call) == error
    assert child("n.nvmlDeviceGetCount()") == 2
    disturb.restore(box, 1)
    assert child("n.nvmlDeviceGetPowerUsage(held)") > 0


def test_a_board_is_lost_in_known_ways_only(box: Path) -> None:
    with pytest.raises(DeviceError, match="RESET_REQUIRED"):
        disturb.lose(box, 0, "IN_USE")
    assert {name: emulated.ERRORS[name] for name in disturb.LOSSES} == CODES


# --- monitors ---------------------------------------------------------------------------------------------------------


def test_a_monitor_keeps_instances_and_the_mode_until_it_ends(box: Path, child: Child) -> None:
    child.run("mig('1g.5gb', 0)")
    (held,) = child("instances()")
    with disturb.EmulatedMonitor(box, 0):
        assert child.refused(f"destroy(0, {held[0]})") == "IN_USE"
        assert child("n.nvmlDeviceSetMigMode(gpu(0), 0)") == 19  # in use: pending until the next reset
        child.run("mig('1g.5gb', 1)")  # making one is not refused
        child.run("mig('1g.5gb', 0, 1)")
        child.run("destroy(1, instances(1)[0][0])")  # it does not hold the other board
    for identity, *_ in child("instances()"):
        child.run(f"destroy(0, {identity})")
    assert child("instances()") == []


def test_a_killed_monitor_holds_nothing_and_is_found_by_its_name_before(box: Path, child: Child) -> None:
    child.run("mig('1g.5gb', 0)")
    (held,) = child("instances()")
    command = [sys.executable, "-m", "tests.support.disturb", str(box), "nv-hostengine"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as monitor:
        try:
            assert monitor.stdout is not None
            assert "holds the instances" in monitor.stdout.readline()
            assert child.refused(f"destroy(0, {held[0]})") == "IN_USE"
            assert clients.find((emulated.nodes_of(box),)) == ()  # a descendant of this process
            child.run("from clover.devices import clients")
            found = child(f"[client.text for client in clients.find(({emulated.nodes_of(box)!r},))]")
            assert found == [f"nv-hostengine (process {monitor.pid})"]
        finally:
            monitor.kill()
    child.run(f"destroy(0, {held[0]})")


# --- settings of a board ----------------------------------------------------------------------------------------------


def test_an_exclusive_board_takes_one_process(tmp_path: Path, plain: Child) -> None:
    box = tmp_path / "plain.nvml"
    disturb.set_compute_mode(box, 0, "exclusive")
    assert plain("n.nvmlDeviceGetComputeMode(gpu(0))") == 3
    plain.run("first, again = attach(n.nvmlDeviceGetUUID(gpu(0))), attach(n.nvmlDeviceGetUUID(gpu(0)))")
    with Child(box) as other:
        assert "CUDA error 46" in other.refused("attach(n.nvmlDeviceGetUUID(gpu(0)))")
        other.run("attach(n.nvmlDeviceGetUUID(gpu(1)))")
        plain.run("first.close(); again.close()")
        other.run("attach(n.nvmlDeviceGetUUID(gpu(0)))")


def test_a_prohibited_board_takes_none_and_a_reboot_forgets_it(tmp_path: Path, plain: Child) -> None:
    box = tmp_path / "plain.nvml"
    plain.run("n.nvmlDeviceSetComputeMode(gpu(0), n.NVML_COMPUTEMODE_PROHIBITED)")
    assert "CUDA error 46" in plain.refused("attach(n.nvmlDeviceGetUUID(gpu(0)))")
    assert plain.refused("n.nvmlDeviceSetComputeMode(gpu(0), 1)") == "INVALID_ARGUMENT"
    emulated.set_privileged(box, False)
    assert plain.refused("n.nvmlDeviceSetComputeMode(gpu(0), 0)") == "NO_PERMISSION"
    disturb.reboot(box)
    plain.run("attach(n.nvmlDeviceGetUUID(gpu(0)))")
    with pytest.raises(DeviceError, match="exclusive"):
        disturb.set_compute_mode(box, 0, "thread")


def test_a_board_in_mig_mode_is_in_the_default_compute_mode(box: Path, child: Child) -> None:
    disturb.set_compute_mode(box, 0, "prohibited")
    assert child("n.nvmlDeviceGetComputeMode(gpu(0))") == 0
    assert child.refused("n.nvmlDeviceSetComputeMode(gpu(0), 3)") == "NOT_SUPPORTED"


def test_persistence_mode_is_off_until_it_is_set(child: Child) -> None:
    assert child("n.nvmlDeviceGetPersistenceMode(gpu(0))") == 0
    child.run("n.nvmlDeviceSetPersistenceMode(gpu(0), 1)")
    assert child("[n.nvmlDeviceGetPersistenceMode(gpu(i)) for i in (0, 1)]") == [1, 0]


def test_placements_are_answered_with_mig_off_too(process: Child, tmp_path: Path) -> None:
    child = process.move(made(tmp_path / "off.nvml", "a100-40gb", mig_enabled=False))
    child.run("count = c_uint()")
    child.run("n.nvmlDeviceGetGpuInstancePossiblePlacements(gpu(0), 19, None, byref(count))")
    assert child("count.value") == 7


def test_the_driver_says_which_cuda_it_supports(box: Path, child: Child) -> None:
    assert child("n.nvmlSystemGetCudaDriverVersion_v2()") == 13000
    disturb.set_driver(box, "535.216.01", (12, 2))
    assert child("[n.nvmlSystemGetDriverVersion(), n.nvmlSystemGetCudaDriverVersion_v2()]") == ["535.216.01", 12020]
    disturb.set_driver(box, "", (0, 0))
    assert child("[n.nvmlSystemGetDriverVersion(), n.nvmlSystemGetCudaDriverVersion_v2()]") == ["580.emul", 13000]


# --- boards without MIG -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", tables.plain_names())
def test_a_plain_board_has_no_mig_and_its_table_is_consistent(process: Child, tmp_path: Path, name: str) -> None:
    gpu = tables.board(name)
    assert gpu.profiles == ()
    assert 0 < gpu.idle_w < gpu.max_w
    assert set(gpu.sources.values()) <= set(tables.sources())
    child = process.move(made(tmp_path / "box.nvml", name))
    assert child("n.nvmlDeviceGetName(gpu(0))") == gpu.product
    assert child("n.nvmlDeviceGetMemoryInfo(gpu(0)).total") == gpu.memory_mib << 20
    assert child.refused("n.nvmlDeviceGetMigMode(gpu(0))") == "NOT_SUPPORTED"
    assert child.refused("n.nvmlDeviceSetMigMode(gpu(0), 1)") == "NOT_SUPPORTED"
    assert child("n.nvmlDeviceGetMaxMigDeviceCount(gpu(0))") == 0
    assert child.refused("n.nvmlDeviceGetGpuInstanceProfileInfo(gpu(0), 0)") == "NOT_SUPPORTED"
    child.run("attach(n.nvmlDeviceGetUUID(gpu(0)))")
    assert len(child("processes(gpu(0))")) == 1


def test_a_laptop_s_board_shows_no_energy_power_or_limit(process: Child, tmp_path: Path) -> None:
    child = process.move(made(tmp_path / "box.nvml", "laptop"))
    for call in (
        "n.nvmlDeviceGetTotalEnergyConsumption(gpu(0))",
        "n.nvmlDeviceGetPowerUsage(gpu(0))",
        "n.nvmlDeviceGetEnforcedPowerLimit(gpu(0))",
        "n.nvmlDeviceGetPowerManagementLimit(gpu(0))",
    ):
        assert child.refused(call) == "NOT_SUPPORTED"
    fields = "n.NVML_FI_DEV_POWER_INSTANT, n.NVML_FI_DEV_TOTAL_ENERGY_CONSUMPTION, n.NVML_FI_DEV_POWER_CURRENT_LIMIT"
    assert child(f"[item.nvmlReturn for item in n.nvmlDeviceGetFieldValues(gpu(0), [{fields}])]") == [3, 3, 3]
    assert child("n.nvmlDeviceGetUtilizationRates(gpu(0)).gpu") == 0


def test_a_board_that_may_sleep_does_so_unused_and_the_next_use_waits_for_it(process: Child, tmp_path: Path) -> None:
    table = msgspec.structs.replace(tables.board("laptop"), lacks=())
    emulated.create_box(path := tmp_path / "box.nvml", table, 1, power=emulated.EXACT)
    sleeps = table.sleeps
    assert sleeps is not None
    child = process.move(path)
    child.run("held = gpu(0)")
    child.run("import time")
    energy_mj = "n.nvmlDeviceGetTotalEnergyConsumption(held)"
    timed = f"[(time.monotonic(), {energy_mj}, time.monotonic())][0]"

    def used(seconds: float) -> tuple[float, float]:
        """Seconds that a look takes after so many, and the joules of these."""
        before_mj = child(energy_mj)
        disturb.advance(path, seconds)
        began_s, after_mj, ended_s = child(timed)
        return ended_s - began_s, (after_mj - before_mj) / 1e3

    waited_s, joules = used(sleeps.after_s - 2.0)  # looks keep it awake
    assert waited_s < sleeps.wake_s
    assert joules == pytest.approx((sleeps.after_s - 2.0) * table.idle_w, abs=2.0)
    waited_s, joules = used(1000.0)
    assert waited_s >= sleeps.wake_s
    asleep_j = (1000.0 - sleeps.after_s) * sleeps.watts
    assert joules == pytest.approx(sleeps.after_s * table.idle_w + asleep_j, abs=4.0)
    child.run("held_by = attach(n.nvmlDeviceGetUUID(held))")
    waited_s, joules = used(1000.0)  # a process keeps it awake
    assert waited_s < sleeps.wake_s
    assert joules == pytest.approx(1000.0 * table.idle_w, rel=0.01)


# --- critical errors --------------------------------------------------------------------------------------------------


def test_errors_reach_those_who_wait_for_them(box: Path, child: Child) -> None:
    disturb.report_xid(box, 0, 31)  # before anybody waited
    child.run("events = n.nvmlEventSetCreate()")
    assert child("n.nvmlDeviceGetSupportedEventTypes(gpu(0))") == 8
    child.run("[n.nvmlDeviceRegisterEvents(gpu(i), n.nvmlEventTypeXidCriticalError, events) for i in (0, 1)]")
    assert child.refused("n.nvmlEventSetWait(events, 0)") == "TIMEOUT"
    child.run(
        "def wait():\n"
        "    e = n.nvmlEventSetWait(events, 2000)\n"
        "    return [n.nvmlDeviceGetIndex(e.device), e.eventType, e.eventData, e.gpuInstanceId, e.computeInstanceId]"
    )
    child.tell("wait()")
    disturb.report_xid(box, 1, 79)
    nothing = disturb.NO_INSTANCE
    assert child.answer() == ("value", [1, 8, 79, nothing, nothing])
    disturb.report_xid(box, 0, 94, gi=2, ci=0)
    disturb.report_xid(box, 0, 48)
    assert [child("wait()"), child("wait()")] == [[0, 8, 94, 2, 0], [0, 8, 48, nothing, nothing]]
    for number in range(40):
        disturb.report_xid(box, 0, number)
    assert child("wait()")[2] == 8  # the oldest that is kept
    child.run("n.nvmlEventSetFree(events)")
    assert child.refused("n.nvmlEventSetWait(events, 0)") == "INVALID_ARGUMENT"


def test_waiting_for_a_lost_board_fails_at_once(box: Path, child: Child) -> None:
    child.run("events = n.nvmlEventSetCreate()")
    child.run("n.nvmlDeviceRegisterEvents(gpu(1), n.nvmlEventTypeXidCriticalError, events)")
    disturb.report_xid(box, 1, 79)
    disturb.lose(box, 1)
    assert child("n.nvmlEventSetWait(events, 60000).eventData") == 79
    assert child.refused("n.nvmlEventSetWait(events, 60000)") == "GPU_IS_LOST"


# --- waiting ----------------------------------------------------------------------------------------------------------


def test_making_and_removing_take_as_long_as_on_real_boards(child: Child) -> None:
    child.run("import time")
    child.run("os.environ['CLOVER_NVML_LATENCY'] = '10'")
    try:
        child.run(
            "def timed(act):\n"
            "    began = time.monotonic()\n"
            "    result = act()\n"
            "    return [time.monotonic() - began, result if isinstance(result, str) else '']"
        )
        made_s, _ = child("timed(lambda: mig('1g.5gb', 0))")
        gone_s, _ = child("timed(lambda: destroy(0, instances()[0][0]))")
    finally:
        child.run("os.environ['CLOVER_NVML_LATENCY'] = '0'")
    assert 0.15 <= made_s < 2.0, "ten times 15 ms"
    assert 0.23 <= gone_s < 2.0
