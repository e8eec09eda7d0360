from libc.stdint cimport int64_t

cdef class ClientGroups:
    cdef readonly list recent
    cdef int64_t _rows
    cdef readonly object _groups
    cdef str _last_client
    cdef Py_ssize_t _last_group

    cpdef Py_ssize_t sent(self, str client) except -1
    cpdef Py_ssize_t group_of(self, str client) except -1
