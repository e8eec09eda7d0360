"""Doorbells and completions by `os` and `select`."""

from __future__ import annotations

import contextlib
import errno
import os
import select

DOORBELL, CONTROL = 1, 2


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


def wait(doorbell: int, control: int) -> int:
    """Wait until one of both is readable or at its end; return which as bits, with the doorbell's bytes read."""
    poller = select.poll()
    poller.register(doorbell, select.POLLIN)
    poller.register(control, select.POLLIN)
    came = 0
    for fd, event in poller.poll():
        if event & select.POLLNVAL:
            raise OSError(errno.EBADF, "a descriptor is not open")
        came |= DOORBELL if fd == doorbell else CONTROL
    if came & DOORBELL:
        with contextlib.suppress(BlockingIOError):
            os.read(doorbell, 4096)
    return came
