from libc.stdint cimport uint64_t

from clover._native.inputs cimport Digests

cdef class InputDigests:
    cdef Digests _digests
    cdef object _memory
    cdef bint _some
    cdef tuple _others

    cpdef uint64_t digest(self, Py_ssize_t slot) except? 0
