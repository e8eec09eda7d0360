cpdef Py_ssize_t send(int fd, bytes data) except -1
cpdef bytes cut(bytearray page, Py_ssize_t size)
