"""A pipe whose other end the server holds: once that end closes, the kernel ends this process."""

from __future__ import annotations

import fcntl
import os
import select
import signal

_SETSIG = 10  # fcntl.F_SETSIG is missing from Python's fcntl


def tie(lifeline: int) -> bool:
    """Have the kernel SIGKILL this process once the other end of the pipe `lifeline`, which is taken over, closes;
    return False if it has.  Code of the process cannot delay that."""
    # A passed descriptor shares its open file, and with it the one receiver of signals, so the pipe is opened anew.
    descriptor = os.open(f"/proc/self/fd/{lifeline}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    os.close(lifeline)
    fcntl.fcntl(descriptor, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(descriptor, _SETSIG, signal.SIGKILL)
    fcntl.fcntl(descriptor, fcntl.F_SETFL, fcntl.fcntl(descriptor, fcntl.F_GETFL) | os.O_ASYNC)
    poller = select.poll()
    poller.register(descriptor, 0)
    return not poller.poll(0)
