from libc.stdint cimport int64_t, uint64_t

from clover._native.wire cimport sealed, unsealed

cdef class RequestIds:
    cdef bytes _prefix
    cdef uint64_t _low
    cdef uint64_t _high
    cdef int64_t _number

    cpdef int64_t take(self) except -1
    cpdef bytes text(self, int64_t number)
