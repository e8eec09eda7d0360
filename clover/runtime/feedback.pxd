cimport cython
from libc.stdint cimport int64_t

cdef class Feedback:
    cdef public list right
    cdef public list labelled
    cdef public int64_t remembered
    cdef object _output
    cdef public int64_t _rows
    cdef int64_t _lanes
    cdef readonly dict _known

    cpdef remember_row(self, str request_id, int64_t lane, object said)
    cpdef remember(self, str request_id, list lanes, list said)
    @cython.locals(known=dict)
    cdef _enter(self, str request_id, object answered, Py_ssize_t rows)
    @cython.locals(known=dict)
    cdef _forget(self, int64_t most)

cdef Py_ssize_t _rows_of(object answered) except -1
