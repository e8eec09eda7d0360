from libc.stdint cimport int64_t

from clover.runtime.router.lanes cimport Lanes
from clover.runtime.router.relief cimport Relief
from clover.runtime.router.traffic cimport Traffic

cdef class Reliefs:
    cdef public object standby
    cdef public int64_t rows
    cdef Relief _relief
    cdef object _batcher
    cdef Lanes _lanes
    cdef object _retry
    cdef Traffic _traffic

    cpdef bint turn(self, int64_t now_ns) except -1
