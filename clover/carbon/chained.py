"""One source of the chain: its last good reading, when it is asked again, and what of it fails.

`clover.carbon.chain` has the rules.  The times at which remote sources are asked have random parts: servers that began,
or failed, together must not keep asking a provider together.

**While it has no value** the first source of the chain is bridged (`Bridge`).  The forecast from before the outage
holds for as long as it reaches.  After that, the intensity is taken to be what it was at the same hour of the last
`DAYS` days, on average.  Both are labelled as forecasts, and neither becomes history.
"""

from __future__ import annotations

import asyncio
import bisect
import logging
import math
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, Protocol, runtime_checkable

import msgspec

from clover.carbon.layouts import MAX_G_PER_KWH
from clover.carbon.plausible import Plausibility
from clover.errors import CarbonError, ConfigError
from clover.interfaces import CarbonSource
from clover.planning.budget.forecast import DAY, HOUR_S, History
from clover.types import Reading

log = logging.getLogger("clover.carbon")

REFRESH_WAIT_S = 0.2
_ASKED_AGAIN = 0.1  # steps, after which a source that has no newer value yet is asked again
DAYS = 7
HISTORY_S = DAYS * 86_400.0
"""How much of its past a provider is asked for at the start: what bridging uses."""
LONGEST_S = 30.0
"""Of a wait of `wait_s` seconds the random part is `wait_s / 4` at most, and no more than this."""
DUE_S = 3.0
"""By how many seconds the question for a new value is put off at most."""
_RANDOM = random.Random()  # not the module's, which a program may have seeded


@runtime_checkable
class Refreshable(Protocol):
    """A source whose data may change while it is used."""

    def refresh(self) -> Coroutine[Any, Any, bool]:
        """Take new data if there is any, and return whether there was; CarbonError if it cannot be used."""


@runtime_checkable
class Live(Protocol):
    """A source that asks a provider over the network.  `poll_s`: seconds to leave it alone after an answer; `lag_s`:
    seconds from the time that a value is of until a working provider has published it, at most; `calls`: requests so
    far."""

    poll_s: float
    lag_s: float

    @property
    def calls(self) -> int: ...

    async def history(self, start_s: float, end_s: float) -> list[Reading]:
        """Return what was recorded between two times, oldest first; raises CarbonError."""


class Jitter:
    """`draw` gives 0 to 1; `due_s` is by how many seconds the next question for a new value is put off."""

    def __init__(self, draw: Callable[[], float] = _RANDOM.random) -> None:
        self._draw = draw
        self.due_s = 0.0

    def redraw(self) -> None:
        """Choose another `due_s`."""
        self.due_s = DUE_S * self._draw()

    def beyond(self, wait_s: float) -> float:
        """Return how many seconds to wait beyond `wait_s`."""
        return self._draw() * min(LONGEST_S, wait_s / 4.0)


def no_jitter() -> Jitter:
    """Return a jitter that puts nothing off: local sources are asked by the clock."""
    return Jitter(lambda: 0.0)


class Question:
    """One thing that a source is asked for, and how asking fails.  `error` says why the last attempt failed (empty once
    it is answered), `row` counts the failures in a row, and `again_s` is the monotonic time before which it is not
    asked again."""

    def __init__(self) -> None:
        self.record_answer()

    def record_answer(self) -> None:
        """Forget the failures."""
        self.error = ""
        self.row = 0
        self.again_s = -math.inf


class ChainedSource:
    """One source of the chain with its last good reading, its back-off and its counters.  `bridge` stands in while it
    has no value; `trouble` says why its newer data cannot be used (empty if they can)."""

    def __init__(
        self, source: CarbonSource, max_age_s: float, backoff_s: tuple[float, float], timeout_s: float, poll_s: float
    ) -> None:
        self.source = source
        self.good: Reading | None = None
        self.reads = 0
        self.failures = 0
        self.noted_failures = 0  # by the chain
        self.errors: Counter[str] = Counter()
        """Failures by their kind (`CarbonError.kind`)."""
        self.last_error = ""
        self.trouble = ""
        self.refresh_wait_s = REFRESH_WAIT_S
        self.jitter = Jitter() if source.remote else no_jitter()
        self.bridge = Bridge(source.step_s)
        self._plausibility = Plausibility()
        self._doubted = False
        self._max_age_s = max_age_s
        self._first_wait_s, self._longest_wait_s = backoff_s
        self._timeout_s = timeout_s
        self._poll_s = poll_s if source.remote else 0.0
        self.live = source if isinstance(source, Live) else None
        self._refreshable = source if isinstance(source, Refreshable) else None
        self._refresh_s = poll_s
        self._refreshed_s = -math.inf  # monotonic
        self._refreshing: asyncio.Task[bool] | None = None
        self._foreseen: list[Reading] = []
        self._foreseen_hour = -math.inf
        self._foreseen_s = -math.inf  # monotonic
        self._foreseeing: asyncio.Task[None] | None = None
        self._foreseen_once = False  # or failed once
        self._newest, self._past, self._ahead = Question(), Question(), Question()
        self._past_wanted = self.live is not None
        self._next_s = -math.inf  # monotonic: after an answer
        self._polled_s = -math.inf  # monotonic
        self._due_s = -math.inf  # grid time
        self._asking: asyncio.Task[None] | None = None
        self._refusal: CarbonError | None = None  # of the newest call

    @property
    def error(self) -> str:
        """What of the source fails now: its newest value, its past or its forecast; empty if nothing does."""
        questions = (self._newest, self._past, self._ahead)
        return "; ".join(dict.fromkeys(question.error for question in questions if question.error))

    async def open(self, grid_s: float, now_s: float) -> None:
        """Ask a live source for now and for its past; ConfigError if its provider refuses the request itself."""
        if self.live is None:
            return
        self.reads += 1
        self._polled_s = now_s
        past = asyncio.create_task(self._take_past(grid_s, now_s))
        try:
            await self._ask(grid_s, now_s, past)
            await past
        finally:
            past.cancel()
        if self._refusal is not None:
            raise ConfigError(f"carbon source {self._refusal}")
        if self.good is not None and self._past.error:
            log.warning("%s gives no past yet; until it does, history begins now: %s",
                        self.source.name, self._past.error)  # fmt: skip

    async def _take_past(self, grid_s: float, now_s: float) -> None:
        """Take what a provider recorded before `grid_s` as history; if that fails, but is not refused, it is asked for
        again with back-off."""
        assert self.live is not None
        try:
            async with asyncio.timeout(self._timeout_s):
                past = await self.live.history(grid_s - HISTORY_S, grid_s)
        except Exception as error:
            self._record_failure(self._past, error, now_s)
            if isinstance(error, CarbonError) and error.refused:
                self._past_wanted = False
                log.warning("%s gives no past, so history begins now: %s",
                            self.source.name, error)  # fmt: skip
                self._past.record_answer()
            return
        self._past_wanted = False
        self._past.record_answer()
        for reading in past:
            if reading.at_s + reading.step_s <= grid_s and not self._plausibility.doubt(reading):
                self.bridge.record(reading, reading.at_s)

    def _past_due(self, now_s: float) -> bool:
        """Return whether the past is still to be asked for, and may be."""
        return self._past_wanted and now_s >= self._past.again_s

    async def close(self) -> None:
        """Cancel what is asked for."""
        asked = [task for task in (self._asking, self._foreseeing, self._refreshing) if task is not None]
        for task in asked:
            task.cancel()
        await asyncio.gather(*asked, return_exceptions=True)

    async def read(self, grid_s: float, now_s: float) -> Reading | None:
        """Return the source's value, new or remembered, aged to `grid_s`; None if it has none younger than the
        limit."""
        if self._asking is not None and self._asking.done():
            self._asking = None
        known = self._usable(grid_s)
        if known is not None and grid_s < self._due_s + self.jitter.due_s and not self._past_due(now_s):
            return known
        if self._asking is None and now_s >= max(self._newest.again_s, self._next_s, self._polled_s + self._poll_s):
            self.reads += 1
            self._polled_s = now_s
            if not self.source.remote:
                await self._ask(grid_s, now_s)
                return self._usable(grid_s)
            self._asking = asyncio.create_task(self._ask(grid_s, now_s))
            await asyncio.wait([self._asking], timeout=self.refresh_wait_s if self.reads > 1 else None)
        return self._usable(grid_s)

    async def refresh(self, now_s: float) -> None:
        """Have a source check for new data, every `poll_s` at most, and wait for that a moment.  If the check takes
        longer, a later call takes its result."""
        if self._refreshable is None:
            return
        if self._refreshing is None:
            if now_s < self._refreshed_s + self._refresh_s:
                return
            self._refreshed_s = now_s
            self._refreshing = asyncio.create_task(self._refreshable.refresh())
            await asyncio.wait([self._refreshing], timeout=self.refresh_wait_s)
        looked = self._refreshing
        if looked is None or not looked.done():
            return
        self._refreshing = None
        if looked.cancelled():
            return
        error = looked.exception()
        if isinstance(error, Exception):
            self._record_failure(self._newest, error, now_s)
            self.trouble = str(error) if isinstance(error, CarbonError) else self.trouble
        elif looked.result():
            self.trouble = ""
            self._due_s = -math.inf

    async def forecast(self, grid_s: float, horizon_s: float, now_s: float) -> list[Reading]:
        """Return the source's forecast; empty if it has none, failed, or is backed off after a failure.  While a remote
        source is asked for a new forecast, the one before is returned; only the very first is waited for."""
        if self._forecast_due(grid_s, now_s):
            if now_s < self._newest.again_s:
                return []
            if not self.source.remote:
                await self._foresee(grid_s, horizon_s, now_s)
                return self._foreseen
            await self.begin_forecast(grid_s, horizon_s, now_s)
        if self._foreseeing is not None and not (self._foreseen_once or self._foreseeing.done()):
            await asyncio.wait([self._foreseeing])
        return self._foreseen

    async def begin_forecast(self, grid_s: float, horizon_s: float, now_s: float) -> None:
        """Ask a remote source for its forecast if that is due, without waiting for the answer."""
        if not self._forecast_due(grid_s, now_s) or now_s < self._newest.again_s:
            return
        self._foreseen_hour, self._foreseen_s = math.floor(grid_s / HOUR_S), now_s
        self._foreseeing = asyncio.create_task(self._foresee(grid_s, horizon_s, now_s))
        await asyncio.sleep(0)  # one that can answer at once has done so by then

    def _forecast_due(self, grid_s: float, now_s: float) -> bool:
        """Return whether the source may be asked for a forecast: a remote one once an hour, one call at a time, and
        sooner if it did not answer."""
        if not self.source.remote:
            return True
        if self._foreseeing is not None and not self._foreseeing.done():
            return False
        again_s = max(self._foreseen_s + self._poll_s, self._ahead.again_s)
        return math.floor(grid_s / HOUR_S) != self._foreseen_hour and now_s >= again_s

    async def _foresee(self, grid_s: float, horizon_s: float, now_s: float) -> None:
        """Take a new forecast.  If the source fails there is none, but the source is still read."""
        try:
            async with asyncio.timeout(self._timeout_s):
                foreseen = await self.source.forecast(grid_s, horizon_s)
            zeros = bool(foreseen) and not any(reading.g_per_kwh for reading in foreseen)
            if self.source.remote and zeros and not self._plausibility.zero_may_stay:
                raise CarbonError(
                    f"{self.source.name} foresees nothing but 0 g/kWh; it is not used", kind="implausible"
                )
            self._foreseen = foreseen
            self._ahead.record_answer()
        except Exception as error:
            self._record_failure(self._ahead, error, now_s)
            self._foreseen = []
            if not (isinstance(error, CarbonError) and error.unusable):
                self._foreseen_hour = -math.inf
        self._foreseen_once = True
        if self.source.remote and self._foreseen:
            self.bridge.foresee(self._foreseen)

    def current_s(self, step_s: float) -> float:
        """Return how old (seconds) the newest value, which holds for `step_s`, may be while the source works."""
        if self.live is None:
            return step_s
        poll_s = max(min(self._poll_s, self._max_age_s), self.live.poll_s)
        return step_s + self.live.lag_s + max(poll_s, step_s * _ASKED_AGAIN)

    def _usable(self, grid_s: float) -> Reading | None:
        good = self.good
        # A value of later than one step ahead is not of this time either: the grid clock was set back.
        if good is None or good.at_s > grid_s + good.step_s:
            return None
        age_s = max(0.0, grid_s - good.at_s)
        # While there can be no newer one a value is current, whatever the limit.
        limit_s = max(self._max_age_s, self.current_s(good.step_s))
        return msgspec.structs.replace(good, age_s=age_s) if age_s <= limit_s else None

    async def _ask(self, grid_s: float, now_s: float, past: Awaitable[None] | None = None) -> None:
        """Take the source's value if it can be believed.  It is judged by the source's past, which is asked for now if
        it is due and not on its way as `past`."""
        self._refusal = None
        try:
            async with asyncio.timeout(self._timeout_s):
                reading = await self.source.read(grid_s)
            if self._newest.row:  # it answers again, so that nothing else needs to wait longer
                self._past.again_s = self._ahead.again_s = self._foreseen_s = -math.inf
            if past is not None or self._past_due(now_s):
                await (past or self._take_past(grid_s, now_s))
            if not 0.0 <= reading.g_per_kwh <= MAX_G_PER_KWH:
                raise CarbonError(f"{self.source.name} gave {reading.g_per_kwh}, which is no intensity in gCO2e/kWh")
            if not reading.step_s:
                reading = msgspec.structs.replace(reading, step_s=self.source.step_s)
            oldest_s = grid_s - max(self._max_age_s, self.current_s(reading.step_s))
            if not oldest_s <= reading.at_s <= grid_s + reading.step_s:
                raise CarbonError(f"{self.source.name} gave a value {grid_s - reading.at_s:.0f} s old", kind="old")
            self._believe(reading)
        except Exception as error:  # whatever a provider does must not end the server: it is counted and shown instead
            if isinstance(error, CarbonError) and error.refused:
                self._refusal = error
            self._record_failure(self._newest, error, now_s)
            return
        self._newest.record_answer()
        self.jitter.redraw()
        self._next_s = now_s + self.live.poll_s if self.live is not None else -math.inf
        self.good = reading
        end_s = reading.at_s + reading.step_s
        self._due_s = end_s if end_s > grid_s else grid_s + reading.step_s * _ASKED_AGAIN

    def _believe(self, reading: Reading) -> None:
        """Refuse a reading that is not plausible with a CarbonError; the log says so once until one is believed."""
        doubt, before = self._plausibility.doubt(reading), self._doubted
        self._doubted = bool(doubt)
        if not doubt:
            return
        if self.good is not None and self.good.g_per_kwh == reading.g_per_kwh:
            self.good = None  # the value that does not change any more is not believed either
        text = f"{self.source.name} gave {doubt}; it is not used"
        if not before:
            log.warning("%s", text)
        raise CarbonError(text, kind="implausible")

    def _record_failure(self, question: Question, error: Exception, now_s: float) -> None:
        """Count a failure, and leave a remote source alone with the same question for a while."""
        self._count(error)
        question.error = self.last_error
        question.row += 1
        if self.source.remote:
            wait_s = min(self._longest_wait_s, self._first_wait_s * 2.0 ** min(question.row - 1, 32))
            if self.live is not None and isinstance(error, CarbonError) and error.unusable:
                wait_s = max(wait_s, self.live.poll_s)  # it did answer
            wait_s = max(wait_s, error.retry_after_s if isinstance(error, CarbonError) else 0.0)
            question.again_s = now_s + wait_s + self.jitter.beyond(wait_s)

    def _count(self, error: Exception) -> None:
        if isinstance(error, TimeoutError):
            error = CarbonError(f"{self.source.name} did not answer within {self._timeout_s:g} s", kind="timeout")
        elif not isinstance(error, CarbonError):
            log.error("a carbon source failed unexpectedly", exc_info=error)
            error = CarbonError(f"{self.source.name}: {type(error).__name__}: {error}", kind="unforeseen")
        self.failures += 1
        self.errors[error.kind] += 1
        self.last_error = str(error)


class Bridge:
    """What stands in for a source while it has no value: its newest forecast, or its past (`history`)."""

    def __init__(self, step_s: float) -> None:
        self.history = History()
        self._step_s = step_s
        self._last: Reading | None = None
        self._foreseen: list[Reading] = []
        self._times: list[float] = []

    def record(self, reading: Reading, grid_s: float) -> None:
        """Record a value of the source that was in force at `grid_s`."""
        self.history.record(grid_s, reading.g_per_kwh)
        self._last = reading

    def foresee(self, readings: Sequence[Reading]) -> None:
        """Replace the forecast by a new one."""
        possible = (reading for reading in readings if 0.0 <= reading.g_per_kwh <= MAX_G_PER_KWH)
        self._foreseen = sorted(possible, key=lambda reading: reading.at_s)
        self._times = [reading.at_s for reading in self._foreseen]

    def expected(self, grid_s: float) -> Reading | None:
        """Return what to expect at `grid_s`; None if neither forecast nor history says anything."""
        return self._by_forecast(grid_s) or self._by_season(grid_s)

    def _by_forecast(self, grid_s: float) -> Reading | None:
        index = bisect.bisect_right(self._times, grid_s) - 1
        if index < 0:
            return None
        reading = self._foreseen[index]
        if grid_s >= reading.at_s + (reading.step_s or self._step_s):
            return None
        age_s = grid_s - reading.at_s
        return msgspec.structs.replace(reading, method="forecast", estimated=True, age_s=age_s, state="forecast")

    def _by_season(self, grid_s: float) -> Reading | None:
        hour = math.floor(grid_s / HOUR_S)
        means = [mean for day in range(1, DAYS + 1) if (mean := self.history.mean(hour - day * DAY)) is not None]
        if self._last is None or not means:
            return None
        return msgspec.structs.replace(
            self._last,
            g_per_kwh=sum(means) / len(means),
            at_s=hour * HOUR_S,
            method="forecast",
            estimated=True,
            age_s=grid_s - hour * HOUR_S,
            step_s=HOUR_S,
            state="seasonal",
        )
