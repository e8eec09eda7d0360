"""The progress bar of a measurement.  Imported only when one is shown: rich is slow to import."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Iterable, Iterator
from typing import IO

from rich.console import Console, RenderableType
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as RichProgress
from rich.text import Text

from clover.profiling.estimate import TimeLeft
from clover.profiling.options import Progress
from clover.telemetry import logs
from clover.telemetry.logs import WriterHandler

_BAR_COLUMNS = 24


class MeasureBar(RichProgress):
    """A bar with a line above it that says what is being done; both fit 80 columns."""

    what = ""

    def get_renderables(self) -> Iterable[RenderableType]:
        """Yield the line and the bar."""
        yield Text(self.what, no_wrap=True, overflow="ellipsis")
        yield from super().get_renderables()


@contextlib.contextmanager
def _logging_through(stream: IO[str], before: IO[str]) -> Iterator[None]:
    """Let log handlers that write to `before` write to `stream` while the body runs."""
    handlers = [one for one in logging.getLogger().handlers if isinstance(one, logging.StreamHandler)]
    moved = [handler for handler in handlers if handler.stream is before]
    writers = [one for one in logging.getLogger().handlers if isinstance(one, WriterHandler)]
    logs.flush()
    for handler in moved:
        handler.setStream(stream)
    for writer in writers:
        writer.instead = stream
    try:
        yield
    finally:
        for handler in moved:
            handler.setStream(before)
        for writer in writers:
            writer.instead = None


@contextlib.contextmanager
def shown(family: str, console: Console) -> Iterator[Progress]:
    """Show a bar on `console` while the body runs; yield the function that takes each report of progress."""
    time_left = TimeLeft()
    columns = (BarColumn(_BAR_COLUMNS), TimeElapsedColumn(), TextColumn("{task.description}"))
    stderr = sys.stderr
    # While a bar is shown, sys.stderr prints above it: a log line must not break into the bar's own.
    with MeasureBar(*columns, console=console, transient=True) as bar, _logging_through(sys.stderr, stderr):
        task = bar.add_task("", total=None)

        def show(what: str, done: int, total: int) -> None:
            bar.what = f"measuring {family}: {what}"
            bar.update(task, description=time_left.text(done, total), completed=done, total=total)

        yield show
