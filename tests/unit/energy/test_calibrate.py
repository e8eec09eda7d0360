"""Constants of the energy model, measured on machines whose power is known."""

from __future__ import annotations

from pathlib import Path

import pytest

from clover.devices.cpu import available_cores
from clover.energy.calibrate import CalibrationStep, calibrate, fit, host_busy_s, kept_busy, levels_of
from clover.errors import DeviceError
from tests.support.calibrated_host import CalibratedHost


@pytest.mark.parametrize("idle_w", [15.0, 60.0, 120.0])
@pytest.mark.parametrize("others", [0.0, 1.5])
def test_the_line_of_a_machine_is_found_whatever_else_runs_there(tmp_path: Path, idle_w: float, others: float) -> None:
    host = CalibratedHost(tmp_path, lambda busy: idle_w + 3.5 * busy, others=others)
    found = calibrate(range(8), 5.0, host.instruments())
    assert found.idle_w == pytest.approx(idle_w, abs=1e-3)
    assert found.core_w == pytest.approx(3.5, abs=1e-3)
    assert found.core_error_w < 1e-3
    assert found.idle_error_w < 1e-2
    assert host.spun == [tuple(range(level)) for level in range(9)]


def test_a_machine_that_draws_by_no_line_has_an_error_that_says_so(tmp_path: Path) -> None:
    host = CalibratedHost(tmp_path, lambda busy: 40.0 + 10.0 * busy**0.5)
    found = calibrate(range(16), 5.0, host.instruments())
    assert found.core_error_w > 0.05 * found.core_w
    truth = (host.watts(16.0) - host.watts(0.0)) / 16
    assert abs(found.core_w - truth) < 6 * found.core_error_w


def test_levels_are_evenly_spaced_and_never_too_few_for_an_error() -> None:
    assert levels_of(1) == (0, 1, 0, 1)
    assert levels_of(2) == (0, 1, 2, 0, 1, 2)
    assert levels_of(3) == (0, 1, 2, 3)
    assert levels_of(64) == (0, 8, 16, 24, 32, 40, 48, 56, 64)
    assert len(levels_of(13)) == 9


def test_the_standard_error_is_that_of_least_squares() -> None:
    found = fit([CalibrationStep(n, float(n), watts) for n, watts in enumerate((10.0, 13.0, 14.0, 17.0))])
    # By hand: slope 2.2, intercept 10.2, residuals -.2, .6, -.6, .2, so a variance of .8 / 2.
    assert found.core_w == pytest.approx(2.2)
    assert found.idle_w == pytest.approx(10.2)
    assert found.core_error_w == pytest.approx((0.4 / 5) ** 0.5)
    assert found.idle_error_w == pytest.approx((0.4 * (1 / 4 + 2.25 / 5)) ** 0.5)


def test_a_counter_that_stands_still_or_heeds_no_load_is_refused(tmp_path: Path) -> None:
    still = CalibratedHost(tmp_path / "still", lambda busy: 0.0)
    with pytest.raises(DeviceError, match=r"did not move for 2\.0 s"):
        calibrate(range(2), 2.0, still.instruments())
    flat = CalibratedHost(tmp_path / "flat", lambda busy: 50.0)
    with pytest.raises(DeviceError, match="does not rise with the load"):
        calibrate(range(2), 2.0, flat.instruments())


def test_a_machine_that_others_keep_busy_is_refused(tmp_path: Path) -> None:
    host = CalibratedHost(tmp_path, lambda busy: 50.0 + busy, cpus=4, others=3.0)
    with pytest.raises(DeviceError, match=r"could be varied by 1\.0 CPUs only, of 4; measure when they rest"):
        calibrate(range(4), 2.0, host.instruments())


def test_cpus_are_freed_if_measuring_fails(tmp_path: Path) -> None:
    host = CalibratedHost(tmp_path, lambda busy: 10.0 if busy < 2.0 else 0.0)
    with pytest.raises(DeviceError):
        calibrate(range(2), 2.0, host.instruments())
    assert host.spun[-1] == (0, 1)
    assert host.busy == 0.0


def test_the_time_of_all_cpus_is_read_without_idle_and_stolen_time(tmp_path: Path) -> None:
    stat = tmp_path / "stat"
    stat.write_text("cpu  100 20 30 9000 800 4 6 777 50 0\ncpu0 1 2 3 4 5 6 7 8 9 0\n")
    assert host_busy_s(stat) == pytest.approx(1.6)
    stat.write_text("cpu0 1 2 3\n")
    with pytest.raises(DeviceError, match="does not say how busy"):
        host_busy_s(stat)


def test_processes_that_keep_cpus_busy_end_with_the_block() -> None:
    before, cpu = host_busy_s(), available_cores()[0]
    with kept_busy((cpu,)):
        while host_busy_s() < before + 0.05:
            pass
    with pytest.raises(DeviceError, match="could not be kept busy"), kept_busy((4095,)):
        pass
