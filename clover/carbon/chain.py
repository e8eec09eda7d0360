"""What Clover takes for the grid's carbon intensity: sources in order, a memory for each, and a value of last resort.

Two rules.  A number is never given out without saying how good it is, and a source that fails never stops the server.

    state        the reading comes from
    fresh        the first source, and its step is not over, or the provider's next value is not late yet
    stale        the first source, and is older than that: its last good value, or all the source itself has
    fallback     a later source of the chain (its last good value included: `age_s` tells)
    forecast     the forecast that the first source gave before it failed (`clover.carbon.chained`)
    seasonal     the first source's past: the mean of the same hour of the last days
    configured   `configured_g_per_kwh`, because nothing else is known

The last three are used if no source has a value that is current or younger than `max_age_s`.  Earlier states are
preferred, with one exception: if a later source only states a number or a formula (`static:G`, `synthetic`), what the
first source says of its own grid (`forecast`, `seasonal`) comes before it.

**Age** is grid time, so a trace replayed at speed goes stale at that speed too.  Providers publish a value some time
after its moment (`Live.lag_s`), and are asked every so often.  Until both are over, the newest value is current,
however old (`ChainedSource.current_s`), and its age says how old.

**Asking.**  Everybody asks the chain (through `clover.carbon.grid`), as often as they like; only the chain asks
sources.  It asks for a value once a step: again when the step is over, or every tenth of a step if a source lags
behind.  Answers that cannot be, or that are not believed (`clover.carbon.plausible`), count as failures.

 - *A remote source* is asked every `poll_s` real seconds at most, however fast grid time runs.  After an answer, usable
   or not, its own `poll_s` holds if that is longer.  When it fails it is backed off for 1, 2, 4 ... 300 real seconds,
   or for as long as it says.  Only the very first answer is waited for.  Later ones come in a task, for which a reader
   waits `REFRESH_WAIT_S` at most.
 - *A local source* (a file, a formula) is asked every time, since that costs nothing.  So what is replayed at speed
   follows grid time.  If it can change (a file), it is polled every `poll_s` real seconds, in a task as well: a long
   file is in force once it is read.
 - *A forecast* of a remote source is asked for once an hour of grid time, in a task of its own.  No reading waits for
   it, and the forecast before holds meanwhile.

**The start.**  `open` asks live providers before the chain is used.  If a provider refuses the request itself (its key,
its zone), the start stops; the chain deals with any other failure.  What providers recorded of the last days becomes
the chain's history.  If a past or a forecast failed, it is asked for again with back-off, and at once when the newest
value is answered again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Mapping, Sequence

import msgspec

from clover.carbon.chained import ChainedSource, Live
from clover.carbon.labels import describe, describe_reading
from clover.hints import named_wait
from clover.interfaces import CarbonSource
from clover.planning.budget.forecast import History
from clover.types import Reading

log = logging.getLogger("clover.carbon")

FORECAST_S = 7 * 86_400.0
"""How far ahead a source is asked; no provider reaches further, but a file would give all that it holds."""


class SourceChain:
    """Sources in order of preference, never without an answer.  There is at least one.

    `last_error` is the newest failure's text (empty if none yet), `last` the newest reading.
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
    def errors(self) -> dict[tuple[str, str], int]:
        """Failed calls per source and kind."""
        return {(link.source.name, kind): count for link in self.links for kind, count in link.errors.items()}

    @property
    def live(self) -> Mapping[str, Live]:
        """The sources that ask a provider, by name."""
        return {link.source.name: link.live for link in self.links if link.live is not None}

    async def open(self, grid_s: float) -> None:
        """Ask live providers for the first time, all at once, and take their past as history; ConfigError if one
        refuses the request itself.  If one does not answer, it may come later: the log says what stands in."""
        with named_wait(f"the carbon source ({self.name})", log.info):
            await asyncio.gather(*(link.open(grid_s, self._monotonic()) for link in self.links))
        for link in self.links:
            self._record_failure(link)

    async def close(self) -> None:
        """Cancel what sources are asked for."""
        for link in self.links:
            await link.close()

    async def read(self, grid_s: float) -> Reading:
        """Return the intensity to use at `grid_s` (Unix seconds of grid time), in gCO2e/kWh.  Never raises for a
        source."""
        for link in self.links:
            await link.refresh(self._monotonic())
            self._record_failure(link)
        async with self._lock:
            reading, error = await self._choose(grid_s)
            if reading.state in ("fresh", "stale"):
                self.links[0].bridge.record(reading, grid_s)
            if reading.state == "fresh" and self.links[0].source.remote:
                await self.links[0].begin_forecast(grid_s, FORECAST_S, self._monotonic())  # to bridge what may come
        before, self.last = self.last, reading
        if before is None or (before.state, before.provider) != (reading.state, reading.provider):
            self._log_change(before, reading, error)
        return reading

    async def forecast(self, grid_s: float, horizon_s: float) -> list[Reading]:
        """Return the first source's forecast, or a later one's marked "fallback"; empty if none has any."""
        for index, link in enumerate(self.links):
            async with contextlib.nullcontext() if link.source.remote else self._lock:
                readings = await link.forecast(grid_s, horizon_s, self._monotonic())
            self._record_failure(link)
            if readings:
                return readings if index == 0 else [_in_state(reading, "fallback") for reading in readings]
        return []

    async def _choose(self, grid_s: float) -> tuple[Reading, str]:
        """Return the reading to give out, and what failed on the way to it."""
        error, stated = "", None
        for index, link in enumerate(self.links):
            reading = await link.read(grid_s, self._monotonic())
            error = self._record_failure(link) or error
            if reading is None:
                error = error or link.error
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

    def _record_failure(self, link: ChainedSource) -> str:
        """Collect what failed of a source since the last call, also in a task that ended meanwhile; return its text."""
        if link.failures == link.noted_failures:
            return ""
        link.noted_failures = link.failures
        self.last_error = link.last_error
        return link.last_error

    def _log_change(self, before: Reading | None, reading: Reading, error: str) -> None:
        """Log that another source, or another state, is in force than `before`."""
        text = describe_reading(reading.g_per_kwh, "g/kWh", f"of {reading.provider}", describe(reading), reading.state)
        if reading.state != "fresh":
            log.warning("carbon intensity: %s%s", text, f": {error}" if error else "")
        elif before is not None:
            log.info("carbon intensity: %s", text)


def _in_state(reading: Reading, state: str) -> Reading:
    return msgspec.structs.replace(reading, state=state)
