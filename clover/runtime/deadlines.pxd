cimport cython
from libc.stdint cimport int64_t

from clover.runtime.tickets cimport Ticket

cdef class Deadlines:
    cdef readonly dict _buckets
    cdef list _heap

    @cython.locals(bucket=int64_t, distance=int64_t, coarse=int64_t, tickets=set)
    cpdef add(self, Ticket ticket, int64_t now_ns)
    @cython.locals(tickets=set)
    cpdef discard(self, Ticket ticket)
    cpdef list due(self, int64_t now_ns)
    cpdef int64_t next_ns(self)
