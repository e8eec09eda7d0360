"""What a command is doing, for the person who waits: on standard error, where it disturbs no output.

    with Progress("simulate", "reading profiles") as progress:
        for number, case in enumerate(cases):
            progress.note(case.name, number, len(cases))
            play(case)

A terminal shows one line that changes and goes when the command is done.  In a pipe a line is printed now and then.
"""

from __future__ import annotations

import shutil
import sys
import threading
import time
from types import TracebackType

from clover.hints import duration

_ON_TERMINAL_S = (1.5, 0.5)
"""Seconds until the line appears on a terminal, and between its changes."""
_IN_PIPE_S = (4.0, 10.0)
"""Seconds until the first line in a pipe, and between lines."""


class Progress:
    """Shows what a command does while the body of `with` runs, in a thread of its own."""

    def __init__(self, command: str, what: str) -> None:
        self._command = command
        self._began_s = time.monotonic()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._show, name="progress", daemon=True)
        self.note(what)

    def note(self, what: str, done: int = 0, total: int = 0) -> None:
        """Say that `what` begins after `done` of `total` steps; a `total` of 0 is not known."""
        self._text = f"{what} ({done} of {total} done)" if total else what

    def __enter__(self) -> Progress:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()

    def _show(self) -> None:
        on_terminal = sys.stderr.isatty()
        wait_s, every_s = _ON_TERMINAL_S if on_terminal else _IN_PIPE_S
        while not self._ended.wait(wait_s):
            line = f"clover {self._command}: {self._text}, {duration(time.monotonic() - self._began_s)}"
            if on_terminal:
                line = f"\r\033[K{line[: shutil.get_terminal_size().columns - 1]}"
            print(line, end="" if on_terminal else "\n", file=sys.stderr, flush=True)
            wait_s = every_s
        if on_terminal:
            print("\r\033[K", end="", file=sys.stderr, flush=True)
