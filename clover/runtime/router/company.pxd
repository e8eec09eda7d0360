cimport cython
from libc.stdint cimport int64_t

cdef int64_t _HALF_LIFE, _PAUSE_NS, _MOST

cdef class Company:
    cdef readonly int64_t here
    cdef int64_t _since_ns
    cdef int64_t _unfaded
    cdef double _came
    cdef double _spent_ns
    cdef double[::1] _came_with
    cdef double[::1] _spent_ns_with

    @cython.locals(here=int64_t)
    cpdef came(self, int64_t now_ns)
    cpdef left(self, int64_t now_ns)
    @cython.locals(here=int64_t)
    cpdef bint expected(self, int64_t now_ns) except -1
    @cython.locals(here=int64_t, spent_ns=double)
    cdef int64_t _spend(self, int64_t now_ns) except? -1
    @cython.locals(here=Py_ssize_t)
    cdef _halve(self)
