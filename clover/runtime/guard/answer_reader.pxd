from clover._native.floats cimport Floats


cdef class Sayings:
    cdef Floats _floats
    cdef object _memory
    cdef object _spec
    cdef bint _classes

    cpdef of(self, Py_ssize_t slot)
