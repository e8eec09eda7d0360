from libc.stdint cimport uint64_t


cdef class SlotAllocator:
    cdef uint64_t[::1] _words
    cdef uint64_t[::1] _some  # bit w of word w / 64: word w has a free slot
    cdef Py_ssize_t _chunks
    cdef Py_ssize_t _window
    cdef Py_ssize_t _cursor  # behind the slot of the last single row
    cdef readonly Py_ssize_t slots
    cdef readonly Py_ssize_t free

    cdef void _took(self, Py_ssize_t word) noexcept nogil
    cdef Py_ssize_t _one(self) noexcept nogil
    cdef Py_ssize_t _next(self) noexcept nogil
    cdef Py_ssize_t _run(self, Py_ssize_t count) noexcept nogil
    cpdef list take(self, Py_ssize_t count)
    cpdef give(self, Py_ssize_t slot)
