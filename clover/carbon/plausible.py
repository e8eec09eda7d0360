"""Which answers of a source are not believed, although they are numbers that an intensity may have.

A provider that is out of order often answers with a wrong number rather than not at all.  Three kinds of answers are
refused, unless the same source has shown that its grid is like that:

 - *Zeros.*  An average over the life cycle of its plants is 0 on no grid, and is refused at once.  Any other signal may
   be 0 for a sunny day, `SUNNY_S`, or for 1.5 times its longest stretch of zeros before if that is longer.
   The bound is `ZERO_S` for a signal that was known for `WEEK_HOURS`, was never below `LOW_G`, and falls to 0 at once:
   that is how a provider fails.  The sun brings a grid down in steps.  So the longer bound holds if the last step, to
   0, is at most `STEEPER` times the larger of the two falls right before it.  It also holds after the first such
   stretch.
   If the mean so far is below `LOW_G` (a zone of water, wind or nuclear power), the signal may stay at 0.
 - *A flat line*: the same value for more than `FLAT_S`, and for more than three times the longest such stretch before,
   of a source that has given at least `CHANGES` other values in turn.  A source that never changes (yearly means) is
   believed.  If all its values were whole grams, coarse values may stay flat for longer: below `FINE_G` for `FLAT_S`
   times `FINE_G` over the value, and below `LOW_G` for ever.
 - *A leap*: more than `LEAP` times the highest value seen so far, and more than `LEAP_G`, once `HOURS` hours are known.
   The wind may have fallen.  So if `LEAP_READINGS` in a row, over `LEAP_HOLDS_S` or more, were leaps and not all alike,
   leaps are believed from then on.  Values that leap and then do not change are not, unless the source's never do.

What was stated (`static:G`), what is a formula, and what is replayed from a file are not judged.
"""

from __future__ import annotations

import math
from collections import deque

from clover.types import Reading

HOUR_S = 3600.0
ZERO_S = 3 * HOUR_S
SUNNY_S = 8 * HOUR_S
WEEK_HOURS = 7 * 24
FLAT_S = 6 * HOUR_S
LOW_G = 20.0
FINE_G = 100.0
CHANGES = 12
LEAP = 3.0
LEAP_G = 100.0
LEAP_READINGS = 3
LEAP_HOLDS_S = HOUR_S
HOURS = 24
STEEPER = 2.0
_FALLS = 2
_CONTINUES_S = 2 * HOUR_S
"""Readings this far apart at most are of one flat stretch (or two steps of the source apart)."""


class _Leap:
    """Readings in a row that are each too high to be believed."""

    def __init__(self, first: Reading) -> None:
        self._first = self._last = first
        self._readings = 1
        self._varies = False

    def add(self, reading: Reading) -> None:
        """Add a reading; the same one again counts once."""
        if reading.at_s > self._last.at_s:
            self._readings += 1
            self._varies |= reading.g_per_kwh != self._first.g_per_kwh
            self._last = reading

    def continues(self, reading: Reading) -> bool:
        """Return whether `reading` follows these, or is the last of them."""
        return _follows(reading, self._last.at_s)

    def holds(self, *, constant: bool) -> bool:
        """Return whether it lasted for long enough to be believed.  `constant`: the values need not differ."""
        lasts_s = self._last.at_s - self._first.at_s
        return self._readings >= LEAP_READINGS and lasts_s >= LEAP_HOLDS_S and (self._varies or constant)


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
        self._longest_zero_s = 0.0
        self._lowest_g = math.inf
        """Of the stretches that are over."""
        self._falls: deque[float] = deque(maxlen=_FALLS)
        """The last falls in a row from value to value (gCO2e/kWh)."""
        self._came_down = False
        """Whether the newest stretch of zeros was come down to step by step."""
        self._whole = True
        self._hangs = False
        self._leap: _Leap | None = None

    @property
    def zero_may_stay(self) -> bool:
        """Whether the mean so far is so low that the grid may stay at 0."""
        return self._sum_g < LOW_G * self._readings

    def doubt(self, reading: Reading) -> str:
        """Return why `reading` is not believed, in words that follow "it gave".  If it is believed, return the empty
        string, and count it as known of the grid."""
        if reading.replayed or reading.method in ("synthetic", "configured"):
            return ""
        g_per_kwh, at_s = reading.g_per_kwh, reading.at_s
        if g_per_kwh == 0.0 and (reading.signal, reading.scope) == ("average", "lifecycle"):
            return "0 g/kWh, which no grid has over the life cycle of its plants"
        if self._leaps(reading):
            return (
                f"{g_per_kwh:.0f} g/kWh, more than {LEAP:g} times the {self._highest_g:.0f} that were the most so far"
            )
        lasts = g_per_kwh == self._value_g and _follows(reading, self._last_s)
        flat_s = at_s - self._since_s if lasts else 0.0
        if flat_s > self._limit_s(g_per_kwh):
            self._last_s, self._hangs = at_s, True
            return f"{g_per_kwh:g} g/kWh without a change for {flat_s / HOUR_S:.1f} hours: it seems to hang"
        if at_s > self._last_s:
            self._believe(reading, lasts)
        return ""

    def _leaps(self, reading: Reading) -> bool:
        """Return whether `reading` is a leap that did not hold for long enough yet."""
        if self._hours < HOURS or reading.g_per_kwh <= max(LEAP * self._highest_g, LEAP_G):
            self._leap = None
            return False
        if self._leap is None or not self._leap.continues(reading):
            self._leap = _Leap(reading)
        self._leap.add(reading)
        return not self._leap.holds(constant=self._changes < CHANGES)

    def _limit_s(self, g_per_kwh: float) -> float:
        """Return for how many seconds the source may give the same value."""
        if g_per_kwh == 0.0:
            if self.zero_may_stay:
                return math.inf
            never_low = self._hours >= WEEK_HOURS and self._lowest_g >= LOW_G
            return ZERO_S if never_low and not self._came_down else max(SUNNY_S, 1.5 * self._longest_zero_s)
        if g_per_kwh < LOW_G or self._changes < CHANGES:
            return math.inf
        coarse = FINE_G / g_per_kwh if self._whole else 1.0
        return max(FLAT_S * max(coarse, 1.0), 3.0 * self._longest_s)

    def _believe(self, reading: Reading, lasts: bool) -> None:
        if not lasts:
            if self._readings:
                self._end_stretch()
            self._record_fall(reading)
            self._hangs = False
            self._changes += reading.g_per_kwh != self._value_g
            self._value_g, self._since_s = reading.g_per_kwh, reading.at_s
        self._last_s = reading.at_s
        self._whole = self._whole and reading.g_per_kwh.is_integer()
        self._highest_g = max(self._highest_g, reading.g_per_kwh)
        self._sum_g += reading.g_per_kwh
        self._readings += 1
        hour = math.floor(reading.at_s / HOUR_S)
        self._hours += hour != self._hour
        self._hour = hour

    def _record_fall(self, reading: Reading) -> None:
        """Record by how much a value that differs from the one before is lower, if it follows on it."""
        fall_g, falls = self._value_g - reading.g_per_kwh, self._falls
        in_row = fall_g > 0.0 and _follows(reading, self._last_s)
        if reading.g_per_kwh == 0.0:
            self._came_down = in_row and len(falls) == _FALLS and fall_g <= STEEPER * max(falls)
        if in_row:
            falls.append(fall_g)
        else:
            falls.clear()

    def _end_stretch(self) -> None:
        """Keep what the ended stretch of equal values has shown."""
        self._lowest_g = min(self._lowest_g, self._value_g)
        if self._hangs:
            return
        lasted_s = self._last_s - self._since_s
        self._longest_s = max(self._longest_s, lasted_s)
        if self._value_g == 0.0:
            self._longest_zero_s = max(self._longest_zero_s, lasted_s)


def _follows(reading: Reading, last_s: float) -> bool:
    """Return whether `reading` is of the same stretch as one of `last_s` (Unix seconds)."""
    return 0.0 <= reading.at_s - last_s <= max(_CONTINUES_S, 2.0 * reading.step_s)
