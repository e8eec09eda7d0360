cdef class ScoreWatch:
    cdef readonly list _counts
    cdef int _in_block
    cdef object _logs
    cdef public object detector
    cdef public list seen

    cpdef bint add(self, Py_ssize_t at, Py_ssize_t group=*) except -1
