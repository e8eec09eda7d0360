cimport cython
from libc.stdint cimport int64_t

from clover.http.heads cimport Heads
from clover.http.held cimport RefusalBudget
from clover.http.ids cimport RequestIds
from clover.http.stats cimport HttpStats

cdef class ConnectionBase:
    cdef public ServerState state
    cdef public bint control
    cdef public bint loopback
    cdef public str peer
    cdef public str client
    cdef public int64_t number

    cpdef answered(self)
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
