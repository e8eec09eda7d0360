"""The longest that a stop of the process may take, whatever hangs: a driver, a worker that no signal ends, a disk.

Every step of a stop has its own limit, but a call that never returns blocks the event loop, or a thread that the loop
waits for.  So a separate thread counts the time and ends the process.  Workers and zygote end as its pipes close.
After that only the end of the interpreter may hang (`clover.bounded_exit`).
"""

from __future__ import annotations

import faulthandler
import logging
import os
import threading
from collections.abc import Callable

from clover.telemetry import logs

log = logging.getLogger("clover.server")

STOP_S = 15.0
"""Seconds that a stop may take beyond the drain."""
GPU_STOP_S = 45.0
"""The same if there are instances of GPUs to remove."""
EXIT_CODE = 1


class StopLimit:
    """Ends this process with `EXIT_CODE`, by `end`, if `disarm` is not called in time."""

    def __init__(self, end: Callable[[int], object] = os._exit) -> None:
        self._end = end
        self._done = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self, within_s: float) -> None:
        """Expect `done` within so many seconds from now on."""
        self._thread = threading.Thread(target=self._wait, args=(within_s,), name="clover-stop", daemon=True)
        self._thread.start()

    def disarm(self) -> None:
        """Count no more: what was to stop has."""
        self._done.set()
        if self._thread is not None:
            self._thread.join()

    def _wait(self, within_s: float) -> None:
        if self._done.wait(within_s):
            return
        try:
            log.error("the stop took more than %g s, so the process exits now; the stacks of its threads:", within_s)
            for line in _stacks().splitlines():
                log.error("    %s", line)
            logs.flush()
        finally:
            self._end(EXIT_CODE)


def _stacks() -> str:
    """Return the stacks of all threads.  They go through the log, for nobody may read standard error, and writing to it
    would hang, too."""
    with open(os.memfd_create("stacks"), "w+b") as file:
        faulthandler.dump_traceback(file.fileno())
        file.seek(0)
        return file.read().decode("utf-8", "replace")
