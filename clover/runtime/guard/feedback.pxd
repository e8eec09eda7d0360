cimport cython
from libc.stdint cimport int64_t

cdef class Feedback:
    cdef public list right
    cdef public list labelled
    cdef public list expected
    cdef public int64_t remembered
    cdef public dict refused
    cdef object _labellers
    cdef dict _classes
    cdef public int64_t _rows
    cdef int64_t _lanes
    cdef readonly dict _known

    cpdef remember_row(self, int64_t number, int64_t lane, object answer)
    cpdef remember(self, int64_t number, list lanes, list answers)
    cdef _enter(self, int64_t number, object answered, Py_ssize_t rows)
    @cython.locals(known=dict)
    cdef _forget(self, int64_t most)

cdef Py_ssize_t _rows_of(object answered) except -1
