from clover._native.floats cimport Floats


cdef class AnswerReader:
    cdef Floats _floats
    cdef object _memory
    cdef object _spec
    cdef bint _classes

    cpdef read(self, Py_ssize_t slot)
