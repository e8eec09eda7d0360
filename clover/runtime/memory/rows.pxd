cimport cython
from libc.stdint cimport int64_t, uint64_t

from clover._native.floats cimport Floats
from clover._native.inputs cimport Digests

cdef class FixedRows:
    cdef public Floats floats
    cdef object _region
    cdef tuple _shape
    cdef object _dtype

    cpdef bint put(self, list slots, object rows) except -1
    @cython.locals(first=Py_ssize_t)
    cpdef get(self, list slots)

cdef class RowWeights:
    cdef readonly bint on
    cdef object _memory
    cdef Py_ssize_t _index
    cdef object _weight

    cpdef int64_t weigh(self, int64_t slot) except -1

cdef class ShapeKeys:
    cdef object _memory
    cdef list _variable
    cdef dict _keys
    cdef int64_t _last

cdef class InputDigests:
    cdef Digests _digests
    cdef object _memory
    cdef bint _some
    cdef tuple _others

    cpdef uint64_t digest(self, Py_ssize_t slot) except? 0
