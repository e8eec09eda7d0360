"""Idle power of a whole host by its counters: synthetic hosts with counters in files, other programs, a fake clock."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest

from clover.config import EnergyConfig
from clover.energy import RaplMeter, build
from clover.energy.host import HostUse, host_use
from clover.energy.idle import IdlePower

SECOND = 1_000_000_000
RANGE_UJ = 262_143_328_850
WATTS_A_CPU = 4.5
"""What a busy CPU of a synthetic host really adds; models say otherwise."""
EPYC = "vendor_id\t: AuthenticAMD\ncpu family\t: 25\nmodel\t\t: 1\nstepping\t: 1\n"


class SyntheticHost:
    """A machine of 16 CPUs with one counter: `idle_w` and 4.5 W a busy CPU, and what the kernel always does."""

    def __init__(self, folder: Path, idle_w: float) -> None:
        self.idle_w = idle_w
        self.now_ns = 0
        self.busy_s = 0.0
        self.joules = 0.0
        self.random = random.Random(1)
        self.root = folder / "powercap"
        self.cpuinfo = folder / "cpuinfo"
        self.cpuinfo.write_text(EPYC)
        zone = self.root / "intel-rapl:0"
        zone.mkdir(parents=True)
        (zone / "name").write_text("package-0\n")
        (zone / "max_energy_range_uj").write_text(str(RANGE_UJ))
        self.counter = zone / "energy_uj"
        self.run(0.0, 0.0)

    def meter(self, **config: float) -> RaplMeter:
        meter = build(
            EnergyConfig(**config),  # type: ignore[arg-type]
            cores=4,
            cpu_seconds=lambda: 0.0,
            clock=lambda: self.now_ns,
            powercap=self.root,
            cpuinfo=self.cpuinfo,
            host=lambda: HostUse(self.busy_s, 16),
        )
        assert isinstance(meter, RaplMeter)
        return meter

    def run(self, seconds: float, busy: float) -> None:
        """Let time pass with so many CPUs busy, beside a daemon or two."""
        busy += self.random.uniform(0.0, 0.05)
        self.now_ns += round(seconds * SECOND)
        self.busy_s += seconds * busy
        self.joules += seconds * (self.idle_w * self.random.uniform(0.99, 1.01) + WATTS_A_CPU * busy)
        self.counter.write_text(str(round(self.joules * 1e6) % RANGE_UJ))

    def rest(self, meter: RaplMeter, *busy: float) -> None:
        """Have the meter measure idle power while other programs keep so many CPUs busy, second by second."""
        others = iter(busy)

        async def sleep(seconds: float) -> None:
            self.run(seconds, next(others, 0.0))

        asyncio.run(meter.rest(clock=lambda: self.now_ns, sleep=sleep))

    def serve(self, meter: RaplMeter, *busy: float) -> float:
        """Serve with so many CPUs busy, second by second; return the saving against BASE that the meter's figures give.

        BASE is one that would have used half as much again.
        """
        first = meter.sample(self.now_ns)
        idle_j = 0.0
        for cpus in busy:
            self.run(1.0, cpus)
            idle_j += meter.sample(self.now_ns).idle_w
        total_j = meter.sample(self.now_ns).total_j - first.total_j
        return saving(idle_j, total_j - idle_j)

    def true_saving(self, *busy: float) -> float:
        """Return what physics say of the same."""
        return saving(self.idle_w * len(busy), WATTS_A_CPU * sum(busy))


def saving(idle_j: float, active_j: float) -> float:
    return 0.5 * active_j / (idle_j + 1.5 * active_j)


LOAD = tuple(0.0 if second % 20 > 16 else 1.5 for second in range(120))
"""Two minutes of load with a quiet moment now and then."""


@pytest.mark.parametrize("idle_w", [15.0, 60.0, 120.0])
def test_a_host_at_rest_is_measured_before_there_are_workers(tmp_path: Path, idle_w: float) -> None:
    host = SyntheticHost(tmp_path, idle_w)
    meter = host.meter()
    assert "modelled, until it is measured" in meter.why
    host.rest(meter)
    assert host.now_ns == 2 * SECOND
    assert meter.sample(host.now_ns).idle_w == pytest.approx(idle_w, rel=0.02)
    assert meter.why.endswith("W (measured at rest, over 2 s)")
    assert host.serve(meter, *LOAD) == pytest.approx(host.true_saving(*LOAD), abs=0.01)
    assert meter.idle_w == pytest.approx(idle_w, rel=0.02)


@pytest.mark.parametrize("idle_w", [15.0, 60.0, 120.0])
def test_other_programs_at_the_start_are_waited_out_and_then_corrected(
    tmp_path: Path, idle_w: float, caplog: pytest.LogCaptureFixture
) -> None:
    host = SyntheticHost(tmp_path, idle_w)
    meter = host.meter()
    host.rest(meter, *[3.0] * 10)
    assert host.now_ns == 5 * SECOND
    assert "other programs kept the machine busy: its idle power, " in caplog.text
    assert "an estimate, since the host was never at rest: its power less 1.48 W a busy CPU" in meter.why
    assert idle_w < meter.idle_w < idle_w + 3.0 * WATTS_A_CPU
    host.serve(meter, *LOAD)
    assert meter.idle.known_by == "rest"
    assert meter.idle_w == pytest.approx(idle_w, rel=0.02)
    assert host.serve(meter, *LOAD) == pytest.approx(host.true_saving(*LOAD), abs=0.01)


@pytest.mark.parametrize("idle_w", [15.0, 60.0, 120.0])
def test_the_idle_power_of_a_host_that_never_rests_is_found_by_regression(tmp_path: Path, idle_w: float) -> None:
    host = SyntheticHost(tmp_path, idle_w)
    meter = host.meter()
    host.rest(meter, *[2.0] * 10)
    load = tuple(1.0 + 2.0 * (second // 30 % 3) for second in range(600))
    host.serve(meter, *load)
    assert "by regression of power on CPU time" in meter.why
    assert meter.idle_w == pytest.approx(idle_w, rel=0.03)
    assert host.serve(meter, *load) == pytest.approx(host.true_saving(*load), abs=0.01)


def test_idle_power_rises_and_falls_with_the_host(tmp_path: Path) -> None:
    host = SyntheticHost(tmp_path, 60.0)
    meter = host.meter()
    host.rest(meter)
    for idle_w in (75.0, 50.0, 64.0):
        host.idle_w = idle_w
        host.serve(meter, *[0.0] * 16, *[1.0] * 600)
        assert meter.idle_w == pytest.approx(idle_w, rel=0.02)


def test_one_odd_window_at_rest_does_not_count(tmp_path: Path) -> None:
    host = SyntheticHost(tmp_path, 60.0)
    meter = host.meter()
    host.rest(meter)
    host.serve(meter, *[0.0] * 5)
    host.joules += 200.0  # a disk spun up, which is no CPU time
    host.serve(meter, *[0.0] * 2)
    assert meter.idle_w == pytest.approx(60.0, rel=0.02)


def test_a_reset_and_a_gap_are_no_windows(tmp_path: Path) -> None:
    host = SyntheticHost(tmp_path, 60.0)
    meter = host.meter()
    host.rest(meter)
    host.joules = 1_000.0
    host.serve(meter, 0.0)
    host.joules = 0.0
    host.serve(meter, *[0.0] * 12)
    assert (meter.resets, meter.sample(host.now_ns).epoch) == (1, 1)
    assert meter.idle_w == pytest.approx(60.0, rel=0.02)


def test_a_configured_idle_power_is_that_of_every_cpu_of_the_host(tmp_path: Path) -> None:
    host = SyntheticHost(tmp_path, 60.0)
    meter = host.meter(idle_w=3.75)
    host.rest(meter)
    assert host.now_ns == 0, "there is nothing to wait for"
    assert meter.idle_w == 60.0
    host.serve(meter, *[0.0] * 30)
    assert meter.idle_w == 60.0


def test_without_cpu_time_of_the_host_power_is_taken_as_it_is() -> None:
    idle = IdlePower(guess_w=10.0, core_w=2.0, cpus=4)
    assert (idle.watts, idle.known_by) == (10.0, "guess")
    for _ in range(40):
        idle.add(50.0, None, 1.0)
    assert idle.known_by == "model"
    assert idle.watts <= 50.0


def test_the_kernels_counters_of_cpu_time_are_read(tmp_path: Path) -> None:
    file = tmp_path / "stat"
    file.write_text("cpu  100 20 30 5000 7 4 6 900 50 5\ncpu0 1 2 3\ncpu1 1 2 3\nintr 5\n")
    assert host_use(file) == HostUse(busy_s=1.6, cpus=2), "neither stolen time nor a guest's twice"
    file.write_text("cpu  100")
    assert host_use(file) is None
    assert host_use(tmp_path / "none") is None
