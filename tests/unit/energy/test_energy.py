"""Meters: RAPL on a folder that looks like the kernel's, wraps included, and the model; which one is taken and why."""

from __future__ import annotations

import asyncio
import math
import os
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clover.accounting import Account
from clover.config import EnergyConfig, ServerConfig
from clover.energy import Meter, ModelledMeter, RaplMeter, build
from clover.energy.host import HostUse
from clover.energy.rapl import RaplError, find_domains
from clover.errors import ConfigError, DeviceError
from clover.server.machine import Machine
from clover.telemetry.metrics import Metrics
from clover.types import Reading

RANGE_UJ = 262_143_328_850
SECOND = 1_000_000_000


def zone(folder: Path, name: str, counter_uj: int = 0, range_uj: int = RANGE_UJ) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "name").write_text(f"{name}\n")
    (folder / "energy_uj").write_text(f"{counter_uj}\n")
    (folder / "max_energy_range_uj").write_text(f"{range_uj}\n")
    return folder / "energy_uj"


def machine(root: Path) -> dict[str, Path]:
    """Two packages with every kind of zone the kernel shows; the counters that matter by name."""
    files = {
        "package-0": zone(root / "intel-rapl:0", "package-0"),
        "core": zone(root / "intel-rapl:0" / "intel-rapl:0:0", "core"),
        "uncore": zone(root / "intel-rapl:0" / "intel-rapl:0:1", "uncore"),
        "package-0/dram": zone(root / "intel-rapl:0" / "intel-rapl:0:2", "dram", range_uj=65_712_999_613),
        "package-1": zone(root / "intel-rapl:1", "package-1"),
        "package-1/dram": zone(root / "intel-rapl:1:0", "dram"),  # as a link beside the package only
        "psys": zone(root / "intel-rapl:2", "psys"),
        "mmio": zone(root / "intel-rapl-mmio:0", "package-0"),
    }
    (root / "intel-rapl:0:0").symlink_to(root / "intel-rapl:0" / "intel-rapl:0:0")
    (root / "intel-rapl:0:2").symlink_to(root / "intel-rapl:0" / "intel-rapl:0:2")
    (root / "intel-rapl").mkdir()
    return files


def make(
    root: Path, meter: Literal["auto", "rapl", "modelled"] = "auto", idle_w: float = 2, core_w: float = 8
) -> Meter:
    config = EnergyConfig(meter=meter, idle_w=idle_w, core_w=core_w)
    host = HostUse(busy_s=0.0, cpus=4)
    return build(config, cores=2, cpu_seconds=lambda: 0.0, clock=lambda: 0, powercap=root, host=lambda: host)


def test_packages_and_dram_are_added_and_nothing_is_added_twice(tmp_path: Path) -> None:
    files = machine(tmp_path)
    meter = make(tmp_path)
    assert isinstance(meter, RaplMeter)
    assert [domain.name for domain in meter.domains] == ["package-0", "package-0/dram", "package-1", "package-1/dram"]
    assert meter.why == "RAPL: package-0, package-0/dram, package-1, package-1/dram; idle 8.0 W (as configured)"
    for number, file in enumerate(files.values()):
        file.write_text(str(2**number * 1_000_000))
    sample = meter.sample(SECOND)
    assert sample.total_j == 1 + 8 + 16 + 32
    assert (sample.device, sample.at_ns, sample.method) == ("cpu0", SECOND, "measured")


def test_an_amd_machine_has_a_package_and_cores(tmp_path: Path) -> None:
    zone(tmp_path / "intel-rapl:0", "package-0")
    zone(tmp_path / "intel-rapl:0" / "intel-rapl:0:0", "core")
    assert [domain.name for domain in find_domains(tmp_path)] == ["package-0"]


@given(
    st.integers(0, 999),
    st.lists(st.tuples(st.integers(0, 999), st.integers(0, 499)), min_size=1, max_size=30),
)
def test_the_total_never_decreases_and_is_the_true_sum_while_no_wrap_is_missed(
    tmp_path_factory: pytest.TempPathFactory, start_uj: int, steps: list[tuple[int, int]]
) -> None:
    root = tmp_path_factory.mktemp("powercap")
    package = zone(root / "intel-rapl:0", "package-0", start_uj, 1000)
    dram = zone(root / "intel-rapl:0" / "intel-rapl:0:0", "dram", 0, 500)
    meter = RaplMeter(idle_w=1.0, now_ns=0, root=root)
    true_package, true_dram, before = start_uj, 0, 0.0
    for number, (package_uj, dram_uj) in enumerate(steps, 1):
        true_package += package_uj
        true_dram += dram_uj
        package.write_text(str(true_package % 1000))
        dram.write_text(str(true_dram % 500))
        sample = meter.sample(number)
        assert sample.total_j >= before
        before = sample.total_j
        assert round(sample.total_j * 1e6) == true_package - start_uj + true_dram
    assert meter.wraps == true_package // 1000 + true_dram // 500


@given(st.lists(st.integers(0, 5000), min_size=1, max_size=20))
def test_missed_wraps_lose_whole_ranges_and_no_more(tmp_path_factory: pytest.TempPathFactory, steps: list[int]) -> None:
    root = tmp_path_factory.mktemp("powercap")
    package = zone(root / "intel-rapl:0", "package-0", 0, 1000)
    meter = RaplMeter(idle_w=1.0, now_ns=0, root=root)
    true_uj, total_j = 0, 0.0
    for number, step_uj in enumerate(steps, 1):
        true_uj += step_uj
        package.write_text(str(true_uj % 1000))
        assert meter.sample(number).total_j >= total_j
        total_j = meter.sample(number).total_j
    lost_uj = true_uj - round(total_j * 1e6)
    assert lost_uj >= 0
    assert lost_uj % 1000 == 0


def test_a_sample_that_comes_too_late_to_trust_a_wrap_is_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    zone(tmp_path / "intel-rapl:0", "package-0")
    meter = RaplMeter(idle_w=1.0, now_ns=0, root=tmp_path)
    assert 60 < meter.sample_within_s < 300
    meter.sample(60 * SECOND)
    assert meter.late_samples == 0
    meter.sample(400 * SECOND)
    assert meter.late_samples == 1
    assert "wrapped unseen" in caplog.text


def test_the_operators_idle_power_takes_precedence_and_is_doubted_aloud(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    package = zone(tmp_path / "intel-rapl:0", "package-0")
    meter = RaplMeter(idle_w=20.0, now_ns=0, root=tmp_path)
    asyncio.run(meter.rest(clock=lambda: 0))  # there is nothing to measure
    for second, joules in enumerate((50, 62, 74), 1):
        package.write_text(str(joules * 1_000_000))
        assert meter.sample(second * SECOND).idle_w == 20.0
    said = [record.getMessage() for record in caplog.records]
    assert said == ["energy.idle_w says that this machine draws 20.0 W at rest, but it drew 12.0 W: set it lower"]


def test_a_counter_that_fails_later_raises_and_nothing_is_lost(tmp_path: Path) -> None:
    package = zone(tmp_path / "intel-rapl:0", "package-0")
    meter = RaplMeter(idle_w=1.0, now_ns=0, root=tmp_path)
    package.write_text("garbage")
    with pytest.raises(DeviceError, match="energy_uj holds no number"):
        meter.sample(SECOND)
    package.write_text(str(RANGE_UJ + 1))
    with pytest.raises(DeviceError, match="beyond its own range"):
        meter.sample(SECOND)
    package.write_text("7000000")
    assert meter.sample(2 * SECOND).total_j == 7.0


def test_a_counter_that_is_lower_after_it_could_not_be_read_is_no_wrap(tmp_path: Path) -> None:
    package = zone(tmp_path / "intel-rapl:0", "package-0", 200_000_000)
    meter = RaplMeter(idle_w=1.0, now_ns=0, root=tmp_path)
    package.write_text(str(210_000_000))
    assert meter.sample(SECOND).total_j == 10.0
    package.rename(tmp_path / "gone")
    with pytest.raises(DeviceError, match="cannot be read"):
        meter.sample(2 * SECOND)
    package.write_text("3000000")  # the driver was loaded anew: a whole range would have been made up
    sample = meter.sample(60 * SECOND)
    assert (sample.total_j, sample.epoch, sample.at_ns) == (10.0, 1, 60 * SECOND)
    package.write_text("8000000")
    sample = meter.sample(61 * SECOND)
    assert (sample.total_j, sample.epoch) == (15.0, 1)
    package.write_text(str(RANGE_UJ - 4_000_000))
    for second in range(62, 362):
        package.write_text(str(8_000_000 + (second - 61) * 870_000_000))
        meter.sample(second * SECOND)
    total_j = meter.sample(361 * SECOND).total_j
    package.write_text("1000000")  # while it is read, lower is a wrap, if what it then rose by is plausible
    sample = meter.sample(362 * SECOND)
    assert (sample.epoch, meter.wraps, meter.resets) == (1, 1, 0)
    assert sample.total_j == pytest.approx(total_j + 1.0 + RANGE_UJ / 1e6 - 8.0 - 300 * 870.0)


@pytest.mark.parametrize(("seconds", "resets"), [(400, 1), (6000, 0)])
def test_after_a_silence_a_lower_counter_is_a_wrap_only_if_the_mean_power_so_far_explains_it(
    tmp_path: Path, seconds: int, resets: int
) -> None:
    """26 W for an hour; then nothing is read for a while (a suspended machine), in which the counter starts again."""
    package = zone(tmp_path / "intel-rapl:0", "package-0", RANGE_UJ - 96_000_000_000)
    meter = RaplMeter(idle_w=1.0, now_ns=0, root=tmp_path)
    for minute in range(1, 61):
        package.write_text(str(RANGE_UJ - 96_000_000_000 + minute * 1_560_000_000))
        meter.sample(minute * 60 * SECOND)
    package.write_text("153600000000")  # as a wrap, 156 kJ
    sample = meter.sample((3600 + seconds) * SECOND)
    assert (meter.resets, sample.epoch) == (resets, resets)
    assert sample.total_j == pytest.approx(93_600.0 if resets else 93_600.0 + 2_400.0 + 153_600.0)


def test_a_counter_that_was_reset_is_no_wrap(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    package = zone(tmp_path / "intel-rapl:0", "package-0", 200_000_000_000)
    dram = zone(tmp_path / "intel-rapl:0" / "intel-rapl:0:0", "dram", 1_000_000)
    meter = RaplMeter(idle_w=1.0, now_ns=0, root=tmp_path)
    package.write_text("200020000000")
    assert meter.sample(SECOND).total_j == 20.0
    package.write_text("5000000")  # taken for a wrap, this were 62 kJ in a second
    dram.write_text("3000000")
    sample = meter.sample(2 * SECOND)
    assert (sample.total_j, sample.epoch, sample.at_ns) == (20.0, 1, 2 * SECOND)
    assert (meter.resets, meter.wraps) == (1, 0)
    assert "package-0 fell from 200020 to 5 J within 1.0 s, which is no wrap (it would be 62128 J)" in caplog.text
    package.write_text("25000000")
    assert meter.sample(3 * SECOND).total_j == 40.0
    package.write_text("9000000000")  # nor can it leap ahead
    sample = meter.sample(4 * SECOND)
    assert (sample.total_j, sample.epoch, meter.resets) == (40.0, 2, 2)


@given(st.integers(0, RANGE_UJ), st.integers(0, RANGE_UJ), st.floats(0.01, 100.0))
def test_no_step_counts_more_than_could_be_drawn(
    tmp_path_factory: pytest.TempPathFactory, before: int, after: int, seconds: float
) -> None:
    root = tmp_path_factory.mktemp("powercap")
    package = zone(root / "intel-rapl:0", "package-0", before)
    meter = RaplMeter(idle_w=1.0, now_ns=0, root=root)
    package.write_text(str(after))
    sample = meter.sample(int(seconds * SECOND))
    assert sample.total_j <= 1000.0 * (seconds + 1.0)
    assert sample.epoch == meter.resets == int((after - before) % RANGE_UJ > 1e9 * (seconds + 1.0))


def test_while_rapl_cannot_be_read_the_device_is_not_metered_and_nothing_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "clover.server")
    now_ns = [0]
    monkeypatch.setattr("clover.server.machine.time.monotonic_ns", lambda: now_ns[0])
    package = zone(tmp_path / "intel-rapl:0", "package-0")
    account = Account(pue=1.0)
    machine = Machine(ServerConfig(), tmp_path / "cache", account)
    machine.meters = {"cpu0": RaplMeter(idle_w=1.0, now_ns=0, root=tmp_path)}
    reading = Reading(g_per_kwh=300.0, at_s=0.0, provider="static")
    chain: Any = SimpleNamespace(last=None, counts={}, failures={}, errors={}, live={})

    def measure(second: int) -> dict[str, float | str]:
        now_ns[0] = second * SECOND
        asyncio.run(machine.measure(reading))
        text = Metrics(families=dict, account=account, chain=chain).render().decode()
        metered = re.search(r'clover_device_metered\{device="cpu0",method="measured"\} (\S+)', text)
        assert metered is not None
        line = account.devices()["cpu0"]
        assert float(metered[1]) == 1.0 - float(line["frozen"])
        assert ("clover_device_watts{" in text) == ("watts" in line) == (line["frozen"] == 0.0)
        shown = re.search(r'clover_device_unknown_seconds_total\{device="cpu0",method="measured"\} (\S+)', text)
        assert shown is not None
        assert float(shown[1]) == line["unknown_s"]
        return line

    measure(0)
    package.write_text("20000000")
    assert measure(1)["watts"] == 20.0
    package.rename(tmp_path / "gone")
    for second in range(2, 30):
        line = measure(second)
        assert (line["frozen"], line["measured_j"], line["unmetered_s"]) == (1.0, 20.0, second - 1)
    assert len([record for record in caplog.records if "its energy cannot be read" in record.getMessage()]) == 1
    package.write_text("600000000")
    line = measure(30)
    assert (line["frozen"], line["measured_j"], line["watts"]) == (0.0, 600.0, pytest.approx(20.0))
    assert "cpu0: its energy is read again after 28 s" in caplog.text
    assert (line["unmetered_s"], line["unknown_s"], line["restarts"]) == (28.0, 0.0, 0.0)
    package.unlink()
    measure(31)
    assert len([record for record in caplog.records if "its energy cannot be read" in record.getMessage()]) == 2
    package.write_text("0")  # began anew meanwhile
    line = measure(41)
    assert (line["unmetered_s"], line["unknown_s"], line["restarts"]) == (29.0, 11.0, 1.0)
    assert line["measured_j"] == 600.0


def test_a_device_is_not_metered_before_its_first_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now_ns = [0]
    monkeypatch.setattr("clover.server.machine.time.monotonic_ns", lambda: now_ns[0])
    package = zone(tmp_path / "intel-rapl:0", "package-0")
    account = Account(pue=1.0)
    machine = Machine(ServerConfig(), tmp_path / "cache", account)
    machine.meters = {"cpu0": RaplMeter(idle_w=1.0, now_ns=0, root=tmp_path)}
    package.rename(tmp_path / "gone")
    assert account.devices()["cpu0"]["frozen"] == 1.0
    for now_ns[0] in (0, 5 * SECOND):
        asyncio.run(machine.measure(Reading(g_per_kwh=300.0, at_s=0.0, provider="static")))
    line = account.devices()["cpu0"]
    assert (line["frozen"], line["unmetered_s"], "watts" in line) == (1.0, 5.0, False)


def broken(root: Path, how: str) -> None:
    if how == "no folder":
        return
    if how == "empty folder":
        root.mkdir()
        return
    counter = zone(root / "intel-rapl:0", "package-0")
    if how == "no counter":
        counter.unlink()
    elif how == "garbage":
        counter.write_text("many")
    elif how == "no range":
        (counter.parent / "max_energy_range_uj").write_text("0")
    elif how == "beyond":
        counter.write_text(str(RANGE_UJ + 1))


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("no folder", "cannot be listed"),
        ("empty folder", "no package zone"),
        ("no counter", "energy_uj cannot be read"),
        ("garbage", "energy_uj holds no number"),
        ("no range", "max_energy_range_uj holds 0"),
        ("beyond", "beyond its own range"),
    ],
)
def test_auto_says_why_it_models_and_rapl_refuses_to_start(tmp_path: Path, how: str, words: str) -> None:
    root = tmp_path / "powercap"
    broken(root, how)
    meter = make(root)
    assert isinstance(meter, ModelledMeter)
    assert meter.why.startswith("RAPL is not readable: ")
    assert words in meter.why
    with pytest.raises(ConfigError, match=rf'energy.meter = "rapl", but .*{words}.*; .*energy.meter = modelled'):
        make(root, "rapl")


def test_a_counter_for_root_alone_names_the_file_and_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counter = zone(tmp_path / "intel-rapl:0", "package-0")
    whole = Path.read_text

    def read_text(self: Path, encoding: str | None = None, errors: str | None = None) -> str:
        if self == counter:  # file modes do not stop root, who may run this test
            raise PermissionError(13, "Permission denied", os.fspath(self))
        return whole(self, encoding=encoding, errors=errors)

    monkeypatch.setattr(Path, "read_text", read_text)
    with pytest.raises(ConfigError, match=r"energy_uj is not readable by this user; .*chmod a\+r .*energy_uj"):
        make(tmp_path, "rapl")
    assert "not readable by this user" in make(tmp_path).why
    with pytest.raises(RaplError) as caught:
        find_domains(tmp_path)
    assert "CAP_DAC_READ_SEARCH" in caught.value.advice


def test_modelled_may_be_asked_for_although_rapl_is_there(tmp_path: Path) -> None:
    machine(tmp_path)
    meter = make(tmp_path, "modelled")
    assert isinstance(meter, ModelledMeter)
    assert (meter.why, meter.method) == ("configured; watts as configured", "modelled")
    assert isinstance(make(tmp_path, "rapl"), RaplMeter)


def test_the_model_is_idle_power_and_cpu_time() -> None:
    cpu_s = [100.0]
    meter = build(
        EnergyConfig(meter="modelled", idle_w=3.0, core_w=7.0),
        cores=4,
        cpu_seconds=lambda: cpu_s[0],
        clock=lambda: 5 * SECOND,
    )
    cpu_s[0] = 102.5
    sample = meter.sample(15 * SECOND)
    assert sample.total_j == pytest.approx(3.0 * 4 * 10 + 7.0 * 2.5)
    assert (sample.idle_w, sample.method, sample.at_ns) == (12.0, "modelled", 15 * SECOND)


@given(st.lists(st.tuples(st.integers(0, 10**12), st.floats(0, 1e6)), max_size=30))
def test_the_model_never_decreases_even_if_its_inputs_do(steps: list[tuple[int, float]]) -> None:
    cpu_s = [0.0]
    meter = ModelledMeter(idle_w=2.0, core_w=8.0, cpu_seconds=lambda: cpu_s[0], now_ns=0)
    before, at_ns = 0.0, 0
    for now_ns, cpu_s[0] in steps:
        sample = meter.sample(now_ns)
        assert sample.total_j >= before
        assert sample.at_ns >= at_ns
        before, at_ns = sample.total_j, sample.at_ns


@pytest.mark.parametrize(("idle_w", "core_w"), [(-1.0, 8.0), (2.0, math.nan), (2.0, math.inf)])
def test_constants_that_are_no_watts_are_refused(tmp_path: Path, idle_w: float, core_w: float) -> None:
    with pytest.raises(ConfigError, match="must be a number of watts"):
        make(tmp_path, idle_w=idle_w, core_w=core_w)


def test_a_device_without_cores_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="at least one core"):
        build(EnergyConfig(), cores=0, cpu_seconds=lambda: 0.0, powercap=tmp_path)
