"""Ends a process although a thread may hang for ever in a call, of a driver for example."""

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
