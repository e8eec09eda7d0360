"""Showing how far a measurement is: a bar on a terminal, otherwise a line now and then."""

from __future__ import annotations

import contextlib
import logging
import sys
import time
from collections.abc import Callable, Iterator

from clover.profiling.options import Progress

log = logging.getLogger("clover.profiling")

LINE_EVERY_S = 10.0
"""Seconds between lines where there is no terminal."""


class TimeLeft:
    """Estimates the seconds that are left from the steps done so far, which take about as long as each other.

    Compiling and measuring count their own steps: the estimate is of the one that is under way.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._began_s = clock()
        self._last = (0, 0)

    def left_s(self, done: int, total: int) -> float | None:
        """Return the seconds left after `done` of `total` steps; None before the first is done."""
        last_done, last_total = self._last
        if done < last_done or (done == 0 and total != last_total):
            self._began_s = self._clock()
        self._last = (done, total)
        return (self._clock() - self._began_s) / done * (total - done) if done else None

    def text(self, done: int, total: int) -> str:
        """Return "3 of 17 steps, about 25 s left"."""
        left_s = self.left_s(done, total)
        return f"{done} of {total} steps{'' if left_s is None else f', about {duration(left_s)} left'}"


def duration(seconds: float) -> str:
    """Return a rough duration: "25 s", "4 min", "1 h 20 min"."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def expected(quick: bool) -> str:
    """Return how long a measurement takes, before anything is known of the family."""
    return "about half a minute for a small family" if quick else "minutes, more for large families"


class ProgressLines:
    """Writes a line of progress every `LINE_EVERY_S` seconds at most."""

    def __init__(self, family: str, write: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._family = family
        self._write = write
        self._clock = clock
        self._time_left = TimeLeft(clock)
        self._began_s = self._written_s = clock()

    def __call__(self, what: str, done: int, total: int) -> None:
        """Note that `what` begins after `done` of `total` steps."""
        text = self._time_left.text(done, total)
        now_s = self._clock()
        if now_s - self._written_s >= LINE_EVERY_S:
            self._written_s = now_s
            self._write(f"measuring {self._family}: {text} after {duration(now_s - self._began_s)} ({what})")


@contextlib.contextmanager
def progress_bar(family: str, *, quick: bool = True) -> Iterator[Progress]:
    """Show a progress bar on standard error, or lines if that is no terminal; the caller reports to what is given."""
    if sys.stderr.isatty():
        from rich.console import Console

        from clover.profiling.bar import shown

        with shown(family, Console(stderr=True)) as show:
            yield show
        return

    def write(line: str) -> None:
        print(f"clover: {line}", file=sys.stderr, flush=True)

    write(f"measuring {family} on this machine ({expected(quick)}) ...")
    yield ProgressLines(family, write)


@contextlib.contextmanager
def progress_or_bar(family: str, progress: Progress | None) -> Iterator[Progress]:
    """Give `progress` itself, or for None a bar if standard error is a terminal, otherwise lines in the log."""
    if progress is not None:
        yield progress
    elif sys.stderr.isatty():
        with progress_bar(family) as show:
            yield show
    else:
        yield ProgressLines(family, log.info)
