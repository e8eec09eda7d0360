"""The command `doctor`: what is known of this machine's energy, and the constants that calibration prints."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from clover.cli.doctor import doubts, main
from clover.config import EnergyConfig
from clover.energy.calibrate import Calibration, CalibrationStep
from tests.support.calibrated_host import CalibratedHost


@pytest.fixture
def four_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clover.cli.doctor.available_cores", lambda: (0, 1, 2, 3))
    monkeypatch.setattr("os.cpu_count", lambda: 8)


@pytest.mark.usefixtures("four_cpus")
def test_calibration_prints_settings_to_paste(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    host = CalibratedHost(tmp_path, lambda busy: 60.0 + 3.5 * busy)
    assert main(["--calibrate", "--seconds", "2"], instruments=host.instruments()) == 0
    text = capsys.readouterr().out
    pasted = tomllib.loads(text[text.index("[energy]") :])["energy"]
    assert pasted == {"idle_w": 7.5, "core_w": 3.5}
    config = EnergyConfig(**pasted)
    assert config.idle_w is not None
    assert config.idle_w * 8 == pytest.approx(60.0)
    assert "at rest    60.00 W +- 0.00 W" in text
    assert "warning" not in text
    assert text.count("\n        4") == 1


@pytest.mark.usefixtures("four_cpus")
def test_a_busy_machine_is_said_to_be_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    host = CalibratedHost(tmp_path, lambda busy: 60.0 + 3.5 * busy, others=2.0)
    assert main(["--calibrate"], instruments=host.instruments()) == 0
    assert "warning: other programs kept 2.0 CPUs busy all the time" in capsys.readouterr().out


def test_constants_that_are_hardly_known_are_doubted() -> None:
    steps = (CalibrationStep(0, 0.0, 50.0), CalibrationStep(1, 1.0, 60.0))
    sure = Calibration(steps, idle_w=50.0, idle_error_w=1.0, core_w=10.0, core_error_w=0.5)
    assert doubts(sure) == []
    unsure = Calibration(steps, idle_w=50.0, idle_error_w=1.0, core_w=10.0, core_error_w=2.0)
    assert doubts(unsure) == [
        "the power of a busy CPU is known to +- 2.00 W only: measure again on a quieter machine, or for longer"
    ]


def test_without_a_counter_calibration_is_refused_with_the_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--calibrate"], powercap=tmp_path) == 3
    error = capsys.readouterr().err
    assert "there is no energy counter to calibrate by" in error
    assert "no package zone (a virtual machine, or no driver)" in error
    assert "set energy.idle_w and energy.core_w here" in error


def test_without_a_flag_it_says_how_energy_is_known(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([], powercap=tmp_path) == 0
    text = capsys.readouterr().out
    assert "  energy    modelled: RAPL is not readable" in text
    assert "kgCO2e of a machine of" in text
    CalibratedHost(tmp_path / "host", lambda busy: 10.0)
    assert main([], powercap=tmp_path / "host") == 0
    assert "  energy    measured: RAPL: package-0" in capsys.readouterr().out


@pytest.mark.parametrize("argv", [["--seconds", "0"], ["--second"], ["--seconds", "x"]])
def test_a_wrong_command_line_is_refused(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(argv) == 2
    capsys.readouterr()
