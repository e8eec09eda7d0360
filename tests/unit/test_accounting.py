"""Attribution: the parts sum to what was measured, and each part goes to whom it belongs."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clover.accounting import Account, WorkerMeter, joules_per_row
from clover.types import AccuracyMeasurement, BasePoint, EnergySample, FamilyProfile, LatencyMeasurement, Reading

SECOND = 1_000_000_000
GRID = Reading(g_per_kwh=360.0, at_s=0.0, provider="test", state="fresh")


def meter(variant: str = "small", family: str = "toy", placement: str = "p0", slices: int = 1) -> WorkerMeter:
    return WorkerMeter(
        family=family, variant=variant, device="cpu0", placement=placement, slices=slices, joules=(0.5, 0.5, 0.4)
    )


def sample(second: float, total_j: float, idle_w: float = 2.0) -> EnergySample:
    return EnergySample(device="cpu0", at_ns=int(second * SECOND), total_j=total_j, idle_w=idle_w, method="measured")


def account(slices: int = 2) -> Account:
    made = Account(pue=1.5)
    made.add_device("cpu0", slices)
    made.add_family("toy", 0)
    made.window(sample(0, 0.0), GRID)
    return made


def test_active_energy_follows_modelled_work_and_idle_follows_slices() -> None:
    book = account()
    small, large = book.attach(meter("small")), book.attach(meter("large", placement="p1"))
    small.add(2, SECOND, SECOND)  # 0.8 J
    large.add(1, SECOND, SECOND)  # 0.5 J
    large.add(1, SECOND, SECOND)
    large.add(1, SECOND, SECOND)
    large.add(1, SECOND, SECOND)  # 2.0 J
    book.window(sample(1, 2.0 + 5.6), GRID)
    shares = {variant: share for (_, variant, _), share in book.shares.items()}
    assert shares["small"].active_j == pytest.approx(1.6)
    assert shares["large"].active_j == pytest.approx(4.0)
    assert shares["small"].idle_j == shares["large"].idle_j == pytest.approx(1.0)
    assert shares["large"].total_g == pytest.approx(5.0 / 3.6e6 * 360.0 * 1.5)
    assert book.devices()["cpu0"]["ratio"] == pytest.approx(2.0)
    assert book.totals("toy")["energy_j"] == pytest.approx(7.6)


def test_workers_of_one_placement_share_its_slices_and_nobodys_slices_are_told_apart() -> None:
    book = account(slices=4)
    book.attach(meter("small", slices=2))
    book.attach(meter("large", slices=2))
    book.window(sample(1, 2.0), GRID)
    shares = {variant: share.idle_j for (_, variant, _), share in book.shares.items()}
    assert shares == {"small": pytest.approx(0.5), "large": pytest.approx(0.5)}
    assert book.devices()["cpu0"]["unowned_j"] == pytest.approx(1.0)


def test_energy_of_nobody_is_unattributed() -> None:
    book = account()
    book.window(sample(1, 7.0), GRID)
    assert book.devices()["cpu0"]["unattributed_j"] == pytest.approx(5.0)


def test_a_measured_value_below_idle_is_carried_not_lost() -> None:
    book = account()
    worker = book.attach(meter())
    worker.add(1, SECOND, SECOND)
    book.window(sample(1, 0.5), GRID)
    assert book.devices()["cpu0"]["carried_j"] == pytest.approx(-1.5)
    assert book.totals()["active_j"] == 0.0
    worker.add(1, SECOND, SECOND)
    book.window(sample(2, 6.5), GRID)
    assert book.totals()["active_j"] == pytest.approx(2.5)
    assert book.devices()["cpu0"]["carried_j"] == 0.0


def test_the_last_work_of_a_worker_that_left_still_counts() -> None:
    book = account()
    worker = book.attach(meter())
    worker.add(1, SECOND, 3 * SECOND)
    book.detach(worker)
    book.window(sample(1, 5.0), GRID)
    assert book.totals()["active_j"] == pytest.approx(3.0)
    assert book.totals()["idle_j"] == 0.0
    assert book.cpu_seconds() == 3.0


def test_receipt_is_profiled_energy_times_ratio_plus_the_idle_share_of_a_row() -> None:
    book = account()
    worker = book.attach(meter())
    for second in range(10):
        worker.add(1, SECOND, SECOND)
        book.rows_done("toy", 1, second * SECOND)
    book.window(sample(10, 20.0 + 10.0), GRID)  # 5 J modelled, 10 J measured
    active_j = worker.add(1, SECOND, SECOND)
    assert active_j == pytest.approx(0.5 * 2.0)
    receipt = book.receipt("toy", variant="small", accuracy=80.0, rows=1, active_j=active_j, now_ns=10 * SECOND)
    assert receipt.energy_j == pytest.approx(0.5 * 2.0 + 1.0 / 1.0)  # one of two slices: 1 W, at one row a second
    assert receipt.carbon_mg == pytest.approx(receipt.energy_j / 3.6e6 * 360.0 * 1.5 * 1000)
    assert (receipt.method, receipt.intensity_state) == ("modelled", "fresh")
    assert book.receipts_j["toy"] == receipt.energy_j


def ask(book: Account, second: float, rows: int = 1) -> float:
    """A request of `rows` rows without active energy, answered at `second`: the idle joules in its receipt."""
    now_ns = int(second * SECOND)
    book.rows_done("toy", rows, now_ns)
    return book.receipt("toy", variant="small", accuracy=80.0, rows=rows, active_j=0.0, now_ns=now_ns).energy_j


def test_a_burst_after_a_quiet_minute_bills_no_more_idle_energy_than_there_was() -> None:
    book = account()
    book.attach(meter())
    for second in range(1, 61):
        book.window(sample(second, 2.0 * second), GRID)  # 1 W of idle power is the family's
    billed_j = sum(ask(book, 60.0 + 0.01 * index) for index in range(40))
    assert billed_j == pytest.approx(60.0)
    assert book.totals("toy")["idle_unbilled_j"] == pytest.approx(0.0)


def test_idle_energy_of_hours_without_a_request_stays_unbilled() -> None:
    book = account()
    book.attach(meter())
    book.window(sample(3600, 7200.0), GRID)
    billed_j = sum(ask(book, 3600.0 + 0.01 * index) for index in range(200))
    assert billed_j == pytest.approx(60.0)  # of the trailing minute, and no more
    assert book.totals("toy")["idle_unbilled_j"] == book.totals()["idle_unbilled_j"] == pytest.approx(3540.0)


def test_at_a_steady_rate_receipts_bill_all_idle_energy() -> None:
    book = account()
    book.attach(meter())
    billed_j: list[float] = []
    for second in range(1, 181):
        book.window(sample(second, 2.0 * second), GRID)
        billed_j.append(sum(ask(book, second + 0.1 * index) for index in range(10)))
    assert sum(billed_j[60:]) == pytest.approx(120.0, rel=0.02)


@given(st.lists(st.tuples(st.floats(0.0, 90.0), st.integers(0, 50), st.booleans()), max_size=30))
def test_receipts_never_bill_more_idle_energy_than_was_accrued(steps: list[tuple[float, int, bool]]) -> None:
    book = account()
    worker = book.attach(meter())
    gone: list[WorkerMeter] = []
    now_s = billed_j = 0.0
    for pause_s, requests, present in steps:
        now_s += pause_s
        if present:
            if worker in gone:
                book.attach(gone.pop())
        elif worker not in gone:
            gone.append(worker)
            book.detach(worker)
        book.window(sample(now_s, 2.0 * now_s), GRID)
        billed_j += sum(ask(book, now_s) for _ in range(requests))
        totals = book.totals("toy")
        assert billed_j <= totals["idle_j"] + 1e-6
        assert totals["idle_unbilled_j"] == pytest.approx(totals["idle_j"] - billed_j, abs=1e-6)


def test_batches_of_a_dead_worker_that_are_counted_late_keep_their_cpu_time() -> None:
    book = account()
    worker = book.attach(meter())
    book.detach(worker)
    worker.add(1, SECOND, 2 * SECOND)  # found in its ring after its death
    assert book.cpu_seconds() == 2.0
    book.window(sample(1, 5.0), GRID)
    assert book.cpu_seconds() == 2.0


def test_a_receipt_before_any_reading_says_so() -> None:
    receipt = Account(pue=1.5).receipt("toy", variant="small", accuracy=80.0, rows=1, active_j=1.0, now_ns=0)
    assert (receipt.energy_j, receipt.carbon_mg, receipt.intensity_state) == (1.0, 0.0, "unknown")


def test_without_a_profile_modelled_energy_is_cpu_time() -> None:
    worker = WorkerMeter(family="toy", variant="small", device="cpu0", placement="p0", slices=1, core_w=8.0)
    assert worker.add(4, SECOND, SECOND // 2) == pytest.approx(1.0)
    assert worker.modelled_j == pytest.approx(4.0)


@given(
    st.lists(
        st.tuples(
            st.floats(0.0, 100.0),
            st.floats(0.0, 10.0),
            st.lists(st.tuples(st.integers(0, 2), st.integers(1, 40), st.integers(0, 10**9)), max_size=4),
            st.integers(0, 7),
        ),
        max_size=12,
    )
)
def test_parts_sum_to_the_measured_total(
    windows: list[tuple[float, float, list[tuple[int, int, int]], int]],
) -> None:
    book = account()
    workers = [meter("small"), meter("large", placement="p1"), meter("small", "other", placement="p1", slices=2)]
    attached: set[int] = set()
    total_j = 0.0
    for second, (used_j, idle_w, work, present) in enumerate(windows, 1):
        for index, worker in enumerate(workers):
            if present >> index & 1 and index not in attached:
                attached.add(index)
                book.attach(worker)
            elif not present >> index & 1 and index in attached:
                attached.discard(index)
                book.detach(worker)
        for index, rows, busy_ns in work:
            if index in attached:
                workers[index].add(rows, busy_ns, busy_ns)
        total_j += used_j
        book.window(sample(second, total_j, idle_w), GRID)
    device = book.devices()["cpu0"]
    parts_j = book.totals()["energy_j"] + sum(
        float(device[line]) for line in ("unattributed_j", "unowned_j", "carried_j")
    )
    assert parts_j == pytest.approx(total_j, abs=1e-6)
    assert float(device["carried_j"]) <= 0.0
    assert all(share.active_j >= 0.0 and share.idle_j >= 0.0 for share in book.shares.values())


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
    assert joules_per_row(profile, "small", "1c", "eager", 9) == pytest.approx(
        [4.0, 4.0, 3.0, 2.0, 1.0, 0.875, 0.75, 0.625, 0.5, 0.5]
    )
    assert joules_per_row(profile, "small", "2c", "eager", 9) == []
    assert joules_per_row(None, "small", "1c", "eager", 9) == []
