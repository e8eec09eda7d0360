from libc.stdint cimport int64_t

cdef class Sampler:
    cdef public int64_t rows
    cdef public int64_t taken
    cdef public object lowest
    cdef public object last
    cdef public int64_t hours
    cdef int64_t _tried
    cdef int64_t _hour
    cdef double _owed
    cdef object _phase
    cdef public double share
    cdef object _bound

    cpdef bint pick(self, int64_t now_ns) except -1
