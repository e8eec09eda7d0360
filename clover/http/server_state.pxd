cimport cython
from libc.stdint cimport int64_t, uint64_t

from clover._native.wire cimport sealed, unsealed
from clover.http.heads cimport Heads
from clover.http.held cimport RefusalBudget

cdef class RequestIds:
    cdef bytes _prefix
    cdef uint64_t _low
    cdef uint64_t _high
    cdef int64_t _number

    cpdef int64_t take(self) except -1
    cpdef bytes text(self, int64_t number)

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

    cpdef record_answer(self, int status)

cdef class ConnectionBase:
    cdef public ServerState state
    cdef public bint control
    cdef public bint loopback
    cdef public str peer
    cdef public str client
    cdef public int64_t number

    cpdef on_reply(self)
    cpdef bint is_last(self, object exchange) except -1
    cpdef flush(self)

cdef class ServerState:
    cdef list _buffers
    cdef list _dirty
    cdef object _postponed
    cdef bint _scheduled
    cdef bint _working
    cdef public bint access_log
    cdef public bint draining
    cdef public Heads heads
    cdef public RequestIds ids
    cdef public object limits
    cdef public object loop
    cdef public Py_ssize_t pipelined
    cdef public bytearray scratch
    cdef public object scratch_view
    cdef public RefusalBudget refusals
    cdef public HttpStats stats
    cdef public object tracer
    cdef public Py_ssize_t turn_bytes
    cdef public Py_ssize_t turn_limit

    cpdef mark(self, ConnectionBase connection)
    @cython.locals(connection=ConnectionBase)
    cpdef flush(self)
