"""The pure parts of profiling: intervals, agreement, choosing backend and threads, rows, and the driver's loops."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from clover.config import EnergyConfig
from clover.errors import ProfileError
from clover.families import load_family
from clover.profiling import report
from clover.profiling.busy import busy_share, jiffies
from clover.profiling.choose import elect, faster
from clover.profiling.drive import Driver
from clover.profiling.effort import FULL, QUICK
from clover.profiling.joules import Joules, Window
from clover.profiling.measurement import typical_p95
from clover.profiling.rows import load, pack
from clover.profiling.score import agreement, answers, wilson
from clover.runtime.slab import Layout, Slab
from clover.types import AccuracyMeasurement, BasePoint, EnergySample, FamilyProfile, LatencyMeasurement

FAMILIES = Path(__file__).resolve().parents[1] / "families"


# --- scoring ------------------------------------------------------------------------------------------------------


def test_wilson_against_published_values() -> None:
    low, high = wilson(8, 10)
    assert (round(low, 1), round(high, 1)) == (49.0, 94.3)
    assert wilson(0, 10)[0] == 0
    assert wilson(10, 10)[1] == pytest.approx(100)
    with pytest.raises(ValueError, match="no share"):
        wilson(1, 0)


@given(st.integers(1, 5000), st.data())
def test_wilson_holds_the_share(samples: int, data: st.DataObject) -> None:
    right = data.draw(st.integers(0, samples))
    low, high = wilson(right, samples)
    assert 0 <= low <= 100 * right / samples + 1e-9
    assert 100 * right / samples - 1e-9 <= high <= 100


def test_answers_and_agreement() -> None:
    rows = np.array([[0.1, 0.9], [0.8, 0.2]], np.float32)
    assert answers(rows).tolist() == [1, 0]
    assert agreement(answers(rows), answers(rows * 0.5)) == 1.0
    assert agreement(np.array([1, 2, 3, 4]), np.array([1, 2, 3, 5])) == 0.75
    assert agreement(np.array([[1.0], [2.0]]), np.array([[1.0001], [3.0]])) == 0.5
    assert agreement(answers([b"a", b"b"]), answers([b"a", b"c"])) == 0.5
    assert agreement(np.array([1]), np.array([1, 2])) == 0.0


# --- choosing -----------------------------------------------------------------------------------------------------


def score(backend: str, value: float, agrees: float = 1.0) -> AccuracyMeasurement:
    return AccuracyMeasurement(
        variant="v",
        backend=backend,
        metric="top1",
        value=value,
        low=value - 1,
        high=value + 1,
        samples=100,
        method="measured",
        agreement=agrees,
    )


def latency(backend: str, batch: int, energy: float, **changes: Any) -> LatencyMeasurement:
    values: dict[str, Any] = {
        "variant": "v",
        "profile": "1c",
        "backend": backend,
        "batch": batch,
        "threads": 1,
        "samples": 30,
        "mean_ms": 1.0,
        "cv": 0.0,
        "p50_ms": 1.0,
        "p95_ms": 1.0,
        "p99_ms": 1.0,
        "cpu_s_per_row": 0.001,
        "energy_j_per_row": energy,
        "energy_method": "modelled",
    }
    return LatencyMeasurement(**values | changes)


def test_the_cheapest_backend_that_agrees_is_elected() -> None:
    costs = [latency("eager", 1, 4.0), latency("eager", 8, 2.0), latency("x", 1, 1.0), latency("x", 8, 1.0)]
    assert elect([score("eager", 90), score("x", 90)], costs) == ("x", [])
    chosen, notes = elect([score("eager", 90), score("x", 90, agrees=0.99)], costs)
    assert chosen == "eager"
    assert "agrees with eager on 99.00%" in notes[0]
    chosen, notes = elect([score("eager", 90), score("x", 92)], costs)
    assert chosen == "eager"
    assert "outside eager's 89.00 to 91.00" in notes[0]


def test_electing_needs_eager_and_common_batches() -> None:
    with pytest.raises(ProfileError, match="eager was not measured"):
        elect([score("x", 90)], [latency("x", 1, 1.0)])
    with pytest.raises(ProfileError, match="different batch sizes"):
        elect([score("eager", 90), score("x", 90)], [latency("eager", 1, 1.0), latency("x", 8, 1.0)])


def test_threads_must_be_worth_it() -> None:
    one = {1: 1.0, 8: 4.0}
    assert faster({1: 0.8, 8: 3.2}, one)
    assert not faster({1: 0.95, 8: 3.8}, one)
    assert not faster({}, one)


def test_batches_and_typical_p95() -> None:
    assert QUICK.batches(32) == (1, 4, 32)
    assert QUICK.batches(4) == (1, 4)
    assert QUICK.batches(1) == (1,)
    assert FULL.batches(24) == (1, 2, 4, 8, 16, 24)
    steady = np.ones(500)
    steady[:90] = 100.0  # one hiccup within the first stretch
    assert typical_p95(steady) == 1.0
    assert typical_p95(np.array([3.0])) == 3.0


# --- energy -------------------------------------------------------------------------------------------------------


class Counter:
    device = "cpu0"

    def __init__(self, readings: list[float]) -> None:
        self.readings = readings

    def sample(self, now_ns: int) -> EnergySample:
        return EnergySample(device="cpu0", at_ns=now_ns, total_j=self.readings.pop(0), idle_w=0.0, method="measured")


def test_a_counter_is_preferred_and_the_model_labelled() -> None:
    with Window(Counter([10.0, 14.0]), core_w=8.0) as window:
        pass
    assert window.joules(8, 1.0) == (0.5, "measured")
    with Window(Counter([10.0, 10.0]), core_w=8.0) as window:
        pass
    assert window.joules(4, 1.0) == (2.0, "modelled")
    with Window(None, core_w=8.0) as window:
        pass
    assert window.joules(4, 1.0) == (2.0, "modelled")


def test_the_label_says_why() -> None:
    import asyncio

    joules = asyncio.run(Joules.start(EnergyConfig(meter="modelled", core_w=5.0), 2))
    assert joules.label == "energy is modelled: 5 W a busy core (configured)"


# --- busy machines ------------------------------------------------------------------------------------------------


def test_busy_share_counts_the_chosen_cores(tmp_path: Path) -> None:
    import asyncio

    text = "cpu  9 9 9 9 9 9 9 9 9 9\ncpu0 10 0 10 70 10 0 0 0 5 0\ncpu1 90 0 0 10 0 0 0 0 0 0\nintr 1\n"
    assert jiffies(text, [0]) == (20, 100)
    assert jiffies(text, [0, 1]) == (110, 200)
    assert asyncio.run(busy_share([0], tmp_path / "none")) == 0.0
    path = tmp_path / "stat"
    path.write_text(text, encoding="ascii")
    assert asyncio.run(busy_share([0], path, watch_s=0.0)) == 0.0
    assert 0.0 <= asyncio.run(busy_share([0], watch_s=0.05)) <= 1.0


# --- rows ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["toy", "simple", "simple_string", "identity_bytes", "identity_types", "slow"])
def test_rows_of_every_kind_fit_their_slots(name: str) -> None:
    spec = load_family(str(FAMILIES / name))
    slab = Slab.create(Layout(spec, 8))
    try:
        rows = load(spec)
        rows.fill(slab, range(2, 6), rows.count - 2)  # goes around
        assert rows.labelled == (spec.evaluation is not None)
    finally:
        slab.close()


def test_pack_is_the_protocol_form() -> None:
    assert pack(np.array([[b"ab"], [b""]], dtype=object)) == b"\x02\0\0\0ab\0\0\0\0"


# --- driving ------------------------------------------------------------------------------------------------------


class EchoWorker:
    """Serves batches in a thread, `ms` each, and rings the completion descriptor."""

    def __init__(self, fd: int, ms: float, status: int = 0) -> None:
        self.ring = self
        self.state = "ready"
        self.sizes: list[int] = []
        self._fd = fd
        self._ms = ms
        self._status = status
        self._in: list[tuple[int, int]] = []
        self._out: list[tuple[int, int, int, int, int, int]] = []
        self._wake = threading.Semaphore(0)
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def submit(self, batch_id: int, slots: NDArray[np.uint32], n: int) -> int:
        self._in.append((batch_id, n))
        self._wake.release()
        return 1

    def reap(self) -> tuple[int, int, int, int, int, int] | None:
        return self._out.pop(0) if self._out else None

    def bell(self) -> None:
        raise AssertionError("nobody asked for the bell")

    def _serve(self) -> None:
        while True:
            self._wake.acquire()
            batch, n = self._in.pop(0)
            if n < 0:
                return
            start = time.monotonic_ns()
            time.sleep(self._ms / 1e3)
            self.sizes.append(n)
            self._out.append((batch, self._status, n, start, time.monotonic_ns(), 1_000_000))
            os.eventfd_write(self._fd, 1)

    def stop(self) -> None:
        self._in.append((0, -1))
        self._wake.release()
        self._thread.join()


@pytest.fixture
def bench() -> Any:
    """A driver over the toy family, and a maker of echo workers."""
    spec = load_family(str(FAMILIES / "toy"))
    slab = Slab.create(Layout(spec, 4 * spec.max_batch))
    fd = os.eventfd(0)
    workers: list[EchoWorker] = []

    def make(ms: float, status: int = 0) -> EchoWorker:
        workers.append(EchoWorker(fd, ms, status))
        return workers[-1]

    yield Driver(fd, slab, load(spec), silent_s=0.3), make
    for worker in workers:
        worker.stop()
    slab.close()
    os.close(fd)


def test_closed_loop_counts_batches(bench: Any) -> None:
    driver, make = bench
    worker = make(1.0)
    cell = driver.cell(worker, 4, samples=5, least_s=0.0, most_s=5.0)
    assert len(cell.ms) == 5
    assert cell.rows == 20
    assert cell.cpu_s == pytest.approx(0.005)
    assert min(cell.ms) >= 1.0
    assert set(worker.sizes) == {4}


def test_scoring_passes_over_every_row_once(bench: Any) -> None:
    driver, make = bench
    scored = driver.score(make(0.0), 8, most_rows=20, most_s=5.0)
    assert len(scored.answers) == 20
    assert len(scored.cell.ms) == 2, "the short last batch is not a sample of full ones"


def test_open_loop_answers_every_arrival_and_batches_under_load(bench: Any) -> None:
    driver, make = bench
    workers = [make(2.0), make(2.0)]
    run = driver.open_loop(workers, 8, rate=2000.0, seconds=0.3)
    assert run.rows == 600
    assert sum(sum(worker.sizes) for worker in workers) == 600
    assert run.ms.min() > 0
    assert max(max(worker.sizes) for worker in workers) > 1
    assert all(worker.sizes for worker in workers)


def test_failures_end_the_measurement(bench: Any) -> None:
    driver, make = bench
    with pytest.raises(ProfileError, match="the model failed"):
        driver.cell(make(0.0, status=1), 1, samples=1, least_s=0.0, most_s=1.0)
    with pytest.raises(ProfileError, match=r"no answer for 0\.3 s"):
        driver.cell(make(1500.0), 1, samples=1, least_s=0.0, most_s=1.0)
    dead = make(1500.0)
    dead.state = "dead"
    with pytest.raises(ProfileError, match="died"):
        driver.cell(dead, 1, samples=1, least_s=0.0, most_s=1.0)


# --- the report ---------------------------------------------------------------------------------------------------


def test_table_marks_the_choice_and_labels_figures() -> None:
    profile = FamilyProfile(
        family="toy",
        key="k",
        machine="a machine",
        made_at="2024-01-31T00:00:00+00:00",
        quick=True,
        accuracy=(score("eager", 90), msgspec.structs.replace(score("x", 90), samples=0, method="published")),
        latency=(latency("eager", 1, 0.004), latency("x", 1, 0.001)),
        backend={"v": "x"},
        base=BasePoint(
            variant="v",
            profile="1c",
            count=1,
            backend="x",
            p95_ms=2.0,
            energy_j_per_row=0.001,
            accuracy=90,
            method="measured",
        ),
        notes=("the front end shares the workers' cores",),
    )
    text = report.table(profile)
    rows = [line.split() for line in text.splitlines()]
    assert ["v", "1c", "x", "1", "1", "1.000", "1.000", "1.000", "1.000", "90.00", "(published)", "*"] in rows
    assert "90.00 ± 1.00 (n=100)" in text
    assert "energy modelled" in text
    assert "note: the front end shares" in text
    assert report.summary(profile) == "v 90.0 %"


def test_no_terminal_means_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with report.progress_bar("toy") as tell:
        tell("something", 1, 2)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
