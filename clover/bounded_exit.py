"""The end of a process that does not wait for a thread which hangs in a call, of a driver say, for ever."""

from __future__ import annotations

import os
import threading

EXIT_S = 5.0
"""Seconds that the interpreter may take to end: mostly milliseconds."""


def bound_exit(code: int) -> None:
    """Have this process end with `code` within `EXIT_S` seconds from now on, whatever its end waits for."""

    def end() -> None:
        threading.Event().wait(EXIT_S)
        os._exit(code)

    threading.Thread(target=end, name="clover-exit", daemon=True).start()
