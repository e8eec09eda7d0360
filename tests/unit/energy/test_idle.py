"""Idle power of a whole host by its counters: synthetic hosts with counters in files, other programs, a fake clock."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from clover.accounting import Account, Spans
from clover.config import EnergyConfig, ServerConfig
from clover.control.baselines.saved import saved
from clover.energy import RaplMeter
from clover.energy.host import HostUse, host_use
from clover.energy.idle import HostWindow, IdlePower
from clover.planning.budget.counterfactual import base, lanes_of, mix_of
from clover.planning.model.problem import accuracies
from clover.profiling.joules import EnergyMeters
from clover.server.machine import Machine
from clover.types import FamilyProfile, Placement
from tests.support.control_fixture import Rig
from tests.support.profiles_fixture import cpu, profile
from tests.support.synthetic_host import SECOND, WATTS_A_CPU, SyntheticHost


def saving(idle_j: float, active_j: float) -> float:
    return 0.5 * active_j / (idle_j + 1.5 * active_j)


def serve(host: SyntheticHost, meter: RaplMeter, *busy: float) -> float:
    """Serve with so many CPUs busy, second by second; return the saving against BASE that the meter's figures give.

    BASE is one that would have used half as much again.
    """
    first = meter.sample(host.now_ns)
    idle_j = 0.0
    for cpus in busy:
        host.run(1.0, cpus)
        idle_j += meter.sample(host.now_ns).idle_w
    total_j = meter.sample(host.now_ns).total_j - first.total_j
    return saving(idle_j, total_j - idle_j)


def at_rest_on(host: SyntheticHost, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have every meter come to rest by the clock of `host`, on which nothing runs meanwhile."""
    whole: Any = RaplMeter.rest

    async def rest(self: RaplMeter) -> None:
        await whole(self, clock=lambda: host.now_ns, sleep=host.sleep)

    monkeypatch.setattr(RaplMeter, "rest", rest)


def true_saving(host: SyntheticHost, *busy: float) -> float:
    """Return what physics say of the same."""
    return saving(host.idle_w * len(busy), WATTS_A_CPU * sum(busy))


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
    assert serve(host, meter, *LOAD) == pytest.approx(true_saving(host, *LOAD), abs=0.01)
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
    serve(host, meter, *LOAD)
    assert meter.idle.known_by == "rest"
    assert meter.idle_w == pytest.approx(idle_w, rel=0.02)
    assert serve(host, meter, *LOAD) == pytest.approx(true_saving(host, *LOAD), abs=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("idle_w", [15.0, 60.0, 120.0])
def test_the_idle_power_of_a_host_that_never_rests_is_found_by_regression(tmp_path: Path, idle_w: float) -> None:
    host = SyntheticHost(tmp_path, idle_w)
    meter = host.meter()
    host.rest(meter, *[2.0] * 10)
    load = tuple(1.0 + 2.0 * (second // 30 % 3) for second in range(600))
    serve(host, meter, *load)
    assert "by regression of power on CPU time" in meter.why
    assert meter.idle_w == pytest.approx(idle_w, rel=0.03)
    assert serve(host, meter, *load) == pytest.approx(true_saving(host, *load), abs=0.01)


def test_idle_power_rises_and_falls_with_the_host(tmp_path: Path) -> None:
    host = SyntheticHost(tmp_path, 60.0)
    meter = host.meter()
    host.rest(meter)
    for idle_w in (75.0, 50.0, 64.0):
        host.idle_w = idle_w
        serve(host, meter, *[0.0] * 16, *[1.0] * 600)
        assert meter.idle_w == pytest.approx(idle_w, rel=0.02)


def active_part(host: SyntheticHost, meter: RaplMeter, seconds: int, busy: float, *, others: float = 0.0) -> float:
    """Serve with so many CPUs busy; return active joules by the meter's figures, over the true ones."""
    before = meter.sample(host.now_ns)
    idle_j = 0.0
    for _ in range(seconds):
        host.run(1.0, busy, others=others)
        idle_j += meter.sample(host.now_ns).idle_w
    true_j = host.watts_a_cpu * (busy + others + 0.025) * seconds  # daemons use 0.025 CPUs on average
    return (meter.sample(host.now_ns).total_j - before.total_j - idle_j) / true_j


@pytest.mark.parametrize(
    ("cpus", "busy", "true_w"),
    [(16, 0.15, 6.0), (16, 0.3, 6.0), (64, 0.5, 6.0), (128, 1.0, 1.0), (128, 1.2, 6.0), (256, 2.0, 6.0)],
)
def test_active_energy_of_a_lightly_loaded_host_is_not_the_model_s(
    tmp_path: Path, cpus: int, busy: float, true_w: float
) -> None:
    """However small a part of the CPUs the server keeps busy, its seconds are no rest."""
    host = SyntheticHost(tmp_path, 60.0, cpus=cpus, watts_a_cpu=true_w)
    meter = host.meter()
    host.rest(meter, *[0.0] * 5)
    for _ in range(30):  # it is at rest for half a minute before it serves
        host.run(1.0, 0.0)
        meter.sample(host.now_ns)
    absolute = 0.25 / (true_w * busy)  # of a watt, which is what the noise of the counter leaves
    assert active_part(host, meter, 300, busy) == pytest.approx(1.0, abs=0.05 + absolute)
    # After ten minutes without rest, it is what a busy CPU drew above the last rest.
    active_part(host, meter, 600, busy)
    assert meter.idle.known_by == "load"
    assert active_part(host, meter, 300, busy) == pytest.approx(1.0, abs=0.1 + absolute)
    off = meter.sample(host.now_ns).active_uncertainty
    assert off is not None
    assert 0.05 <= off[1] < 1.0, "the noise of a rest is known, and no guess is in it"


def test_how_far_active_energy_may_be_off_holds_what_the_noise_of_a_short_rest_does(tmp_path: Path) -> None:
    """Idle power was seen for two seconds: of 24 hosts no more than a few are off by more than is said."""
    beyond = 0
    for seed in range(24):
        folder = tmp_path / str(seed)
        folder.mkdir()
        host = SyntheticHost(folder, 60.0)
        host.random.seed(seed)
        meter = host.meter()
        host.rest(meter, *[0.0] * 5)
        counted = active_part(host, meter, 200, 0.4)
        off = meter.sample(host.now_ns).active_uncertainty
        assert off is not None
        assert 0.1 < off[1] < 0.6
        beyond += not off[0] <= 1.0 / counted - 1.0 <= off[1]
    assert beyond <= 4


@pytest.mark.parametrize("by_w", [20.0, -10.0, -30.0])
def test_a_jump_of_idle_power_is_followed_without_rest(
    tmp_path: Path, by_w: float, caplog: pytest.LogCaptureFixture
) -> None:
    host = SyntheticHost(tmp_path, 60.0, watts_a_cpu=6.0)
    meter = host.meter()
    host.rest(meter)
    assert active_part(host, meter, 300, 0.3) == pytest.approx(1.0, abs=0.25)
    host.idle_w += by_w
    active_part(host, meter, 40, 0.3)
    assert meter.idle.jumps == 1
    assert meter.idle_w == pytest.approx(60.0 + by_w, abs=1.0)
    assert active_part(host, meter, 900, 0.3) == pytest.approx(1.0, abs=0.3)
    assert "cpu0: the machine's power changed without more CPU time: idle power is " in caplog.text


def test_a_change_of_load_is_no_jump_of_idle_power(tmp_path: Path) -> None:
    host = SyntheticHost(tmp_path, 60.0, watts_a_cpu=6.0)
    meter = host.meter()
    host.rest(meter)
    for busy in (0.3, 4.0, 1.0, 12.0, 0.1):
        active_part(host, meter, 60, busy)
        assert meter.idle_w == pytest.approx(60.0, abs=1.0)
    assert meter.idle.jumps == 0


def test_where_others_never_rest_the_meter_says_how_far_off_it_may_be(tmp_path: Path) -> None:
    host = SyntheticHost(tmp_path, 60.0, watts_a_cpu=5.0)
    meter = host.meter()
    host.rest(meter, *[3.0] * 10)
    for _ in range(60):
        host.run(1.0, 0.3, others=3.0)
        meter.sample(host.now_ns)
    sample = meter.sample(host.now_ns)
    assert sample.method == "measured"
    assert sample.active_uncertainty == (-0.6, 3.0)
    true_j, said_j = 5.0 * 3.3, host.idle_w + 5.0 * 3.3 - sample.idle_w
    assert 0.4 * said_j <= true_j <= 4.0 * said_j


def test_one_odd_window_at_rest_does_not_count(tmp_path: Path) -> None:
    host = SyntheticHost(tmp_path, 60.0)
    meter = host.meter()
    host.rest(meter)
    serve(host, meter, *[0.0] * 5)
    host.joules += 200.0  # a disk spun up, which is no CPU time
    serve(host, meter, *[0.0] * 2)
    assert meter.idle_w == pytest.approx(60.0, rel=0.02)


def test_a_reset_and_a_gap_are_no_windows(tmp_path: Path) -> None:
    host = SyntheticHost(tmp_path, 60.0)
    meter = host.meter()
    host.rest(meter)
    host.joules = 1_000.0
    serve(host, meter, 0.0)
    host.joules = 0.0
    serve(host, meter, *[0.0] * 12)
    assert (meter.resets, meter.sample(host.now_ns).epoch) == (1, 1)
    assert meter.idle_w == pytest.approx(60.0, rel=0.02)


def test_a_configured_idle_power_is_that_of_every_cpu_of_the_host(tmp_path: Path) -> None:
    host = SyntheticHost(tmp_path, 60.0)
    meter = host.meter(idle_w=3.75)
    host.rest(meter)
    assert host.now_ns == 0, "there is nothing to wait for"
    assert meter.idle_w == 60.0
    serve(host, meter, *[0.0] * 30)
    assert meter.idle_w == 60.0


def test_without_cpu_time_of_the_host_power_is_taken_as_it_is() -> None:
    idle = IdlePower(guess_w=10.0, core_w=2.0, cpus=4)
    assert (idle.watts, idle.known_by) == (10.0, "guess")
    for second in range(40):
        idle.add(HostWindow(float(second), 1.0, 50.0, None, None))
    assert idle.known_by == "model"
    assert idle.watts <= 50.0
    assert not idle.measured


def test_the_kernels_counters_of_cpu_time_are_read(tmp_path: Path) -> None:
    file = tmp_path / "stat"
    file.write_text("cpu  100 20 30 5000 7 4 6 900 50 5\ncpu0 1 2 3 4 5 6 7 8 9 0\ncpu1 1 2 3 4 5 6 7 8 9 0\nintr 5\n")
    assert host_use(file) == HostUse(busy_s=1.6, cpus=2), "neither stolen time nor a guest's twice"
    file.write_text("cpu  100")
    assert host_use(file) is None
    assert host_use(tmp_path / "none") is None


@pytest.mark.parametrize("idle_w", [15.0, 60.0, 120.0])
def test_profiles_are_measured_above_the_same_idle_power(
    tmp_path: Path, idle_w: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = SyntheticHost(tmp_path, idle_w)
    monkeypatch.setattr("clover.profiling.joules.energy.build", lambda *_, **__: host.meter())
    monkeypatch.setattr("clover.profiling.joules.time.monotonic_ns", lambda: host.now_ns)

    async def measure() -> tuple[float, str]:
        meters = await EnergyMeters.start(EnergyConfig(), 4)
        window = meters.window([Placement(device="cpu0", profile="4c", start=0, size=4)])
        async with window:
            for _ in range(30):
                host.run(1.0, 4.0)
        return window.joules(rows=1000, cpu_s=120.0)

    at_rest_on(host, monkeypatch)
    joules, method = asyncio.run(measure())
    assert joules == pytest.approx(WATTS_A_CPU * 120.0 / 1000, rel=0.05)
    assert method == "measured"


def test_a_server_measures_idle_power_before_it_has_workers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "clover.server")
    host = SyntheticHost(tmp_path, 60.0)
    machine = Machine(ServerConfig(), tmp_path / "cache", Account(pue=1.0))
    machine.meters = {"cpu0": host.meter()}
    at_rest_on(host, monkeypatch)
    asyncio.run(machine.start([]))
    assert "cpu0: energy is measured: RAPL: package-0; idle " in caplog.text
    assert "(measured at rest, over 2 s)" in caplog.text


def test_a_counter_that_fails_at_rest_is_no_end(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    host = SyntheticHost(tmp_path, 60.0)
    meter = host.meter()
    host.counter.unlink()
    host.counter.mkdir()
    asyncio.run(meter.rest(clock=lambda: host.now_ns, sleep=host.sleep))
    assert "the idle power could not be measured: " in caplog.text
    assert meter.idle.known_by == "guess"


RATE = 100.0
MIX = {"small": 1.0}


def profiled_by(meter: RaplMeter, host: SyntheticHost) -> FamilyProfile:
    """Return the profile that `meter` measures: of batch after batch, what the host draws above its idle power."""
    wrong_w = host.idle_w - meter.idle_w
    true = profile()
    latency = [
        replace(row, energy_j_per_row=row.energy_j_per_row + wrong_w * row.mean_ms / 1e3 / row.batch)
        for row in true.latency
    ]
    return replace(true, latency=tuple(latency))


@pytest.mark.slow
@pytest.mark.parametrize("idle_w", [15.0, 60.0, 120.0])
@pytest.mark.parametrize("others", [0.0, 3.0])
def test_what_a_server_says_it_saved_is_what_physics_say(tmp_path: Path, idle_w: float, others: float) -> None:
    """Metered by RAPL from its profile to what is said; other programs may run at the start, and stop then."""
    host = SyntheticHost(tmp_path, idle_w)
    meter = host.meter()

    async def story() -> None:
        rig = Rig(policy="static", objective="floor", measured=profiled_by(meter, host))
        await rig.deploy()
        await rig.controller.command("pin", {"configuration": {"small@1c": 2}, "force": True}, "me")
        standing = rig.family.deployed
        assert standing is not None
        served = mix_of(lanes_of(profile(), standing.configuration), MIX, accuracies(profile()))
        on_base = base(profile(), (cpu(2),))
        assert served is not None
        assert on_base is not None
        own_w, base_w = (RATE * item.joules(RATE) for item in (served, on_base))
        true_j = before_j = meter.sample(host.now_ns).total_j
        for second in range(300):
            quiet = second % 20 == 19
            rig.clock.now_s += 1.0
            host.run(1.0, 0.0 if quiet else own_w / WATTS_A_CPU)
            sample = meter.sample(host.now_ns)
            spans = Spans(seconds=1.0)
            span = spans.for_family("toy")
            span.rows = {} if quiet else {"small": round(RATE)}
            span.methods = {"measured"}
            span.share.idle_j = span.share.idle_g = sample.idle_w
            span.share.active_j = span.share.active_g = sample.total_j - before_j - sample.idle_w
            before_j = sample.total_j
            rig.controller.shadows.compare(spans)
        found = saved(rig.controller.shadows.by_family["toy"])
        assert found is not None
        more_j = 285 * (base_w - own_w)
        assert more_j > 100.0
        assert found["base"]["part"] == pytest.approx(more_j / (before_j - true_j + more_j), abs=0.01)

    host.rest(meter, *[others] * 5)
    serve(host, meter, 0.0, 0.0, 0.0)  # it is quiet for a moment before it profiles and serves
    asyncio.run(story())
