cimport cython
from libc.stdint cimport int64_t

cdef class Feedback:
    cdef public list right
    cdef public list labelled
    cdef public int64_t remembered
    cdef object _output
    cdef public int64_t _rows
    cdef object _known

    cpdef remember(self, str request_id, object lanes, object said)
    cdef _forget(self, str request_id)
