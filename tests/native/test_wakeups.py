"""Doorbells, completions and waiting for them: the twin, then the kernel."""

from __future__ import annotations

import errno
import os
import select
import signal
import socket
import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

NO_DESCRIPTOR = (1 << 31) - 1
"""More than a process can have, and not one that was closed, whose number another thread may have got by now."""


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    read, write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    yield read, write
    os.close(read)
    os.close(write)


def test_a_ring_is_one_byte(kernels: SimpleNamespace, pipe: tuple[int, int]) -> None:
    assert kernels.wakeups.ring_bell(pipe[1]) is True
    assert kernels.wakeups.ring_bell(pipe[1]) is True
    assert len(os.read(pipe[0], 64)) == 2


def test_a_bell_that_was_rung_often_enough_takes_no_more_and_nobody_waits(
    kernels: SimpleNamespace, pipe: tuple[int, int]
) -> None:
    while kernels.wakeups.ring_bell(pipe[1]):
        pass
    assert kernels.wakeups.ring_bell(pipe[1]) is False
    os.read(pipe[0], 1 << 20)
    assert kernels.wakeups.ring_bell(pipe[1]) is True


def test_a_bell_without_a_reader_takes_nothing_and_raises_no_signal(kernels: SimpleNamespace) -> None:
    read, write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    os.close(read)
    try:
        assert kernels.wakeups.ring_bell(write) is False
    finally:
        os.close(write)


def test_a_bell_that_is_no_descriptor_is_an_error(kernels: SimpleNamespace) -> None:
    with pytest.raises(OSError) as caught:
        kernels.wakeups.ring_bell(NO_DESCRIPTOR)
    assert caught.value.errno == errno.EBADF


def test_signals_add_up(kernels: SimpleNamespace) -> None:
    fd = os.eventfd(0, os.EFD_NONBLOCK)
    try:
        for _ in range(3):
            kernels.wakeups.signal(fd)
        assert os.eventfd_read(fd) == 3
        os.eventfd_write(fd, (1 << 64) - 2)
        with pytest.raises(BlockingIOError):
            kernels.wakeups.signal(fd)
    finally:
        os.close(fd)


def test_events_are_taken_once_each_and_at_most_64_at_a_time(kernels: SimpleNamespace) -> None:
    watched = [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(70)]
    with select.epoll() as epoll:
        try:
            for fd in watched:
                epoll.register(fd, select.EPOLLIN | select.EPOLLET)
            assert kernels.wakeups.take_events(epoll.fileno()) == 0
            for fd in watched:
                kernels.wakeups.signal(fd)
            assert kernels.wakeups.take_events(epoll.fileno()) == 64
            assert kernels.wakeups.take_events(epoll.fileno()) == 6
            assert kernels.wakeups.take_events(epoll.fileno()) == 0
            kernels.wakeups.signal(watched[0])  # it was never read
            assert kernels.wakeups.take_events(epoll.fileno()) == 1
        finally:
            for fd in watched:
                os.close(fd)


def test_events_of_a_descriptor_that_is_none_or_another_are_an_error(
    kernels: SimpleNamespace, pipe: tuple[int, int]
) -> None:
    for fd in (-1, pipe[0]):
        with pytest.raises(OSError):
            kernels.wakeups.take_events(fd)


def test_a_wait_ends_by_the_bell_and_takes_what_rang(kernels: SimpleNamespace, pipe: tuple[int, int]) -> None:
    here, there = socket.socketpair()
    with here, there:
        for _ in range(5):
            kernels.wakeups.ring_bell(pipe[1])
        assert kernels.wakeups.wait(pipe[0], here.fileno()) == kernels.wakeups.DOORBELL
        with pytest.raises(BlockingIOError):
            os.read(pipe[0], 1)


def test_a_wait_ends_by_the_socket_whose_data_stays(kernels: SimpleNamespace, pipe: tuple[int, int]) -> None:
    here, there = socket.socketpair()
    with here, there:
        there.send(b"frame")
        assert kernels.wakeups.wait(pipe[0], here.fileno()) == kernels.wakeups.CONTROL
        assert here.recv(16) == b"frame"
        there.close()
        assert kernels.wakeups.wait(pipe[0], here.fileno()) == kernels.wakeups.CONTROL, "its end counts as well"


def test_a_wait_reports_both(kernels: SimpleNamespace, pipe: tuple[int, int]) -> None:
    here, there = socket.socketpair()
    with here, there:
        there.send(b"frame")
        kernels.wakeups.ring_bell(pipe[1])
        both = kernels.wakeups.DOORBELL | kernels.wakeups.CONTROL
        assert kernels.wakeups.wait(pipe[0], here.fileno()) == both


def test_a_wait_ends_by_the_end_of_a_batch_whose_count_is_read(kernels: SimpleNamespace, pipe: tuple[int, int]) -> None:
    here, there = socket.socketpair()
    ended = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
    try:
        with here, there:
            for _ in range(2):
                kernels.wakeups.signal(ended)
            assert kernels.wakeups.wait(pipe[0], here.fileno(), ended) == kernels.wakeups.ENDED
            with pytest.raises(BlockingIOError):
                os.eventfd_read(ended)
            there.send(b"frame")
            kernels.wakeups.ring_bell(pipe[1])
            kernels.wakeups.signal(ended)
            every = kernels.wakeups.DOORBELL | kernels.wakeups.CONTROL | kernels.wakeups.ENDED
            assert kernels.wakeups.wait(pipe[0], here.fileno(), ended) == every
    finally:
        os.close(ended)


def test_other_threads_run_while_one_waits(kernels: SimpleNamespace, pipe: tuple[int, int]) -> None:
    here, there = socket.socketpair()
    with here, there:
        other = threading.Thread(target=lambda: kernels.wakeups.ring_bell(pipe[1]))
        other.start()
        assert kernels.wakeups.wait(pipe[0], here.fileno()) == kernels.wakeups.DOORBELL
        other.join()


def test_what_the_handler_of_a_signal_raises_ends_the_wait(kernels: SimpleNamespace, pipe: tuple[int, int]) -> None:
    def raises(number: int, frame: object) -> None:
        raise InterruptedError(number)

    here, there = socket.socketpair()
    before = signal.signal(signal.SIGALRM, raises)
    try:
        with here, there:
            signal.setitimer(signal.ITIMER_REAL, 0.01)
            with pytest.raises(InterruptedError):
                kernels.wakeups.wait(pipe[0], here.fileno())
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_a_signal_that_is_handled_does_not_end_the_wait(kernels: SimpleNamespace, pipe: tuple[int, int]) -> None:
    seen = []

    def rings(number: int, frame: object) -> None:
        seen.append(number)
        if len(seen) == 2:
            kernels.wakeups.ring_bell(pipe[1])

    here, there = socket.socketpair()
    before = signal.signal(signal.SIGALRM, rings)
    try:
        with here, there:
            signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)
            assert kernels.wakeups.wait(pipe[0], here.fileno()) == kernels.wakeups.DOORBELL
            assert len(seen) >= 2
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_a_signal_that_rings_and_interrupts_no_system_call_is_handled(
    kernels: SimpleNamespace, pipe: tuple[int, int]
) -> None:
    """As one that comes just before the system call: here another thread receives it."""
    seen: list[int] = []

    def send() -> None:
        time.sleep(0.02)
        signal.pthread_kill(threading.get_ident(), signal.SIGALRM)

    here, there = socket.socketpair()
    before = signal.signal(signal.SIGALRM, lambda number, frame: seen.append(number))
    rings = signal.set_wakeup_fd(pipe[1])
    late = threading.Timer(20.0, kernels.wakeups.ring_bell, [pipe[1]])
    try:
        with here, there:
            late.start()
            sender = threading.Thread(target=send)
            sender.start()
            begun_s = time.monotonic()
            assert kernels.wakeups.wait(pipe[0], here.fileno()) == kernels.wakeups.DOORBELL
            assert time.monotonic() - begun_s < 10.0
            assert seen == [signal.SIGALRM]
            sender.join()
    finally:
        late.cancel()
        signal.set_wakeup_fd(rings)
        signal.signal(signal.SIGALRM, before)


def test_a_wait_for_what_is_no_descriptor_is_an_error(kernels: SimpleNamespace, pipe: tuple[int, int]) -> None:
    here, there = socket.socketpair()
    with here, there:
        for given in ((NO_DESCRIPTOR, here.fileno()), (pipe[0], here.fileno(), NO_DESCRIPTOR)):
            with pytest.raises(OSError) as caught:
                kernels.wakeups.wait(*given)
            assert caught.value.errno == errno.EBADF
