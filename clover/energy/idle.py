"""The idle power of a host whose counters include every program: what it draws while next to nothing runs.

Windows of a second or more come with their mean power and with the CPUs that were busy (`busy`, of the whole host).
Three ways to know idle power, the best one first:

* *At rest*: windows in which at most `QUIET_SHARE` of the CPUs were busy.  What little ran is subtracted by the model;
  idle power is the median of the last `_REST_WINDOWS` of these, so that it rises as well as it falls and one window
  with a burst of something else does not count.
* *By regression*, if the host was never at rest: the power at which a straight line through power over busy CPUs
  meets 0, if they varied enough for a line.
* *By the model*, else: the power of the least busy window less what the model says of its busy CPUs.

Until the first window it is the guess of the model.  In no case is it more than the host drew on average over any ten
seconds of the last ten minutes.
"""

from __future__ import annotations

import statistics
from collections import deque
from typing import Literal, NamedTuple

QUIET_SHARE = 0.01
QUIET_CPUS = 0.1
"""A window is quiet if no more than this share of the CPUs, or this many of them, were busy."""
_REST_WINDOWS = 31
_LONG_S = 10.0
_LONG_WINDOWS = 60
_REGRESSION_WINDOWS = 12
_REGRESSION_SPREAD = 0.25
"""Standard deviation of the busy CPUs from which on a line is believed."""

KnownBy = Literal["guess", "rest", "regression", "model"]


class PowerWindow(NamedTuple):
    """Mean watts and mean busy CPUs of a stretch of time."""

    watts: float
    busy: float


class IdlePower:
    """Watts at rest from windows of power and busy CPUs.

    `guess_w`: what the model says of the host at rest, `core_w`: of a busy CPU; `cpus`: how many the host has.
    `known_by` says how `watts` is known.
    """

    def __init__(self, *, guess_w: float, core_w: float, cpus: int) -> None:
        self.watts = guess_w
        self.known_by: KnownBy = "guess"
        self._core_w = core_w
        self._most_busy = max(QUIET_CPUS, QUIET_SHARE * cpus)
        self._rest: deque[float] = deque(maxlen=_REST_WINDOWS)
        self._long: deque[PowerWindow] = deque(maxlen=_LONG_WINDOWS)
        self._least_busy: PowerWindow | None = None
        """Of the windows before the first long one."""
        self._seconds = self._joules = self._busy_s = 0.0

    @property
    def rest_windows(self) -> int:
        """How many windows at rest are counted."""
        return len(self._rest)

    @property
    def why(self) -> str:
        """How the idle power is known, in words."""
        words = {
            "guess": "modelled, until it is measured",
            "rest": f"measured at rest, over {self.rest_windows} s",
            "regression": "by regression of power on CPU time, since the host was never at rest",
            "model": f"an estimate, since the host was never at rest: its power less {self._core_w:g} W a busy CPU",
        }
        return words[self.known_by]

    def add(self, joules: float, busy_s: float | None, seconds: float) -> None:
        """Count a window of `seconds`, in which the host used `busy_s` CPU seconds (None: unknown)."""
        if busy_s is None:
            busy_s = self._most_busy * seconds * 2  # not at rest for all that is known
        window = PowerWindow(joules / seconds, busy_s / seconds)
        if window.busy <= self._most_busy:
            self._rest.append(max(window.watts - self._core_w * window.busy, 0.0))
        if not self._long and (self._least_busy is None or window.busy < self._least_busy.busy):
            self._least_busy = window
        self._seconds += seconds
        self._joules += joules
        self._busy_s += busy_s
        if self._seconds >= _LONG_S:
            self._long.append(PowerWindow(self._joules / self._seconds, self._busy_s / self._seconds))
            self.forget_window()
        self._estimate()

    def forget_window(self) -> None:
        """Begin the long window under way anew: something of it is unknown."""
        self._seconds = self._joules = self._busy_s = 0.0

    def _estimate(self) -> None:
        if self._rest:
            self.known_by, watts = "rest", statistics.median(self._rest)
        elif (intercept := self._intercept()) is not None:
            self.known_by, watts = "regression", intercept
        else:
            least = min(self._long, key=lambda window: window.busy) if self._long else self._least_busy
            if least is None:
                return
            self.known_by, watts = "model", least.watts - self._core_w * least.busy
        self.watts = max(min([watts, *(window.watts for window in self._long)]), 0.0)

    def _intercept(self) -> float | None:
        """Return the power at no busy CPU of a line through the long windows; None if they are too much alike."""
        if len(self._long) < _REGRESSION_WINDOWS:
            return None
        busy = [window.busy for window in self._long]
        if statistics.pstdev(busy) < _REGRESSION_SPREAD:
            return None
        line = statistics.linear_regression(busy, [window.watts for window in self._long])
        return line.intercept if line.slope > 0.0 else None
