from libc.stdint cimport uint64_t

cdef class Digests:
    cdef Py_buffer *_buffers
    cdef Py_ssize_t _count
    cdef Py_ssize_t _slots
    cdef uint64_t _key

    cpdef uint64_t row(self, Py_ssize_t slot) except? 0
    cpdef uint64_t more(self, uint64_t before, object data) except? 0
    cdef uint64_t _strided(self, uint64_t before, const Py_buffer *buffer) except? 0

cdef class Recent:
    cdef readonly Py_ssize_t capacity
    cdef Py_ssize_t _mask
    cdef Py_ssize_t _count
    cdef uint64_t *_young
    cdef uint64_t *_old

    cdef Py_ssize_t _place(self, const uint64_t *table, uint64_t digest) noexcept nogil
    cpdef bint holds(self, uint64_t digest)
    cpdef bint add(self, uint64_t digest)
    cpdef clear(self)
