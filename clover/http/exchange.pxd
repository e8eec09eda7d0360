cimport cython
from libc.stdint cimport int64_t

from clover._native.wire cimport joined
from clover.http.heads cimport Head
from clover.http.server_state cimport ConnectionBase, RequestIds, ServerState
from clover.interfaces cimport Model, Ticket

cdef bytes _GOOD
cdef list _LENGTHS
cdef Py_ssize_t _KNOWN, _JOIN_BYTES

cdef class Exchange:
    cdef public ConnectionBase connection
    cdef public int64_t flow
    cdef public Head head
    cdef public bytes reply
    cdef public list rest
    cdef public bint close
    cdef public bint interim
    cdef public bytes request_id
    cdef public int64_t number
    cdef public Model model
    cdef public Ticket ticket
    cdef public Ticket traced
    cdef public bytes traceparent
    cdef public int64_t waited_ns

    @cython.locals(connection=ConnectionBase, ids=RequestIds, made=bytes)
    cpdef bytes issue(self)
    @cython.locals(connection=ConnectionBase, request_id=bytes, state=ServerState, size=Py_ssize_t, part=bytes, start=bytes, ending=bytes, length=bytes, head=list)
    cpdef finish(self, int status, list parts, bytes fields=*, bytes kind=*)
    cpdef fail(self, int status, str text, bytes fields=*, object retry_after_s=*)
    cpdef abandon(self)
    @cython.locals(ticket=Ticket, model=Model)
    cpdef withdraw(self)
