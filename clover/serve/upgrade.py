"""SIGUSR2: start this server's successor from the same command line, which then takes over."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Mapping, Sequence

log = logging.getLogger("clover.serve")

TAKE_OVER = "--take-over"


def successor_command(original: Sequence[str], executable: str) -> list[str]:
    """Return the command line that this process was started with, as a successor's."""
    words = [word for word in original[1:] if word != TAKE_OVER]
    return [executable, *words, TAKE_OVER]


def start_successor(environ: Mapping[str, str]) -> None:
    """Start the successor and return at once; what becomes of it is in its own log, and in this one's.

    It is no child of this process: it outlives it, and what it uses is not this one's energy.  So a shell starts it in
    the background and ends.
    """
    command = successor_command(sys.orig_argv, sys.executable)
    log.info("SIGUSR2: starting a server that is to take over")
    try:
        subprocess.run(
            ["/bin/sh", "-c", '"$@" &', "sh", *command], env=dict(environ), check=True, timeout=10.0, close_fds=True
        )
    except (OSError, subprocess.SubprocessError) as error:
        log.error("SIGUSR2: no server could be started, this one serves on: %s", type(error).__name__)
