"""The pace of emulated slices, on a clock that only sleeping and computing move."""

from __future__ import annotations

import errno
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from clover.emulation.pacing import (
    FIRST_REPORT_NS,
    REPORT_EVERY_NS,
    HeldSlice,
    PacedRun,
    Pacer,
    misfit,
)
from clover.errors import DeviceError, DeviceLost, WorkerError, out_of_memory
from clover.worker.frames import EmulatedSlice, Resident, WorkerOrder
from clover.worker.loop import ResidentLane
from tests.support.router_fixture import family

MS = 1_000_000


class Clock:
    """Time that passes by sleeping, each time a little too long (`late_ns`)."""

    def __init__(self, late_ns: int = 0) -> None:
        self.ns = 5_000 * MS
        self.late_ns = late_ns
        self.sleeps: list[float] = []

    def now_ns(self) -> int:
        return self.ns

    def sleep(self, seconds: float) -> None:
        self.sleeps.append(seconds)
        self.ns += round(seconds * 1e9) + self.late_ns


def pacer(clock: Clock) -> Pacer:
    return Pacer(now_ns=clock.now_ns, sleep=clock.sleep)


def test_a_batch_is_held_until_its_pace_from_its_start() -> None:
    clock = Clock()
    paced = pacer(clock)
    start_ns = clock.ns
    clock.ns += 3 * MS  # computing
    paced.hold(start_ns, 16 * MS)
    assert clock.ns == start_ns + 16 * MS
    assert clock.sleeps == [pytest.approx(0.013)]
    start_ns = clock.ns
    paced.hold(start_ns, 10 * MS)
    assert clock.ns == start_ns + 10 * MS
    assert (paced.batches, paced.overruns) == (2, 0)


def test_waking_too_early_sleeps_again() -> None:
    clock = Clock()
    paced = Pacer(now_ns=clock.now_ns, sleep=lambda seconds: clock.sleep(seconds / 2 + 1e-9))
    start_ns = clock.ns
    paced.hold(start_ns, 10 * MS)
    assert clock.ns >= start_ns + 10 * MS
    assert len(clock.sleeps) > 3
    assert paced.overruns == 0


def test_a_slow_cpu_is_counted_and_never_hidden() -> None:
    clock = Clock()
    paced = pacer(clock)
    start_ns = clock.ns
    clock.ns += 25 * MS
    paced.hold(start_ns, 10 * MS)
    assert clock.ns == start_ns + 25 * MS, "the real end, not the wanted one"
    assert clock.sleeps == []
    assert (paced.batches, paced.overruns, paced.worst_ms) == (1, 1, 15.0)


def test_late_wake_ups_count_beyond_the_tolerance() -> None:
    late = Clock(late_ns=1 * MS)
    paced = pacer(late)
    paced.hold(late.ns, 10 * MS)
    assert paced.overruns == 1, "1 ms of 10 ms is too late"
    paced.hold(late.ns, 100 * MS)
    assert paced.overruns == 1, "1 ms of 100 ms is not"
    hair = Clock(late_ns=MS // 10)
    paced = pacer(hair)
    paced.hold(hair.ns, 1 * MS)
    assert paced.overruns == 0, "0.1 ms never is"


@given(st.lists(st.tuples(st.integers(1, 4), st.integers(0, 40 * MS), st.integers(0, MS)), min_size=1, max_size=40))
def test_no_batch_is_early_and_late_ones_are_all_counted(batches: list[tuple[int, int, int]]) -> None:
    clock = Clock()
    paced = pacer(clock)
    expected = 0
    for rows, computing_ns, late_ns in batches:
        clock.late_ns = late_ns
        start_ns = clock.ns
        pace_ns = (1 + 4 * rows) * MS
        clock.ns += computing_ns
        paced.hold(start_ns, pace_ns)
        assert clock.ns >= start_ns + max(pace_ns, computing_ns)
        over_ns = clock.ns - start_ns - pace_ns
        expected += over_ns > 0.5 * MS and over_ns > 0.02 * pace_ns
    assert (paced.batches, paced.overruns) == (len(batches), expected)


def test_overruns_are_reported_now_and_then() -> None:
    clock = Clock()
    paced = pacer(clock)

    def batch(ms: int) -> None:
        start_ns = clock.ns
        clock.ns += ms * MS
        paced.hold(start_ns, 10 * MS)

    batch(30)
    assert paced.report() == "", "too early"
    clock.ns += FIRST_REPORT_NS
    batch(5)
    assert "1 of the last 2 batches" in paced.report()
    assert paced.report() == ""
    clock.ns += REPORT_EVERY_NS
    assert paced.report() == "", "nothing new"
    clock.ns -= REPORT_EVERY_NS // 2
    batch(17)
    assert paced.report() == "", "too soon"
    clock.ns += REPORT_EVERY_NS
    batch(17)
    text = paced.report()
    assert "2 of the last 2 batches" in text
    assert "by up to 7.0 ms" in text


@pytest.mark.parametrize("pace_ms", [(), (0.0,), (1.0, -1.0), (float("nan"),), (float("inf"),)])
def test_a_pace_that_is_none_is_refused(pace_ms: tuple[float, ...]) -> None:
    for lanes in ([(pace_ms, ())], [((10.0,), (1.0,)), (pace_ms, ())]):
        with pytest.raises(WorkerError, match="milliseconds above zero"):
            HeldSlice(Board(), pacer(Clock()), lanes, unreported)


# --- the board --------------------------------------------------------------------------------------------------------


class Board:
    def __init__(self, lost_after: int = 1 << 30) -> None:
        self.drawn: list[float] = []
        self.lost_after = lost_after
        self.turns: list[str] = []

    def enter(self) -> None:
        self.turns.append("enter")

    def leave(self) -> None:
        self.turns.append("leave")

    def draw(self, watts: float) -> None:
        if len(self.drawn) >= self.lost_after:
            raise DeviceLost("GPU is lost")
        self.drawn.append(watts)

    def close(self) -> None: ...


FIRST = ((10.0, 16.0), (20.0, 30.0))
SECOND = ((40.0, 50.0), (5.0, 6.0))


def unreported(batches: int, overruns: int) -> None:
    raise AssertionError("no batch was late")


def rows(count: int) -> list[NDArray[Any]]:
    return [np.zeros((count, 4), np.float32)]


def test_a_batch_draws_while_it_runs_and_no_longer() -> None:
    clock, board = Clock(), Board()

    def run(inputs: list[NDArray[Any]]) -> list[NDArray[Any]]:
        assert (board.drawn, board.turns) == ([30.0], ["enter"])
        clock.ns += 3 * MS
        return inputs

    (lane,) = HeldSlice(board, pacer(clock), [FIRST], unreported).paced([ResidentLane(run)])
    assert lane is not None
    start_ns, inputs = clock.ns, rows(2)
    assert lane.run(inputs) is inputs
    assert clock.ns == start_ns + 16 * MS
    assert (board.drawn, board.turns) == ([30.0, 0.0], ["enter", "leave"])


def test_each_lane_has_its_own_pace_and_power() -> None:
    clock, board = Clock(), Board()
    paced = pacer(clock)
    lanes = HeldSlice(board, paced, [FIRST, SECOND, SECOND], unreported).paced(
        [ResidentLane(lambda inputs: ["first"]), None, ResidentLane(lambda inputs: ["second"])]
    )
    assert lanes[1] is None, "it was left out"
    for lane, answer, ms, watts in ((2, "second", 50, 6.0), (0, "first", 16, 30.0), (2, "second", 50, 6.0)):
        start_ns, entered = clock.ns, lanes[lane]
        assert entered is not None
        assert entered.run(rows(2)) == [answer]
        assert clock.ns == start_ns + ms * MS
        assert board.drawn[-2:] == [watts, 0.0]
    assert (paced.batches, paced.overruns) == (3, 0)


def test_a_batch_that_fails_does_so_when_it_is_due() -> None:
    clock, board = Clock(), Board()
    run = PacedRun(fail, HeldSlice(board, pacer(clock), [FIRST], unreported), *FIRST)
    start_ns = clock.ns
    with pytest.raises(ValueError, match="no such row"):
        run(rows(1))
    assert clock.ns == start_ns + 10 * MS
    assert (board.drawn, board.turns) == ([20.0, 0.0], ["enter", "leave"])


def fail(inputs: list[NDArray[Any]]) -> list[NDArray[Any]]:
    raise ValueError("no such row")


def test_new_overruns_are_reported_with_the_counts_so_far(caplog: pytest.LogCaptureFixture) -> None:
    clock, told = Clock(), []
    held = HeldSlice(Board(), pacer(clock), [FIRST], lambda batches, overruns: told.append((batches, overruns)))

    def late(inputs: list[NDArray[Any]]) -> list[NDArray[Any]]:
        clock.ns += 30 * MS
        return inputs

    run = PacedRun(late, held, *FIRST)
    run(rows(1))
    assert told == [], "too early"
    clock.ns += FIRST_REPORT_NS
    run(rows(1))
    run(rows(1))
    assert told == [(2, 2)]
    assert [record.levelname for record in caplog.records] == ["WARNING"]


def test_a_lost_gpu_ends_the_batch_at_either_end() -> None:
    clock = Clock()
    ran = []

    def run(inputs: list[NDArray[Any]]) -> list[NDArray[Any]]:
        ran.append(len(inputs[0]))
        return inputs

    with pytest.raises(DeviceLost):
        PacedRun(run, HeldSlice(Board(lost_after=0), pacer(clock), [FIRST], unreported), *FIRST)(rows(1))
    assert ran == []
    with pytest.raises(DeviceLost):
        PacedRun(run, HeldSlice(Board(lost_after=1), pacer(clock), [FIRST], unreported), *FIRST)(rows(1))
    assert ran == [1]
    with pytest.raises(DeviceLost):
        PacedRun(fail, HeldSlice(Board(lost_after=1), pacer(clock), [FIRST], unreported), *FIRST)(rows(1))


def order(max_batch: int, *also: Resident) -> WorkerOrder:
    emulated = EmulatedSlice(
        library="l", state="s", uuid="MIG-1", pace_ms=FIRST[0], watts=FIRST[1], memory_bytes=1 << 30
    )
    return WorkerOrder(
        family=family(), variant="full", backend="eager", cores=(0,), max_batch=max_batch, emulated=emulated, also=also
    )


def test_an_order_must_pace_every_batch_size() -> None:
    with pytest.raises(WorkerError, match="2 batch sizes, the worker takes 4"):
        HeldSlice.attach(order(4), unreported)
    further = Resident(variant="b", backend="eager", pace_ms=(1.0,), watts=(1.0,))
    with pytest.raises(WorkerError, match="1 batch sizes, the worker takes 2"):
        HeldSlice.attach(order(2, further), unreported)


# --- memory -----------------------------------------------------------------------------------------------------------


def test_memory_running_out_is_known_by_its_words() -> None:
    wrapped = RuntimeError("loading failed")
    wrapped.__cause__ = MemoryError()
    assert out_of_memory(wrapped)
    assert out_of_memory(OSError(errno.ENOMEM, "mmap"))
    assert out_of_memory(RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"))
    assert not out_of_memory(RuntimeError("shapes do not match"))
    assert not out_of_memory(None)
    assert str(misfit("xxl", "gpu0:1g.5gb@3", 4864 << 20)).startswith(
        "xxl does not fit into gpu0:1g.5gb@3, which has 4864 MiB of memory"
    )
    assert isinstance(misfit("a", "b", 1), DeviceError)


def test_a_limited_process_gets_its_share_and_no_more() -> None:
    program = (
        "from clover.emulation.pacing import limit_memory\n"
        "import mmap\n"
        "limit_memory(256 << 20)\n"
        "held = mmap.mmap(-1, 128 << 20)\n"
        "try:\n"
        "    mmap.mmap(-1, 256 << 20)\n"
        "except (OSError, MemoryError):\n"
        "    print('refused')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.returncode) == ("refused\n", 0), done.stderr
