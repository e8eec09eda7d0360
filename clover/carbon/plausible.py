"""Which answers of a source are not believed, although they are numbers that an intensity may have.

A provider that is out of order often answers with a wrong number rather than not at all.  Three such answers are
refused, each only if the same source has shown that its grid is not like that:

 - *zeros*: an average over the life cycle of its plants is 0 on no grid, and is refused at once.  Any other signal may
   be 0 for a while (solar power in excess), but not for `ZERO_S` where the mean so far is `LOW_G` or more.  A zone of
   water, wind or nuclear power that is near 0 otherwise may stay at 0.
 - *a flat line*: the same value for more than `FLAT_S`, and for more than three times the longest such stretch before,
   of a source that has given at least `CHANGES` other values in turn.  A source that never changes (yearly means) is
   believed, and so is a value below `LOW_G`, where whole grams make hours alike.
 - *a leap*: more than `LEAP` times the highest value seen so far, and more than `LEAP_G`, once `HOURS` hours are known.

What was stated (`static:G`), what is a formula, and what is replayed from a file are not judged.
"""

from __future__ import annotations

import math

from clover.types import Reading

HOUR_S = 3600.0
ZERO_S = 3 * HOUR_S
FLAT_S = 6 * HOUR_S
LOW_G = 20.0
CHANGES = 12
LEAP = 3.0
LEAP_G = 100.0
HOURS = 24
_CONTINUES_S = 2 * HOUR_S
"""Readings this far apart at most are of one flat stretch (or two steps of the source apart)."""


class Plausibility:
    """What one source has shown of its grid."""

    def __init__(self) -> None:
        self._highest_g = 0.0
        self._sum_g = 0.0
        self._readings = 0
        self._hours = 0
        self._hour = -math.inf
        self._value_g = math.nan
        self._since_s = self._last_s = -math.inf
        self._changes = 0
        self._longest_s = 0.0
        self._hangs = False

    def doubt(self, reading: Reading) -> str:
        """Return why `reading` is not believed, in words that follow "it gave"; empty if it is, and it is then part of
        what is known of the grid."""
        if reading.replayed or reading.method in ("synthetic", "configured"):
            return ""
        g_per_kwh, at_s = reading.g_per_kwh, reading.at_s
        if g_per_kwh == 0.0 and (reading.signal, reading.scope) == ("average", "lifecycle"):
            return "0 g/kWh, which no grid has over the life cycle of its plants"
        if self._hours >= HOURS and g_per_kwh > max(LEAP * self._highest_g, LEAP_G):
            return (
                f"{g_per_kwh:.0f} g/kWh, more than {LEAP:g} times the {self._highest_g:.0f} that were the most so far"
            )
        lasts = g_per_kwh == self._value_g and self._continues(reading)
        flat_s = at_s - self._since_s if lasts else 0.0
        if flat_s > self._limit_s(g_per_kwh):
            self._last_s, self._hangs = at_s, True
            return f"{g_per_kwh:g} g/kWh without a change for {flat_s / HOUR_S:.1f} hours: it seems to hang"
        if at_s > self._last_s:
            self._believe(reading, lasts)
        return ""

    def _continues(self, reading: Reading) -> bool:
        return 0.0 <= reading.at_s - self._last_s <= max(_CONTINUES_S, 2.0 * reading.step_s)

    def _limit_s(self, g_per_kwh: float) -> float:
        """Return for how many seconds the source may give the same value."""
        if g_per_kwh == 0.0:
            return ZERO_S if self._sum_g >= LOW_G * self._readings else math.inf
        if g_per_kwh < LOW_G or self._changes < CHANGES:
            return math.inf
        return max(FLAT_S, 3.0 * self._longest_s)

    def _believe(self, reading: Reading, lasts: bool) -> None:
        if not lasts:
            if self._readings and not self._hangs:
                self._longest_s = max(self._longest_s, self._last_s - self._since_s)
            self._hangs = False
            self._changes += reading.g_per_kwh != self._value_g
            self._value_g, self._since_s = reading.g_per_kwh, reading.at_s
        self._last_s = reading.at_s
        self._highest_g = max(self._highest_g, reading.g_per_kwh)
        self._sum_g += reading.g_per_kwh
        self._readings += 1
        hour = math.floor(reading.at_s / HOUR_S)
        self._hours += hour != self._hour
        self._hour = hour
