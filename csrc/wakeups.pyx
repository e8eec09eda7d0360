"""How a server and its workers wake each other: the doorbell (a pipe), the completions (eventfds, watched by one epoll
instance), and a worker that waits for its doorbell, its control socket and the end of a batch on its device.

Each of these is one or two system calls for every batch.  Through `os` and `select` they took three times as long as
the calls themselves when a request came alone and found the caches cold.
"""

from cpython.exc cimport PyErr_CheckSignals, PyErr_SetFromErrno
from libc.errno cimport EAGAIN, EBADF, EINTR, EPIPE, errno
from libc.stdint cimport uint64_t

cdef extern from "<unistd.h>" nogil:
    ssize_t c_read "read"(int fd, void *buffer, size_t size)
    ssize_t c_write "write"(int fd, const void *buffer, size_t size)

cdef extern from "<poll.h>" nogil:
    struct pollfd:
        int fd
        short events
        short revents

    int c_poll "poll"(pollfd *fds, unsigned long count, int timeout_ms)
    short POLLIN
    short POLLNVAL

cdef extern from "<sys/epoll.h>" nogil:
    struct epoll_event:
        pass

    int epoll_wait(int epoll, epoll_event *events, int most, int timeout_ms)

cdef enum:
    EVENTS = 64  # taken at once; what is left makes the descriptor readable again
    RINGS = 4096  # bytes of the doorbell, one a ring, that are read at once

DOORBELL = 1
CONTROL = 2
ENDED = 4


cpdef bint ring_bell(int fd) except -1:
    """Write one byte to the pipe `fd`, which does not block; return whether it was taken.

    False if the pipe is full, as it was rung often enough, or has no reader left.  OSError for anything else.
    """
    if c_write(fd, b"\1", 1) == 1:
        return True
    if errno == EINTR:
        return ring_bell(fd)
    if errno != EAGAIN and errno != EPIPE:
        PyErr_SetFromErrno(OSError)
    return False


cpdef int signal(int eventfd) except -1:
    """Add 1 to the counter of `eventfd`.  OSError if it takes no more, or is none."""
    cdef uint64_t one = 1
    cdef ssize_t done
    with nogil:
        done = c_write(eventfd, &one, sizeof(one))
    if done != sizeof(one):
        PyErr_SetFromErrno(OSError)
    return 0


cpdef int take_events(int epoll) except -1:
    """Take events of the descriptor `epoll`, at most 64 and without waiting; return how many.  OSError if it is no
    epoll instance."""
    cdef epoll_event events[EVENTS]
    cdef int found = epoll_wait(epoll, events, EVENTS, 0)
    if found < 0:
        if errno == EINTR:
            return take_events(epoll)
        PyErr_SetFromErrno(OSError)
    return found


cpdef int wait(int doorbell, int control, int ended=-1) except -1:
    """Wait until the pipe `doorbell`, the socket `control` or the eventfd `ended`, if there is one, is readable or at
    its end.

    Return which of them as bits (DOORBELL, CONTROL, ENDED); what rang at the doorbell and the count of `ended` have
    been read.  OSError if a descriptor is not open.  Signals are handled before it returns, and what their handlers
    raise is raised.
    """
    cdef pollfd fds[3]
    cdef char rung[RINGS]
    cdef int ready
    cdef int came = 0
    fds[0].fd, fds[0].events = doorbell, POLLIN
    fds[1].fd, fds[1].events = control, POLLIN
    fds[2].fd, fds[2].events = ended, POLLIN  # passed over if it is negative
    while True:
        with nogil:
            ready = c_poll(fds, 3, -1)
        if ready > 0:
            break
        if errno != EINTR:
            PyErr_SetFromErrno(OSError)
        PyErr_CheckSignals()
    if (fds[0].revents | fds[1].revents | fds[2].revents) & POLLNVAL:
        raise OSError(EBADF, "a descriptor to wait for is not open")
    if fds[0].revents:
        if c_read(doorbell, rung, RINGS) < 0 and errno != EAGAIN:
            PyErr_SetFromErrno(OSError)
        came |= DOORBELL
    if fds[1].revents:
        came |= CONTROL
    if fds[2].revents:
        if c_read(ended, rung, RINGS) < 0 and errno != EAGAIN:
            PyErr_SetFromErrno(OSError)
        came |= ENDED
    PyErr_CheckSignals()  # one that another thread received interrupts no `poll`, and rings (`signal.set_wakeup_fd`)
    return came
