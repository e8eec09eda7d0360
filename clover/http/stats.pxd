from libc.stdint cimport int64_t

cdef class HttpStats:
    cdef public int64_t open_connections
    cdef public int64_t accepted_connections
    cdef public int64_t refused_connections
    cdef public int64_t malformed
    cdef public int64_t deadlines_missed
    cdef public int64_t dropped_connections
    cdef public int64_t failed_handshakes
    cdef public int64_t held_requests
    cdef public int64_t received_bytes
    cdef public int64_t sent_bytes
    cdef int64_t _fine
    cdef dict _others

    cpdef answered(self, int status)
