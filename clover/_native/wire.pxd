from libc.stdint cimport int64_t, uint64_t

cpdef Py_ssize_t send(int fd, bytes data) except -1
cpdef bytes part(bytes data, Py_ssize_t start, Py_ssize_t stop)
cpdef Py_ssize_t head_end(bytes data, Py_ssize_t start) except -2
cpdef tuple varying(bytes raw)
cpdef bytes cut(bytearray page, Py_ssize_t size)
cpdef bytes joined(list head, list parts)
cpdef bytes quoted(str text)
cpdef bytes receipt_line(bytes start, bytes end, double energy_j, double carbon_mg)
cpdef uint64_t siphash(uint64_t low, uint64_t high, uint64_t number) noexcept
cpdef bytes sealed(bytes prefix, uint64_t number, uint64_t low, uint64_t high)
cpdef object unsealed(bytes prefix, bytes text, uint64_t low, uint64_t high)
cpdef int64_t monotonic_ns() except? -1
