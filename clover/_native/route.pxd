from libc.stdint cimport uint64_t

cdef class Quota:
    cdef int _lanes
    cdef uint64_t _all
    cdef uint64_t _shared
    cdef double[64] _share
    cdef double[64] _credit
    cdef int _choose(self, uint64_t mask) noexcept nogil
    cdef uint64_t _permitted(self, object mask) except 0
    cpdef int choose(self, object mask) except -1
