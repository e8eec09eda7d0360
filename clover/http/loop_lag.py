"""How long requests wait for the front end's event loop, measured by probes.

The loop has one thread.  A packet that comes during a turn is read in the next one, and answers leave at the end of
their turn.  If other programs have the core, both take longer.  Requests do not show this delay: their arrival is
stamped when they are read.  So an alarm of the kernel (timerfd) stands in for the first packet of a request.  It goes
off at a random moment that is known to the nanosecond.  The loop sees it in the turn in which it would have read a
packet of that moment, and the probe ends when the answers of that turn are written.  A probe lasts from the moment that
was *set*, so a loop that stands still counts for as long as clients notice it: the moments that pass meanwhile count
as probes too.

Why no request to ourselves: the same loop would serve its client, which would wait for turns that no real client waits
for, and every counter of requests would have to leave it out.  The other costs of a request (head, body, answer) are
not part of a probe: they are `front_ms` of a profile.  What a probe takes with nothing in its way is subtracted, since
`front_ms` contains that work: the time of the quickest probes in the quietest window since the start (`LagWindows`).
The quickest probes of the same window would not do: on a loop that is always busy, they wait too.

Timers of an event loop would not do: they are late by up to a millisecond.
"""

from __future__ import annotations

import asyncio
import ctypes
import logging
import math
import os
import random
import time
from collections import deque
from collections.abc import Callable, Sequence
from statistics import median
from typing import Protocol

from clover.types import FrontLag

log = logging.getLogger("clover.http")

PROBES_PER_S = 2.0
"""Of a server: 0.07 % of a core, as measured on an idle one (EPYC, two cores, December 2026)."""
WINDOW = 40
"""Probes of one window: twenty seconds.  A stall of more counts as one late probe."""
WINDOWS = 15
"""Windows of which the median counts: five minutes."""
LEAST_WINDOWS = 5
"""Fewer say nothing: of five the median is none that one stall made, which may lie in two."""

_SECOND_NS = 1_000_000_000
_TFD_TIMER_ABSTIME = 1
_LATE, _QUIET = 0.95, 0.05


class Alarm(Protocol):
    """Becomes readable at a moment."""

    def fileno(self) -> int:
        """Return its descriptor."""

    def set(self, at_ns: int) -> None:
        """Let it go off at `at_ns` (monotonic), at once if that is over."""

    def rang(self) -> bool:
        """Return whether it went off since it was set; only once."""

    def close(self) -> None:
        """Give its descriptor back."""


class KernelAlarm:
    """A timerfd, which Python has from 3.13 on only.  Raises OSError if the kernel gives none."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._fd = int(self._libc.timerfd_create(time.CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC))
        if self._fd < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create")

    def fileno(self) -> int:
        """Return its descriptor."""
        return self._fd

    def set(self, at_ns: int) -> None:
        """See `Alarm.set`."""
        no_repeat_then_at = (ctypes.c_long * 4)(0, 0, *divmod(max(at_ns, 1), _SECOND_NS))
        if self._libc.timerfd_settime(self._fd, _TFD_TIMER_ABSTIME, no_repeat_then_at, None):
            raise OSError(ctypes.get_errno(), "timerfd_settime")

    def rang(self) -> bool:
        """See `Alarm.rang`."""
        try:
            return len(os.read(self._fd, 8)) == 8
        except BlockingIOError:
            return False

    def close(self) -> None:
        """Give its descriptor back."""
        os.close(self._fd)


class LoopLag:
    """Probes the event loop `per_s` times a second, from `start` to `stop`; `note` gets the nanoseconds of each.

    One probe falls into each stretch of 1 / `per_s` seconds, anywhere in it, so that none keeps step with work that is
    done at fixed intervals."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        note: Callable[[int], None],
        *,
        per_s: float = PROBES_PER_S,
        clock: Callable[[], int] = time.monotonic_ns,
        alarm: Callable[[], Alarm] = KernelAlarm,
    ) -> None:
        self._loop = loop
        self._record = note
        self._stretch_ns = int(_SECOND_NS / per_s)
        self._clock = clock
        self._make = alarm
        self._alarm: Alarm | None = None
        self._random = random.Random()
        self._begun_ns = 0  # when the stretch of the next probe begins
        self._due_ns = 0

    def start(self) -> None:
        """Begin to probe, unless that was done; without an alarm there are no probes, as the log says."""
        if self._alarm is not None:
            return
        try:
            self._alarm = self._make()
        except OSError as error:
            log.info("how long requests wait for the event loop is not measured: no timer: %s", error.strerror)
            return
        self._loop.add_reader(self._alarm.fileno(), self._rang)
        self._begun_ns = self._clock()
        self._set_next()

    def stop(self) -> None:
        """End probing."""
        alarm, self._alarm = self._alarm, None
        if alarm is not None:
            self._loop.remove_reader(alarm.fileno())
            alarm.close()

    def _set_next(self) -> None:
        assert self._alarm is not None
        self._due_ns = self._begun_ns + self._random.randrange(self._stretch_ns)
        self._begun_ns += self._stretch_ns
        self._alarm.set(self._due_ns)

    def _rang(self) -> None:
        if self._alarm is not None and self._alarm.rang():
            self._loop.call_soon(self._end_probes, self._clock())  # as answers are written (`ServerState.mark`)

    def _end_probes(self, read_ns: int) -> None:
        """End the probes that were due when the turn's packets were read, at `read_ns`."""
        if self._alarm is None:
            return
        now_ns = self._clock()
        if read_ns - self._due_ns > WINDOW * self._stretch_ns:
            # The process was stopped (by a debugger, or with its machine) and served nobody: it was late once.
            self._begun_ns = read_ns
        while True:
            self._record(now_ns - self._due_ns)
            self._set_next()
            if self._due_ns > read_ns:
                return


class LagWindows:
    """What the probes of the last minutes took, in windows of `WINDOW` probes, and the least since the start."""

    def __init__(self) -> None:
        self.closed = 0
        """Windows so far."""
        self._probes_ns: list[int] = []
        self._late_ns: deque[int] = deque(maxlen=WINDOWS)
        self._least_ns = math.inf

    def record(self, took_ns: int) -> None:
        """Count a probe."""
        self._probes_ns.append(took_ns)
        if len(self._probes_ns) == WINDOW:
            late_ns, quiet_ns = _late_and_quiet(self._probes_ns)
            self._late_ns.append(late_ns)
            self._least_ns = min(self._least_ns, quiet_ns)
            self._probes_ns.clear()
            self.closed += 1

    def typical(self) -> FrontLag | None:
        """Return by how much the slowest twentieth of probes is slower, in the median window, than the quickest one was
        in the quietest; None if windows are too few."""
        if len(self._late_ns) < LEAST_WINDOWS:
            return None
        return FrontLag(ms=max(median(self._late_ns) - self._least_ns, 0.0) / 1e6, windows=self.closed)


def _late_and_quiet(probes_ns: Sequence[int]) -> tuple[int, int]:
    """Return the least nanoseconds of the slowest twentieth of probes and the most of the quickest."""
    ordered = sorted(probes_ns)
    return ordered[int(_LATE * len(ordered))], ordered[int(_QUIET * len(ordered))]
