cimport cython

from clover._native.wire cimport cut, head_end, part
from clover.http.exchange cimport Exchange
from clover.http.heads cimport Head
from clover.http.server_state cimport Hub
from clover.http.inference cimport InferEndpoint
from clover.http.outgoing cimport Outgoing

cdef class Incoming(Outgoing):
    cdef bytes _tail
    cdef int _blank_lines
    cdef object _body
    cdef object _view
    cdef Py_ssize_t _filled
    cdef object _chunks
    cdef Exchange _current
    cdef bint _paused

    cpdef get_buffer(self, Py_ssize_t sizehint)
    @cython.locals(hub=Hub)
    cpdef buffer_updated(self, Py_ssize_t nbytes)
    @cython.locals(hub=Hub, pos=Py_ssize_t, size=Py_ssize_t, end=Py_ssize_t, raw=bytes, head=Head, complete=bint)
    cpdef feed(self, bytes data)
    cdef Py_ssize_t _skip_blank(self, Py_ssize_t pos) except -1
    cdef _begin_head(self, bytes partial)
    @cython.locals(exchange=Exchange, need=Py_ssize_t)
    cdef Py_ssize_t _begin_request(self, Head head, bytes data, Py_ssize_t pos, Py_ssize_t size) except -1
    @cython.locals(head=Head, endpoint=InferEndpoint, have=Py_ssize_t)
    cdef _receive(self, Exchange exchange, bytes data, Py_ssize_t pos, Py_ssize_t need)
    @cython.locals(endpoint=InferEndpoint)
    cdef _dispatch(self, Exchange exchange, object body)
    cdef tuple _feed_chunks(self, bytes data, Py_ssize_t pos)
    cdef _complete_body(self)
    @cython.locals(exchange=Exchange)
    cdef _dispatch_current(self, object body)
    cpdef _drop_body(self)
    cdef _stall(self, bytes rest)
    @cython.locals(exchange=Exchange)
    cdef _fail(self, int status, str text)
    cpdef _resume(self)
    cpdef bint is_last(self, object exchange) except -1
