cdef class Completions:
    cdef object _epoll
    cdef int _fd
    cdef object _loop
    cdef tuple _listeners
