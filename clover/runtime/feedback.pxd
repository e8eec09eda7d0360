cimport cython
from libc.stdint cimport int64_t

cdef class Feedback:
    cdef public list right
    cdef public list labelled
    cdef public int64_t remembered
    cdef object _output
    cdef public int64_t _rows
    cdef dict _known
    cdef readonly object _order
    cdef readonly int64_t _held

    @cython.locals(known=dict, before=tuple, answered=tuple, oldest=tuple)
    cpdef remember(self, str request_id, list lanes, list said)
