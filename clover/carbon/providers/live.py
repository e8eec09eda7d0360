"""What all live providers share: the newest value, a forecast and a past, from what a provider's API answers.

A provider's module has pure parsers and a subclass of `LiveSource` that asks for what they read.  A parser makes
readings of the bytes of an answer.  It raises CarbonError if the answer is not what the API documents, is of another
zone, or is no grams per kilowatt-hour.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime

import msgspec

from clover.carbon.layouts import MAX_G_PER_KWH, HowKnown, Scope, Signal, format_time, parse_time
from clover.carbon.providers.http import ApiClient
from clover.errors import CarbonError
from clover.types import Reading

log = logging.getLogger("clover.carbon")

SKEW_S = 60.0
"""How far the clocks of this machine and of a provider may be apart."""
FORECAST_REFUSED_S = 6 * 3600.0
"""For how long a provider that refuses forecasts, as keys without that plan are, is not asked for one again."""


@dataclass(frozen=True)
class Series:
    """What all readings of one provider have in common."""

    provider: str
    zone: str
    signal: Signal
    scope: Scope
    step_s: float

    def at(self, at_s: float, g_per_kwh: float, known: HowKnown) -> Reading:
        """Return one value of it, which holds from `at_s` for a step."""
        return Reading(
            g_per_kwh=g_per_kwh,
            at_s=at_s,
            provider=self.provider,
            zone=self.zone,
            signal=self.signal,
            scope=self.scope,
            method=known,
            estimated=known in ("estimated", "forecast"),
            step_s=self.step_s,
        )


class LiveSource:
    """A provider's present intensity.  `name` is that of the source in the chain, `poll_s` how many seconds the
    provider is left alone at least between two successful readings, `lag_s` how many seconds after the time that it is
    of (when its step begins) a value is published at the latest, as long as the provider is in order."""

    remote = True
    poll_s = 60.0
    lag_s = 0.0

    def __init__(self, name: str, series: Series, client: ApiClient) -> None:
        self.name = name
        self.series = series
        self.step_s = series.step_s
        self.client = client
        self._forecast_again_s = -math.inf

    @property
    def calls(self) -> int:
        """Requests made so far."""
        return self.client.calls

    async def read(self, grid_s: float) -> Reading:
        """Return the newest value that is not of later than `grid_s`; raises CarbonError."""
        readings = await self._latest(grid_s)
        if not readings:
            raise CarbonError(f"{self.name}: the answer holds no value", kind="answer")
        past = [reading for reading in readings if reading.at_s <= grid_s + SKEW_S]
        if not past:
            first = format_time(min(reading.at_s for reading in readings))
            raise CarbonError(
                f"{self.name}: the first value is of {first}, which is still to come; is this machine's clock right?",
                kind="answer",
            )
        newest = max(past, key=lambda reading: reading.at_s)
        return msgspec.structs.replace(newest, age_s=max(0.0, grid_s - newest.at_s))

    async def forecast(self, grid_s: float, horizon_s: float) -> list[Reading]:
        """Return what the provider foresees from `grid_s` on; empty if it foresees nothing, or not for this key."""
        if grid_s < self._forecast_again_s:
            return []
        try:
            readings = await self._ahead(grid_s, horizon_s)
        except CarbonError as error:
            if not error.refused:
                raise
            if not math.isfinite(self._forecast_again_s):
                log.warning("%s gives no forecast: %s", self.name, error)
            self._forecast_again_s = grid_s + FORECAST_REFUSED_S
            return []
        return [item for item in _possible(readings) if grid_s - item.step_s < item.at_s <= grid_s + horizon_s]

    async def history(self, start_s: float, end_s: float) -> list[Reading]:
        """Return what the provider recorded between two times, oldest first; empty if it gives no past."""
        readings = await self._past(start_s, end_s)
        inside = (reading for reading in _possible(readings) if start_s <= reading.at_s <= end_s)
        return sorted(inside, key=lambda reading: reading.at_s)

    async def _latest(self, grid_s: float) -> list[Reading]:
        """Return readings of which the newest one up to `grid_s` is wanted."""
        raise NotImplementedError

    async def _ahead(self, grid_s: float, horizon_s: float) -> list[Reading]:
        """Return readings from `grid_s` on."""
        return []

    async def _past(self, start_s: float, end_s: float) -> list[Reading]:
        """Return readings between two times."""
        return []


def _possible(readings: Iterable[Reading]) -> list[Reading]:
    return [reading for reading in readings if 0.0 <= reading.g_per_kwh <= MAX_G_PER_KWH]


def seconds(text: str, name: str) -> float:
    """Return Unix seconds of a provider's time, UTC if it has no zone; CarbonError if it is none."""
    try:
        return parse_time(text)
    except (ValueError, OverflowError) as error:
        raise CarbonError(f"{name}: {error}", kind="answer") from error


def iso(at_s: float) -> str:
    """Return Unix seconds as a time in UTC to the minute, as requests have it: 2026-11-28T00:30Z."""
    return datetime.fromtimestamp(at_s, UTC).strftime("%Y-%m-%dT%H:%MZ")


def check_zone(name: str, asked: str, answered: str) -> None:
    """Refuse an answer about another zone than was asked for, with a CarbonError."""
    if asked != answered:
        raise CarbonError(f"{name}: the answer is about zone {answered[:40]!r}, not {asked!r}", kind="answer")
