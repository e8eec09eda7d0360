from libc.stdint cimport int64_t

from clover.runtime.router.state cimport RouterState

cdef class Relief:
    cdef public bint active
    cdef public int64_t count
    cdef object _longest_wait_ns
    cdef double _capacity
    cdef int64_t _rows
    cdef int64_t _since_ns

cdef class StandbyRouting:
    cdef public object standby
    cdef public int64_t rows
    cdef RouterState _state
    cdef Relief _relief
    cdef object _retry

    cpdef bint update(self, int64_t now_ns) except -1
