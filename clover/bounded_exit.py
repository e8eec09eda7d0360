"""The end of a process that does not wait for a thread which hangs in a call, of a driver say, for ever."""

from __future__ import annotations

import os
import threading

EXIT_S = 5.0
"""Seconds that the interpreter may take to end: mostly milliseconds."""


def bound_exit(code: int, within_s: float = EXIT_S) -> None:
    """Have this process end with `code` within `within_s` seconds from now on, whatever its end waits for."""

    def end() -> None:
        threading.Event().wait(within_s)
        os._exit(code)

    threading.Thread(target=end, name="clover-exit", daemon=True).start()
