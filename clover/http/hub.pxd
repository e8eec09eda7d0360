cimport cython
from libc.stdint cimport uint64_t

from clover._native.wire cimport numbered
from clover.http.heads cimport Heads
from clover.http.stats cimport HttpStats

cdef class Writer:
    cdef public Hub hub
    cdef public bint control
    cdef public bint loopback

    cpdef answered(self)
    cpdef bint is_last(self, object exchange) except -1
    cpdef flush(self)

cdef class Hub:
    cdef list _buffers
    cdef uint64_t _counter
    cdef list _dirty
    cdef bytes _prefix
    cdef bint _scheduled
    cdef public bint access_log
    cdef public object application
    cdef public set connections
    cdef public bint draining
    cdef public Heads heads
    cdef public object limits
    cdef public object loop
    cdef public Py_ssize_t pipelined
    cdef public bytearray scratch
    cdef public object scratch_view
    cdef public HttpStats stats

    cpdef bytes next_id(self)
    cpdef mark(self, Writer connection)
    @cython.locals(connection=Writer)
    cpdef flush(self)
