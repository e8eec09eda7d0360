"""Power and energy of the emulated boards.  The clock of a box is moved ahead, so nothing waits; what passes meanwhile
in real time only adds a little, which the tolerances cover.  Boards are exact (`emulated.EXACT`) where a test is not
about contexts or the grain of the counter."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clover.devices import tables
from clover.emulation import emulated
from clover.emulation.emulated import EXACT, BoardPower
from tests.support import disturb
from tests.support.disturb import Fault
from tests.support.nvml_child import Child

A100 = tables.table("a100-40gb")
IDLE, MOST = round(A100.idle_w * 1000), round(A100.max_w * 1000)  # milliwatts
REAL_S = 5.0  # more than any of these tests runs


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Child]:
    first = tmp_path_factory.mktemp("first") / "box.nvml"
    emulated.create_box(first, "a30-24gb", 1)
    with Child(first) as started:
        started.run(
            "import ctypes\n"
            "def true_uj(uuid):\n"
            "    out = ctypes.c_ulonglong()\n"
            "    assert n.nvmlLib.clover_nvml_slice_energy(uuid.encode(), byref(out)) == 0\n"
            "    return out.value\n"
            "def field(device, number):\n"
            "    value = n.nvmlDeviceGetFieldValues(device, [number])[0]\n"
            "    return [value.nvmlReturn, value.value.ullVal if value.valueType == 3 else value.value.uiVal]\n"
        )
        yield started


def fresh(process: Child, folder: Path, name: str = A100.name, **options: Any) -> tuple[Path, Child]:
    box = folder / f"{name}.nvml"
    emulated.create_box(box, name, 2, **{"power": EXACT, **options})
    return box, process.move(box)


def test_power_is_idle_and_what_processes_draw_up_to_the_limit(process: Child, tmp_path: Path) -> None:
    _, child = fresh(process, tmp_path)
    assert child("n.nvmlDeviceGetPowerUsage(gpu())") == IDLE
    child.run("a = attach(mig('3g.20gb', 4)); b = attach(mig('2g.10gb', 0)); a.draw(100.5); b.draw(50)")
    assert child("n.nvmlDeviceGetPowerUsage(gpu())") == IDLE + 150_500
    assert child("n.nvmlDeviceGetPowerUsage(gpu(1))") == IDLE
    child.run("a.draw(9999)")
    assert child("n.nvmlDeviceGetPowerUsage(gpu())") == MOST
    child.run("a.close(); b.draw(0)")
    assert child("n.nvmlDeviceGetPowerUsage(gpu())") == IDLE
    for limit in ("PowerManagementLimit", "EnforcedPowerLimit", "PowerManagementDefaultLimit"):
        assert child(f"n.nvmlDeviceGet{limit}(gpu())") == MOST


def test_the_dead_draw_nothing(process: Child, tmp_path: Path) -> None:
    box, child = fresh(process, tmp_path)
    other = Child(box)
    other.run("a = attach(mig('3g.20gb', 4)); a.draw(100)")
    assert child("n.nvmlDeviceGetPowerUsage(gpu())") == IDLE + 100_000
    other.kill()
    assert child("n.nvmlDeviceGetPowerUsage(gpu())") == IDLE


def test_energy_counts_whether_or_not_anybody_looks(process: Child, tmp_path: Path) -> None:
    box, child = fresh(process, tmp_path)
    before = child("n.nvmlDeviceGetTotalEnergyConsumption(gpu())")
    child.run("u = mig('3g.20gb', 4); a = attach(u); a.draw(100)")
    disturb.advance(box, 1000)
    child.run("a.draw(0)")
    disturb.advance(box, 3_000_000)  # a month
    after = child("n.nvmlDeviceGetTotalEnergyConsumption(gpu())")
    expected = 3_001_000 * IDLE + 1000 * 100_000
    assert expected <= after - before <= expected + REAL_S * (IDLE + 100_000)
    assert 100e6 * 1000 <= child("true_uj(u)") <= 100e6 * (1000 + REAL_S)


def test_above_the_limit_everybody_gets_a_share(process: Child, tmp_path: Path) -> None:
    box, child = fresh(process, tmp_path)
    child.run("u, v = mig('3g.20gb', 4), mig('2g.10gb', 0)")
    child.run("a, b = attach(u), attach(v); a.draw(600); b.draw(300)")
    disturb.advance(box, 10_000)
    room = MOST - IDLE
    assert child("true_uj(u)") == pytest.approx(room * 2 / 3 * 1000 * 10_000, rel=1e-3)
    assert child("true_uj(v)") == pytest.approx(room / 3 * 1000 * 10_000, rel=1e-3)


draws = st.lists(
    st.tuples(st.integers(0, 2), st.floats(0, 500), st.floats(0, 30), st.booleans()), min_size=1, max_size=12
)


@settings(max_examples=12)
@given(story=draws)
def test_the_slices_add_up_to_the_board(
    process: Child, tmp_path_factory: pytest.TempPathFactory, story: list[tuple[int, float, float, bool]]
) -> None:
    box, child = fresh(process, tmp_path_factory.mktemp("story"))
    child.run("uuids = [mig('3g.20gb', 4), mig('2g.10gb', 0), mig('1g.5gb', 2)]; users = [attach(u) for u in uuids]")
    disturb.advance(box, 1)
    child.run("start = n.nvmlDeviceGetTotalEnergyConsumption(gpu())")
    last = child("start")
    for who, watts, seconds, leaves in story:
        child.run(f"users[{who}].draw({watts})")
        disturb.advance(box, seconds)
        if leaves:
            child.run(f"users[{who}].close(); users[{who}] = attach(uuids[{who}])")
        now = child("n.nvmlDeviceGetTotalEnergyConsumption(gpu())")
        assert now >= last  # never falls
        last = now
    child.run("[user.draw(0) for user in users]; import time; active = sum(true_uj(u) for u in uuids) / 1000")
    seconds = sum(row[2] for row in story)
    board = child("n.nvmlDeviceGetTotalEnergyConsumption(gpu())") - child("start")
    assert board - child("active") >= seconds * IDLE - 1
    assert board - child("active") <= (seconds + REAL_S) * IDLE


@pytest.mark.parametrize(("name", "watts"), [(A100.name, 35.0), ("h100-sxm-80gb", 35.0), ("rtx-pro-6000-96gb", 60.0)])
def test_a_board_that_is_held_draws_more_whatever_its_holders_do(
    process: Child, tmp_path: Path, name: str, watts: float
) -> None:
    gpu = tables.table(name)
    assert gpu.context_w == watts
    box, child = fresh(process, tmp_path, name, mig_enabled=False, power=BoardPower(grain_s=0.0))
    idle, held = round(gpu.idle_w * 1000), round((gpu.idle_w + watts) * 1000)
    power = "field(gpu(), n.NVML_FI_DEV_POWER_INSTANT)[1]"
    assert child(power) == idle
    child.run("u = n.nvmlDeviceGetUUID(gpu()); a = attach(u)")
    assert child(power) == held
    child.run("b = attach(u); b.draw(10)")  # one step, however many they are
    assert child(power) == held + 10_000
    child.run("a.draw(99999)")
    assert child(power) == round(gpu.max_w * 1000)
    child.run("a.close(); b.draw(0); before = n.nvmlDeviceGetTotalEnergyConsumption(gpu())")
    disturb.advance(box, 1000)
    gained = child("n.nvmlDeviceGetTotalEnergyConsumption(gpu()) - before")
    assert 1000 * held <= gained <= (1000 + REAL_S) * held
    drawn = child("true_uj(u)")
    child.run("b.close()")
    assert child(power) == idle
    assert child("true_uj(u)") == drawn  # a context is the board's, and no slice's


def test_the_dead_and_the_lost_hold_no_board_awake(process: Child, tmp_path: Path) -> None:
    box, child = fresh(process, tmp_path, power=BoardPower())
    other = Child(box)
    other.run("a = attach(mig('3g.20gb', 4))")
    assert child("n.nvmlDeviceGetPowerUsage(gpu())") == IDLE + 35_000
    other.kill()
    assert child("n.nvmlDeviceGetPowerUsage(gpu())") == IDLE
    child.run("a = attach(mig('2g.10gb', 0))")
    disturb.lose(box, 0)
    disturb.advance(box, 10)
    disturb.restore(box, 0)
    assert child("n.nvmlDeviceGetPowerUsage(gpu())") == IDLE


def test_the_counter_moves_in_grains_of_the_boxs_clock(process: Child, tmp_path: Path) -> None:
    box, child = fresh(process, tmp_path, power=BoardPower(context_w=0.0, grain_s=10.0))
    child.run("def total(): return n.nvmlDeviceGetTotalEnergyConsumption(gpu())")
    disturb.advance(box, 1000)
    first = child("total()")
    seen = [first]
    for _ in range(50):  # half a grain at a time, give or take what really passes
        disturb.advance(box, 5.0)
        seen.append(child("total()"))
    steps = [after - before for before, after in itertools.pairwise(seen)]
    assert {step for step in steps if step} == {10 * IDLE}
    assert 20 <= sum(step > 0 for step in steps) <= 30
    assert seen[-1] - first == pytest.approx(250 * IDLE, abs=2 * 10 * IDLE)
    assert child("field(gpu(), n.NVML_FI_DEV_TOTAL_ENERGY_CONSUMPTION)")[1] == child("total()")


def test_how_busy_processes_are_is_known_of_a_whole_board_only(process: Child, tmp_path: Path) -> None:
    _, child = fresh(process, tmp_path, mig_enabled=False)
    assert child.refused("n.nvmlDeviceGetProcessUtilization(gpu(), 0)") == "NOT_FOUND"
    child.run("a = attach(n.nvmlDeviceGetUUID(gpu())); a.draw(174)")
    samples = "[[item.pid, item.smUtil] for item in n.nvmlDeviceGetProcessUtilization(gpu(), 0)]"
    assert child(samples) == [[child.pid, 50]]
    _, child = fresh(process, tmp_path / "mig")
    assert child.refused("n.nvmlDeviceGetProcessUtilization(gpu(), 0)") == "NOT_SUPPORTED"


def test_what_a_slice_drew_outlives_it(process: Child, tmp_path: Path) -> None:
    box, child = fresh(process, tmp_path)
    child.run("u = mig('3g.20gb', 4); a = attach(u); a.draw(10)")
    disturb.advance(box, 100)
    child.run("a.close(); destroy(0, 2)")
    drawn = child("true_uj(u)")
    assert 1e9 <= drawn <= 1e9 + REAL_S * 1e7
    assert child("mig('3g.20gb', 4)") == child("u")
    assert child("true_uj(u)") == drawn


def test_a_board_as_a_whole_has_its_own_account(process: Child, tmp_path: Path) -> None:
    box, child = fresh(process, tmp_path, mig_enabled=False)
    child.run("u = n.nvmlDeviceGetUUID(gpu()); a = attach(u); a.draw(174)")
    disturb.advance(box, 10)
    assert 1740e6 <= child("true_uj(u)") <= 174e6 * (10 + REAL_S)
    assert child("n.nvmlDeviceGetUtilizationRates(gpu()).gpu") == 50
    assert child("n.nvmlDeviceGetTemperature(gpu(), 0)") == 55


def test_utilisation_is_unknown_of_a_partitioned_board(process: Child, tmp_path: Path) -> None:
    _, child = fresh(process, tmp_path)
    assert child.refused("n.nvmlDeviceGetUtilizationRates(gpu())") == "NOT_SUPPORTED"


def test_hopper_averages_over_a_second(process: Child, tmp_path: Path) -> None:
    gpu = tables.table("h100-sxm-80gb")
    box, child = fresh(process, tmp_path, gpu.name)
    idle = gpu.idle_w * 1000
    disturb.advance(box, 100)
    child.run("a = attach(mig('3g.40gb', 4)); a.draw(400)")
    disturb.advance(box, 0.5)
    average, instant = child("field(gpu(), 185)"), child("field(gpu(), 186)")
    assert average[0] == instant[0] == 0
    assert instant[1] == idle + 400_000
    assert idle + 150_000 <= average[1] <= idle + 400_000  # half of the second, and what passed meanwhile
    disturb.advance(box, 1.1)
    assert child("n.nvmlDeviceGetPowerUsage(gpu())") == pytest.approx(idle + 400_000, abs=2)
    child.run("a.draw(0)")
    assert child("n.nvmlDeviceGetPowerUsage(gpu())") > idle  # still falling
    disturb.advance(box, 1.1)
    assert child("n.nvmlDeviceGetPowerUsage(gpu())") == pytest.approx(idle, abs=2)


def test_fields(process: Child, tmp_path: Path) -> None:
    box, child = fresh(process, tmp_path)
    disturb.advance(box, 60)
    assert child("field(gpu(), n.NVML_FI_DEV_TOTAL_ENERGY_CONSUMPTION)")[1] >= 60 * IDLE
    assert child("field(gpu(), n.NVML_FI_DEV_POWER_INSTANT)") == [0, IDLE]
    assert child("field(gpu(), n.NVML_FI_DEV_POWER_AVERAGE)")[0] == 3  # GA100 has none
    assert child("field(gpu(), n.NVML_FI_DEV_POWER_MAX_LIMIT)") == [0, MOST]
    assert child("field(gpu(), 1)")[0] == 3


def test_a_stuck_sensor_repeats_itself_until_cleared(process: Child, tmp_path: Path) -> None:
    box, child = fresh(process, tmp_path)
    child.run("a = attach(mig('3g.20gb', 4)); a.draw(10)")
    disturb.inject(box, Fault(symbol="nvmlDeviceGetPowerUsage", gpu=0, error="STUCK"))
    assert child("n.nvmlDeviceGetPowerUsage(gpu())") == IDLE + 10_000
    child.run("a.draw(200)")
    assert child("n.nvmlDeviceGetPowerUsage(gpu())") == IDLE + 10_000
    assert child("field(gpu(), n.NVML_FI_DEV_POWER_INSTANT)") == [0, IDLE + 10_000]
    before = child("n.nvmlDeviceGetTotalEnergyConsumption(gpu())")
    disturb.advance(box, 10)
    assert child("n.nvmlDeviceGetTotalEnergyConsumption(gpu())") >= before + 10 * (IDLE + 200_000)  # the counter is not
    disturb.clear_faults(box)
    assert child("n.nvmlDeviceGetPowerUsage(gpu())") == IDLE + 200_000
    disturb.inject(box, Fault(symbol="nvmlDeviceGetTotalEnergyConsumption", error="STUCK", seconds=3600))
    stuck = child("n.nvmlDeviceGetTotalEnergyConsumption(gpu())")
    disturb.advance(box, 1000)
    assert child("n.nvmlDeviceGetTotalEnergyConsumption(gpu())") == stuck
    disturb.advance(box, 3000)
    assert child("n.nvmlDeviceGetTotalEnergyConsumption(gpu())") >= stuck + 4000 * (IDLE + 200_000)


def test_energy_goes_on_through_a_reboot(process: Child, tmp_path: Path) -> None:
    box, child = fresh(process, tmp_path)
    child.run("a = attach(mig('3g.20gb', 4)); a.draw(100)")
    disturb.advance(box, 10)
    before = child("n.nvmlDeviceGetTotalEnergyConsumption(gpu())")
    disturb.reboot(box)
    assert "GPU_IS_LOST" in child.refused("a.draw(1)")  # it outlived its slice
    disturb.advance(box, 10)
    gained = child("n.nvmlDeviceGetTotalEnergyConsumption(gpu())") - before
    assert 10 * IDLE <= gained <= (10 + REAL_S) * IDLE + REAL_S * 100_000
