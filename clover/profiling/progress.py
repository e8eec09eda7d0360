"""Shows how far a measurement is: a bar on a terminal, otherwise a line now and then."""

from __future__ import annotations

import contextlib
import logging
import sys
import time
from collections.abc import Callable, Iterator

from clover.hints import duration
from clover.profiling.estimate import TimeLeft
from clover.profiling.options import Progress

log = logging.getLogger("clover.profiling")

LINE_EVERY_S = 10.0
"""Seconds between lines where there is no terminal."""


def expected_time(quick: bool, *, on_cores: bool = True) -> str:
    """Return how long a measurement takes, before anything is known of the family."""
    if not on_cores:
        return "minutes: some seconds for each variant, profile and batch size; an estimate follows the first"
    return "about a minute for a small family" if quick else "minutes, more for large families"


class ProgressLines:
    """Writes a line of progress every `LINE_EVERY_S` seconds at most."""

    def __init__(self, family: str, write: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._family = family
        self._write = write
        self._clock = clock
        self._time_left = TimeLeft(clock)
        self._began_s = self._written_s = clock()

    def __call__(self, what: str, done: int, total: int) -> None:
        """Record that `what` begins after `done` of `total` steps."""
        text = self._time_left.text(done, total)
        now_s = self._clock()
        if now_s - self._written_s >= LINE_EVERY_S:
            self._written_s = now_s
            self._write(
                f"measuring {self._family}: {text} after {duration(now_s - self._began_s, rough=True)} ({what})"
            )


@contextlib.contextmanager
def progress_bar(family: str, *, quick: bool = True) -> Iterator[Progress]:
    """Show a progress bar on standard error while the body runs, or lines if that is no terminal; yield the function
    that takes each report of progress."""
    if sys.stderr.isatty():
        from rich.console import Console

        from clover.profiling.bar import shown

        with shown(family, Console(stderr=True)) as show:
            yield show
        return

    def write(line: str) -> None:
        print(f"clover: {line}", file=sys.stderr, flush=True)

    write(f"measuring {family} on this machine ({expected_time(quick)}) ...")
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
