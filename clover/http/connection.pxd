cimport cython
from libc.stdint cimport int64_t

from clover._native.wire cimport cut, head_end, part
from clover.http.exchange cimport Exchange
from clover.http.heads cimport Head
from clover.http.held cimport HeldRequests
from clover.http.server_state cimport ServerState
from clover.http.inference cimport DirectReceive, InferEndpoint
from clover.http.outgoing cimport Outgoing

cdef class Incoming(Outgoing):
    cdef object _application
    cdef set _connections
    cdef bytes _tail
    cdef int _blank_lines
    cdef object _body
    cdef object _view
    cdef Py_ssize_t _filled
    cdef object _chunks
    cdef object _receiver
    cdef Exchange _current
    cdef DirectReceive _direct
    cdef bint _paused
    cdef bint _let_go
    cdef bint _late
    cdef int64_t _waited_ns
    cdef HeldRequests _coming

    cpdef get_buffer(self, Py_ssize_t sizehint)
    @cython.locals(state=ServerState)
    cpdef buffer_updated(self, Py_ssize_t nbytes)
    @cython.locals(
        state=ServerState, pos=Py_ssize_t, size=Py_ssize_t, end=Py_ssize_t, raw=bytes, head=Head, complete=bint,
        endpoint=InferEndpoint,
    )
    cpdef feed(self, bytes data)
    cdef Py_ssize_t _skip_blank(self, Py_ssize_t pos) except -1
    cdef _begin_head(self, bytes partial)
    @cython.locals(exchange=Exchange, need=Py_ssize_t)
    cdef Py_ssize_t _begin_request(self, Head head, bytes data, Py_ssize_t pos, Py_ssize_t size) except -1
    @cython.locals(head=Head, endpoint=InferEndpoint, direct=DirectReceive, have=Py_ssize_t)
    cdef _receive(self, Exchange exchange, bytes data, Py_ssize_t pos, Py_ssize_t need)
    @cython.locals(state=ServerState, size=Py_ssize_t)
    cdef bint _dispatch(self, Exchange exchange, object body) except -1
    @cython.locals(endpoint=InferEndpoint)
    cdef _take(self, Exchange exchange, object body)
    cpdef _take_late(self, Exchange exchange, object body)
    cdef tuple _feed_chunks(self, bytes data, Py_ssize_t pos)
    cdef _complete_body(self)
    @cython.locals(exchange=Exchange, direct=DirectReceive)
    cdef bint _dispatch_current(self, object body) except -1
    @cython.locals(direct=DirectReceive, filled=Py_ssize_t, begin=Py_ssize_t, need=Py_ssize_t)
    cdef _vacate(self)
    cdef _came(self)
    cpdef bint let_go(self, int64_t waited_ns, bint late) except -1
    @cython.locals(direct=DirectReceive)
    cpdef _drop_body(self)
    cdef _stall(self, bytes rest)
    @cython.locals(exchange=Exchange)
    cdef _fail(self, int status, str text)
    cpdef _resume(self)
    cpdef bint is_last(self, object exchange) except -1
