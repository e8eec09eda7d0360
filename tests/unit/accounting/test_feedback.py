"""What meters keep to compare with profiles, and what learned factors change: receipts and splits, never twice."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clover.accounting import Account, HostProcess, ProfiledEnergy, WorkerMeter
from clover.types import EnergySample, Reading, WorkReport
from tests.support.examples import examples
from tests.support.host_fixture import FakeClocks, hosted

SECOND = 1_000_000_000
MS = 1_000_000
GRID = Reading(g_per_kwh=360.0, at_s=0.0, provider="test", state="fresh")


def meter(variant: str, slot: int, per_row: float = 0.5, device: str = "gpu0", rested_j: float = 0.0) -> WorkerMeter:
    return WorkerMeter(
        family="toy",
        variant=variant,
        device=device,
        placement=f"{device}:1g@{slot}",
        slices=1,
        profiled=ProfiledEnergy((per_row,) * 9, rested_j),
        process=HostProcess(cores=4),
    )


class Gpu:
    """A GPU with a meter of its own and a worker of each variant, whose joules a row are `truth` x the profile's."""

    def __init__(self, **truth: float) -> None:
        self.account = Account(pue=1.0)
        self.account.add_device("gpu0", 2)
        self.account.add_family("toy")
        self.truth = truth
        self.meters = {name: self.account.attach(meter(name, at)) for at, name in enumerate(truth)}
        self.total_j = 0.0
        self.second = 0
        self.billed: dict[str, float] = dict.fromkeys(truth, 0.0)
        self.account.close_window(self._sample(), GRID)

    def _sample(self) -> EnergySample:
        return EnergySample(
            device="gpu0", at_ns=self.second * SECOND, total_j=self.total_j, idle_w=0.0, method="measured"
        )

    def serve(self, seconds: int = 1, **rows: int) -> None:
        for _ in range(seconds):
            for name, count in rows.items():
                for _ in range(count):
                    self.billed[name] += self.meters[name].add(1, 10 * MS, 10 * MS)
                self.total_j += count * 0.5 * self.truth[name]
            self.second += 1
            self.account.close_window(self._sample(), GRID)

    def metered(self) -> dict[str, float]:
        return {variant: line.joules for (_, variant, _), line in self.account.by_variant("active").items()}


def test_a_worker_reports_its_batches_and_their_time_by_size_once() -> None:
    account = Account(pue=1.0)
    own = account.attach(meter("small", 0))
    own.add(1, 10 * MS, 0)
    own.add(1, 14 * MS, 0)
    own.add(4, 30 * MS, 0)
    served = account.work_report("toy").served
    assert served == {
        ("small", "1g", 1): (2, pytest.approx(0.024)),
        ("small", "1g", 4): (1, pytest.approx(0.03)),
    }
    assert account.work_report("toy") == WorkReport()


def test_a_batch_that_failed_says_nothing_about_its_time() -> None:
    account = Account(pue=1.0)
    own = account.attach(meter("small", 0))
    own.add(1, 10 * MS, 0, 0, 1)
    assert account.work_report("toy").served == {}


def test_what_a_pause_adds_is_no_time_of_the_batch() -> None:
    account = Account(pue=1.0)
    own = account.attach(meter("small", 0, per_row=0.5, rested_j=0.5))  # cold, it takes twice as much
    own.add(1, 20 * MS, 0, SECOND)
    own.add(1, 10 * MS, 0, 0)
    assert account.work_report("toy").served == {("small", "1g", 1): (2, pytest.approx(0.02))}


def test_a_worker_without_a_profile_has_nothing_to_compare() -> None:
    account = Account(pue=1.0)
    bare = WorkerMeter(family="toy", variant="small", device="gpu0", placement="gpu0:1g@0", slices=1)
    account.attach(bare).add(1, 10 * MS, 5 * MS)
    assert account.work_report("toy") == WorkReport()


def test_a_gpu_reports_one_sum_for_all_that_ran_on_it() -> None:
    gpu = Gpu(small=1.5, large=0.5)
    gpu.serve(small=10, large=20)
    (window,) = gpu.account.work_report("toy").metered
    assert window.device == "gpu0"
    assert window.joules == pytest.approx(0.5 * (10 * 1.5 + 20 * 0.5))
    assert window.expected_j == {("small", "1g"): pytest.approx(5.0), ("large", "1g"): pytest.approx(10.0)}


def test_cpu_time_tells_variants_apart() -> None:
    clocks = FakeClocks()
    account = hosted(clocks)
    workers: list[WorkerMeter] = []
    for name in ("small", "large"):
        own = meter(name, len(workers), device="cpu0")
        own.pid = clocks.spawn()
        workers.append(account.attach(own))
    account.close_window(EnergySample(device="cpu0", at_ns=0, total_j=0.0, idle_w=0.0, method="modelled"), GRID)
    for own, used_s in zip(workers, (1, 3), strict=True):
        own.add(8, SECOND, 0)
        clocks.processes[own.pid] += used_s * SECOND
    assert account.host is not None
    account.host.poll()
    account.close_window(EnergySample(device="cpu0", at_ns=SECOND, total_j=8.0, idle_w=0.0, method="modelled"), GRID)
    found = {tuple(window.expected_j): window.joules for window in account.work_report("toy").metered}
    assert found == {(("small", "1g"),): pytest.approx(2.0), (("large", "1g"),): pytest.approx(6.0)}


def test_factors_split_a_shared_meter_and_its_lines_still_sum_to_what_was_measured() -> None:
    gpu = Gpu(small=1.5, large=0.5)
    gpu.account.correct("toy", {("small", "1g"): 1.5, ("large", "1g"): 0.5})
    gpu.serve(small=10, large=20)
    assert gpu.metered() == {"small": pytest.approx(7.5), "large": pytest.approx(5.0)}
    line = gpu.account.devices()["gpu0"]
    assert sum(gpu.metered().values()) == pytest.approx(float(line["measured_j"]))
    assert line["ratio"] == pytest.approx(1.0)  # nothing is left for it to correct


def test_receipts_are_not_corrected_twice() -> None:
    """The running ratio had the common part of an error before the factors came: they take its place."""
    gpu = Gpu(small=1.5, large=1.5)
    gpu.serve(30, small=10, large=20)
    assert gpu.meters["small"].ratio == pytest.approx(1.5)
    gpu.account.correct("toy", {("small", "1g"): 1.5, ("large", "1g"): 1.5})
    assert gpu.meters["small"].ratio == pytest.approx(1.5)  # at once, and not once the ratio has followed
    gpu.serve(30, small=10, large=20)
    assert gpu.meters["small"].ratio == pytest.approx(1.5)


def test_receipts_follow_the_factor_of_their_own_variant() -> None:
    gpu = Gpu(small=1.5, large=0.5)
    gpu.serve(60, small=10, large=20)
    before = gpu.meters["small"].ratio
    assert before == pytest.approx(gpu.meters["large"].ratio)  # one ratio for both, and wrong for both
    gpu.account.correct("toy", {("small", "1g"): 1.5, ("large", "1g"): 0.5})
    gpu.billed = dict.fromkeys(gpu.billed, 0.0)
    gpu.serve(60, small=10, large=20)
    assert gpu.billed["small"] == pytest.approx(60 * 10 * 0.75, rel=0.02)
    assert gpu.billed["large"] == pytest.approx(60 * 20 * 0.25, rel=0.02)


def test_factors_hold_for_workers_that_come_later() -> None:
    gpu = Gpu(small=1.0)
    gpu.account.correct("toy", {("small", "1g"): 2.0})
    assert gpu.account.attach(meter("small", 1)).factor == 2.0


def test_factors_do_not_change_what_is_learned_from() -> None:
    gpu = Gpu(small=1.5)
    gpu.account.correct("toy", {("small", "1g"): 1.5})
    gpu.serve(small=10)
    (window,) = gpu.account.work_report("toy").metered
    assert window.expected_j == {("small", "1g"): pytest.approx(5.0)}  # as the profile has it


def reported(gpu: Gpu) -> list[float]:
    """Return the joules of each window that is to be compared with the profile."""
    return [window.joules for window in gpu.account.work_report("toy").metered]


def test_one_variant_that_ended_batches_does_not_own_the_meter() -> None:
    gpu = Gpu(small=1.5, large=0.5)
    gpu.serve(large=20)
    (window,) = gpu.account.work_report("toy").metered
    assert window.shared
    assert window.expected_j == {("large", "1g"): pytest.approx(10.0)}


@given(st.lists(st.tuples(st.floats(0.0, 50.0), st.integers(0, 3)), max_size=30))
@settings(max_examples=examples(50), deadline=None)
def test_joules_of_windows_without_a_batch_are_those_of_the_batch_that_began_there(
    windows: list[tuple[float, int]],
) -> None:
    """Each window: what was drawn, and for how many seconds the batch ran that ended in it (0: none did)."""
    gpu = Gpu(small=1.0)
    waiting: list[float] = []
    told: list[float] = []
    for joules, lasted_s in windows:
        gpu.total_j += joules
        gpu.second += 1
        if lasted_s:
            gpu.meters["small"].add(1, lasted_s * SECOND, 0)
            told.append(joules + sum(waiting[-lasted_s:]))
            waiting.clear()
        else:
            waiting.append(joules)
        gpu.account.close_window(gpu._sample(), GRID)
    assert reported(gpu) == pytest.approx(told)


def test_joules_of_a_worker_that_ended_no_batch_yet_are_those_of_its_batch() -> None:
    clocks = FakeClocks()
    account = hosted(clocks)
    own = meter("small", 0, device="cpu0")
    own.pid = clocks.spawn()
    account.attach(own)
    assert account.host is not None
    for second, total_j in enumerate((0.0, 3.0, 8.0)):
        if second:
            clocks.processes[own.pid] += SECOND
        if second == 2:
            own.add(8, 2 * SECOND, 0)
        account.host.poll()
        sample = EnergySample(device="cpu0", at_ns=second * SECOND, total_j=total_j, idle_w=0.0, method="modelled")
        account.close_window(sample, GRID)
    (window,) = account.work_report("toy").metered
    assert (window.joules, window.shared) == (pytest.approx(8.0), False)


def test_a_gpu_that_rests_below_its_idle_power_takes_nothing_from_the_next_batches() -> None:
    gpu = Gpu(small=1.0)
    for second in range(1, 11):
        worked = second == 10
        if worked:
            gpu.meters["small"].add(10, SECOND // 10, 0)
        gpu.total_j += 20.0 + (5.0 if worked else -1.0)
        sample = EnergySample(device="gpu0", at_ns=second * SECOND, total_j=gpu.total_j, idle_w=20.0, method="measured")
        gpu.account.close_window(sample, GRID)
    assert reported(gpu) == [pytest.approx(4.0)]  # of 5 J, and 1 J less in the window into which the batch reaches


def test_a_meter_that_several_families_share_teaches_nothing() -> None:
    gpu = Gpu(small=1.0)
    other = WorkerMeter(
        family="other", variant="small", device="gpu0", placement="gpu0:1g@1", slices=1,
        profiled=ProfiledEnergy((0.5, 0.5)),
    )  # fmt: skip
    gpu.account.attach(other).add(1, 10 * MS, 0)
    gpu.serve(small=10)
    assert gpu.account.work_report("toy").metered == ()
