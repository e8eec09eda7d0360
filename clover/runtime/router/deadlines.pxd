cimport cython
from libc.stdint cimport int64_t

from clover.runtime.router.tickets cimport Ticket

cdef class Bucket:
    cdef public int64_t number
    cdef public Ticket first

cdef class Deadlines:
    cdef readonly dict _buckets
    cdef list _heap
    cdef Bucket _last

    @cython.locals(bucket=int64_t, distance=int64_t, coarse=int64_t, found=Bucket, first=Ticket)
    cpdef add(self, Ticket ticket, int64_t now_ns)
    @cython.locals(bucket=Bucket, later=Ticket, earlier=Ticket)
    cpdef discard(self, Ticket ticket)
    @cython.locals(bucket=Bucket, ticket=Ticket)
    cpdef list due(self, int64_t now_ns)
    cdef Bucket _taken_off(self)
    cpdef int64_t next_ns(self)
