cimport cython
from libc.stdint cimport int64_t

from clover.runtime.router.tickets cimport RouterTicket

cdef class Bucket:
    cdef public int64_t number
    cdef public RouterTicket first

cdef class Deadlines:
    cdef readonly dict _buckets
    cdef list _heap
    cdef Bucket _last

    @cython.locals(bucket=int64_t, distance=int64_t, coarse=int64_t, found=Bucket, first=RouterTicket)
    cpdef add(self, RouterTicket ticket, int64_t now_ns)
    @cython.locals(bucket=Bucket, later=RouterTicket, earlier=RouterTicket)
    cpdef discard(self, RouterTicket ticket)
    @cython.locals(bucket=Bucket, ticket=RouterTicket)
    cpdef list due(self, int64_t now_ns)
    cdef Bucket _pop(self)
    cpdef int64_t next_ns(self)
