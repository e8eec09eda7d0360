cdef class DeclaredInput:
    cdef public object index
    cdef public object spec
    cdef public object datatype
    cdef public bint is_bytes
    cdef public bint is_numeric
    cdef public list row_shape
    cdef public bint variable

    cpdef list check_shape(self, object shape, Py_ssize_t most_rows, Py_ssize_t body_bytes)
    cdef bint _within(self, list shape)
