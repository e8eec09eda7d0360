"""Probes of the event loop: what counts as waiting, and what is made of many."""

from __future__ import annotations

import asyncio
import logging
import select
import time
from collections.abc import Iterator
from typing import Any

import pytest
import uvloop
from hypothesis import given
from hypothesis import strategies as st

from clover.http.loop_lag import LEAST_WINDOWS, PROBES_PER_S, WINDOW, WINDOWS, KernelAlarm, LagWindows, LoopLag
from tests.support.http_fakes import FakeLoop

MS = 1_000_000
STRETCH_NS = round(1e9 / PROBES_PER_S)


class PolledLoop(FakeLoop):
    """A loop that also watches a descriptor."""

    def __init__(self) -> None:
        super().__init__()
        self.readers: dict[int, Any] = {}

    def add_reader(self, fd: int, callback: Any) -> None:
        self.readers[fd] = callback

    def remove_reader(self, fd: int) -> None:
        del self.readers[fd]


class Scene:
    """A probe on a clock that stands still until told.  The scene is its alarm, too."""

    def __init__(self) -> None:
        self.now_ns = 5_000 * MS
        self.due_ns: int | None = None
        self.due: list[int] = []
        self.took: list[int] = []
        self.closed = False
        self.loop = PolledLoop()
        loop: Any = self.loop
        self.probes = LoopLag(loop, self.took.append, clock=lambda: self.now_ns, alarm=lambda: self)
        self.probes.start()

    def fileno(self) -> int:
        return 99

    def set(self, at_ns: int) -> None:
        self.due_ns = at_ns
        self.due.append(at_ns)

    def rang(self) -> bool:
        over = self.due_ns is not None and self.due_ns <= self.now_ns
        if over:
            self.due_ns = None
        return over

    def close(self) -> None:
        self.closed = True

    def polls(self, *, work_ns: int = 0) -> None:
        """One turn of the loop: packets are read, then it works for so long, then answers are written."""
        if self.due_ns is not None and self.due_ns <= self.now_ns:
            self.loop.readers[99]()
        self.now_ns += work_ns
        self.loop.settle()


def test_a_probe_takes_from_the_moment_that_was_set_until_answers_are_written() -> None:
    scene = Scene()
    assert scene.due_ns is not None
    assert 0 <= scene.due_ns - scene.now_ns < STRETCH_NS
    scene.now_ns = scene.due_ns + 3 * MS  # the loop was busy
    scene.polls(work_ns=2 * MS)
    assert scene.took == [5 * MS]


def test_one_probe_falls_into_each_stretch_and_anywhere_in_it() -> None:
    scene = Scene()
    begun_ns = scene.now_ns
    for _ in range(200):
        assert scene.due_ns is not None
        scene.now_ns = scene.due_ns
        scene.polls()
    at = [(due - begun_ns) / STRETCH_NS for due in scene.due]
    assert [int(one) for one in at] == list(range(201))
    inside = sorted(one % 1.0 for one in at)
    assert inside[20] < 0.3
    assert inside[-20] > 0.7
    assert scene.took == [0] * 200


def test_moments_that_pass_while_the_loop_stands_still_are_late_probes_as_well() -> None:
    scene = Scene()
    scene.now_ns += 30 * STRETCH_NS
    scene.polls()
    assert 29 <= len(scene.took) <= 31
    assert scene.took == [scene.now_ns - due for due in scene.due[:-1]]
    assert sum(scene.took) / len(scene.took) == pytest.approx(15 * STRETCH_NS, rel=0.1)
    assert scene.due_ns is not None
    assert scene.due_ns > scene.now_ns


def test_what_comes_while_a_turn_lasts_is_read_in_the_next_one() -> None:
    scene = Scene()
    assert scene.due_ns is not None
    scene.now_ns = scene.due_ns
    scene.polls(work_ns=4 * STRETCH_NS)
    assert scene.took == [4 * STRETCH_NS]
    scene.polls(work_ns=MS)
    assert 3 <= len(scene.took[1:]) <= 5
    assert min(scene.took[1:]) >= MS


@pytest.mark.parametrize("since", range(0, WINDOW, 7))
@pytest.mark.parametrize("stops", [1, 20])
def test_a_server_that_was_stopped_for_an_hour_was_late_once(since: int, stops: int) -> None:
    scene, windows = Scene(), LagWindows()

    def serve(probes: int) -> None:
        for _ in range(probes):
            assert scene.due_ns is not None
            scene.now_ns = max(scene.now_ns, scene.due_ns)
            scene.polls(work_ns=MS)

    serve(LEAST_WINDOWS // 2 * WINDOW + since)
    for _ in range(stops):
        scene.now_ns += 3600 * 1000 * MS
        scene.polls()
        serve(WINDOW)
    serve(LEAST_WINDOWS * WINDOW)
    assert sum(took > STRETCH_NS for took in scene.took) <= stops
    for took in scene.took:
        windows.record(took)
    found = windows.typical()
    assert found is not None
    assert found.ms < 2.0


def test_a_probe_that_ends_says_nothing_more() -> None:
    scene = Scene()
    assert scene.due_ns is not None
    scene.now_ns = scene.due_ns
    scene.loop.readers[99]()
    scene.probes.stop()
    scene.probes.stop()
    scene.loop.settle()
    assert scene.took == []
    assert scene.closed
    assert scene.loop.readers == {}


def test_without_a_timer_there_are_no_probes_and_the_log_says_so(caplog: pytest.LogCaptureFixture) -> None:
    def refused() -> Any:
        raise OSError(38, "Function not implemented")

    loop: Any = PolledLoop()
    with caplog.at_level(logging.INFO, "clover.http"):
        probes = LoopLag(loop, lambda _: None, alarm=refused)
        probes.start()
        probes.stop()
    assert "Function not implemented" in caplog.text
    assert loop.readers == {}


@pytest.fixture
def alarm() -> Iterator[KernelAlarm]:
    made = KernelAlarm()
    yield made
    made.close()


def test_the_kernels_alarm_goes_off_once_and_not_before_its_time(alarm: KernelAlarm) -> None:
    assert not alarm.rang()
    due_ns = time.monotonic_ns() + 2 * MS
    alarm.set(due_ns)
    assert select.select([alarm], (), (), 10.0)[0]
    assert time.monotonic_ns() >= due_ns
    assert alarm.rang()
    assert not alarm.rang()
    alarm.set(time.monotonic_ns() + 3600 * 1000 * MS)
    assert not select.select([alarm], (), (), 0.0)[0]
    alarm.set(0)  # over
    assert select.select([alarm], (), (), 10.0)[0]


@pytest.mark.parametrize("factory", [None, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def test_on_a_real_loop_a_stall_is_seen(factory: Any) -> None:
    took: list[int] = []

    async def main() -> None:
        probes = LoopLag(asyncio.get_running_loop(), took.append, per_s=1000.0)
        probes.start()
        end_ns = time.monotonic_ns() + 30 * MS
        while time.monotonic_ns() < end_ns:  # nothing else may run
            pass
        async with asyncio.timeout(10.0):
            while len(took) < 25:
                await asyncio.sleep(0)
        probes.stop()

    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(main())
    assert max(took) >= 28 * MS


# --- windows ----------------------------------------------------------------------------------------------------------


def fill(windows: LagWindows, ms: float, count: int = 1) -> None:
    """Add windows in which a tenth of the probes takes `ms` more than the others."""
    for number in range(count * WINDOW):
        windows.record(MS // 10 + (round(ms * MS) if number % 10 == 0 else 0))


def test_too_few_probes_say_nothing() -> None:
    windows = LagWindows()
    assert windows.typical() is None
    fill(windows, 5.0, LEAST_WINDOWS - 1)
    for _ in range(WINDOW - 1):
        windows.record(MS)
    assert windows.typical() is None


def test_the_median_window_counts_and_old_ones_are_forgotten() -> None:
    windows = LagWindows()
    fill(windows, 0.5, 6)
    fill(windows, 300.0, 5)
    found = windows.typical()
    assert found is not None
    assert (found.ms, found.windows) == (pytest.approx(0.5), 11)
    fill(windows, 2.0, WINDOWS // 2 + 1)
    found = windows.typical()
    assert found is not None
    assert found.ms == pytest.approx(2.0), "most windows of the last minutes say so"


def test_on_a_loop_that_becomes_busy_for_good_even_the_quickest_probes_wait() -> None:
    windows = LagWindows()
    fill(windows, 0.0, LEAST_WINDOWS)
    found = windows.typical()
    assert found is not None
    assert found.ms == 0.0
    for number in range((WINDOWS + 1) * WINDOW):  # turns of 20 ms without a pause: due in one, answered after the next
        windows.record(20 * MS + number % WINDOW * MS // 2)
    found = windows.typical()
    assert found is not None
    assert found.ms == pytest.approx(39.0 - 0.1), "by when those of idle windows are forgotten"


@given(st.lists(st.integers(0, 10**10), min_size=WINDOW, max_size=WINDOW), st.integers(0, 10**9))
def test_what_every_probe_takes_is_no_waiting(probes_ns: list[int], more_ns: int) -> None:
    def spread_ms(probes_ns: list[int]) -> float:
        windows = LagWindows()
        for one in LEAST_WINDOWS * probes_ns:
            windows.record(one)
        found = windows.typical()
        assert found is not None
        return found.ms

    spread = spread_ms(probes_ns)
    assert 0.0 <= spread <= (max(probes_ns) - min(probes_ns)) / 1e6
    assert spread_ms([one + more_ns for one in probes_ns]) == pytest.approx(spread, abs=1e-6)
