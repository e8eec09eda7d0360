"""The idle power of a host whose counters include every program: what it draws while next to nothing runs.

Windows of a second or more come with their energy, the CPU time of the whole host (`busy`) and that of the server's
own processes (`ours`).  There are four ways to know idle power; the first that is possible is used:

* *At rest*: from seconds in which the server did not run, and others used at most a hundredth of the CPUs.  What others
  used is subtracted by the model.  Nothing of the server's is subtracted, because active energy would then be whatever
  the model says.  Idle power is the median of such seconds of the last ten minutes, so that one second with a burst
  does not count.
* *By regression*, if there were no such seconds but the number of busy CPUs varied: where a straight line through power
  over busy CPUs meets 0.
* *By load*, if that did not vary: what the host drew in the last minute, less what a busy CPU drew above rest when the
  host last was at rest (`busy_w`).
* *By the model*, if the host never was at rest: the same with what the model says of a busy CPU.

Idle power also moves while the server never rests: a fan, a disk, a governor.  If the power of two stretches of ten
seconds differs by more than the CPU time explains, all four ways begin anew.

    idle = IdlePower(guess_w=20.0, core_w=1.5, cpus=16)
    idle.add(HostWindow(at_s=1.0, seconds=1.0, joules=61.0, busy_s=0.02, ours_s=0.0))
    idle.watts, idle.known_by                      # 60.97, "rest"
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from typing import Literal, NamedTuple

SILENT_CPUS = 0.02
_SILENT_MORE_CPUS = 0.002
"""The server does not run if its processes use no more CPUs than this, and hardly more than they ever did: timers, and
the meter itself."""
QUIET_SHARE = 0.01
QUIET_CPUS = 0.1
"""Others are quiet if they use no more than this share of the CPUs, or this many of them."""
_REST_S = 600.0
"""How long a second at rest counts."""
_REST_WINDOWS = 31
_SURE_REST_WINDOWS = 5
"""Seconds at rest from which on their median is no chance: while the last of them age, what a busy CPU draws stays."""
_LONG_S = 10.0
_LONG_WINDOWS = 60
_RECENT_WINDOWS = 6
_REGRESSION_WINDOWS = 12
_REGRESSION_SPREAD = 0.25
"""Standard deviation of the busy CPUs from which on a line is believed."""
_LOADED_CPUS = 0.1
"""Busy CPUs from which on power above rest says what a busy CPU draws."""
_MOST_CORE_W = 15.0
"""More than a busy CPU draws anywhere: what a change of CPU time can explain."""
_NOISE_WINDOWS = 61
_JUMP_W = 2.0
_JUMP_SHARE = 0.04
"""A change of power is a jump of idle power from so many watts and this share of it on."""

KnownBy = Literal["guess", "rest", "regression", "load", "model"]


class HostWindow(NamedTuple):
    """A stretch of time that ended at `at_s`: joules of the host, CPU seconds of all and of the server's own processes
    (None: unknown)."""

    at_s: float
    seconds: float
    joules: float
    busy_s: float | None
    ours_s: float | None


class _Power(NamedTuple):
    """Mean watts and mean busy CPUs of ten seconds that ended at `at_s`."""

    at_s: float
    watts: float
    busy: float


class IdlePower:
    """Watts at rest from windows of energy and CPU time.  `guess_w`: what the model says of the host at rest; `core_w`:
    of a busy CPU; `cpus`: how many CPUs the host has.  `known_by` says how `watts` is known, `jumps` how often it was
    begun anew."""

    def __init__(self, *, guess_w: float, core_w: float, cpus: int) -> None:
        self.watts = guess_w
        self.known_by: KnownBy = "guess"
        self.jumps = 0
        self.busy_w = core_w
        """What a busy CPU draws above rest: by the model, until it was seen."""
        self.error_w = 0.0
        """By how many watts `watts` may be off for its windows' noise: two standard errors."""
        self._seen = False
        self._rest_error_w = 0.0
        self._steps: deque[float] = deque(maxlen=_NOISE_WINDOWS)
        """How far the power above what busy CPUs explain moved from one window to the next."""
        self._beyond_w: float | None = None
        self._core_w = core_w
        self._least_ours = SILENT_CPUS
        self._most_others = max(QUIET_CPUS, QUIET_SHARE * cpus)
        self._rest: deque[tuple[float, float]] = deque(maxlen=_REST_WINDOWS)
        """When a second at rest was, and its watts."""
        self._long: deque[_Power] = deque(maxlen=_LONG_WINDOWS)
        self._least_busy: _Power | None = None
        """Of the windows before the first long one."""
        self._seconds = self._joules = self._busy_s = 0.0

    @property
    def rest_windows(self) -> int:
        """How many seconds at rest are counted."""
        return len(self._rest)

    @property
    def measured(self) -> bool:
        """Whether active power is measured: neither idle power nor the power of a busy CPU is the model's."""
        return self.known_by not in ("guess", "model")

    @property
    def why(self) -> str:
        """How the idle power is known, in words."""
        words = {
            "guess": "modelled, until it is measured",
            "rest": f"measured at rest, over {self.rest_windows} s",
            "regression": "by regression of power on CPU time, since the host was not at rest for ten minutes",
            "load": f"by the last minute's power less {self.busy_w:.2g} W a busy CPU, measured above the last rest",
            "model": f"an estimate, since the host was never at rest: its power less {self._core_w:g} W a busy CPU",
        }
        return words[self.known_by]

    def add(self, window: HostWindow) -> None:
        """Count a window of a second or more."""
        watts = window.joules / window.seconds
        busy = self._most_others * 2 if window.busy_s is None else window.busy_s / window.seconds
        ours = 2 * SILENT_CPUS if window.ours_s is None else window.ours_s / window.seconds
        others = max(busy - ours, 0.0)
        self._least_ours = min(self._least_ours, ours)
        silent = ours <= min(self._least_ours + _SILENT_MORE_CPUS, SILENT_CPUS)
        if silent and others <= self._most_others:
            self._rest.append((window.at_s, max(watts - self._core_w * others, 0.0)))
        while self._rest and self._rest[0][0] < window.at_s - _REST_S:
            self._rest.popleft()
        if not self._long and (self._least_busy is None or busy < self._least_busy.busy):
            self._least_busy = _Power(window.at_s, watts, busy)
        beyond_w, before_w = watts - self.busy_w * busy, self._beyond_w
        self._beyond_w = beyond_w
        if before_w is not None:
            self._steps.append(abs(beyond_w - before_w))
        self._seconds += window.seconds
        self._joules += window.joules
        self._busy_s += busy * window.seconds
        if self._seconds >= _LONG_S:
            self._long.append(_Power(window.at_s, self._joules / self._seconds, self._busy_s / self._seconds))
            self.forget_window()
            self._begin_anew_after_a_jump()
        self._estimate()

    def forget_window(self) -> None:
        """Begin the long window under way anew: something of it is unknown."""
        self._seconds = self._joules = self._busy_s = 0.0

    def _begin_anew_after_a_jump(self) -> None:
        """Forget what was before idle power jumped: the last two stretches differ from the one before by more than the
        CPU time explains."""
        if len(self._long) < 3:
            return
        before, first, last = list(self._long)[-3:]
        limit_w = max(_JUMP_W, _JUMP_SHARE * before.watts)
        beyond_w = [
            abs(after.watts - before.watts) - _MOST_CORE_W * abs(after.busy - before.busy) for after in (first, last)
        ]
        if min(beyond_w) > limit_w and (first.watts > before.watts) == (last.watts > before.watts):
            self.jumps += 1
            self._long = deque([last], _LONG_WINDOWS)
            self._rest = deque((rest for rest in self._rest if rest[0] > before.at_s), _REST_WINDOWS)

    @property
    def _noise_w(self) -> float:
        """Standard deviation of a window's power, by how far one is from the next (normal noise: 2 / root pi times)."""
        return 0.5 * math.sqrt(math.pi) * statistics.fmean(self._steps) if self._steps else 0.0

    def _estimate(self) -> None:
        if self._rest:
            self.known_by, watts = "rest", statistics.median(watts for _, watts in self._rest)
            of_a_median = 1.25 if len(self._rest) > 2 else 1.0
            self.error_w = 2.0 * of_a_median * self._noise_w / math.sqrt(len(self._rest))
            if not self._seen or len(self._rest) >= _SURE_REST_WINDOWS:
                self._see_busy_cpu(watts)
                self._rest_error_w = self.error_w  # of what a busy CPU draws is left once no second at rest is
        elif (line := self._intercept()) is not None:
            self.known_by, (watts, self.error_w) = "regression", line
        else:
            recent = list(self._long)[-_RECENT_WINDOWS:] or ([self._least_busy] if self._least_busy else [])
            if not recent:
                return
            self.known_by = "load" if self._seen else "model"
            watts = statistics.median(power.watts - self.busy_w * power.busy for power in recent)
            by_noise = 2.5 * self._noise_w / math.sqrt(_LONG_S * len(recent))
            self.error_w = math.hypot(self._rest_error_w, by_noise)
        self.watts = max(watts, 0.0)

    def _see_busy_cpu(self, rest_w: float) -> None:
        """Record what a busy CPU draws above rest, by a line from there through the last ten minutes, but for what may
        turn out to be a jump."""
        loaded = [power for power in list(self._long)[:-2] if power.busy >= _LOADED_CPUS]
        if len(loaded) >= _RECENT_WINDOWS:
            drawn = sum((power.watts - rest_w) * power.busy for power in loaded)
            seen_w = drawn / sum(power.busy**2 for power in loaded)
            if 0.0 < seen_w <= _MOST_CORE_W:
                self.busy_w, self._seen = seen_w, True

    def _intercept(self) -> tuple[float, float] | None:
        """Return the power at no busy CPU of a line through the long windows, and two standard errors of it; None if
        they are too much alike."""
        if len(self._long) < _REGRESSION_WINDOWS:
            return None
        busy, watts = [power.busy for power in self._long], [power.watts for power in self._long]
        spread, middle = statistics.pstdev(busy), statistics.fmean(busy)
        if spread < _REGRESSION_SPREAD:
            return None
        line = statistics.linear_regression(busy, watts)
        if line.slope <= 0.0:
            return None
        beside = [w - line.intercept - line.slope * b for w, b in zip(watts, busy, strict=True)]
        noise_w = statistics.pstdev(beside, 0.0)
        return line.intercept, 2.0 * noise_w * math.sqrt((1.0 + (middle / spread) ** 2) / len(busy))
