"""The meter of a GPU against a board that is read, lost, reloaded, stuck and slow; no driver, no clock, no sleep."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pynvml
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clover import energy
from clover.accounting import Account, ProfiledEnergy, WorkerMeter
from clover.accounting.devices import LINES
from clover.config import EnergyConfig
from clover.energy.foreign_work import ForeignWork, OurWork
from clover.energy.kept_idle import KeptIdles
from clover.energy.nvml import IDLE_WINDOW_S, LONGEST_STEP_S, STUCK_S, NvmlMeter
from clover.errors import ConfigError, DeviceError
from clover.types import EnergySample, Reading

SECOND = 1_000_000_000
GRID = Reading(g_per_kwh=300.0, at_s=0.0, provider="test")
COUNTER, POWER, FIELDS = "nvmlDeviceGetTotalEnergyConsumption", "nvmlDeviceGetPowerUsage", "nvmlDeviceGetFieldValues"
HANDLE = "nvmlDeviceGetHandleByUUID"
PROCESSES = "nvmlDeviceGetComputeRunningProcesses"
GONE = pynvml.NVML_ERROR_GPU_IS_LOST
MISSING = pynvml.NVML_ERROR_NOT_SUPPORTED
OTHER, UNSEEN = 9_999_999, 9_999_997  # processes beyond the most that Linux numbers


class Board:
    """A GPU with a clock of its own; `broken` holds NVML's error by call."""

    name, uuid, emulated = "gpu0", "GPU-1", False

    def __init__(self) -> None:
        self.now_ns = 7 * SECOND
        self.counter_mj = 123_456_789
        self.drawn_mj = 0
        self.power_mw = 50_000
        self.instant_mw: int | None = None
        self.broken: dict[str, int] = {}
        self.handles = 0
        self.pauses = self.pause_ns = self.ticks_in = 0
        """How often a look waited for the counter, how long each of these is, and after how many more the counter moves
        (0: it stands still)."""

    def run(self, seconds: float, watts: float = 50.0) -> None:
        """Draw `watts` for `seconds`."""
        self.now_ns += round(seconds * SECOND)
        self.counter_mj += round(seconds * watts * 1e3)
        self.drawn_mj += round(seconds * watts * 1e3)
        self.power_mw = round(watts * 1e3)

    def _answer(self, symbol: str, value: Any) -> Any:
        if symbol in self.broken:
            raise pynvml.NVMLError(self.broken[symbol])
        return value

    def handle(self, uuid: str) -> Any:
        assert uuid == self.uuid
        self.handles += 1
        return self._answer(HANDLE, f"handle {self.handles}")

    def fields(self, _: Any, wanted: list[int]) -> Any:
        assert wanted == [186]
        unit = SimpleNamespace(uiVal=self.instant_mw)
        known = self._answer(FIELDS, pynvml.NVML_SUCCESS if self.instant_mw is not None else MISSING)
        return [SimpleNamespace(nvmlReturn=known, value=unit)]

    async def call(self, function: Callable[..., Any], /, *arguments: Any) -> Any:
        """The session: no thread is needed here."""
        return function(*arguments)

    async def meter(self, **settings: Any) -> NvmlMeter:
        fakes = {"clock": lambda: self.now_ns, "sleep": at_once, "pause": self.pause}
        return await NvmlMeter.start(self, self, **{**fakes, **settings})

    def pause(self, seconds: float) -> None:
        """Let time pass, at whose end the counter may move."""
        assert 0.0 < seconds < 0.02
        self.pauses += 1
        self.now_ns += self.pause_ns
        self.ticks_in -= 1
        if self.ticks_in == 0:
            self.counter_mj += 10_000


async def at_once(seconds: float) -> None:
    """Let no time pass."""


def work(busy_ns: Callable[[], int] = lambda: 0, workers: Callable[[], Iterable[int]] = lambda: ()) -> OurWork:
    """What the server does on the board; every process with an even number is its own."""
    return OurWork(busy_ns=busy_ns, workers=lambda: frozenset(workers()), owns=lambda pid: pid % 2 == 0)


@pytest.fixture
def board(monkeypatch: pytest.MonkeyPatch) -> Board:
    return plugged(Board(), monkeypatch)


def plugged(made: Board, monkeypatch: pytest.MonkeyPatch) -> Board:
    monkeypatch.setattr(pynvml, HANDLE, made.handle)
    monkeypatch.setattr(pynvml, COUNTER, lambda _: made._answer(COUNTER, made.counter_mj))
    monkeypatch.setattr(pynvml, POWER, lambda _: made._answer(POWER, made.power_mw))
    monkeypatch.setattr(pynvml, FIELDS, made.fields)
    return made


async def looked(meter: energy.GpuMeter) -> EnergySample:
    await meter.refresh()
    return meter.sample(0)


# --- the counter ------------------------------------------------------------------------------------------------------


def test_energy_is_the_counters_difference_at_the_time_it_was_read(board: Board) -> None:
    async def scene() -> None:
        meter = await board.meter()
        assert meter.sample(0) == EnergySample(
            device="gpu0", at_ns=7 * SECOND, total_j=0.0, idle_w=50.0, method="measured"
        )
        board.run(2.0, 100.0)
        read_ns = board.now_ns
        await meter.refresh()
        board.run(3.0, 100.0)
        sample = meter.sample(board.now_ns)  # no look: what was found stays what it was, and when
        assert (sample.total_j, sample.at_ns, sample.epoch) == (200.0, read_ns, 0)
        assert meter.why == "NVML energy counter; idle 50 W at start"
        assert (meter.state, meter.source, board.handles) == ("reading", "counter", 1)

    asyncio.run(scene())


@pytest.mark.parametrize("ticks_in", [1, 10, 24])
def test_while_work_runs_the_counter_is_read_as_it_moves(board: Board, ticks_in: int) -> None:
    busy_ns = 0

    async def scene() -> None:
        nonlocal busy_ns
        meter = await board.meter(work=work(lambda: busy_ns, lambda: (2,)))
        board.run(1.0, 100.0)
        assert (await looked(meter)).at_ns == board.now_ns
        assert board.pauses == 0, "nothing has run yet"
        busy_ns += SECOND
        board.run(1.0, 100.0)
        await meter.refresh()
        busy_ns += SECOND
        board.run(1.0, 100.0)
        began_ns, board.pauses, board.pause_ns, board.ticks_in = board.now_ns, 0, 5_000_000, ticks_in
        sample = await looked(meter)
        assert board.pauses == ticks_in
        assert sample.at_ns == began_ns + ticks_in * 5_000_000
        assert sample.total_j == pytest.approx(310.0)

    asyncio.run(scene())


def test_a_counter_that_does_not_move_while_work_runs_is_waited_for_a_while(board: Board) -> None:
    busy_ns = 0

    async def scene() -> None:
        nonlocal busy_ns
        meter = await board.meter(work=work(lambda: busy_ns, lambda: (2,)))
        board.pause_ns = 5_000_000
        for _ in range(2):
            busy_ns += SECOND
            board.run(1.0, 100.0)
            began_ns, board.pauses = board.now_ns, 0
            sample = await looked(meter)
        assert board.pauses == 24
        assert sample.at_ns == began_ns + 24 * 5_000_000
        assert sample.total_j == pytest.approx(200.0)

    asyncio.run(scene())


def test_an_emulated_board_is_labelled_so(board: Board) -> None:
    board.emulated = True
    assert asyncio.run(board.meter()).sample(0).method == "emulated"


@given(st.lists(st.tuples(st.floats(0.2, 5.0), st.floats(1.0, 700.0)), min_size=1, max_size=20))
def test_the_total_is_what_the_board_drew_however_it_is_looked_at(steps: list[tuple[float, float]]) -> None:
    async def scene(board: Board) -> None:
        meter, first_mj, before = await board.meter(), board.counter_mj, 0.0
        for index, (seconds, watts) in enumerate(steps):
            board.run(seconds, watts)
            if index % 3:
                sample = await looked(meter)
                assert sample.total_j >= before
                before = sample.total_j
        assert round((await looked(meter)).total_j * 1e3) == board.counter_mj - first_mj
        assert (meter.resets, meter.epoch, meter.failed_reads) == (0, 0, 0)

    with pytest.MonkeyPatch.context() as patch:
        asyncio.run(scene(plugged(Board(), patch)))


def test_a_counter_that_went_back_begins_a_new_epoch(board: Board, caplog: pytest.LogCaptureFixture) -> None:
    async def scene() -> None:
        meter = await board.meter()
        board.run(1.0, 100.0)
        await meter.refresh()
        board.run(5.0, 100.0)
        board.counter_mj = 20_000  # the driver was loaded anew
        sample = await looked(meter)
        assert (sample.total_j, sample.epoch, sample.at_ns) == (100.0, 1, board.now_ns)
        board.run(1.0, 100.0)
        sample = await looked(meter)
        assert (sample.total_j, sample.epoch, meter.resets) == (200.0, 1, 1)

    asyncio.run(scene())
    assert "the energy counter went back; what was used since the last reading is unknown" in caplog.text


def test_a_leap_that_no_gpu_could_draw_is_not_billed(board: Board) -> None:
    async def scene() -> None:
        meter = await board.meter()
        board.counter_mj += 1 << 60
        board.run(1.0)
        sample = await looked(meter)
        assert (sample.total_j, sample.epoch, meter.resets) == (0.0, 1, 1)

    asyncio.run(scene())


def test_a_counter_that_stands_still_holds_time_still_too_and_is_told(board: Board) -> None:
    async def scene() -> None:
        meter = await board.meter()
        first = meter.sample(0)
        for _ in range(int(STUCK_S)):
            assert meter.state == "reading"
            board.now_ns += SECOND
            assert await looked(meter) == first
        assert meter.state == "stuck"
        assert "has stood still for 10 s" in meter.why
        board.run(1.0)
        sample = await looked(meter)
        assert (sample.total_j, sample.at_ns) == (50.0, board.now_ns)
        assert (meter.state, "stood still" in meter.why) == ("reading", False)
        # Had the standstill counted as a quiet time, idle power would now be 5 W.
        assert sample.idle_w == 50.0

    asyncio.run(scene())


# --- a board that does not answer -------------------------------------------------------------------------------------


def test_a_lost_gpu_keeps_its_total_and_goes_on_when_it_is_back(board: Board, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)

    async def scene() -> None:
        meter = await board.meter()
        board.run(1.0, 100.0)
        kept = await looked(meter)
        board.broken = dict.fromkeys((COUNTER, POWER, FIELDS), GONE)
        for _ in range(3):
            board.run(1.0, 80.0)
            assert await looked(meter) == kept
        assert (meter.lost, meter.failed_reads) == (True, 3)
        assert meter.why.endswith("the GPU is lost (GPU is lost)")
        board.broken = {}
        sample = await looked(meter)
        assert (sample.total_j, sample.epoch) == (100.0 + 240.0, 0)  # the counter knows what we did not see
        assert not meter.lost
        assert board.handles > 1  # the old handle may be stale

    asyncio.run(scene())
    assert caplog.text.count("the GPU is lost") == 1  # not once a second
    assert "energy is read again" in caplog.text


def test_a_gpu_that_cannot_be_found_any_more_is_lost(board: Board) -> None:
    async def scene() -> None:
        meter = await board.meter()
        board.broken = {COUNTER: pynvml.NVML_ERROR_INVALID_ARGUMENT, HANDLE: pynvml.NVML_ERROR_NOT_FOUND}
        await meter.refresh()
        assert meter.state == "failing"
        await meter.refresh()
        assert meter.state == "lost"

    asyncio.run(scene())


def test_a_session_that_refuses_is_no_reading(board: Board) -> None:
    async def scene() -> None:
        meter = await board.meter()

        async def closed(*_: Any) -> Any:
            raise DeviceError("the session is closed")

        board.call = closed  # type: ignore[method-assign]
        board.run(1.0)
        sample = await looked(meter)
        assert (sample.total_j, meter.state) == (0.0, "failing")
        assert "the session is closed" in meter.why

    asyncio.run(scene())


def test_a_fault_of_ours_is_not_taken_for_the_boards(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene() -> None:
        meter = await board.meter()
        monkeypatch.delattr(pynvml, COUNTER)
        with pytest.raises(AttributeError):
            await meter.refresh()

    asyncio.run(scene())


def test_a_slow_look_is_waited_for_by_the_next_one_and_never_asked_twice(board: Board) -> None:
    async def scene() -> None:
        meter = await board.meter(patience_s=0.0)
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        asked = 0

        async def slow(function: Callable[..., Any], /, *_: Any) -> Any:
            nonlocal asked
            asked += 1
            await answer
            return function()

        board.call = slow  # type: ignore[method-assign]
        board.run(1.0)
        for _ in range(3):
            assert (await looked(meter)).total_j == 0.0
            assert meter.state == "failing"
        assert "has not answered" in meter.why
        answer.set_result(None)
        while (await looked(meter)).total_j == 0.0:
            await asyncio.sleep(0)
        assert (asked, meter.sample(0).total_j, meter.state) == (1, 50.0, "reading")

    asyncio.run(scene())


def test_two_who_look_at_once_count_once(board: Board) -> None:
    async def scene() -> None:
        meter = await board.meter()
        board.run(1.0)
        await asyncio.gather(meter.refresh(), meter.refresh())
        assert meter.sample(0).total_j == 50.0

    asyncio.run(scene())


class Trouble(NamedTuple):
    """What happens to a board for some seconds, and whether it is looked at then."""

    what: str
    seconds: float
    watts: float
    look: bool


@given(
    st.lists(
        st.builds(
            Trouble,
            st.sampled_from(["work", "work", "work", "lost", "failing", "hangs", "reload", "off"]),
            st.floats(0.1, 30.0),
            st.floats(1.0, 700.0),
            st.booleans(),
        ),
        max_size=25,
    ),
    st.booleans(),
)
def test_whatever_happens_no_joule_is_billed_that_was_not_drawn(history: list[Trouble], with_counter: bool) -> None:
    async def scene(board: Board) -> None:
        if not with_counter:
            board.broken[COUNTER] = MISSING
        usual = dict(board.broken)
        meter, account = await board.meter(), Account(pue=1.0)
        before = meter.sample(0)
        account.add_device("gpu0", 7)
        account.close_window(before, GRID)
        worker = account.attach(
            WorkerMeter(
                family="m", variant="v", device="gpu0", placement="p", slices=3, profiled=ProfiledEnergy((1.0, 1.0))
            )
        )
        for what, seconds, watts, look in history:
            board.broken = usual | {
                "lost": {COUNTER: GONE, FIELDS: GONE},
                "failing": {COUNTER: pynvml.NVML_ERROR_UNKNOWN, FIELDS: pynvml.NVML_ERROR_UNKNOWN},
            }.get(what, {})
            if what == "hangs":
                board.now_ns += round(seconds * SECOND)
            else:
                board.run(seconds, 0.001 if what == "off" else watts)
            if what == "reload":
                board.counter_mj = round(watts)
            if what == "work":
                worker.add(1, SECOND, 0)
            if look:
                sample = await looked(meter)
                assert sample.total_j >= before.total_j
                assert (sample.at_ns, sample.epoch) >= (before.at_ns, before.epoch)
                before = sample
                account.close_window(sample, GRID)
        line = account.devices()["gpu0"]
        parts = [float(line[f"{name}_j"]) for name in LINES]
        measured_j = float(line["measured_j"])
        assert sum(parts) == pytest.approx(measured_j, rel=1e-9, abs=1e-6)
        drawn_j = board.drawn_mj / 1e3
        if not with_counter:  # a sensor of power sees only moments: at most, the highest one held all the time
            drawn_j = max([50.0, *(step.watts for step in history)]) * sum(step.seconds for step in history)
        assert measured_j <= drawn_j * (1 + 1e-6)
        assert measured_j == pytest.approx(meter.sample(0).total_j, rel=1e-9)

    with pytest.MonkeyPatch.context() as patch:
        asyncio.run(scene(plugged(Board(), patch)))


# --- power instead of the counter -------------------------------------------------------------------------------------


def test_without_a_counter_power_is_integrated_and_says_why(board: Board, caplog: pytest.LogCaptureFixture) -> None:
    board.broken = {COUNTER: MISSING}

    async def scene() -> None:
        meter = await board.meter()
        board.run(1.0, 150.0)
        await meter.refresh()
        board.run(2.0, 250.0)
        sample = await looked(meter)
        assert sample.total_j == pytest.approx((50 + 150) / 2 * 1 + (150 + 250) / 2 * 2)
        assert (meter.source, sample.method, sample.epoch) == ("power", "measured", 0)
        assert meter.why.startswith("NVML power integrated between readings, since the energy counter gives 'Not Supp")

    asyncio.run(scene())
    assert "integrated between readings" in caplog.text


def test_instantaneous_power_is_preferred_to_an_average(board: Board) -> None:
    board.broken = {COUNTER: pynvml.NVML_ERROR_FUNCTION_NOT_FOUND}
    board.instant_mw = 90_000

    async def scene() -> None:
        meter = await board.meter()
        assert (meter.idle_w, meter.why.split(" integrated")[0]) == (90.0, "NVML instantaneous power")
        board.broken[FIELDS] = pynvml.NVML_ERROR_FUNCTION_NOT_FOUND  # an older driver
        assert (await board.meter()).idle_w == 50.0

    asyncio.run(scene())


@given(st.lists(st.tuples(st.floats(0.1, LONGEST_STEP_S), st.floats(10.0, 700.0)), min_size=1, max_size=20))
def test_power_that_changes_evenly_is_integrated_exactly(steps: list[tuple[float, float]]) -> None:
    async def scene(board: Board) -> None:
        board.broken = {COUNTER: MISSING}
        meter, true_j, before_mw = await board.meter(), 0.0, board.power_mw
        for seconds, watts in steps:
            start_ns = board.now_ns
            board.run(seconds, watts)
            true_j += (before_mw + board.power_mw) / 2e3 * (board.now_ns - start_ns) / 1e9
            before_mw = board.power_mw
            await meter.refresh()
        assert meter.sample(0).total_j == pytest.approx(true_j)
        assert meter.gaps == 0

    with pytest.MonkeyPatch.context() as patch:
        asyncio.run(scene(plugged(Board(), patch)))


@pytest.mark.parametrize("how", ["late", "lost"])
def test_no_line_is_drawn_across_a_gap(board: Board, how: str) -> None:
    board.broken = {COUNTER: MISSING}

    async def scene() -> None:
        meter = await board.meter()
        if how == "lost":
            board.broken[FIELDS] = GONE
            board.run(1.0, 400.0)
            await meter.refresh()
            assert meter.lost
            del board.broken[FIELDS]
            board.run(1.0, 400.0)
        else:
            board.run(LONGEST_STEP_S + 1, 400.0)
        sample = await looked(meter)
        assert (sample.total_j, sample.epoch, sample.at_ns, meter.gaps) == (0.0, 1, board.now_ns, 1)
        board.run(1.0, 400.0)
        assert (await looked(meter)).total_j == pytest.approx(400.0)

    asyncio.run(scene())


def test_one_look_that_failed_leaves_no_gap_in_power(board: Board) -> None:
    board.broken = {COUNTER: MISSING}

    async def scene() -> None:
        meter = await board.meter()
        board.broken |= dict.fromkeys((FIELDS, POWER), pynvml.NVML_ERROR_UNKNOWN)
        board.run(1.0)
        await meter.refresh()
        assert meter.state == "failing"
        del board.broken[FIELDS], board.broken[POWER]
        board.run(1.0)
        sample = await looked(meter)
        assert (sample.total_j, sample.epoch, meter.gaps) == (pytest.approx(100.0), 0, 0)

    asyncio.run(scene())


@pytest.mark.parametrize("steady", [False, True])
def test_power_that_stays_the_same_through_rest_and_work_is_stuck(board: Board, steady: bool) -> None:
    """A board that only ever works (or rests) may well draw the same all the time."""
    board.broken = {COUNTER: MISSING}
    busy_ns = 0

    async def scene() -> None:
        nonlocal busy_ns
        meter = await board.meter(work=work(lambda: busy_ns))
        for second in range(20):
            works = steady or second % 2
            busy_ns += SECOND if works else 0
            board.run(1.0, 50.0)
            await meter.refresh()
        if steady:
            assert (meter.state, meter.sample(0).total_j) == ("reading", pytest.approx(1000.0))
            return
        assert meter.state == "stuck"
        assert "power has read 50 W whatever the workers did" in meter.why
        held = meter.sample(0)
        assert held.total_j < 1000.0
        board.run(1.0, 51.0)
        sample = await looked(meter)
        assert (sample.total_j, sample.epoch, meter.state) == (held.total_j, 1, "reading")

    asyncio.run(scene())


# --- idle power -------------------------------------------------------------------------------------------------------


def test_idle_power_is_the_start_or_the_least_ten_seconds_since(board: Board) -> None:
    async def scene() -> None:
        meter = await board.meter()
        for watts, idle_w in ((90.0, 50.0), (40.0, 40.0), (60.0, 40.0)):
            for _ in range(int(IDLE_WINDOW_S)):
                board.run(1.0, watts)
                sample = await looked(meter)
            assert sample.idle_w == pytest.approx(idle_w)
        board.run(1.0, 5.0)  # too short to judge, with a counter that moves ten times a second
        assert (await looked(meter)).idle_w == pytest.approx(40.0)

    asyncio.run(scene())


def test_configured_idle_power_is_taken_and_held_to_what_was_seen(board: Board) -> None:
    async def scene() -> None:
        config = EnergyConfig(gpu_idle_w=70.0)
        meter = await energy.build_gpu(board, board, config, clock=lambda: board.now_ns, sleep=at_once)
        assert (meter.idle_w, "idle 70 W as configured" in meter.why) == (70.0, True)
        for _ in range(int(IDLE_WINDOW_S)):
            board.run(1.0, 65.0)
            await meter.refresh()
        assert meter.idle_w == pytest.approx(65.0)

    asyncio.run(scene())


def test_without_power_the_counter_is_watched_for_idle_power(board: Board) -> None:
    board.broken = {POWER: MISSING}

    async def scene(sleep: Callable[[float], Awaitable[None]]) -> NvmlMeter:
        return await board.meter(sleep=sleep)

    async def sleep(seconds: float) -> None:
        board.run(seconds, 45.0)

    meter = asyncio.run(scene(sleep))
    assert (meter.source, meter.idle_w) == ("counter", pytest.approx(45.0))
    assert "idle 45.0 W over the first 2 s" in meter.why

    async def nothing(seconds: float) -> None:
        board.now_ns += SECOND

    with pytest.raises(DeviceError, match=r"set energy\.gpu_idle_w"):
        asyncio.run(scene(nothing))


@pytest.mark.parametrize("watts", [-1.0, float("nan"), float("inf")])
def test_idle_power_that_is_no_watts_is_refused(board: Board, watts: float) -> None:
    with pytest.raises(ConfigError, match=r"energy\.gpu_idle_w must be a number of watts"):
        asyncio.run(energy.build_gpu(board, board, EnergyConfig(gpu_idle_w=watts)))


# --- with a context, and beside others ------------------------------------------------------------------------------


def crowd(board: Board, monkeypatch: pytest.MonkeyPatch) -> dict[int, int | None]:
    """Let NVML list processes on the board: percent of it that each keeps busy, by pid (None: NVML does not say)."""
    found: dict[int, int | None] = {}

    def busy(*_: Any) -> Any:
        if None in found.values():
            raise pynvml.NVMLError(MISSING)
        if not found:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
        return [SimpleNamespace(pid=pid, smUtil=part, timeStamp=board.now_ns // 1000) for pid, part in found.items()]

    listed = lambda _: board._answer(PROCESSES, [SimpleNamespace(pid=pid) for pid in found])  # noqa: E731
    monkeypatch.setattr(pynvml, PROCESSES, listed)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetProcessUtilization", busy)
    monkeypatch.setattr(ForeignWork, "_seen", lambda self, pid: pid != UNSEEN)
    return found


def test_power_with_a_context_is_measured_while_workers_rest_and_being_awake_has_its_own_joules(
    board: Board, monkeypatch: pytest.MonkeyPatch
) -> None:
    """50 W bare, 85 W with a context, 185 W at work."""
    on_board, busy_ns = crowd(board, monkeypatch), 0

    async def scene() -> None:
        nonlocal busy_ns
        meter = await board.meter(work=work(lambda: busy_ns, lambda: on_board))
        board.run(5.0)
        sample = await looked(meter)
        assert (sample.idle_w, sample.awake_w, sample.awake_j, meter.idle.resident_by) == (50.0, 0.0, 0.0, "unknown")
        on_board[2] = 0
        for _ in range(3):
            board.run(1.0, 85.0)
            sample = await looked(meter)
        assert sample.awake_w == 0.0  # it has not stood still for long enough
        assert "not measured yet" in meter.why
        board.run(1.0, 85.0)
        sample = await looked(meter)
        assert (sample.idle_w, sample.awake_w) == (50.0, 35.0)
        assert meter.why == "NVML energy counter; idle 50 W at start; 85 W with a context, measured at rest"
        before_j = sample.awake_j
        for _ in range(10):
            busy_ns += SECOND // 2
            board.run(1.0, 185.0)
            sample = await looked(meter)
        assert (sample.idle_w, sample.awake_w) == (50.0, 35.0)  # work is no rest
        assert sample.awake_j - before_j == pytest.approx(350.0)
        del on_board[2]
        board.run(2.0, 50.0)
        sample = await looked(meter)
        assert sample.awake_w == 0.0
        assert sample.awake_j - before_j == pytest.approx(350.0 + 35.0)  # it left somewhere within these two seconds
        for _ in range(40):
            board.run(1.0, 53.0)  # warmer than at the start: bare power rises, too
            sample = await looked(meter)
        assert (sample.idle_w, meter.idle.bare_by) == (53.0, "rest")

    asyncio.run(scene())


def test_a_batch_that_took_long_was_no_rest(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    crowd(board, monkeypatch)[2] = 0
    busy_ns = 0

    async def scene() -> None:
        nonlocal busy_ns
        meter = await board.meter(work=work(lambda: busy_ns, lambda: (2,)))
        for _ in range(9):  # nothing is said of a batch before it ends
            board.run(1.0, 300.0)
            await meter.refresh()
        busy_ns += 10 * SECOND
        board.run(1.0, 300.0)
        await meter.refresh()
        for _ in range(5):
            board.run(1.0, 85.0)
            sample = await looked(meter)
        assert sample.awake_w == pytest.approx(35.0)

    asyncio.run(scene())


def test_configured_power_with_a_context_is_taken(board: Board) -> None:
    async def scene() -> None:
        config = EnergyConfig(gpu_idle_w=40.0, gpu_resident_w=90.0)
        meter = await energy.build_gpu(
            board, board, config, work=work(workers=lambda: (2,)), clock=lambda: board.now_ns, sleep=at_once
        )
        for _ in range(8):
            board.run(1.0, 95.0)
            sample = await looked(meter)
        assert (sample.idle_w, sample.awake_w, sample.awake_j) == (40.0, 50.0, 50.0 * 7.5)
        assert "90 W with a context as configured" in meter.why
        with pytest.raises(ConfigError, match=r"gpu_resident_w = 30 is below energy.gpu_idle_w = 40"):
            await energy.build_gpu(board, board, EnergyConfig(gpu_idle_w=40.0, gpu_resident_w=30.0))

    asyncio.run(scene())


def test_what_a_context_costs_is_kept_for_servers_that_never_rest(board: Board, tmp_path: Path) -> None:
    async def scene() -> None:
        kept = KeptIdles(tmp_path)
        first = await board.meter(work=work(workers=lambda: (2,)))
        kept.restore(board.uuid, first)
        kept.save(board.uuid, first)  # nothing was measured
        assert first.idle.resident_by == "unknown"
        board.run(1.0, 88.0)
        await first.measure_resident(at_once)
        assert first.idle.resident_w == 88.0
        kept.save(board.uuid, first)
        board.run(1.0, 52.0)
        again = await board.meter(work=work(lambda: board.now_ns, lambda: (2,)))
        kept.restore(board.uuid, again)
        board.run(1.0, 400.0)
        sample = await looked(again)
        assert (sample.idle_w, sample.awake_w) == (52.0, 38.0)
        assert "as an earlier run measured it" in again.why

    asyncio.run(scene())


def test_others_at_work_on_the_board_are_named_and_nothing_is_taken_for_rest(
    board: Board, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    on_board, name = crowd(board, monkeypatch), f"process {OTHER}"
    caplog.set_level(logging.INFO)

    async def scene() -> None:
        meter = await board.meter(work=work(workers=lambda: (2,)))
        for pid, part, others in (
            (2, 90, ()),  # ours
            (OTHER, 1, ()),  # at rest
            (OTHER, 40, (name,)),
            (OTHER, None, (name,)),  # NVML does not say, so it may be at work
            (UNSEEN, None, ()),  # of another namespace: perhaps ours
        ):
            on_board.clear()
            on_board[pid] = part
            for _ in range(2):
                board.run(1.0, 300.0)
                sample = await looked(meter)
            assert sample.shared == others, (pid, part)
            assert meter.kept_awake == (pid == OTHER), "also by one at rest"
            if others:
                board.run(10.0, 300.0)
                assert (await looked(meter)).awake_w == 0.0
                assert meter.why.endswith(f"shared with {name}")

    asyncio.run(scene())
    assert caplog.text.count(f"{name} compute on this GPU and are not this server's") == 1
    assert caplog.text.count("nobody else computes on this GPU any more") == 1


def test_instances_of_others_are_known_where_processes_are_not(board: Board) -> None:
    async def scene() -> None:
        others = OurWork(lambda: 0, frozenset, lambda _: True, lambda: ("whoever uses gpu0:3g@4",))
        meter = await board.meter(work=others)
        board.run(1.0)
        assert (await looked(meter)).shared == ("whoever uses gpu0:3g@4",)

    asyncio.run(scene())


@pytest.mark.parametrize("error", [pynvml.NVML_ERROR_INVALID_ARGUMENT, pynvml.NVML_ERROR_UNKNOWN, MISSING])
def test_a_driver_that_does_not_know_the_field_of_power_has_the_plain_call(board: Board, error: int) -> None:
    board.broken = {FIELDS: error}
    assert asyncio.run(board.meter()).idle_w == 50.0
    board.broken = {FIELDS: GONE}
    with pytest.raises(DeviceError, match="the energy of gpu0 cannot be read"):
        asyncio.run(board.meter())


def test_the_first_looks_at_a_real_board_are_over_three_seconds_and_the_driver_waking_up_is_left_out(
    board: Board,
) -> None:
    board.power_mw = 120_000  # the first look woke it
    slept_s = 0.0

    async def sleep(seconds: float) -> None:
        nonlocal slept_s
        slept_s += seconds
        board.run(seconds, 110.0 if slept_s < 1.0 else 50.0)

    async def scene() -> None:
        meter = await board.meter(sleep=sleep)
        assert (meter.idle_w, slept_s, meter.sample(0).total_j) == (50.0, 3.0, 0.0)
        board.emulated = True
        await board.meter(sleep=sleep)
        assert slept_s == 3.0  # an emulated board's power is exact at once

    asyncio.run(scene())


# --- starts that must fail --------------------------------------------------------------------------------------------


def test_a_gpu_that_shows_nothing_is_refused_and_nothing_is_guessed(board: Board) -> None:
    board.broken = {COUNTER: MISSING, POWER: pynvml.NVML_ERROR_NO_PERMISSION}
    with pytest.raises(DeviceError, match=r"gpu0 shows neither its energy .*Not Supported.* nor its power .*Perm"):
        asyncio.run(board.meter())


@pytest.mark.parametrize("error", [GONE, pynvml.NVML_ERROR_UNKNOWN])
def test_a_gpu_that_fails_at_the_start_is_told_and_not_worked_around(board: Board, error: int) -> None:
    board.broken = {COUNTER: error}
    with pytest.raises(DeviceError, match="the energy of gpu0 cannot be read"):
        asyncio.run(board.meter())


def test_a_slice_has_no_meter(board: Board) -> None:
    board.uuid = "MIG-1"
    with pytest.raises(DeviceError, match="only a whole GPU has an energy counter"):
        asyncio.run(board.meter())
