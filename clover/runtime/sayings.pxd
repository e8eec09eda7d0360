cdef class Sayings:
    cdef object _memory
    cdef object _spec
    cdef bint _classes

    cpdef of(self, Py_ssize_t slot)
