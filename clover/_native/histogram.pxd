from libc.stdint cimport int64_t, uint64_t

cdef extern from *:
    """
    typedef unsigned __int128 clover_u128;
    static inline int clover_bits(uint64_t value) { return value ? 64 - __builtin_clzll(value) : 0; }
    """
    ctypedef unsigned long long u128 "clover_u128"
    int clover_bits(uint64_t value) nogil


cdef class Histogram:
    cdef uint64_t[::1] _counts
    cdef readonly int64_t lowest
    cdef readonly int64_t highest
    cdef readonly int digits
    cdef int _unit_bits
    cdef int _sub_bits
    cdef Py_ssize_t _size
    cdef uint64_t _count
    cdef u128 _sum

    cdef void _clear(self) noexcept nogil
    cdef Py_ssize_t _index(self, uint64_t value) noexcept nogil
    cdef uint64_t _top(self, Py_ssize_t index) noexcept nogil
    cdef int _same(self, Histogram other) except -1
    cpdef int record(self, int64_t value, int64_t count=*) except -1
