cdef class Floats:
    cdef Py_buffer _buffer
    cdef float *_region
    cdef Py_ssize_t _slots
    cdef Py_ssize_t _each
    # The array that a caller passes again and again is looked at once: to look costs more than to copy a row.
    cdef object _owner
    cdef Py_buffer _given
    cdef bint _held
    cdef char *_page  # where text is made
    cdef Py_ssize_t _page_bytes

    cdef Py_ssize_t _slot(self, Py_ssize_t slot) except -1
    cdef bint _look(self, object rows) except -1
    cpdef bint put(self, list slots, object rows) except -1
    cpdef bytes text(self, list slots)
    cpdef Py_ssize_t argmax(self, Py_ssize_t slot) except -1
