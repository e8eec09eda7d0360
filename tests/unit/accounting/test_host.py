"""The machine's energy by CPU time: every process of the server is billed for what it used, and no more."""

from __future__ import annotations

import pytest

from clover.accounting import Account, HostProcess, ProfiledEnergy, WorkerMeter, meters
from clover.accounting.devices import LINES
from clover.energy import ModelledMeter
from clover.planning.model.queueing import REST_S, WAKE_S
from clover.types import EnergySample, Method, Reading
from tests.support.host_fixture import FakeClocks, hosted

SECOND = 1_000_000_000
GRID = Reading(g_per_kwh=360.0, at_s=0.0, provider="test")


class Scene:
    """A machine with a modelled meter (2 W idle, 8 W a busy core) or a measured one."""

    def __init__(self, *, slices: int = 2, emulated: frozenset[str] = frozenset(), method: Method = "modelled") -> None:
        self.clocks = FakeClocks()
        self.account = hosted(self.clocks, slices=slices, emulated=emulated)
        assert self.account.host is not None
        self.host = self.account.host
        self.meter = ModelledMeter(idle_w=2.0, core_w=8.0, cpu_seconds=self.host.own_seconds, now_ns=0)
        self.method: Method = method
        self.second = 0
        self.measured_j = 0.0
        self.account.add_family("toy")
        self.look()

    def look(self, measured_j: float = 0.0, seconds: int = 1) -> None:
        """A second later, the window is closed; `measured_j` is what a measured meter shows of it."""
        self.host.poll()
        self.measured_j += measured_j
        at_ns = self.second * SECOND
        sample = self.meter.sample(at_ns)
        if self.method == "measured":
            sample = EnergySample(device="cpu0", at_ns=at_ns, total_j=self.measured_j, idle_w=2.0, method="measured")
        self.account.close_window(sample, GRID)
        self.second += seconds

    def worker(self, variant: str = "small", *, device: str = "cpu0", start_ns: int = 0) -> WorkerMeter:
        return self.account.attach(
            WorkerMeter(
                family="toy",
                variant=variant,
                device=device,
                placement=f"p{len(self.clocks.processes)}",
                slices=1,
                profiled=ProfiledEnergy((1.0, 1.0)),
                process=HostProcess(self.clocks.spawn(start_ns), 4),
            )
        )

    def active(self) -> dict[str, float]:
        return {variant: line.joules for (_, variant, _), line in self.account.by_variant("active").items()}

    def line(self, name: str) -> float:
        return float(self.account.devices()["cpu0"][f"{name}_j"])


def lines_sum(account: Account, device: str = "cpu0") -> float:
    line = account.devices()[device]
    return sum(float(line[f"{name}_j"]) for name in LINES)


def test_what_the_controller_takes_in_the_servers_process_is_control() -> None:
    scene = Scene()
    scene.clocks.server_ns += SECOND
    scene.clocks.looking_ns += SECOND // 4
    scene.look()
    assert scene.line("front_end") == pytest.approx(6.0)
    assert scene.line("control") == pytest.approx(2.0)
    assert lines_sum(scene.account) == pytest.approx(scene.line("measured"))
    scene.clocks.looking_ns += SECOND // 4  # a step that ended in this window, and began before
    scene.look()
    assert scene.line("front_end") == pytest.approx(6.0)
    assert scene.line("control") == pytest.approx(2.0)
    assert lines_sum(scene.account) == pytest.approx(scene.line("measured"))


def test_the_server_bills_itself() -> None:
    scene = Scene()
    small = scene.worker("small", start_ns=3 * SECOND)  # loading and warming up: not the variant's
    scene.clocks.control_ns += SECOND  # the planner
    scene.clocks.server_ns += SECOND // 2
    scene.clocks.processes[small.pid] += SECOND // 4
    scene.look()
    assert scene.active() == {"small": pytest.approx(2.0)}
    assert scene.line("front_end") == pytest.approx(4.0)
    assert scene.line("control") == pytest.approx(8.0 + 24.0)
    assert lines_sum(scene.account) == pytest.approx(scene.line("measured"))
    assert scene.line("measured") == pytest.approx(2.0 + 8.0 * (3 + 1 + 0.5 + 0.25))


def test_variants_are_billed_by_their_cpu_time_and_not_by_their_profile() -> None:
    scene = Scene()
    small, large = scene.worker("small"), scene.worker("large")
    for _ in range(50):
        small.add(1, SECOND // 10, 0)  # says that it used nothing; profiled at 1 J a row
        large.add(1, SECOND // 10, 0)
        scene.clocks.processes[small.pid] += SECOND // 40
        scene.clocks.processes[large.pid] += SECOND // 4
        scene.look()
    assert scene.active() == {"small": pytest.approx(10.0), "large": pytest.approx(100.0)}
    # Receipts follow, each variant by what it really uses.
    assert small.add(1, 0, 0) == pytest.approx(0.2)
    assert large.add(1, 0, 0) == pytest.approx(2.0)
    per_row = scene.account.per_row()
    assert per_row["toy", "small", "modelled"] == (pytest.approx(1.0), pytest.approx(0.2))
    assert per_row["toy", "large", "modelled"] == (pytest.approx(1.0), pytest.approx(2.0))
    # One that takes its place begins with what is known of its variant.
    assert scene.worker("small").add(1, 0, 0) == pytest.approx(0.2)


def test_other_programs_on_a_metered_machine_are_billed_to_none_of_ours() -> None:
    scene = Scene(method="measured")
    small = scene.worker()
    scene.clocks.processes[small.pid] += SECOND
    scene.clocks.others_ns += 3 * SECOND
    scene.look(2.0 + 40.0)
    assert scene.active() == {"small": pytest.approx(10.0)}
    assert scene.line("unattributed") == pytest.approx(30.0)
    assert scene.account.devices()["cpu0"]["ratio"] == 1.0  # no batch ended: nothing is learned


def test_what_a_worker_used_at_its_end_is_counted_once() -> None:
    scene = Scene()
    small = scene.worker()
    scene.clocks.processes[small.pid] += SECOND
    scene.host.poll()  # the meter hung: the window stays open
    scene.clocks.processes[small.pid] += SECOND // 2
    small.add(1, SECOND // 4, SECOND // 4)
    scene.clocks.end(small.pid)
    scene.account.detach(small)
    scene.look()
    # Its clock is gone with half a second unread, of which its batches say a quarter... and less than was read before.
    assert scene.active() == {"small": pytest.approx(8.0)}
    assert scene.line("control") == pytest.approx(4.0)
    scene.look()
    assert lines_sum(scene.account) == pytest.approx(scene.line("measured")) == pytest.approx(2.0 * 2 + 12.0)


def test_cores_that_are_not_the_servers_idle_for_others() -> None:
    scene = Scene(slices=3, method="measured")
    scene.account.add_device("cpu0", 3, 5)
    scene.worker()
    scene.look(2.0)
    assert scene.line("foreign") == scene.line("rest") - 0.75 == pytest.approx(2.0 * 5 / 8)
    assert scene.line("idle_no_request") == scene.line("unowned") / 2 == pytest.approx(0.25)


def test_cpu_time_that_computes_for_an_emulated_gpu_is_the_gpus() -> None:
    scene = Scene(emulated=frozenset({"gpu0"}))
    scene.account.add_device("gpu0", 1)
    worker = scene.worker(device="gpu0")
    scene.clocks.processes[worker.pid] += 5 * SECOND
    scene.clocks.server_ns += SECOND
    scene.look()
    assert scene.active() == {}
    assert scene.line("measured") == pytest.approx(2.0 + 8.0)
    assert scene.line("front_end") == pytest.approx(8.0)
    assert scene.line("idle_no_request") == pytest.approx(1.0)  # its slice holds half of the host


def test_workers_on_gpus_use_the_host_too() -> None:
    scene = Scene()
    scene.account.add_device("gpu0", 1)
    worker = scene.worker(device="gpu0")
    worker.add(1, SECOND, 0)
    scene.clocks.processes[worker.pid] += SECOND
    scene.look()
    assert scene.active() == {"small": pytest.approx(8.0)}
    (booked,) = (key for key, line in scene.account.booked.items() if key.line == "active" and line.joules)
    assert booked == ("cpu0", "active", "toy", "small", worker.placement, "modelled")
    assert worker.window_rows == 1  # the window of its own device is not touched


def test_rows_that_answer_no_client_are_control() -> None:
    scene = Scene()
    worker = scene.worker()
    worker.add(4, SECOND, SECOND)
    worker.record_passed_on(0, 1, 0.0)
    scene.clocks.processes[worker.pid] += SECOND
    scene.look()
    assert scene.active() == {"small": pytest.approx(6.0)}
    assert scene.line("control") == pytest.approx(2.0)


def test_audits_on_a_gpu_are_control_of_their_family() -> None:
    scene = Scene(method="measured")
    scene.account.add_device("gpu0", 1)
    scene.account.add_family("other")
    scene.account.count_answered("other", 100)

    def window(second: int, total_j: float) -> None:
        scene.account.close_window(
            EnergySample(device="gpu0", at_ns=second * SECOND, total_j=total_j, idle_w=50.0, method="measured"), GRID
        )

    window(0, 0.0)
    worker = scene.worker(device="gpu0")
    for _ in range(10):
        worker.add(10, SECOND // 10, 0)
    worker.record_passed_on(0, 50, 0.0)
    window(1, 50.0 + 100.0)
    assert scene.account.totals("toy")["control_j"] == pytest.approx(50.0)
    assert scene.account.totals("other")["control_j"] == 0.0
    assert sum(line.joules for device, _, _, line in scene.account.lines() if device == "gpu0") == pytest.approx(150.0)
    assert scene.account.per_row()["toy", "small", "measured"] == (pytest.approx(1.0), pytest.approx(1.0))


def test_receipts_carry_the_front_end_and_sum_up() -> None:
    scene = Scene()
    worker = scene.worker()
    billed_j = 0.0
    for _ in range(200):
        for _ in range(10):
            computed_j = worker.add(1, SECOND // 20, 0)
            scene.account.count_answered("toy", 1)
            receipt = scene.account.receipt("toy", "small", 90.0, 1, computed_j)
            billed_j += receipt.energy_j
        scene.clocks.processes[worker.pid] += SECOND // 4
        scene.clocks.server_ns += SECOND // 2
        scene.clocks.control_ns += SECOND // 8
        scene.look()
    totals = scene.account.totals("toy")
    assert totals["front_end_j"] == pytest.approx(200 * 4.0)
    assert totals["control_j"] == pytest.approx(200 * 1.0)
    assert totals["energy_j"] == pytest.approx(200 * (1.0 + 2.0 + 4.0 + 1.0))
    others_j = sum(totals[f"{name}_j"] for name in ("idle_no_request", "unbilled", "control"))
    assert billed_j + others_j == pytest.approx(totals["energy_j"])
    # 4 W of front end and 2 W active at ten rows a second, and 1 W idle for the half of the time that it was busy.
    assert receipt.energy_j == pytest.approx(0.05 + 0.4 + 0.2, rel=0.02)
    assert totals["idle_no_request_j"] == pytest.approx(200 * 0.5, rel=0.02)
    assert receipt.carbon_mg == pytest.approx(receipt.energy_j / 3.6e6 * 360.0 * 1.5 * 1000, rel=1e-6)


def test_a_pause_before_a_batch_costs_what_it_was_measured_to_cost() -> None:
    meter = WorkerMeter(
        family="toy",
        variant="small",
        device="cpu0",
        placement="p0",
        slices=1,
        profiled=ProfiledEnergy((0.5, 0.5, 0.4), rested_j=0.2),
    )
    assert meter.add(2, SECOND, 0, pause_ns=0) == pytest.approx(0.4)
    assert meter.add(2, SECOND, 0, pause_ns=1_000_000) == pytest.approx(0.4 + 0.1 / 2)
    assert meter.add(2, SECOND, 0, pause_ns=SECOND) == pytest.approx(0.4 + 0.2 / 2)
    assert meter.modelled_j == pytest.approx(0.8 + 0.9 + 1.0)


def test_meters_and_plans_take_pauses_for_equally_long() -> None:
    assert (round(REST_S * 1e9), round(WAKE_S * 1e9)) == (meters.PAUSE_NS, meters.WAKE_NS)


def test_what_waking_up_costs_beside_a_batch_is_expected_and_is_no_time_of_the_batch() -> None:
    account = Account(pue=1.0)
    own = account.attach(
        WorkerMeter(
            family="toy",
            variant="small",
            device="cpu0",
            placement="cpu0:1c@0",
            slices=1,
            profiled=ProfiledEnergy((0.5, 0.5, 0.4), rested_j=0.0, wake_j=0.8),
        )
    )
    assert own.add(2, SECOND, 0, pause_ns=4_000_000) == pytest.approx(0.4 + 0.4 / 2)
    assert own.add(2, SECOND, 0, pause_ns=SECOND) == pytest.approx(0.4 + 0.8 / 2)
    assert account.work_report("toy").served == {("small", "1c", 2): (2, pytest.approx(2.0))}
