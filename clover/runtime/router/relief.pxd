from libc.stdint cimport int64_t

cdef class Relief:
    cdef public bint active
    cdef public int64_t count
    cdef object _longest_wait_ns
    cdef double _capacity
    cdef int64_t _rows
    cdef int64_t _since_ns
