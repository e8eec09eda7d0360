"""What Clover takes for the grid's carbon intensity: sources in order, a memory for each, and a value of last resort.

Two rules.  A number is never given out without saying how good it is, and a source that fails never stops the server.

    state        the reading comes from
    fresh        the first source, and its step is not over, or the provider's next value is not late yet
    stale        the first source, and is older than that: its last good value, or all the source itself has
    fallback     a later source of the chain (its last good value included: `age_s` tells)
    forecast     the forecast that the first source gave before it failed (`clover.carbon.bridge`)
    seasonal     the first source's past: the mean of the same hour of the last days
    configured   `configured_g_per_kwh`, because nothing else is known

The last three: no source has a value that is current or younger than `max_age_s`.  Between the states the order is as
listed, but for a later source that only states a number or a formula (`static:G`, `synthetic`): what the first source
lets expect of its own grid goes before it.

Providers publish a value some time after the moment it is of (`Live.lag_s`), and are asked every so often: until both
are over, the newest value is current, however old (`ChainedSource.current_s`), and its age says how old.

Age is grid time, so that a trace replayed at speed goes stale at that speed too.  A value is asked for once a step:
again when its step is over, or every tenth of a step if a source lags behind.  Answers that cannot be, or that are not
believed (`clover.carbon.plausible`), count as failures.

All ask the chain (through `clover.carbon.grid`), as often as they like; the chain alone asks sources.  A remote source
is asked once every `poll_s` real seconds at most, however fast grid time runs (after an answer, usable or not: once
every `poll_s` of its own, if that is longer), and backed off for 1, 2, 4 ... 300 real seconds when it fails, or for as
long as it says.  Only the very first answer is waited for; later ones come in a task, which a reader waits
`REFRESH_WAIT_S` for at most.  A local one (a file, a formula) is asked every time, since that costs nothing: so what is
replayed at speed follows grid time.  Once an hour of grid time a remote source's forecast is asked for, in a task of
its own: no reading waits for it, and meanwhile that of before holds.  A local source that can change (a file) is looked
at every `poll_s` real seconds, in a task as well: a long file is in force once it is read.

`open` asks live providers once before the chain is used: one that refuses the request itself (its key, its zone) stops
the start, any other failure is the chain's business.  What they recorded of the last days is then the chain's history.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import msgspec

from clover.carbon.bridge import DAYS, Bridge
from clover.carbon.jitter import Jitter, no_jitter
from clover.carbon.labels import describe, named
from clover.carbon.layouts import MAX_G_PER_KWH
from clover.carbon.plausible import Plausibility
from clover.errors import CarbonError, ConfigError
from clover.interfaces import CarbonSource
from clover.planning.budget.forecast import HOUR_S, History
from clover.types import Reading

log = logging.getLogger("clover.carbon")

STATES = ("fresh", "stale", "fallback", "forecast", "seasonal", "configured")
FORECAST_S = 7 * 86_400.0
"""How far ahead a source is asked; no provider looks further, but a file would give all that it holds."""
REFRESH_WAIT_S = 0.2
_ASKED_AGAIN = 0.1  # steps, after which a source that has no newer value yet is asked again
HISTORY_S = DAYS * 86_400.0
"""How much of its past a provider is asked for at the start: what bridging uses."""


@runtime_checkable
class Refreshable(Protocol):
    """A source whose data may change while it is used."""

    def refresh(self) -> Coroutine[Any, Any, bool]:
        """Take new data if there is any, and return whether there was; CarbonError if it cannot be used."""


@runtime_checkable
class Live(Protocol):
    """A source that asks a provider over the network.  `poll_s`: seconds to leave it alone after an answer; `lag_s`:
    seconds from the time that a value is of until a provider in order has published it, at the most; `calls` and
    `call_s`: requests so far, and the seconds they took."""

    poll_s: float
    lag_s: float

    @property
    def calls(self) -> int: ...

    @property
    def call_s(self) -> float: ...

    async def history(self, start_s: float, end_s: float) -> list[Reading]:
        """Return what was recorded between two times, oldest first; raises CarbonError."""


class ChainedSource:
    """One source of the chain with its last good reading, its back-off and its counters; `bridge` holds what it lets
    expect, `trouble` says why newer data of it cannot be used (empty if they can)."""

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
        self._row = 0  # failures in a row
        self._retry_s = -math.inf  # monotonic
        self._next_s = -math.inf  # monotonic: after an answer
        self._polled_s = -math.inf  # monotonic
        self._due_s = -math.inf  # grid time
        self._asking: asyncio.Task[None] | None = None
        self._refusal: CarbonError | None = None  # of the newest call

    async def open(self, grid_s: float, now_s: float) -> None:
        """Ask a live source for now and for its past, once; ConfigError if its provider refuses the request itself."""
        if self.live is None:
            return
        self.reads += 1
        self._polled_s = now_s
        past = asyncio.create_task(self._take_past(self.live, grid_s))
        try:
            await self._ask(grid_s, now_s, past)
            failed = await past
        finally:
            past.cancel()
        if self._refusal is not None:
            raise ConfigError(f"carbon source {self._refusal}")
        if self.good is not None and failed:
            log.warning("%s gives no past, so that only what it says from now on is history: %s",
                        self.source.name, failed)  # fmt: skip

    async def _take_past(self, live: Live, grid_s: float) -> str:
        """Take what a provider recorded before `grid_s` as history; return why that failed, empty if it did not."""
        try:
            async with asyncio.timeout(self._timeout_s):
                past = await live.history(grid_s - HISTORY_S, grid_s)
        except Exception as error:
            self._count(error)
            return self.last_error
        for reading in past:
            if reading.at_s + reading.step_s <= grid_s and not self._plausibility.doubt(reading):
                self.bridge.note(reading, reading.at_s)
        return ""

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
        if known is not None and grid_s < self._due_s + self.jitter.due_s:
            return known
        if self._asking is None and now_s >= max(self._retry_s, self._next_s, self._polled_s + self._poll_s):
            self.reads += 1
            self._polled_s = now_s
            if not self.source.remote:
                await self._ask(grid_s, now_s)
                return self._usable(grid_s)
            self._asking = asyncio.create_task(self._ask(grid_s, now_s))
            await asyncio.wait([self._asking], timeout=self.refresh_wait_s if self.reads > 1 else None)
        return self._usable(grid_s)

    async def refresh(self, now_s: float) -> None:
        """Have a source look for new data, every `poll_s` at most, and wait for that a moment; what takes longer is
        taken by a later call."""
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
            self._failed(error, now_s)
            self.trouble = str(error) if isinstance(error, CarbonError) else self.trouble
        elif looked.result():
            self.trouble = ""
            self._due_s = -math.inf

    async def forecast(self, grid_s: float, horizon_s: float, now_s: float) -> list[Reading]:
        """Return the source's forecast; empty if it has none, failed, or is backed off after a failure.

        While a remote source is asked for a new one, that of before is returned; only the very first is waited for."""
        if self._forecast_due(grid_s, now_s):
            if now_s < self._retry_s:
                return []
            if not self.source.remote:
                await self._foresee(grid_s, horizon_s)
                return self._foreseen
            await self.begin_forecast(grid_s, horizon_s, now_s)
        if self._foreseeing is not None and not (self._foreseen_once or self._foreseeing.done()):
            await asyncio.wait([self._foreseeing])
        return self._foreseen

    async def begin_forecast(self, grid_s: float, horizon_s: float, now_s: float) -> None:
        """Ask a remote source for its forecast if that is due, without waiting for the answer."""
        if not self._forecast_due(grid_s, now_s) or now_s < self._retry_s:
            return
        self._foreseen_hour, self._foreseen_s = math.floor(grid_s / HOUR_S), now_s
        self._foreseeing = asyncio.create_task(self._foresee(grid_s, horizon_s))
        await asyncio.sleep(0)  # one that can answer at once has done so by then

    def _forecast_due(self, grid_s: float, now_s: float) -> bool:
        """Return whether the source may be asked for a forecast: a remote one once an hour, one call at a time."""
        if not self.source.remote:
            return True
        if self._foreseeing is not None and not self._foreseeing.done():
            return False
        return math.floor(grid_s / HOUR_S) != self._foreseen_hour and now_s >= self._foreseen_s + self._poll_s

    async def _foresee(self, grid_s: float, horizon_s: float) -> None:
        """Take a new forecast; none if the source fails, which does not keep it from being read."""
        try:
            async with asyncio.timeout(self._timeout_s):
                foreseen = await self.source.forecast(grid_s, horizon_s)
            zeros = bool(foreseen) and not any(reading.g_per_kwh for reading in foreseen)
            if self.source.remote and zeros and not self._plausibility.zero_may_stay:
                raise CarbonError(
                    f"{self.source.name} foresees nothing but 0 g/kWh; it is not used", kind="implausible"
                )
            self._foreseen = foreseen
        except Exception as error:
            self._count(error)
            self._foreseen = []
        self._foreseen_once = True
        if self.source.remote and self._foreseen:
            self.bridge.foresee(self._foreseen)

    def current_s(self, step_s: float) -> float:
        """Return the age in seconds that the newest value, which holds for `step_s`, of a source in order may have."""
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

    async def _ask(self, grid_s: float, now_s: float, past: Awaitable[str] | None = None) -> None:
        """Take the source's value if it can be believed, judged by its `past` if that is on its way."""
        self._refusal = None
        try:
            async with asyncio.timeout(self._timeout_s):
                reading = await self.source.read(grid_s)
            if past is not None:
                await past
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
            self._failed(error, now_s)
            return
        self._row = 0
        self.jitter.redraw()
        self._retry_s = -math.inf
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

    def _failed(self, error: Exception, now_s: float) -> None:
        """Count a failure, and leave a remote source alone for a while."""
        self._count(error)
        self._row += 1
        if self.source.remote:
            wait_s = min(self._longest_wait_s, self._first_wait_s * 2.0 ** min(self._row - 1, 32))
            if self.live is not None and isinstance(error, CarbonError) and error.unusable:
                wait_s = max(wait_s, self.live.poll_s)  # it did answer
            self._retry_s = now_s + max(wait_s, error.retry_after_s if isinstance(error, CarbonError) else 0.0)
            self._retry_s += self.jitter.beyond(self._retry_s - now_s)

    def _count(self, error: Exception) -> None:
        if isinstance(error, TimeoutError):
            error = CarbonError(f"{self.source.name} did not answer within {self._timeout_s:g} s", kind="timeout")
        elif not isinstance(error, CarbonError):
            log.error("carbon source failed in an unforeseen way", exc_info=error)
            error = CarbonError(f"{self.source.name}: {type(error).__name__}: {error}", kind="unforeseen")
        self.failures += 1
        self.errors[error.kind] += 1
        self.last_error = str(error)


class SourceChain:
    """Sources in order of preference, never without an answer.  There is at least one.

    `counts` holds how many readings were given out in each state, `failures` the failed calls per source, `last_error`
    the newest failure's text (empty if none yet), `last` the newest reading.
    """

    def __init__(
        self,
        sources: Sequence[CarbonSource],
        *,
        max_age_s: float = 7200.0,
        configured_g_per_kwh: float = 400.0,
        monotonic: Callable[[], float] = time.monotonic,
        backoff_s: tuple[float, float] = (1.0, 300.0),
        timeout_s: float = 10.0,
        poll_s: float = 0.0,
    ) -> None:
        self.links = tuple(ChainedSource(source, max_age_s, backoff_s, timeout_s, poll_s) for source in sources)
        self.configured_g_per_kwh = configured_g_per_kwh
        self.counts = dict.fromkeys(STATES, 0)
        self.last: Reading | None = None
        self.last_error = ""
        self._monotonic = monotonic
        self._lock = asyncio.Lock()  # two readers must not ask a provider twice

    @property
    def name(self) -> str:
        """The sources' names in order."""
        return ",".join(link.source.name for link in self.links)

    @property
    def trouble(self) -> str:
        """Why newer data of sources cannot be used, while what they gave before is in force; empty if they can."""
        return "; ".join(link.trouble for link in self.links if link.trouble)

    @property
    def perfect_forecast(self) -> bool:
        """Whether the first source foresees what it will say."""
        return bool(getattr(self.links[0].source, "perfect_forecast", False))

    @property
    def history(self) -> History:
        """What the first source gave, by the hour of grid time.

        Another source may mean something else by intensity, and the value of last resort means nothing at all."""
        return self.links[0].bridge.history

    @property
    def failures(self) -> dict[str, int]:
        """Failed calls per source."""
        return {link.source.name: link.failures for link in self.links}

    @property
    def errors(self) -> dict[tuple[str, str], int]:
        """Failed calls per source and kind."""
        return {(link.source.name, kind): count for link in self.links for kind, count in link.errors.items()}

    @property
    def live(self) -> Mapping[str, Live]:
        """The sources that ask a provider, by name."""
        return {link.source.name: link.live for link in self.links if link.live is not None}

    async def open(self, grid_s: float) -> None:
        """Ask live providers for the first time, all at once, and take their past as history; ConfigError if one
        refuses the request itself.  Those that do not answer may come later: the log says what stands in."""
        await asyncio.gather(*(link.open(grid_s, self._monotonic()) for link in self.links))
        for link in self.links:
            self._note_failure(link)

    async def close(self) -> None:
        """Cancel what sources are asked for."""
        for link in self.links:
            await link.close()

    async def read(self, grid_s: float) -> Reading:
        """Return the intensity to use at `grid_s` (Unix seconds of grid time), in gCO2e/kWh.  Never raises for a
        source."""
        for link in self.links:
            await link.refresh(self._monotonic())
            self._note_failure(link)
        async with self._lock:
            reading, error = await self._choose(grid_s)
            if reading.state in ("fresh", "stale"):
                self.links[0].bridge.note(reading, grid_s)
            if reading.state == "fresh" and self.links[0].source.remote:
                await self.links[0].begin_forecast(grid_s, FORECAST_S, self._monotonic())  # to bridge what may come
        self.counts[reading.state] += 1
        before, self.last = self.last, reading
        if before is None or (before.state, before.provider) != (reading.state, reading.provider):
            self._log_change(before, reading, error)
        return reading

    async def forecast(self, grid_s: float, horizon_s: float) -> list[Reading]:
        """Return the first source's forecast, or a later one's marked "fallback"; empty if none has any."""
        for index, link in enumerate(self.links):
            async with contextlib.nullcontext() if link.source.remote else self._lock:
                readings = await link.forecast(grid_s, horizon_s, self._monotonic())
            self._note_failure(link)
            if readings:
                return readings if index == 0 else [_in_state(reading, "fallback") for reading in readings]
        return []

    async def _choose(self, grid_s: float) -> tuple[Reading, str]:
        """Return the reading to give out, and what failed on the way to it."""
        error, stated = "", None
        for index, link in enumerate(self.links):
            reading = await link.read(grid_s, self._monotonic())
            error = self._note_failure(link) or error
            if reading is None:
                error = error or link.last_error
                continue
            if index == 0:
                current = reading.age_s <= link.current_s(reading.step_s)
                return _in_state(reading, "fresh" if current else "stale"), error
            if reading.method not in ("configured", "synthetic"):
                return _in_state(reading, "fallback"), error
            stated = stated or _in_state(reading, "fallback")
        found = self.links[0].bridge.expected(grid_s) or stated
        if found is not None:
            return found, error
        return Reading(
            g_per_kwh=self.configured_g_per_kwh,
            at_s=grid_s,
            provider="stand-in",
            method="stand-in",
            estimated=True,
            state="configured",
        ), error

    def _note_failure(self, link: ChainedSource) -> str:
        """Take up what failed of a source since the last look, also in a task that ended meanwhile; return its text."""
        if link.failures == link.noted_failures:
            return ""
        link.noted_failures = link.failures
        self.last_error = link.last_error
        return link.last_error

    def _log_change(self, before: Reading | None, reading: Reading, error: str) -> None:
        """Log that another source, or another state, is in force than `before`."""
        text = named(reading.g_per_kwh, "g/kWh", f"of {reading.provider}", describe(reading), reading.state)
        if reading.state != "fresh":
            log.warning("carbon intensity: %s%s", text, f": {error}" if error else "")
        elif before is not None:
            log.info("carbon intensity: %s", text)


def _in_state(reading: Reading, state: str) -> Reading:
    return msgspec.structs.replace(reading, state=state)
