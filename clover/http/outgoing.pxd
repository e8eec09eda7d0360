cimport cython
from libc.stdint cimport int64_t

from clover._native.wire cimport send
from clover.http.exchange cimport Exchange
from clover.http.held cimport HeldRequests
from clover.http.server_state cimport ConnectionBase, ServerState

cdef class Outgoing(ConnectionBase):
    cdef public object exchanges
    cdef public int phase
    cdef public bint closing
    cdef bint _tls
    cdef object _transport
    cdef list _out
    cdef Py_ssize_t _out_bytes
    cdef Exchange _awaited
    cdef Py_ssize_t _awaited_bytes
    cdef HeldRequests _held
    cdef Py_ssize_t _unflushed
    cdef bint _dirty
    cdef int _fd
    cdef bint _behind
    cdef bint _choked
    cdef bint _finishing
    cdef bint _lingers
    cdef double _waited_s
    cdef double _write_waited_s
    cdef int64_t _write_mark
    cdef public int64_t _sent

    @cython.locals(exchange=Exchange, reply=bytes, rest=list, part=bytes)
    cpdef on_reply(self)
    cdef bint _full(self) except -1
    cdef _emit(self)
    cdef _mark(self)
    @cython.locals(out=list, size=Py_ssize_t)
    cpdef flush(self)
    @cython.locals(sent=Py_ssize_t)
    cdef _write(self, bytes data)
    cpdef _resume(self)
    cpdef _drop_body(self)
    cdef _end(self)
