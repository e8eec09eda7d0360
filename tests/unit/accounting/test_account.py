"""Attribution: the parts sum to what was measured, and each part goes to whom it belongs."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clover.accounting import Account, HostProcess, ProfiledEnergy, WorkerMeter, profiled_energy
from clover.accounting.devices import IDLE
from clover.accounting.devices import LINES as NAMES
from clover.types import (
    AccuracyMeasurement,
    BasePoint,
    EnergySample,
    FamilyProfile,
    LatencyMeasurement,
    Method,
    Placement,
    Reading,
)
from tests.support.host_fixture import FakeClocks, hosted

SECOND = 1_000_000_000
GRID = Reading(g_per_kwh=360.0, at_s=0.0, provider="test", state="fresh")


def meter(
    variant: str = "small", family: str = "toy", placement: str = "p0", slices: int = 1, device: str = "cpu0"
) -> WorkerMeter:
    return WorkerMeter(
        family=family,
        variant=variant,
        device=device,
        placement=placement,
        slices=slices,
        profiled=ProfiledEnergy((0.5, 0.5, 0.4)),
        process=HostProcess(cores=4),
    )


def sample(
    second: float,
    total_j: float,
    idle_w: float = 2.0,
    *,
    device: str = "cpu0",
    epoch: int = 0,
    method: Method = "measured",
) -> EnergySample:
    return EnergySample(
        device=device, at_ns=int(second * SECOND), total_j=total_j, idle_w=idle_w, method=method, epoch=epoch
    )


def joules(book: Account, *lines: str) -> dict[str, float]:
    """Return the joules of `lines` by variant."""
    return {variant: line.joules for (_, variant, _), line in book.by_variant(*lines).items()}


def active_at(book: Account, device: str, placement: str) -> float:
    """Return the active joules of the workers at a placement."""
    return sum(
        line.joules
        for key, line in book.booked.items()
        if (key.device, key.line, key.placement) == (device, "active", placement)
    )


def account(slices: int = 2) -> Account:
    made = Account(pue=1.5)
    made.add_device("cpu0", slices)
    made.add_family("toy")
    made.close_window(sample(0, 0.0), GRID)
    return made


def test_cpu_time_that_a_worker_makes_up_is_bounded_by_the_cores_it_has() -> None:
    worker = WorkerMeter(
        family="toy", variant="small", device="cpu0", placement="p0", slices=2, core_w=8.0, process=HostProcess(0, 2)
    )
    assert worker.add(2, SECOND, 2 * SECOND) == pytest.approx(8.0)  # an honest one on both cores: as it says
    assert 16.0 <= worker.add(1, SECOND, (1 << 63) - 1) < 16.2
    for _ in range(1000):
        worker.add(1, 1000, SECOND)
    assert 4 * SECOND <= worker.cpu_ns < 4.03 * SECOND
    assert worker.modelled_j < 32.3
    for _ in range(1000):  # what it did not use, it cannot claim later
        worker.add(1, SECOND, 0)
    assert worker.add(1, 0, SECOND) < 0.17


def test_active_energy_follows_modelled_work_and_idle_follows_slices() -> None:
    book = account()
    small, large = book.attach(meter("small")), book.attach(meter("large", placement="p1"))
    small.add(2, SECOND, SECOND)  # 0.8 J
    large.add(1, SECOND, SECOND)  # 0.5 J
    large.add(1, SECOND, SECOND)
    large.add(1, SECOND, SECOND)
    large.add(1, SECOND, SECOND)  # 2.0 J
    book.close_window(sample(1, 2.0 + 5.6), GRID)
    assert joules(book, "active") == {"small": pytest.approx(1.6), "large": pytest.approx(4.0)}
    assert joules(book, *IDLE) == {"small": pytest.approx(1.0), "large": pytest.approx(1.0)}
    of_large = book.by_variant("active", *IDLE)["toy", "large", "measured"]
    assert of_large.grams == pytest.approx(5.0 / 3.6e6 * 360.0 * 1.5)
    assert book.devices()["cpu0"]["ratio"] == pytest.approx(2.0)
    assert book.totals("toy")["energy_j"] == pytest.approx(7.6)


def test_workers_of_one_placement_share_its_slices_and_nobodys_slices_are_told_apart() -> None:
    book = account(slices=4)
    book.attach(meter("small", slices=2))
    book.attach(meter("large", slices=2))
    book.close_window(sample(1, 2.0), GRID)
    assert joules(book, *IDLE) == {"small": pytest.approx(0.5), "large": pytest.approx(0.5)}
    assert book.devices()["cpu0"]["unowned_j"] == pytest.approx(1.0)


def test_energy_of_nobody_is_unattributed() -> None:
    book = account()
    book.close_window(sample(1, 7.0), GRID)
    assert book.devices()["cpu0"]["unattributed_j"] == pytest.approx(5.0)


def test_a_measured_value_below_idle_is_carried_not_lost() -> None:
    book = account()
    worker = book.attach(meter())
    worker.add(1, SECOND, SECOND)
    book.close_window(sample(1, 0.5), GRID)
    assert book.devices()["cpu0"]["carried_j"] == pytest.approx(-1.5)
    assert book.totals()["active_j"] == 0.0
    worker.add(1, SECOND, SECOND)
    book.close_window(sample(2, 6.5), GRID)
    assert book.totals()["active_j"] == pytest.approx(2.5)
    assert book.devices()["cpu0"]["carried_j"] == 0.0


def test_the_last_work_of_a_worker_that_left_still_counts() -> None:
    book = account()
    worker = book.attach(meter())
    worker.add(1, SECOND, 3 * SECOND)
    book.detach(worker)
    book.close_window(sample(1, 5.0), GRID)
    assert book.totals()["active_j"] == pytest.approx(3.0)
    assert book.totals()["idle_j"] == 0.0
    assert book.cpu_seconds() == 3.0


def test_a_receipt_is_profiled_energy_times_ratio_and_the_idle_power_of_its_slice_meanwhile() -> None:
    book = account()
    worker = book.attach(meter())
    for _ in range(10):
        worker.add(1, SECOND, SECOND)
        book.count_answered("toy", 1)
    book.close_window(sample(10, 20.0 + 10.0), GRID)  # 5 J modelled, 10 J measured
    computed_j = worker.add(1, SECOND // 4, SECOND)
    assert computed_j == pytest.approx(0.5 * 2.0 + 0.25)  # one of two slices: 1 W
    receipt = book.receipt("toy", variant="small", accuracy=80.0, rows=1, computed_j=computed_j)
    assert receipt.energy_j == computed_j
    assert receipt.carbon_mg == pytest.approx(receipt.energy_j / 3.6e6 * 360.0 * 1.5 * 1000)
    assert (receipt.method, receipt.intensity_state) == ("modelled", "fresh")
    assert receipt.intensity is GRID
    assert book.receipts_j["toy", ""] == receipt.energy_j


def ask(book: Account, worker: WorkerMeter, busy_ns: int, tenant: str = "", rows: int = 1) -> float:
    """Have a batch of `rows` rows computed and answered: the joules in its receipt."""
    computed_j = rows * worker.add(rows, busy_ns, busy_ns)
    book.count_answered("toy", rows)
    return book.receipt("toy", "small", 80.0, rows, computed_j, tenant).energy_j


def test_nobody_pays_for_a_quiet_hour() -> None:
    book = account()
    worker = book.attach(meter())
    book.close_window(sample(3600, 7200.0), GRID)
    burst_j = [ask(book, worker, SECOND // 100) for _ in range(50)]
    assert burst_j == [pytest.approx(0.5 + 0.01)] * 50, "the first as the last"
    book.close_window(sample(3601, 7202.0 + 25.0), GRID)
    line, totals = book.devices()["cpu0"], book.totals("toy")
    assert (line["idle_j"], line["idle_no_request_j"]) == (pytest.approx(0.5), pytest.approx(3601.0 - 0.5))
    assert (totals["receipts_j"], totals["idle_no_request_j"]) == (pytest.approx(25.5), line["idle_no_request_j"])
    assert totals["unbilled_j"] == pytest.approx(0.0, abs=1e-9)


def test_a_batch_longer_than_a_window_keeps_the_idle_power_of_all_its_time() -> None:
    book = account()
    worker = book.attach(meter())
    book.close_window(sample(1, 2.0), GRID)
    ask(book, worker, 3 * SECOND)  # it began before the window
    for second in range(2, 10):
        book.close_window(sample(second, 2.0 * second), GRID)
    assert book.devices()["cpu0"]["idle_j"] == pytest.approx(3.0)
    assert book.totals("toy")["idle_no_request_j"] == pytest.approx(9.0 - 3.0)


@pytest.mark.parametrize(("rate", "tenants"), [(1 / 60, 1), (200.0, 3)])
def test_receipts_of_an_hour_and_what_nobody_asked_for_sum_to_the_meter(rate: float, tenants: int) -> None:
    """Two workers of 1 W idle each on a machine of three cores and a foreign one; 0.3 ms of work and 0.2 ms of front
    end a row at 8 W, 2 ms of front end a second whatever comes."""
    clocks = FakeClocks()
    book = hosted(clocks, slices=3, foreign=1)
    book.add_family("toy")
    host = book.host
    assert host is not None
    workers = [
        book.attach(
            WorkerMeter(
                family="toy", variant=variant, device="cpu0", placement=variant, slices=1,
                profiled=ProfiledEnergy((0.003, 0.003)), process=HostProcess(clocks.spawn()),
            )
        )
        for variant in ("small", "large")
    ]  # fmt: skip
    receipts: dict[str, list[float]] = {f"tenant {number}": [] for number in range(tenants)}
    total_j, answered = 0.0, 0
    book.close_window(sample(0, 0.0, 4.0), GRID)
    for second in range(1, 3601):
        due = max(int((second - 5) * rate), 0)  # nobody asks in the first seconds
        for row in range(answered, due):
            worker, tenant = workers[row % 2], f"tenant {row % tenants}"
            receipts[tenant].append(ask(book, worker, 500_000, tenant))
            clocks.processes[worker.pid] += 300_000
        clocks.server_ns += 2_000_000 + 200_000 * (due - answered)
        total_j += 4.0 + 8.0 * (0.002 + 0.0005 * (due - answered))
        answered = due
        host.poll()
        book.close_window(sample(second, total_j, 4.0), GRID)
    totals, line = book.totals("toy"), book.devices()["cpu0"]
    every = sorted(joules for own in receipts.values() for joules in own)
    median_mj = 1e3 * every[len(every) // 2]
    print(
        f"\n{rate * 60:g} a minute: {len(every)} receipts, median {median_mj:.3f} mJ, largest "
        f"{1e3 * every[-1]:.3f} mJ; J: {sum(every):.3f} in receipts, {line['idle_no_request_j']:.3f} idle, no request, "
        f"{totals['unbilled_j']:.3f} unbilled, {line['unowned_j']:.3f} unowned, {line['foreign_j']:.3f} foreign, "
        f"{line['measured_j']:.3f} by the meter; by tenant {[f'{sum(own):.3f}' for own in receipts.values()]}"
    )
    # 0.3 ms of computing and 0.2 ms of front end at 8 W, and 0.5 ms of a slice of 1 W, at any load.
    assert median_mj == pytest.approx(8.0 * 0.5 + 0.5, rel=0.02)
    for tenant, own in receipts.items():
        assert sum(own) == pytest.approx(book.receipts_j["toy", tenant], rel=1e-9)
    assert sum(every) == pytest.approx(totals["receipts_j"], rel=1e-9)
    rest_j = sum(float(line[f"{name}_j"]) for name in NAMES if name not in ("active", "front_end", "idle"))
    assert sum(every) + totals["unbilled_j"] + rest_j == pytest.approx(float(line["measured_j"]), rel=1e-9)
    assert totals["idle_no_request_j"] == pytest.approx(float(line["idle_no_request_j"]), rel=1e-9)
    # No receipt bills what the front end does while nobody asks; all else that was used, they do.
    assert totals["unbilled_j"] == pytest.approx(8.0 * 0.002 * 3600, rel=0.05)


def test_receipts_follow_what_a_row_takes_of_the_front_end_as_the_load_changes() -> None:
    clocks = FakeClocks()
    book = hosted(clocks)
    book.add_family("toy")
    host = book.host
    assert host is not None
    second, total_j = 0, 0.0
    book.close_window(sample(0, 0.0, 0.0), GRID)

    def billed_j(rows: int, front_end_ns: int, seconds: int) -> float:
        nonlocal second, total_j
        for _ in range(seconds):
            book.count_answered("toy", rows)
            clocks.server_ns += rows * front_end_ns
            second, total_j = second + 1, total_j + 8.0 * rows * front_end_ns / 1e9
            host.poll()
            book.close_window(sample(second, total_j, 0.0), GRID)
        return book.receipt("toy", "small", 90.0, 1, 0.0).energy_j

    assert billed_j(3000, 50_000, 60) == pytest.approx(8.0 * 50e-6)
    assert billed_j(20, 250_000, 10) == pytest.approx(8.0 * 250e-6, rel=0.1), "within ten seconds of a light load"
    assert billed_j(3000, 50_000, 2) == pytest.approx(8.0 * 50e-6, rel=0.2), "and at once of a heavy one"


@given(st.lists(st.tuples(st.floats(0.0, 90.0), st.integers(0, 50), st.booleans()), max_size=30))
def test_receipts_never_bill_more_idle_energy_than_was_drawn(steps: list[tuple[float, int, bool]]) -> None:
    book = account()
    worker = book.attach(meter())
    gone: list[WorkerMeter] = []
    now_s = active_j = 0.0
    for pause_s, requests, present in steps:
        now_s += pause_s
        if present:
            if worker in gone:
                book.attach(gone.pop())
        elif worker not in gone:
            gone.append(worker)
            book.detach(worker)
        for _ in range(requests if worker not in gone else 0):
            ask(book, worker, int(pause_s / 50 * SECOND))
            active_j += 0.5
        book.close_window(sample(now_s, 2.0 * now_s + active_j), GRID)
        line, totals = book.devices()["cpu0"], book.totals("toy")
        assert -1e-9 <= float(line["idle_j"]) <= totals["idle_j"] + 1e-6
        assert float(line["idle_j"]) + totals["idle_no_request_j"] == pytest.approx(totals["idle_j"], abs=1e-6)


def test_batches_of_a_dead_worker_that_are_counted_late_keep_their_cpu_time() -> None:
    book = account()
    worker = book.attach(meter())
    book.detach(worker)
    worker.add(1, SECOND, 2 * SECOND)  # found in its ring after its death
    assert book.cpu_seconds() == 2.0
    book.close_window(sample(1, 5.0), GRID)
    assert book.cpu_seconds() == 2.0


def test_a_receipt_before_any_reading_says_so() -> None:
    receipt = Account(pue=1.5).receipt("toy", variant="small", accuracy=80.0, rows=1, computed_j=1.0)
    assert (receipt.energy_j, receipt.carbon_mg, receipt.intensity_state) == (1.0, 0.0, "unknown")
    assert receipt.intensity is None


def test_without_a_profile_modelled_energy_is_cpu_time() -> None:
    worker = WorkerMeter(family="toy", variant="small", device="cpu0", placement="p0", slices=1, core_w=8.0)
    assert worker.add(4, SECOND, SECOND // 2) == pytest.approx(1.0)
    assert worker.modelled_j == pytest.approx(4.0)


# --- several devices --------------------------------------------------------------------------------------------------


def gpus(*methods: Method) -> Account:
    """An account of GPUs with seven slices each, at second 0."""
    made = Account(pue=1.0)
    for index, method in enumerate(methods):
        made.add_device(f"gpu{index}", 7)
        made.close_window(sample(0, 0.0, 70.0, device=f"gpu{index}", method=method), GRID)
    return made


def on_slice(profile: str, start: int, size: int, *, gpu: int = 0, variant: str = "small") -> WorkerMeter:
    """A worker on a MIG slice, metered as the fleet does it."""
    place = Placement(device=f"gpu{gpu}", profile=profile, start=start, size=size)
    return meter(variant, placement=place.id, slices=place.slices, device=place.device)


def test_idle_power_of_a_gpu_is_split_by_compute_slices_not_by_memory() -> None:
    book = gpus("measured")
    book.attach(on_slice("3g.20gb", 0, 4, variant="large"))  # half the memory, three of seven compute slices
    book.attach(on_slice("2g.10gb", 4, 2))
    book.close_window(sample(1, 70.0, 70.0, device="gpu0"), GRID)
    assert joules(book, *IDLE) == {"large": pytest.approx(30.0), "small": pytest.approx(20.0)}
    assert book.devices()["gpu0"]["unowned_j"] == pytest.approx(20.0)  # two slices that nobody made an instance of


def test_devices_are_accounted_for_apart() -> None:
    book = gpus("measured", "measured")
    here, there = book.attach(on_slice("7g.40gb", 0, 8)), book.attach(on_slice("7g.40gb", 0, 8, gpu=1))
    here.add(1, SECOND, 0)
    there.add(1, SECOND, 0)
    book.close_window(sample(1, 70.0 + 1.0, 70.0, device="gpu0"), GRID)
    book.close_window(sample(1, 70.0 + 2.0, 70.0, device="gpu1"), GRID)
    devices = book.devices()
    assert (devices["gpu0"]["ratio"], devices["gpu1"]["ratio"]) == (pytest.approx(2.0), pytest.approx(4.0))
    assert (devices["gpu0"]["active_j"], devices["gpu1"]["active_j"]) == (pytest.approx(1.0), pytest.approx(2.0))
    assert (devices["gpu1"]["watts"], devices["gpu1"]["idle_w"]) == (pytest.approx(72.0), 70.0)
    assert active_at(book, "gpu1", "gpu1:7g.40gb@0") == pytest.approx(2.0)
    # What a batch costs follows the GPU it ran on, not a mean over GPUs that differ.
    assert (here.add(1, 0, 0), there.add(1, 0, 0)) == (pytest.approx(1.0), pytest.approx(2.0))


def test_a_worker_that_joins_starts_with_the_ratio_of_its_device() -> None:
    book = gpus("measured")
    book.attach(on_slice("7g.40gb", 0, 8)).add(1, SECOND, 0)
    book.close_window(sample(1, 70.0 + 1.5, 70.0, device="gpu0"), GRID)
    assert book.attach(on_slice("7g.40gb", 0, 8)).add(1, 0, 0) == pytest.approx(1.5)


def test_a_receipt_is_emulated_where_any_of_its_familys_devices_is() -> None:
    book = gpus("measured", "emulated")

    def method(family: str) -> Method:
        return book.receipt(family, variant="small", accuracy=80.0, rows=1, computed_j=1.0).method

    book.attach(meter(family="real", device="gpu0"))
    book.attach(meter(family="other", device="gpu1"))
    assert (method("real"), method("other"), method("stranger")) == ("modelled", "emulated", "modelled")
    book.attach(meter(family="real", device="gpu1"))
    assert method("real") == "emulated"
    book.close_window(sample(1, 71.0, 70.0, device="gpu1", method="emulated"), GRID)
    assert {method for _, _, method in book.by_variant("active", *IDLE)} == {"emulated"}
    assert [line["method"] for line in book.devices().values()] == ["measured", "emulated"]


def test_a_lost_device_bills_nothing_and_the_others_go_on() -> None:
    book = gpus("measured", "measured")
    lost, well = book.attach(on_slice("7g.40gb", 0, 8)), book.attach(on_slice("7g.40gb", 0, 8, gpu=1))
    frozen = sample(0, 0.0, 70.0, device="gpu0")
    lost.add(1, SECOND, SECOND)
    book.detach(lost)
    for second in range(1, 4):
        well.add(1, SECOND, 0)
        book.close_window(frozen, GRID)
        book.close_window(sample(second, 80.0 * second, 70.0, device="gpu1"), GRID)
    devices = book.devices()
    assert (devices["gpu0"]["frozen"], devices["gpu1"]["frozen"]) == (1.0, 0.0)
    assert sum(float(devices["gpu0"][line]) for line in LINES) == devices["gpu0"]["measured_j"] == 0.0
    assert book.totals("toy")["energy_j"] == pytest.approx(240.0)
    assert book.cpu_seconds() == 1.0
    assert (book.busy_ns("gpu0"), book.busy_ns("gpu1"), book.busy_ns("gpu9")) == (SECOND, 3 * SECOND, 0)
    # It is back: what its counter rose meanwhile is for whom worked on it, and its idle part for whom held it and when.
    late = book.attach(on_slice("7g.40gb", 0, 8, variant="late"))
    book.close_window(sample(4, 300.0, 70.0, device="gpu0"), GRID)
    assert joules(book, *IDLE)["late"] == pytest.approx(280.0 / 4)  # held at one look of four
    assert book.devices()["gpu0"]["unowned_j"] == pytest.approx(280.0 * 3 / 4)
    assert active_at(book, "gpu0", lost.placement) == pytest.approx(20.0)
    assert (book.busy_ns("gpu0"), book.cpu_seconds(), late.rows) == (SECOND, 1.0, 0)


def test_a_device_that_is_added_again_keeps_its_account() -> None:
    book = gpus("measured")
    book.close_window(sample(1, 80.0, 70.0, device="gpu0"), GRID)
    book.add_device("gpu0", 7)
    assert book.devices()["gpu0"]["measured_j"] == 80.0


def test_a_device_that_was_off_while_it_was_lost_leaves_no_debt() -> None:
    book = gpus("measured")
    for _ in range(3):
        book.close_window(sample(0, 0.0, 70.0, device="gpu0"), GRID)
    book.close_window(sample(100, 5.0, 70.0, device="gpu0"), GRID)
    assert (book.devices()["gpu0"]["carried_j"], book.devices()["gpu0"]["unowned_j"]) == (0.0, 5.0)


def test_across_epochs_nothing_is_known_and_nothing_billed() -> None:
    book = gpus("measured")
    worker = book.attach(on_slice("7g.40gb", 0, 8))
    worker.add(1, SECOND, 0)
    book.close_window(sample(60, 40.0, 70.0, device="gpu0", epoch=1), GRID)
    line = book.devices()["gpu0"]
    assert (line["measured_j"], line["restarts"], line["ratio"], line["carried_j"]) == (0.0, 1.0, 1.0, 0.0)
    assert joules(book, "active", *IDLE) == {}
    worker.add(1, SECOND, 0)
    book.close_window(sample(61, 40.0 + 71.0, 70.0, device="gpu0", epoch=1), GRID)
    assert book.totals()["active_j"] == pytest.approx(1.0)
    assert book.devices()["gpu0"]["ratio"] == pytest.approx(2.0)  # the batch of before is not held against it


def gpu_sample(second: float, total_j: float, *, awake_j: float, shared: tuple[str, ...] = ()) -> EnergySample:
    """A board with 50 W of idle power and 35 W for a context."""
    taken = sample(second, total_j, 50.0, device="gpu0")
    return msgspec.structs.replace(taken, awake_w=35.0 if awake_j else 0.0, awake_j=awake_j, shared=shared)


def test_being_awake_is_a_line_of_its_own_and_is_billed_to_those_who_keep_the_board_awake() -> None:
    book = Account(pue=1.0)
    book.add_device("gpu0", 7)
    book.add_family("toy")
    book.close_window(gpu_sample(0, 0.0, awake_j=0.0), GRID)
    book.close_window(gpu_sample(1, 50.0, awake_j=0.0), GRID)  # bare
    workers = [
        book.attach(
            WorkerMeter(
                family="toy", variant=f"v{slices}", device="gpu0", placement=f"p{slices}", slices=slices,
                profiled=ProfiledEnergy((1.0, 1.0)),
            )
        )
        for slices in (1, 2)
    ]  # fmt: skip
    for second in range(2, 12):
        workers[0].add(1, SECOND // 2, 0)
        book.count_answered("toy", 1)
        book.close_window(gpu_sample(second, 50.0 + 95.0 * (second - 1), awake_j=35.0 * (second - 1)), GRID)
    line = book.devices()["gpu0"]
    assert (line["idle_w"], line["awake_w"]) == (50.0, 35.0)
    assert line["active_j"] == pytest.approx(10 * 10.0)  # above the power with a context
    assert line["awake_j"] == pytest.approx(10 * 35.0)
    assert line["idle_j"] == pytest.approx(10 * 25.0 / 7), "of the slice that computed, for half of the time"
    assert sum(float(line[name]) for name in ("idle_j", "idle_no_request_j")) == pytest.approx(10 * 50.0 * 3 / 7)
    assert line["unowned_j"] == pytest.approx(50.0 + 10 * 50.0 * 4 / 7)
    assert sum(float(line[name]) for name in LINES) == pytest.approx(line["measured_j"])
    assert joules(book, *IDLE) == {  # a third of the slices that anybody holds, a third of what being awake costs
        "v1": pytest.approx(10 * (50.0 / 7 + 35.0 / 3)),
        "v2": pytest.approx(10 * (50.0 * 2 / 7 + 35.0 * 2 / 3)),
    }
    assert workers[0].add(1, SECOND // 2, 0) == pytest.approx(10.0 + 25.0 / 7), "no receipt bills being awake"


def test_a_context_that_no_worker_of_ours_holds_is_unowned() -> None:
    book = Account(pue=1.0)
    book.add_device("gpu0", 7)
    book.close_window(gpu_sample(0, 0.0, awake_j=0.0), GRID)
    book.close_window(gpu_sample(1, 85.0, awake_j=35.0), GRID)
    line = book.devices()["gpu0"]
    assert (line["awake_j"], line["unowned_j"], line["unattributed_j"]) == (0.0, 85.0, 0.0)
    strange = msgspec.structs.replace(gpu_sample(2, 170.0, awake_j=70.0), strangers=True)
    book.close_window(strange, GRID)
    line = book.devices()["gpu0"]
    assert (line["unowned_j"], line["foreign_j"]) == (85.0 + 50.0, 35.0), "a stranger's context is the stranger's"


def test_on_a_board_of_which_we_have_a_few_slices_being_awake_is_split_with_whoever_has_the_others() -> None:
    book = Account(pue=1.0)
    book.add_device("gpu0", 2, 5)  # two instances of one slice each, of seven slices
    book.add_family("toy")
    book.close_window(gpu_sample(0, 0.0, awake_j=0.0), GRID)
    book.attach(on_slice("1g.5gb", 0, 1))
    book.close_window(gpu_sample(10, 850.0, awake_j=350.0), GRID)
    line = book.devices()["gpu0"]
    assert line["awake_j"] == pytest.approx(350.0 * 2 / 7)
    assert line["foreign_j"] == pytest.approx(850.0 * 5 / 7)
    assert line["idle_no_request_j"] == pytest.approx(500.0 / 7)
    assert line["unowned_j"] == pytest.approx(500.0 / 7)
    assert sum(float(line[name]) for name in LINES) == pytest.approx(850.0)


def test_energy_that_others_may_have_used_widens_what_is_said_of_ours() -> None:
    book = Account(pue=1.0)
    book.add_device("gpu0", 7)
    for second in range(11):
        shared = ("python (4711)",) if 3 <= second <= 5 else ()
        book.close_window(gpu_sample(second, 150.0 * second, awake_j=0.0, shared=shared), GRID)
    line = book.devices()["gpu0"]
    assert (line["shared"], line["shared_s"]) == ("", 4.0)  # with the window after the last sight of them
    assert line["active_uncertainty_low"] == pytest.approx(-0.05 - 0.4)
    assert line["active_uncertainty_high"] == 0.05
    assert sum(float(line[name]) for name in LINES) == pytest.approx(line["measured_j"])


# --- sums -------------------------------------------------------------------------------------------------------------

LINES = tuple(f"{name}_j" for name in NAMES)
DEVICES = ("cpu0", "gpu0", "gpu1")
PROFILES = ("1g.5gb", "2g.10gb", "3g.20gb", "1c")

windows = st.tuples(
    st.sampled_from(DEVICES),
    st.integers(0, 12).map(
        lambda quarters: quarters / 4
    ),  # seconds since this device's last window; none: its meter has nothing new
    st.floats(0.0, 400.0),  # watts drawn
    st.floats(0.0, 120.0),  # watts of idleness, as believed at the time
    st.integers(0, 9).map(lambda luck: luck == 0),  # whether the meter began anew
    st.floats(0.0, 900.0),  # intensity of the grid
    st.lists(
        st.one_of(
            st.tuples(st.just("come"), st.integers(0, 3), st.integers(0, 3)),
            st.tuples(st.just("go"), st.integers(0, 9), st.just(0)),
            st.tuples(st.just("work"), st.integers(0, 9), st.integers(0, 40)),
            st.tuples(st.just("audit"), st.integers(0, 9), st.integers(1, 5)),
            st.tuples(st.just("answer"), st.integers(0, 3), st.integers(1, 9)),
            st.tuples(st.just("serve"), st.integers(0, 99), st.integers(0, 99)),
        ),
        max_size=5,
    ),
)


@pytest.mark.slow
@given(st.lists(windows, max_size=40), st.booleans())
def test_the_lines_of_every_device_sum_to_what_was_measured(
    history: list[tuple[str, float, float, float, bool, float, list[tuple[str, int, int]]]], modelled: bool
) -> None:
    clocks = FakeClocks()
    book = hosted(clocks, slices=8, foreign=3, emulated=frozenset({"gpu1"}))
    host = book.host
    assert host is not None
    for device in DEVICES[1:]:
        book.add_device(device, 7)
    book.add_family("family0")
    there: list[WorkerMeter] = []
    now_s, total_j, epoch, known_j, gross_j, awake_j = (dict.fromkeys(DEVICES, 0.0) for _ in range(6))
    own_s = latest_s = 0.0
    for device in DEVICES:
        book.close_window(sample(0, 0.0, device=device), GRID)
    for device, seconds, watts, idle_w, anew, g_per_kwh, events in history:
        for what, which, number in events:
            if what == "come":
                profile, at = PROFILES[which], DEVICES[number % 3]
                place = Placement(device=at, profile=profile, start=which, size=which + 1)
                there.append(
                    book.attach(
                        WorkerMeter(
                            family=f"family{number}",
                            variant=profile,
                            device=at,
                            placement=place.id,
                            slices=place.slices,
                            profiled=ProfiledEnergy((0.1, 0.1, 0.3)) if number else ProfiledEnergy(),
                            process=HostProcess(clocks.spawn(number * 10**7) if number != 1 else 0),
                        )
                    )
                )
            elif what == "answer":
                book.count_answered(f"family{which}", number)
                book.receipt(f"family{which}", "1c", 90.0, number, 0.01 * number, f"tenant{number % 3}")
            elif what == "serve":
                clocks.server_ns += which * 10**6
                clocks.control_ns += number * 10**6
                clocks.others_ns += which * 10**6
            elif there and what == "go":
                gone = there.pop(which % len(there))
                if gone.pid:
                    clocks.end(gone.pid)
                book.detach(gone)
            elif there:
                worker = there[which % len(there)]
                worker.add(number, number * 1000, number * 10**6)
                if what == "audit":
                    worker.record_passed_on(0, number, 0.0)
                if worker.pid:
                    clocks.processes[worker.pid] += number * 2 * 10**6
        now_s[device] += seconds
        latest_s = max(latest_s, now_s[device])
        epoch[device] += anew
        drawn_j = watts * seconds
        host.poll()
        method: Method = "measured"
        if device == "cpu0" and modelled:
            method, own = "modelled", host.own_seconds()
            drawn_j = idle_w * seconds + 8.0 * (own - own_s if seconds else 0.0)
            own_s = own if seconds else own_s
        total_j[device] += drawn_j
        before = int((now_s[device] - seconds) * SECOND)
        if not anew and int(now_s[device] * SECOND) > before:
            known_j[device] += drawn_j
            gross_j[device] += drawn_j + 1.5 * idle_w * seconds
        taken = sample(now_s[device], total_j[device], idle_w, device=device, epoch=int(epoch[device]), method=method)
        if device != "cpu0":
            awake_j[device] += idle_w / 2 * seconds
            taken = msgspec.structs.replace(taken, awake_w=idle_w / 2, awake_j=awake_j[device])
        book.close_window(taken, msgspec.structs.replace(GRID, g_per_kwh=g_per_kwh), int(latest_s * SECOND))
    for device, line in book.devices().items():
        # Relative to all that was booked: measured joules may be a small difference of large ones.
        scale_j = max(gross_j[device], 1e-9)
        assert abs(float(line["measured_j"]) - known_j[device]) <= 1e-9 * max(total_j[device], scale_j)
        assert abs(sum(float(line[name]) for name in LINES) - float(line["measured_j"])) <= 1e-9 * scale_j
        assert float(line["carried_j"]) <= 0.0
        assert all(float(line[name]) >= 0.0 for name in LINES if name != "carried_j")
        scale_g = scale_j * 900.0 * 1.5 / 3.6e6
        assert abs(sum(float(line[f"{name}_g"]) for name in NAMES) - float(line["total_g"])) <= 1e-9 * scale_g
    devices = book.devices().values()
    assert all(line.joules >= 0.0 for line in book.booked.values())
    for device, figures in book.devices().items():
        for part in NAMES[:-1]:
            booked_j = sum(item.joules for key, item in book.booked.items() if (key.device, key.line) == (device, part))
            assert booked_j == pytest.approx(float(figures[f"{part}_j"]), rel=1e-9, abs=1e-9)
    parts_j = sum(item.joules for key, item in book.booked.items() if key.family)
    shown_j = sum(line.joules for _, _, _, line in book.lines())
    assert shown_j == pytest.approx(sum(float(line["measured_j"]) for line in devices), rel=1e-9, abs=1e-9)
    idle = ("idle_j", "idle_no_request_j", "awake_j", "unowned_j", "foreign_j")
    rest_j = sum(float(line[name]) for line in devices for name in idle)
    assert rest_j <= sum(float(line["rest_j"]) for line in devices) * (1 + 1e-9)
    totals = book.totals()
    assert totals["energy_j"] == pytest.approx(parts_j, rel=1e-9)
    for item in book.booked.values():
        assert sum(item.grids.values()) == pytest.approx(item.grams, rel=1e-9, abs=1e-15)
    for name in ("family0", "family1", "family2", "family3", None):
        totals = book.totals(name)
        receipts_j = sum(joules for (family, _), joules in book.receipts_j.items() if name in (None, family))
        others_j = sum(totals[f"{part}_j"] for part in ("idle_no_request", "unbilled", "control"))
        assert receipts_j + others_j == pytest.approx(totals["energy_j"], rel=1e-9, abs=1e-9)
        if name is None:
            assert totals["idle_no_request_j"] >= -1e-9 * totals["energy_j"]


def test_joules_per_row_between_and_beyond_measured_batches() -> None:
    def measured(batch: int, joules: float) -> LatencyMeasurement:
        return LatencyMeasurement(
            variant="small",
            profile="1c",
            backend="eager",
            batch=batch,
            threads=1,
            samples=10,
            mean_ms=1.0,
            cv=0.1,
            p50_ms=1.0,
            p95_ms=1.0,
            p99_ms=1.0,
            cpu_s_per_row=0.001,
            energy_j_per_row=joules,
            energy_method="modelled",
        )

    profile = FamilyProfile(
        family="toy",
        key="k",
        machine="m",
        made_at="now",
        quick=True,
        accuracy=(
            AccuracyMeasurement(
                variant="small",
                backend="eager",
                metric="top1",
                value=80.0,
                low=79.0,
                high=81.0,
                samples=10,
                method="measured",
            ),
        ),
        latency=(measured(4, 1.0), measured(1, 4.0), measured(8, 0.5)),
        backend={"small": "eager"},
        base=BasePoint(
            variant="small",
            profile="1c",
            count=1,
            backend="eager",
            p95_ms=1.0,
            energy_j_per_row=1.0,
            accuracy=80.0,
            method="measured",
        ),
    )
    assert profiled_energy(profile, "small", "1c", "eager", 9).per_row == pytest.approx(
        [4.0, 4.0, 2.0, 4.0 / 3.0, 1.0, 0.8, 4.0 / 6.0, 4.0 / 7.0, 0.5, 0.5]  # each of these batches costs 4 J
    )
    assert profiled_energy(profile, "small", "2c", "eager", 9) == ProfiledEnergy()
    assert profiled_energy(None, "small", "1c", "eager", 9) == ProfiledEnergy()


def test_variants_of_one_worker_share_its_slice_and_one_without_rows_by_the_plan_holds_none() -> None:
    made = account(slices=2)
    small, large, standby = (made.attach(meter(variant)) for variant in ("small", "medium", "large"))
    standby.holds = False
    small.add(3, SECOND // 4, 0)
    large.add(1, SECOND // 4, 0)
    standby.add(1, SECOND // 4, 0)  # an audit, say
    made.close_window(sample(1, 10.0), GRID)
    assert joules(made, *IDLE) == {"small": 0.5, "medium": 0.5}  # half of 2 J, the placement's
    active = joules(made, "active")
    assert sum(active.values()) == pytest.approx(8.0)
    assert active["small"] == pytest.approx(8.0 * 1.2 / 2.2)
