from libc.stdint cimport int64_t

from clover.runtime.router.relief cimport Relief
from clover.runtime.router.state cimport RouterState

cdef class StandbyRouting:
    cdef public object standby
    cdef public int64_t rows
    cdef RouterState _state
    cdef Relief _relief
    cdef object _retry

    cpdef bint update(self, int64_t now_ns) except -1
