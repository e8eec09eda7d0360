from libc.stdint cimport int64_t

from clover.runtime.router.lanes cimport Lanes
from clover.runtime.router.state cimport RouterState
from clover.runtime.router.traffic cimport Traffic

cdef class StandbyRouting:
    cdef public object standby
    cdef public int64_t rows
    cdef object _relief
    cdef Lanes _lanes
    cdef object _retry
    cdef Traffic _traffic

    cpdef bint update(self, int64_t now_ns) except -1
