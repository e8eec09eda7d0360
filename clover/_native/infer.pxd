cdef enum:
    AXES = 8


cpdef int burden(bytes text, Py_ssize_t depth, Py_ssize_t weight) except -1
cpdef str between(bytes body, Py_ssize_t size, bytes head, bytes tail)


cdef class Plain:
    cdef bytes _name
    cdef const char* _named
    cdef Py_ssize_t _named_size
    cdef int _axes
    cdef Py_ssize_t[AXES] _shape
    cdef Py_ssize_t _each, _rows
    cdef float[::1] _out
    cdef const char* _at
    cdef const char* _end
    cdef const char* _id
    cdef Py_ssize_t _id_size, _count, _outer
    cdef bint _nested

    cpdef tuple parse(self, bytes body)
    cdef bint _document(self) noexcept nogil
    cdef bint _tensor(self) noexcept nogil
    cdef bint _read_shape(self) noexcept nogil
    cdef bint _whole(self, Py_ssize_t* value) noexcept nogil
    cdef bint _read_data(self) noexcept nogil
    cdef bint _row(self, int axis) noexcept nogil
    cdef bint _numbers(self, Py_ssize_t wanted) noexcept nogil
    cdef bint _number(self, float* value) noexcept nogil
    cdef bint _string(self, const char** text, Py_ssize_t* size) noexcept nogil
