"""Doorbells and completions by `os` and `select`."""

from __future__ import annotations

import contextlib
import errno
import os
import select

DOORBELL, CONTROL, ENDED = 1, 2, 4


def ring_bell(fd: int) -> bool:
    """Write one byte to the pipe `fd`; return whether it was taken."""
    try:
        os.write(fd, b"\1")
    except (BlockingIOError, BrokenPipeError):
        return False
    return True


def signal(eventfd: int) -> int:
    """Add 1 to the counter of `eventfd`."""
    os.eventfd_write(eventfd, 1)
    return 0


def take_events(epoll: int) -> int:
    """Take events of `epoll`, at most 64, without waiting; return how many."""
    with select.epoll.fromfd(os.dup(epoll)) as events:
        return len(events.poll(0, 64))


def wait(doorbell: int, control: int, ended: int = -1) -> int:
    """Wait until one of them is readable or at its end; return which as bits, with what rang or ended read."""
    bits = {doorbell: DOORBELL, control: CONTROL}
    if ended >= 0:
        bits[ended] = ENDED
    poller = select.poll()
    for fd in bits:
        poller.register(fd, select.POLLIN)
    came = 0
    for fd, event in poller.poll():
        if event & select.POLLNVAL:
            raise OSError(errno.EBADF, "a descriptor is not open")
        if fd != control:
            with contextlib.suppress(BlockingIOError):
                os.read(fd, 4096)
        came |= bits[fd]
    return came
