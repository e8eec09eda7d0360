cimport cython
from libc.stdint cimport int64_t, uint64_t

cdef uint64_t _GOLDEN, _MASK

cdef class Sampler:
    cdef public int64_t rows
    cdef public int64_t taken
    cdef public object lowest
    cdef public object last
    cdef public int64_t hours
    cdef int64_t _tried
    cdef int64_t _hour
    cdef double _owed
    cdef uint64_t _phase
    cdef public double share
    cdef uint64_t _last_picked
    cdef int64_t _hour_ns
    cdef double _least
    cdef double _most

    @cython.locals(hour=int64_t)
    cpdef bint pick(self, int64_t now_ns) except -1
